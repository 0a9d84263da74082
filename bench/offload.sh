#!/bin/bash
# Offload against rsync run job by job: the same jobs, the same sshd, in one run.
#
#   bench/offload.sh [JOBS]        default: 200, about 15 MB each; SCALE=0.1 for smaller ones, RESULTSFS=binary
#
# cold:   nothing is at the other side yet.  again: the same jobs under other ids.
# resultsfs: from `offload` to everything committed, which is fsynced at the store. rsync: -a --delete, a process and a connection a job as
# Autotest does it, but one connection instead of its two to four, links kept, and nothing fsynced.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
jobs=${1:-200}
scale=${SCALE:-1.0}

main() {
    need ssh-keygen sshd rsync python3
    make_lab
    start_cpu_count
    start_sshd
    write_configs
    generate
    start_serve
    mount_drone
    measure "rsync cold" rsync_jobs 0
    fill 0
    measure "resultsfs cold" offload
    measure "rsync again" rsync_jobs 100000
    fill 100000
    measure "resultsfs again" offload
    report
}

# The project's own generator, unless CORPUS names a directory of jobs (gen.py's, say).
generate() {
    corpus=${CORPUS:-$lab/disk/corpus}
    [ -n "${CORPUS:-}" ] || "$binary" generate "$corpus" --jobs "$jobs" --seed 1 --scale "$scale"
    bytes=$(du -sb --apparent-size "$corpus" | cut -f1)
    echo "# corpus: $(find "$corpus" -maxdepth 1 -mindepth 1 -type d | wc -l) jobs, $(calc "$bytes / 1e6" 0) MB," \
        "$(find "$corpus" -type f | wc -l) files, from ${CORPUS:-its own generator}"
}

each_job() {
    find "$corpus" -maxdepth 1 -mindepth 1 -type d -printf '%f\n' | sort -n
}

# 12-demo under another number.
renamed() {
    echo $((${1%%-*} + $2))-${1#*-}
}

rsync_jobs() {
    local job
    while read -r job; do
        rsync -a --delete -e "${ssh[*]}" "$corpus/$job/" "results:$lab/disk/rsync/$(renamed "$job" "$1")/" < /dev/null
    done < <(mkdir -p "$lab/disk/rsync"; each_job)
}

# Not measured: jobs are written by the tests that make them.
fill() {
    local job
    while read -r job; do
        cp -a "$corpus/$job" "$lab/disk/tree/$(renamed "$job" "$1")"
    done < <(each_job)
    sync -f "$lab/disk"
}

# The connection is closed at the end, so that its bytes are known; that takes no part in the time.
offload() {
    drone offload --wait --timeout 3600
    ended=$(now)
    umount_drone
    mount_drone
}

measure() {
    local name=$1 began cpu wire
    shift
    ended=
    began=$(now) cpu=$(cpu_seconds) wire=$(ssh_bytes)
    "$@"
    : "${ended:=$(now)}"
    rows+=("$name|$(calc "$ended - $began")|$(calc "$(cpu_seconds) - $cpu")|$(($(ssh_bytes) - wire))")
    row "${rows[-1]}"
}

row() {
    local name seconds cpu wire
    IFS='|' read -r name seconds cpu wire <<< "$1"
    printf '%-18s %9s s %9s CPU-s %14s bytes on the wire\n' "$name" "$seconds" "$cpu" "$wire"
}

rows=()

report() {
    local i a b
    echo "# resultsfs / rsync, less is better"
    for i in 0 2; do
        IFS='|' read -ra a <<< "${rows[i]}"
        IFS='|' read -ra b <<< "${rows[i + 1]}"
        printf '%-18s %9s   %9s       %14s\n' "${a[0]#rsync }" "$(calc "${b[1]} / ${a[1]}" 3)" \
            "$(calc "${b[2]} / (${a[2]} + 1e-9)" 3)" "$(calc "${b[3]} / ${a[3]}" 4)"
    done
}

main
