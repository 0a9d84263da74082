#!/bin/bash
# A remote file read in order through the mount, against `ssh cat` of the same bytes over the same sshd, by turns in one run.
#
#   bench/remote.sh [MIB [ROUNDS]]       default: 1024 MiB, 3 rounds; RESULTSFS=binary
#
# One file doesn't compress, one does (a log). Both are offloaded and evicted. Each round reads each of them with nothing cached; again, as
# the kernel has kept it; and once more with the kernel's pages dropped, so that it comes from the daemon's cache on disk.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
mib=${1:-1024}
rounds=${2:-3}

main() {
    need ssh-keygen sshd ssh python3
    make_lab
    start_cpu_count
    start_sshd
    write_configs
    echo "cache_max_mib: $((4 * mib + 1024))" >> "$lab/drone.ini"
    start_serve
    mount_drone
    make_files
    umount_drone
    local round file
    for round in $(seq "$rounds"); do
        for file in noise log; do
            once ssh $file "${ssh[@]}" results cat "$lab/disk/plain/$file"
            rm -rf "$lab/disk/drone/cache"
            mount_drone
            once first $file cat "$lab/disk/tree/1-bench/host/$file"
            once again $file cat "$lab/disk/tree/1-bench/host/$file"
            echo 3 > /proc/sys/vm/drop_caches
            once dropped $file cat "$lab/disk/tree/1-bench/host/$file"
            umount_drone
            echo 3 > /proc/sys/vm/drop_caches
            once local $file cat "$lab/disk/plain/$file"
        done
    done
    mount_drone
    for file in noise log; do
        cmp "$lab/disk/plain/$file" "$lab/disk/tree/1-bench/host/$file" || die "$file differs"
    done
    report
}

make_files() {
    local host=$lab/disk/tree/1-bench/host file
    mkdir -p "$host" "$lab/disk/plain"
    head -c "${mib}M" /dev/urandom > "$lab/disk/plain/noise"
    python3 -c '
import random, sys
random.seed(1)
left, words = int(sys.argv[1]) << 20, "START GOOD FAIL kernel: INFO eth0 link up timestamp reboot dmesg oops".split()
while left > 0:
    block = "".join("%02d:%02d:%06d %s %s %d\n" % (random.randrange(24), random.randrange(60), random.randrange(10**6),
        random.choice(words), random.choice(words), random.randrange(10**9)) for _ in range(20000)).encode()[:left]
    left -= len(block)
    sys.stdout.buffer.write(block)' "$mib" > "$lab/disk/plain/log"
    cp "$lab/disk/plain/noise" "$lab/disk/plain/log" "$host/"
    for file in autoserv parser; do
        printf '1\n0\n0\n' > "$host/.${file}_execute"
    done
    drone offload --wait --timeout 3600
    drone evict "$lab/disk/tree/1-bench/host" > /dev/null
    sync -f "$lab/disk"
}

# once KIND FILE COMMAND...: seconds and CPU seconds of everything.
once() {
    local kind=$1 file=$2 began ended cpu
    shift 2
    cpu=$(cpu_seconds) began=$(now)
    "$@" > /dev/null || die "$kind $file"
    ended=$(now)
    echo "$file $kind $(calc "$ended - $began" 4) $(calc "$(cpu_seconds) - $cpu")" >> "$lab/times"
}

report() {
    python3 - "$lab/times" "$mib" << 'PYTHON'
import statistics, sys
rows, mib = {}, int(sys.argv[2])
for line in open(sys.argv[1]):
    file, kind, seconds, cpu = line.split()
    rows.setdefault((file, kind), []).append((float(seconds), float(cpu)))
print("# medians; ratio = speed / that of ssh cat, more is better")
for file in ("noise", "log"):
    base = statistics.median(s for s, _ in rows[file, "ssh"])
    for kind in ("ssh", "first", "again", "dropped", "local"):
        seconds = statistics.median(s for s, _ in rows[file, kind])
        cpu = statistics.median(c for _, c in rows[file, kind])
        print(f"{file:6} {kind:8} {seconds:8.2f} s {mib / seconds:8.0f} MiB/s {cpu:7.2f} CPU-s   ratio {base / seconds:6.2f}")
PYTHON
}

main
