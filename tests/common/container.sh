# Sourced by tests that need a whole machine with a real systemd: a container that boots from a throw-away overlay of this machine's own root.
#
# Needs root, systemd-nspawn and /dev/fuse. One line a check, `ok` or `FAIL`. Every step has a bound. Only the container that the script has started is
# ended. Who sources it sets `name` and calls `need_container`.

mount_unit=usr-local-autotest-results.mount
tree=/usr/local/autotest/results
passed=0
failed=0
work=
nspawn=
leader=

need_container() {
    local program
    [ "$(id -u)" = 0 ] || skip "root is needed"
    for program in systemd-nspawn nsenter findmnt mkfs.ext4 "$@"; do
        command -v "$program" > /dev/null || skip "$program is needed"
    done
    [ -e /dev/fuse ] || skip "/dev/fuse is needed"
    trap cleanup EXIT
    trap 'exit 130' INT TERM
}

skip() {
    echo "SKIP $name: $1"
    echo "0 passed, 0 failed"
    exit 0
}

# check WHAT COMMAND...: the command's output is shown only when it fails.
check() {
    local what=$1 said
    shift
    if said=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "ok   $what"
    else
        failed=$((failed + 1))
        echo "FAIL $what"
        # shellcheck disable=SC2001
        sed 's/^/     | /' <<< "$said" | tail -n 40
    fi
}

# within SECONDS COMMAND...: waits until the command succeeds.
within() {
    local end=$((SECONDS + $1))
    shift
    # Not in a subshell: the command may set what comes after.
    until "$@" > "$work/said" 2>&1; do
        [ $SECONDS -lt $end ] || ! cat "$work/said" || return
        sleep 0.1
    done
}

inside() {
    timeout -k 5 150 nsenter -t "$leader" -a -- "$@"
}

make_root() {
    work=$(mktemp -d /tmp/resultsfs-systemd-XXXXXX) || return
    # A device node of its own: the container may change its mode. A disk of its own for spool and store: not on the overlay.
    mkdir "$work/t" && mount -t tmpfs -o size=2g tmpfs "$work/t" &&
        mkdir "$work/t/upper" "$work/t/work" "$work/t/root" "$work/t/state" &&
        mount -t overlay overlay -o "lowerdir=/,upperdir=$work/t/upper,workdir=$work/t/work" "$work/t/root" &&
        mknod -m 666 "$work/t/fuse" c 10 229 &&
        truncate -s 1G "$work/t/disk" && mkfs.ext4 -q -F "$work/t/disk" && mount -o loop "$work/t/disk" "$work/t/state" &&
        strip_root "$work/t/root"
}

# Only systemd, its bus and what the test brings: none of this machine's own services.
strip_root() {
    local root=$1
    # Another machine, and not at its first boot, which would enable everything.
    tr -d - < /proc/sys/kernel/random/uuid > "$root/etc/machine-id"
    echo resultstest > "$root/etc/hostname"
    rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/*.requires
    : > "$root/etc/fstab"
    ln -sfn /dev/null "$root/etc/systemd/system/getty.target"
    mkdir -p "$root$tree" "$root/etc/autotest" "$root/var/lib/resultsfs"
    write_config "results_host: dumpster"
}

boot() {
    # File handles, which systemd-nspawn denies, are what a mount is taken over by.
    systemd-nspawn -q -D "$work/t/root" --register=no --keep-unit --link-journal=no --private-network --boot \
        --system-call-filter=open_by_handle_at --machine=resultstest --console=pipe --bind="$work/t/fuse:/dev/fuse" --bind="$work/t/state:/var/lib/resultsfs" \
        systemd.unit=multi-user.target < /dev/null > "$work/console" 2>&1 &
    nspawn=$!
    within 30 find_leader && within 30 inside systemctl show -p Version && within 60 booted
}

write_config() {
    cat > "$work/t/root/etc/autotest/global_config.ini" << CONFIG
[SCHEDULER]
drones: localhost
$1

[RESULTSFS]
settle_seconds: 1
CONFIG
}

gone() {
    ! inside findmnt $tree
}

inactive() {
    [ "$(inside systemctl is-active "$1")" = inactive ]
}

status_has() {
    local said
    said=$(inside resultsfs status --json)
    grep -F "$1" <<< "$said" || { echo "$said" | cut -c1-300 && false; }
}

ended_well() {
    [ "$1" = 0 ] || { cat "$2"; return 1; }
}

came_back() {
    inside systemctl -q is-active resultsfs.service && [ "$(inside systemctl show -P MainPID resultsfs.service)" != "$1" ]
}

find_leader() {
    # Not the helper that it forks first.
    leader=$(pgrep -P "$nspawn" -x systemd)
    [ -n "$leader" ]
}

booted() {
    case $(inside systemctl is-system-running) in
        running | degraded) true ;;
        *) false ;;
    esac
}

power_off() {
    kill -s RTMIN+4 "$leader"
    within 60 sh -c "! kill -0 $nspawn"
    local ended=$?
    [ $ended != 0 ] || nspawn=
    return $ended
}

cleanup() {
    if [ -n "$nspawn" ]; then
        kill -TERM "$nspawn" 2> /dev/null
        within 10 sh -c "! kill -0 $nspawn" > /dev/null || kill -KILL "$nspawn"
        wait "$nspawn" 2> /dev/null
    fi
    [ -n "$work" ] || return
    [ "$failed" = 0 ] || { echo "the container's console:"; tail -n 15 "$work/console"; }
    mountpoint -q "$work/t/state" && umount "$work/t/state"
    mountpoint -q "$work/t/root" && umount "$work/t/root"
    ! mountpoint -q "$work/t" || umount "$work/t" && rm -rf "$work"
}
