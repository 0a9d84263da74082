#!/usr/bin/env python3
"""relay.py LOG COMMAND...: runs what would be ssh, hands on what goes through it, and writes a line for each frame from the drone: the number of the message,
or `block`. The shape of frames is in src/wire/frame.rs."""

import os
import subprocess
import sys
import threading

MESSAGE, HEADER = 0, 5


def exactly(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            return None
        data += piece
    return data


def main():
    log = open(sys.argv[1], "a", buffering=1)
    ssh = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE)
    # The store's side isn't looked at: ssh writes it where we would.
    threading.Thread(target=lambda: os._exit(ssh.wait()), daemon=True).start()
    while header := exactly(HEADER):
        body = exactly(int.from_bytes(header[:4], "little"))
        if body is None:
            break
        # A message is an array of its number and its fields.
        log.write(f"{body[1]}\n" if header[4] == MESSAGE else "block\n")
        ssh.stdin.write(header + body)
        ssh.stdin.flush()
    ssh.stdin.close()
    ssh.wait()


main()
