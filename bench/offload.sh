#!/bin/bash
# Offload against rsync run job by job: the same jobs, the same sshd, in one run.
#
#   bench/offload.sh [JOBS]        default: 200, about 15 MB each. SCALE=0.1 for smaller ones, AGAIN=50 to repeat only so many,
#                                  CORPUS=DIR for jobs that are there, RESULTSFS=binary
#
# cold:   nothing is at the other side yet.  again: the same jobs under other ids.
# resultsfs: from `offload`, the corpus being synced in the spool, to everything committed, which is fsynced at the store.
# rsync: -a --delete, a process and a connection a job as Autotest does it, but one connection instead of its two to four, links kept,
# and nothing fsynced.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
jobs=${1:-200}
again=${AGAIN:-$jobs}
scale=${SCALE:-1.0}
generator=${GEN:-$here/../shared/tools/gen.py}

main() {
    need ssh-keygen sshd rsync python3 ss
    make_lab
    start_cpu_count
    start_sshd
    write_configs
    generate
    start_serve
    mount_drone
    measure "rsync cold" rsync_jobs 0 "$jobs"
    fill 0 "$jobs"
    measure "resultsfs cold" offload
    everything_is_committed "$jobs"
    measure "rsync again" rsync_jobs 100000 "$again"
    fill 100000 "$again"
    measure "resultsfs again" offload
    everything_is_committed $((jobs + again))
    report
    at_rest
}

# From the lab's generator where that is at hand, otherwise the program's own.
generate() {
    corpus=${CORPUS:-$lab/disk/corpus}
    local from=$corpus
    if [ -z "${CORPUS:-}" ] && [ -f "$generator" ]; then
        from=$(basename "$generator")
        python3 "$generator" gen --out "$corpus" --jobs "$jobs" --seed 1 --scale "$scale" > /dev/null
    elif [ -z "${CORPUS:-}" ]; then
        from="resultsfs generate"
        "$binary" --quiet generate "$corpus" --jobs "$jobs" --seed 1 --scale "$scale"
    fi
    bytes=$(du -sb --apparent-size "$corpus" | cut -f1)
    echo "# corpus: $(each_job | wc -l) jobs, $(calc "$bytes / 1e6" 0) MB, $(find "$corpus" -type f | wc -l) files, by $from"
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
    mkdir -p "$lab/disk/rsync"
    while read -r job; do
        rsync -a --delete -e "${ssh[*]}" "$corpus/$job/" "results:$lab/disk/rsync/$(renamed "$job" "$1")/" < /dev/null
    done < <(each_job | head -n "$2")
}

# Not measured: jobs are written by the tests that make them. What rsync has brought makes room.
fill() {
    local job
    rm -rf "$lab/disk/rsync"
    while read -r job; do
        cp -a "$corpus/$job" "$lab/disk/tree/$(renamed "$job" "$1")"
    done < <(each_job | head -n "$2")
    sync -f "$lab/disk"
}

offload() {
    drone offload --wait --timeout 3600
}

# A figure of an offload that had nothing to do would be a good one.
everything_is_committed() {
    local committed running
    committed=$(drone --json status | grep -o '"committed":[0-9]*' | head -n 1)
    running=$(drone --json status | grep -o '"running":[0-9]*' | head -n 1)
    [ "${running#*:}" = 0 ] && [ "${committed#*:}" -ge "$1" ] || die "of $1 jobs: $committed, $running"
}

measure() {
    local name=$1 began ended cpu wire
    shift
    began=$(now) cpu=$(cpu_seconds) wire=$(ssh_bytes)
    "$@"
    ended=$(now)
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

# What the store takes, and how long it takes to check.
at_rest() {
    local began
    echo "# store: $(calc "$(du -sb --apparent-size "$lab/disk/store" | cut -f1) / 1e6" 1) MB," \
        "$(find "$lab/disk/store" | wc -l) inodes"
    began=$(now)
    "$binary" --quiet --config "$lab/results.ini" verify --read-data > "$lab/verify.log" || die "verify: $(cat "$lab/verify.log")"
    echo "# verify --read-data: $(calc "$(now) - $began") s"
    if command -v b3sum > /dev/null; then
        began=$(now)
        b3sum "$lab"/disk/store/packs/* > /dev/null
        echo "# b3sum of the packs: $(calc "$(now) - $began") s"
    fi
}

main
