#!/bin/bash
# The Debian package: made, looked at by lintian, installed, upgraded under a running mount, removed and purged, by dpkg under a real systemd.
#
#   tests/package.sh [BINARY]      default: target/debug/resultsfs
#
# At the end `N passed, N failed`. The container is tests/common/container.sh.
set -uo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
binary=${1:-$here/target/debug/resultsfs}
name=package
# shellcheck source=tests/common/container.sh
. "$here/tests/common/container.sh"

main() {
    need_container dpkg-deb dpkg-shlibdeps lintian man
    [ -x "$binary" ] || skip "no binary at $binary"
    make_root || { check "an overlay of this machine's root can be made" false; exit 1; }
    check "the package is made" make_packages
    check "lintian finds no error" lint
    check "man finds no error in its pages" pages_are_good
    boot || { check "the container boots" inside systemctl list-jobs; exit 1; }
    check_install
    check_upgrade
    check_remove
    check "the container powers off in order" power_off
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
}

make_packages() {
    mkdir "$work/packages" "$work/t/root/root/packages"
    # Images for containers forbid packages to start or stop anything.
    rm -f "$work/t/root/usr/sbin/policy-rc.d"
    export DEBFULLNAME="A lab" DEBEMAIL=packages@lab.example.net PACKAGE_COMPRESSION=gzip
    for version in 1.0-1 1.0-2; do
        PACKAGE_VERSION=$version "$here/systemd/package" "$binary" "$work/packages" || return
    done
    cp "$work"/packages/*.deb "$work/t/root/root/packages"
}

lint() {
    lintian --allow-root --fail-on error "$work"/packages/resultsfs_1.0-1_*.deb
}

pages_are_good() {
    dpkg-deb -x "$work"/packages/resultsfs_1.0-1_*.deb "$work/unpacked" || return
    local page said
    for page in "$work"/unpacked/usr/share/man/man8/resultsfs*; do
        said=$(cd "$work/unpacked/usr/share/man" && MANROFFSEQ='' man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 > /dev/null)
        [ -z "$said" ] || { echo "$page: $said"; return 1; }
    done
    for page in mount.fuse.resultsfs fsck.resultsfs resultsfs-serve; do
        man -M "$work/unpacked/usr/share/man" 8 "$page" | grep -q '^NAME' || { echo "no $page"; return 1; }
    done
}

dpkg_i() {
    inside sh -c "DEBIAN_FRONTEND=noninteractive dpkg -i /root/packages/resultsfs_$1_*.deb"
}

check_install() {
    check "it is installed" dpkg_i 1.0-1
    check "nothing runs by that" inactive resultsfs.service
    check "nothing is enabled by that" sh -c "! nsenter -t $leader -a -- systemctl is-enabled resultsfs.service $mount_unit resultsfs-serve.socket | grep -x enabled"
    check "mount(8) and fsck(8) find their helpers" inside sh -c '[ -x /sbin/mount.fuse.resultsfs ] && [ -x /sbin/fsck.resultsfs ]'
    check "the example configuration is one" inside sh -c 'mkdir /root/example && cp /usr/share/doc/resultsfs/examples/global_config.ini /root/example && sed -i "s/^#\(settle_seconds\)/\1/" /root/example/global_config.ini && resultsfs --config /root/example config'
    check "bash completes commands" inside bash -c '. /usr/share/bash-completion/completions/resultsfs && COMP_WORDS=(resultsfs ver) COMP_CWORD=1 && _resultsfs resultsfs ver resultsfs && [ "${COMPREPLY[*]}" = verify ]'
    check "the store's socket starts" inside systemctl enable --now resultsfs-serve.socket
    check "the mount starts" inside systemctl enable --now $mount_unit
    check "jobs are written" inside resultsfs generate $tree --jobs 2 --scale 0.05
    check "and offloaded" inside resultsfs offload --wait --timeout 60
}

# A process works in the mount meanwhile, with its directory, files and lock, and must notice nothing.
check_upgrade() {
    local before writer
    mkdir -p "$work/t/root/root/out"
    cp "$here/tests/lab/writer.py" "$work/t/root/root/writer.py"
    inside python3 /root/writer.py $tree/drone_tmp/writer /root/out/stop > "$work/t/root/root/out/said" 2>&1 &
    writer=$!
    within 10 test -s "$work/t/state/spool/drone_tmp/writer/log"
    before=$(inside systemctl show -P MainPID resultsfs.service)
    check "it is upgraded under the mount" dpkg_i 1.0-2
    check "another daemon has the mount" within 30 came_back "$before"
    check "it was taken over" status_has '"takeovers":1'
    check "the store's daemon runs" inside systemctl is-active resultsfs-serve.socket
    check "verify finds nothing" inside resultsfs verify --read-data
    touch "$work/t/root/root/out/stop"
    # Not in the subshell of a check.
    wait $writer
    check "a writer has noticed nothing of it" ended_well $? "$work/t/root/root/out/said"
    inside rm -r $tree/drone_tmp
}

check_remove() {
    check "it is removed" inside dpkg -r resultsfs
    check "nothing is mounted then" within 10 gone
    check "no unit runs or waits" sh -c "! nsenter -t $leader -a -- systemctl list-units --no-legend 'resultsfs*' | grep -w active"
    check "it is purged, and says what stays" sh -c "nsenter -t $leader -a -- dpkg -P resultsfs 2>&1 | grep 'is kept'"
    check "the results are still there" test -n "$(ls "$work/t/state/spool" 2> /dev/null)" -a -e "$work/t/state/store/catalog"
    check "it is installed again" dpkg_i 1.0-2
    check "the mount starts again" inside systemctl start resultsfs-serve.socket $mount_unit
    check "everything is there" inside resultsfs verify --read-data
    check "the mount stops" inside systemctl stop $mount_unit
    check "nothing is mounted in the end" within 30 gone
}

main
