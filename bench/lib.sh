# What the benchmarks share: a directory, a private sshd, one drone and a results host, clocks. Sourced, not run.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
binary=${RESULTSFS:-$here/target/release/resultsfs}
[ -x "$binary" ] || binary=$here/target/debug/resultsfs
lab=
pids=()

die() {
    echo "$0: $1" >&2
    exit 1
}

need() {
    local program
    for program in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$program" > /dev/null || die "$program is needed"
    done
}

# A journaled ext4 on a loop image where that can be had (root), so that figures don't depend on what /tmp is.
make_lab() {
    lab=$(mktemp -d "${TMPDIR:-/tmp}/resultsfs-bench-XXXXXX")
    trap end_lab EXIT
    trap 'exit 130' INT TERM
    mkdir "$lab/disk"
    if [ "$(id -u)" = 0 ] && truncate -s "${DISK:-24G}" "$lab/image" && mkfs.ext4 -q -F "$lab/image" &&
        mount -o loop "$lab/image" "$lab/disk"; then
        echo "# disk: journaled ext4 on a loop image"
    else
        echo "# disk: $(stat -f -c %T "$lab") as it is"
    fi
    echo "# binary: $("$binary" --version), $(basename "$(dirname "$binary")"); $(nproc) CPUs, Linux $(uname -r)"
}

end_lab() {
    cd /
    # The drone first: its daemon still wants to speak to the store.
    ! mountpoint -q "$lab/disk/tree" 2> /dev/null ||
        timeout 60 "$binary" --quiet --config "$lab/drone.ini" umount "$lab/disk/tree" || umount -l "$lab/disk/tree"
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2> /dev/null && wait "$pid" 2> /dev/null
    done
    # Killed processes take their time, and their open files with them.
    await eval '! mountpoint -q "$lab/disk" || umount "$lab/disk"'
    mountpoint -q "$lab/disk" || rm -rf "$lab"
    # This script leaves its own group last.
    [ -z "${cgroup:-}" ] || { echo $$ > "$(dirname "$cgroup")/cgroup.procs" && rmdir "$cgroup"; } 2> /dev/null
}

# Waits up to 30 s.
await() {
    local end=$((SECONDS + 30))
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "not within 30 s: $*"
        sleep 0.05
    done
}

# A real sshd on a loopback port; `ssh` then is "${ssh[@]}".
start_sshd() {
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    ssh-keygen -q -t ed25519 -N '' -f "$lab/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$lab/id"
    cp "$lab/id.pub" "$lab/authorized_keys"
    echo "results $(cat "$lab/host_key.pub")" > "$lab/known_hosts"
    cat > "$lab/sshd_config" << CONFIG
ListenAddress 127.0.0.1
Port $port
HostKey $lab/host_key
AuthorizedKeysFile $lab/authorized_keys
StrictModes no
UsePAM no
PidFile none
CONFIG
    cat > "$lab/ssh_config" << CONFIG
Host results
  HostName 127.0.0.1
  Port $port
  HostKeyAlias results
  IdentityFile $lab/id
  IdentitiesOnly yes
  UserKnownHostsFile $lab/known_hosts
  BatchMode yes
CONFIG
    [ "$(id -u)" != 0 ] || mkdir -p /run/sshd
    "$(PATH=$PATH:/usr/sbin:/sbin command -v sshd)" -D -f "$lab/sshd_config" -E "$lab/sshd.log" &
    pids+=($!)
    ssh=(ssh -F "$lab/ssh_config")
    await "${ssh[@]}" results true
}

write_configs() {
    # The lab's generator ends its jobs with the parser.
    local common="settle_seconds: 3600
complete_on: parser
live_seconds: 0
keep_local_hours: 1000"
    cat > "$lab/results.ini" << CONFIG
[SCHEDULER]
drones: drone
results_host: results

[RESULTSFS]
host_name: results
state_dir: $lab/disk/results
store_dir: $lab/disk/store
serve_socket: $lab/serve.sock
$common
CONFIG
    cat > "$lab/drone.ini" << CONFIG
[SCHEDULER]
drones: drone
results_host: ${1:-results}

[RESULTSFS]
host_name: drone
state_dir: $lab/disk/drone
serve_socket: $lab/none.sock
ssh_command: ${ssh[*]:-ssh}
remote_command: $binary --config $lab/results.ini
$common
CONFIG
}

start_serve() {
    "$binary" --quiet --config "$lab/results.ini" serve 2> "$lab/serve.log" &
    pids+=($!)
    await test -S "$lab/serve.sock"
}

drone() {
    "$binary" --quiet --config "$lab/drone.ini" "$@"
}

mount_drone() {
    mkdir -p "$lab/disk/tree"
    drone mount "$lab/drone.ini" "$lab/disk/tree" || die "no mount; see $lab"
}

umount_drone() {
    drone umount "$lab/disk/tree"
}

# Everything started from here on is counted: CPU seconds of all processes together, of those that are still running, too.
start_cpu_count() {
    cgroup=
    local top
    for top in /sys/fs/cgroup/cpuacct /sys/fs/cgroup; do
        if [ -w "$top/cgroup.procs" ] && mkdir "$top/resultsfs-bench-$$" 2> /dev/null; then
            cgroup=$top/resultsfs-bench-$$
            echo $$ > "$cgroup/cgroup.procs" || { rmdir "$cgroup"; cgroup=; }
            return
        fi
    done
}

cpu_seconds() {
    if [ -r "$cgroup/cpuacct.usage" ]; then
        awk '{ printf "%.2f\n", $1 / 1e9 }' "$cgroup/cpuacct.usage"
    elif [ -r "$cgroup/cpu.stat" ]; then
        awk '/^usage_usec/ { printf "%.2f\n", $2 / 1e6 }' "$cgroup/cpu.stat"
    else
        echo 0
    fi
}

now() {
    date +%s.%N
}

calc() {
    awk "BEGIN { printf \"%.${2:-2}f\", $1 }"
}
