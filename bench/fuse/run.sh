#!/bin/bash
# The mount, and peers, against the bare file system under them, by turns in one run: each row pinned to one CPU, and free.
#
#   bench/fuse/run.sh [--rounds N] [--files N] [--groups big,small,log,parallel,tree] [--modes pinned,free] [--peers NAME,…] [--json FILE]
#   bench/fuse/run.sh --report FILE
#   bench/fuse/run.sh --counts [FILES]     requests, system calls and CPU time an operation, of the mount alone
#
# The file system is a journaled ext4 on a loop image in $TMPDIR: TMPDIR=/dev/shm keeps a slow disk out of the ratios, and makes
# them as high as they get. Peers are bindfs, fuse-overlayfs and mergerfs where they are installed, and libfuse's examples in the directory
# $LIBFUSE. RESULTSFS=binary.
set -euo pipefail
. "$(dirname "$0")/../lib.sh"
rows=$here/bench/fuse/rows.py

main() {
    if [ "${1:-}" = --report ]; then
        exec python3 "$rows" "$@"
    fi
    need python3 cc git tar rsync taskset
    [ "$(id -u)" = 0 ] || die "needs root: caches are emptied, peers mount"
    DISK=${DISK:-10G} make_lab
    mkdir "$lab/disk/tree"
    ssh=(ssh)
    write_configs localhost
    cc -O2 -pthread -o "$lab/micro" "$here/bench/fuse/micro.c"
    if [ "${1:-}" = --counts ]; then
        need strace
        taskset -c 1 "$binary" --quiet --config "$lab/drone.ini" mount "$lab/drone.ini" "$lab/disk/tree"
        taskset -c 1 python3 "$here/bench/fuse/counts.py" "$lab/drone.ini" "$lab/micro" "$lab/disk/tree" "${2:-2000}"
        return
    fi
    python3 "$rows" "$lab" "$binary" "$lab/micro" "$@"
}

main "$@"
