#!/bin/bash
# The units under a real systemd: a container boots from a throw-away overlay of this machine's own root.
#
#   tests/systemd.sh [BINARY]      default: target/debug/resultsfs
#
# At the end `N passed, N failed`. The container is tests/common/container.sh.
set -uo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
binary=${1:-$here/target/debug/resultsfs}
name=systemd
# shellcheck source=tests/common/container.sh
. "$here/tests/common/container.sh"

main() {
    need_container
    [ -x "$binary" ] || skip "no binary at $binary"
    if ! make_root; then
        check "an overlay of this machine's root can be made" false
        exit 1
    fi
    check "the script installs everything" install_it
    boot || { check "the container boots" inside systemctl list-jobs; exit 1; }
    check "the container boots" true
    check "the units are well-formed" inside systemd-analyze verify "${units[@]}"
    check "the store's daemon is sandboxed: its exposure is 2.0 at most" inside systemd-analyze security --threshold=20 resultsfs-serve.service
    check_mount
    check_offload
    check_timers
    check_failures
    check_stop
    check_elsewhere
    check_service_alone
    check_takeover
    check_killed
    check_killed_unkept
    check_broken_config
    check_next_boot
    check "the container powers off in order" power_off
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
}

units=(resultsfs.service resultsfs-serve.socket resultsfs-serve.service $mount_unit
    resultsfs-verify.service resultsfs-verify.timer resultsfs-gc.service resultsfs-gc.timer
    resultsfs-notify.service resultsfs-notify.timer resultsfs-notify@x.service)

install_it() {
    DESTDIR=$work/t/root "$here/systemd/install" "$binary" &&
        [ -x "$work/t/root/usr/bin/resultsfs" ] &&
        [ "$(readlink "$work/t/root/sbin/mount.fuse.resultsfs")" = /usr/bin/resultsfs ]
}

check_mount() {
    check "the store's socket starts" inside systemctl start resultsfs-serve.socket
    check "the mount unit starts" inside systemctl start $mount_unit
    check "the mount is of type fuse.resultsfs" inside findmnt -t fuse.resultsfs $tree
    check "mount unit and service are active" inside systemctl is-active $mount_unit resultsfs.service
    check "mount(8)'s helper finds it done" inside /sbin/mount.fuse.resultsfs /etc/autotest/global_config.ini $tree -o rw,_netdev
    check "the mount is enabled for the next boot" inside systemctl enable $mount_unit
}

check_offload() {
    check "jobs are written through the mount" inside resultsfs generate $tree --jobs 2 --scale 0.05
    check "they are offloaded to the store" inside resultsfs offload --wait --timeout 60
    check "the socket has started the store's daemon" inside systemctl is-active resultsfs-serve.service
    check "its log has fields" inside sh -c 'journalctl -o cat _SYSTEMD_UNIT=resultsfs-serve.service RESULTSFS_SOCKET=/run/resultsfs/serve.sock PRIORITY=6 | grep -q "^serving socket="'
    check "status says so" inside sh -c 'resultsfs status --json | grep -Eq "\"committed\":[1-9]"'
    check "verify finds nothing" inside resultsfs verify --read-data
    inside sh -c "cd $tree && find . -type f -exec sha256sum {} + | sort" > "$work/before"
}

same_files() {
    inside sh -c "cd $tree && find . -type f -exec sha256sum {} + | sort" | cmp - "$work/before"
}

check_timers() {
    check "the timers start" inside systemctl enable --now resultsfs-verify.timer resultsfs-gc.timer
    check "the daily check finds nothing" inside systemctl start resultsfs-verify.service
    check "it has read a part of the store" inside sh -c 'journalctl -u resultsfs-verify.service | grep -q "store: .*clean"'
    check "retention and reclaiming run" inside systemctl start resultsfs-gc.service
    check "the store's daemon has gone on" inside systemctl is-active resultsfs-serve.service
}

# What the daily check finds is told to who is in charge, and mended while the store is served.
check_failures() {
    local told=$work/t/root/root/told store=$work/t/state/store
    printf '#!/bin/sh\n{ echo "$RESULTSFS_SUBJECT"; cat; } >> /root/told\n' > "$work/t/root/usr/local/bin/tell"
    chmod 755 "$work/t/root/usr/local/bin/tell"
    inside sed -i 's|^settle_seconds|notify_command: /usr/local/bin/tell\nsettle_seconds|' /etc/autotest/global_config.ini
    check "the timer that tells starts" inside systemctl enable --now resultsfs-notify.timer
    check "there is nothing to tell" inside systemctl start resultsfs-notify.service
    check "and nothing is" test ! -e "$told"
    truncate -s -1 "$store/store.copy"
    check "the daily check finds damage" refused resultsfs-verify.service
    check "somebody is told" within 10 grep -q "resultsfs-verify.service has failed" "$told"
    check "with what was found" within 10 grep -q "header-copy-damaged" "$told"
    check "the served store is repaired" repaired
    check "its daemon has gone on" inside systemctl is-active resultsfs-serve.service
    check "the daily check finds nothing more" inside systemctl start resultsfs-verify.service
    inside sed -i '/^notify_command/d' /etc/autotest/global_config.ini
}

