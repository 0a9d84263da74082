#!/bin/bash
# The mount against the bare file system under it, by turns in one run.
#
#   bench/mount.sh [FILES [ROUNDS]]      default: 5000 files, 3 rounds; RESULTSFS=binary
#
# Prints the median seconds of each kind of work on both, and the ratio. Nothing is offloaded meanwhile (results_host: localhost).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
files=${1:-5000}
rounds=${2:-3}

main() {
    need python3
    make_lab
    ssh=(ssh)
    write_configs localhost
    mount_drone
    mkdir "$lab/disk/bare"
    local round
    for round in $(seq "$rounds"); do
        work bare "$lab/disk/bare/$round-bench/host"
        work mount "$lab/disk/tree/$round-bench/host"
    done
    python3 "$here/bench/work.py" report "$lab"/times.*
}

work() {
    mkdir -p "$2"
    sync -f "$lab/disk"
    python3 "$here/bench/work.py" run "$2" "$files" >> "$lab/times.$1"
}

main