# fsck(8)'s 1: all was mended.
repaired() {
    inside resultsfs verify --store --repair
    [ $? = 1 ]
}

# In a place that the unit doesn't name, the store's daemon may not write, and says what to do.
check_elsewhere() {
    local drop_in=$work/t/root/etc/systemd/system/resultsfs-serve.service.d
    check "mount and store stop" inside systemctl stop $mount_unit resultsfs.service resultsfs-serve.service
    inside sed -i 's|^settle_seconds|store_dir: /srv/store\nsettle_seconds|' /etc/autotest/global_config.ini
    check "a store elsewhere is refused" refused resultsfs-serve.service
    check "its status names the setting" within 5 status_names resultsfs-serve.service "ReadWritePaths="
    mkdir -p "$drop_in" "$work/t/root/srv/store"
    printf '[Service]\nReadWritePaths=/srv/store\n' > "$drop_in/place.conf"
    inside systemctl daemon-reload
    check "with the drop-in it starts" inside systemctl restart resultsfs-serve.service
    check "and makes a store there" test -f "$work/t/root/srv/store/store"
    rm -r "$drop_in"
    inside sed -i '/^store_dir/d' /etc/autotest/global_config.ini
    inside systemctl daemon-reload
    check "the first store is served again" inside systemctl restart resultsfs-serve.service
    check "the mount starts after that" inside systemctl start $mount_unit
    check "the same files are there beside it" same_files
}

check_stop() {
    check "the mount stops" inside systemctl stop $mount_unit
    check "nothing is mounted then" within 10 gone
    check "the service ends, too, without failure" within 30 inactive resultsfs.service
    # Longer than RestartSec: this waits for something that must not happen.
    sleep 3
    check "it isn't started again" inactive resultsfs.service
    check "the mount starts again" inside systemctl start $mount_unit
    check "the same files are there" same_files
}

check_service_alone() {
    check "the service stops" inside systemctl stop resultsfs.service
    check "its mount is gone" within 10 gone
    check "the mount unit isn't failed" inactive $mount_unit
    check "the service starts alone" inside systemctl start resultsfs.service
    check "the mount unit follows" within 10 inside systemctl is-active $mount_unit
    check "a busy mount stops within its bound" stop_while_busy
    check "the service starts after that" inside systemctl start $mount_unit
    check "the same files are there after that" same_files
    check "the service restarts" inside systemctl restart resultsfs.service
    check "the mount unit stays active over the restart" inside systemctl is-active $mount_unit
    check "the same files are there after a restart" same_files
}

# P7: systemd keeps the mount. A process works in it, with its directory, files and lock, and must notice nothing.
check_takeover() {
    local before writer times round
    mkdir -p "$work/t/root/root/out"
    cp "$here/tests/lab/writer.py" "$work/t/root/root/writer.py"
    inside python3 /root/writer.py $tree/drone_tmp/writer /root/out/stop > "$work/t/root/root/out/said" 2>&1 &
    writer=$!
    within 10 test -s "$work/t/state/spool/drone_tmp/writer/log"
    check "systemd holds the mount" status_has '"held_by":"systemd"'
    times=$(inside resultsfs status --json | sed 's/.*"takeovers":\([0-9]*\).*/\1/')
    for round in 1 2 3; do
        before=$(inside systemctl show -P MainPID resultsfs.service)
        inside kill -9 "$before"
        check "after kill -9 ($round) the next daemon takes over" within 30 came_back "$before"
        check "systemctl restart ($round) takes over" inside systemctl restart resultsfs.service
    done
    check "it was taken over each time" within 10 taken_over $((times + 6))
    check "the mount unit is active all the while" inside systemctl is-active $mount_unit
    touch "$work/t/root/root/out/stop"
    # Not in the subshell of a check.
    wait $writer
    check "a writer has noticed nothing of it" ended_well $? "$work/t/root/root/out/said"
    inside rm -r $tree/drone_tmp
    check "the same files are there after the take-overs" same_files
    check "a stop unmounts" inside systemctl stop resultsfs.service
    check "nothing is mounted then" within 10 gone
    check "nothing is kept for the next start" inside systemctl start $mount_unit
    check "which is a new mount" status_has '"takeovers":0'
}

# Says the count if it is another: it was once, on a busy machine, and nobody knows yet which.
taken_over() {
    local times
    times=$(inside resultsfs status --json | sed 's/.*"takeovers":\([0-9]*\).*/\1/')
    [ "$times" -eq "$1" ] || { echo "taken over $times times" && false; }
}

# Autotest's processes have their working directory in the tree.
stop_while_busy() {
    inside sh -c "cd $tree && exec sleep 300" &
    local busy=$!
    within 5 sh -c "[ -n \"\$(pgrep -P $busy)\" ]"
    inside systemctl stop resultsfs.service
    local stopped=$?
    pkill -P $busy
    wait $busy 2> /dev/null
    [ $stopped = 0 ] && inactive resultsfs.service && within 10 gone
}

check_killed() {
    local before
    before=$(inside systemctl show -P MainPID resultsfs.service)
    check "the daemon can be killed" inside kill -9 "$before"
    check "the service comes back" within 30 came_back "$before"
    check "the mount answers again" within 10 inside stat -f $tree
    check "the same files are there after a crash" same_files
}

# Without file handles nobody can keep the mount. The next daemon takes the dead one away and mounts anew, whoever is still in it.
check_killed_unkept() {
    local before round busy drop_in=$work/t/root/etc/systemd/system/resultsfs.service.d
    mkdir -p "$drop_in"
    printf '[Service]\nSystemCallFilter=~open_by_handle_at\nSystemCallErrorNumber=EPERM\n' > "$drop_in/unkept.conf"
    inside systemctl daemon-reload
    check "the service restarts without file handles" inside systemctl restart resultsfs.service
    check "nobody holds the mount" status_has '"held_by":"none"'
    for round in 1 2 3 4 5 6; do
        before=$(inside systemctl show -P MainPID resultsfs.service)
        inside sh -c "cd $tree && exec sleep 300" &
        busy=$!
        within 5 sh -c "[ -n \"\$(pgrep -P $busy)\" ]"
        inside kill -9 "$before"
        check "after kill -9 ($round) the service comes back, unkept" within 30 came_back "$before"
        check "the mount answers again" within 10 inside stat -f $tree
        pkill -P $busy
        wait $busy 2> /dev/null
    done
    check "its log says what it found" inside sh -c 'journalctl -u resultsfs.service | grep -q "a dead mount was left here; clearing it away"'
    check "the mount unit is active again" within 10 inside systemctl is-active $mount_unit
    check "the same files are there after a new mount" same_files
    check "the mount stops, unkept" inside systemctl stop $mount_unit
    check "the service ends with it" within 30 inactive resultsfs.service
    sleep 3
    check "it isn't started again, unkept" inactive resultsfs.service
    rm -r "$drop_in"
    inside systemctl daemon-reload
    check "the mount starts again with file handles" inside systemctl start $mount_unit
    check "systemd holds it again" status_has '"held_by":"systemd"'
}

check_broken_config() {
    check "everything stops" inside systemctl stop $mount_unit resultsfs.service resultsfs-serve.service
    # As the Autotest manual prints it: indented by a blank.
    sed -i 's/^results_host/ results_host/; s/^drones/ drones/' "$work/t/root/etc/autotest/global_config.ini"
    check "a broken configuration is refused" refused resultsfs.service
    # File, line, and the mend.
    local line='global_config.ini:[0-9]+: .*sed -i'
    check "status names the file and the line" within 5 status_names resultsfs.service "$line"
    check "it is not tried again and again" inside systemctl is-failed resultsfs.service
    check "the mount unit fails with it" refused $mount_unit
    check "the store's daemon is refused, too" refused resultsfs-serve.service
    check "its status names the file and the line" within 5 status_names resultsfs-serve.service "$line"
    write_config "results_host: dumpster"
    inside systemctl reset-failed
    check "a mended one is taken" inside systemctl start $mount_unit
}

refused() {
    ! inside systemctl start "$1" && [ "$(inside systemctl is-active "$1")" != active ]
}

status_names() {
    local said
    said=$(inside systemctl status --no-pager --full -n 20 "$1")
    grep -Eq "$2" <<< "$said" || ! echo "$said"
}

check_next_boot() {
    check "the store's socket is enabled for the next boot" inside systemctl enable resultsfs-serve.socket
    check "the container powers off with the mount in use" power_off
    boot || { check "the container boots again" inside systemctl list-jobs; return; }
    check "everything is up after a boot" inside systemctl is-active resultsfs-serve.socket $mount_unit resultsfs.service
    check "the same files are there after a boot" same_files
    check "verify finds nothing after a boot" inside resultsfs verify --read-data
}

main
