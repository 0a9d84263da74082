#!/bin/bash
# Autotest's hosts on one machine, each with /usr/local/autotest and a sshd of its own: the results host, where the scheduler runs, a drone, and a host
# that is tested, in a network and with mounts that nobody else sees: `autotest.sh DIR DRONE RESULTS SCHEDULER…`
#
#   DIR        a directory for what this needs, with site/, what the site adds to Autotest, and packages/, what Python 2 lacks for it
#   DRONE      the drone's results, RESULTS those of the results host
#   SCHEDULER  what to run on the results host
#
# AUTOTEST_CHECKOUT isn't written to, and AUTOTEST_PYTHON is what Autotest's programs name: /usr/bin/python.
set -eu
case $1 in
inside | sshd) role=$1 && shift ;;
*) exec unshare --net --mount "$0" inside "$@" ;;
esac
dir=$1 drone=$2 results=$3
shift 3

# A host's own mounts: Autotest with these results; on the host that is tested, only a place for its client.
become() {
    mount -t tmpfs tmpfs "$dir/over"
    mkdir -p "$dir"/over/{bin,local/autotest,new,work}
    ln -s "$AUTOTEST_PYTHON" "$dir/over/bin/python"
    mount -t overlay overlay -o "lowerdir=$dir/over/bin:/usr/bin" /usr/bin
    mount -t overlay overlay -o "lowerdir=$dir/over/local:/usr/local" /usr/local
    mount -t overlay overlay -o "lowerdir=$dir/site:$AUTOTEST_CHECKOUT,upperdir=$dir/over/new,workdir=$dir/over/work" /usr/local/autotest
    case $1 in
    host1) mount -t tmpfs tmpfs /usr/local/autotest ;;
    *) mount --bind "$2" /usr/local/autotest/results ;;
    esac
}

if [ "$role" = sshd ]; then
    become "$1" "$2"
    exec /usr/sbin/sshd -D -e -f "$dir/sshd_config" -o "ListenAddress=$3"
fi

# All that is left in this network goes with it: a mount that somebody holds can't be unmounted.
end() {
    for process in /proc/[0-9]*; do
        if [ "${process#/proc/}" != $$ ] && [ "$process/ns/net" -ef /proc/self/ns/net ]; then
            kill -9 "${process#/proc/}" || true
        fi
    done
} 2>/dev/null
trap end EXIT

ip link set lo up
mkdir -p "$dir"/{over,tmp}
[ -e "$dir/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$dir/key"
printf '127.0.0.%s\n' '1 localhost' '2 dumpster' '3 drone1' '4 host1' >"$dir/hosts"
mount --bind "$dir/hosts" /etc/hosts
printf 'IdentityFile %s\n' "$dir/key" >"$dir/ssh_config"
mount --bind "$dir/ssh_config" /etc/ssh/ssh_config
# The shell of who logs in must not put other Pythons before that one.
[ ! -e ~/.bashrc ] || mount --bind /dev/null ~/.bashrc
export PYTHONPATH=$dir/packages DJANGO_SETTINGS_MODULE=site_settings TMPDIR=$dir/tmp
environment="PYTHONPATH=$PYTHONPATH DJANGO_SETTINGS_MODULE=$DJANGO_SETTINGS_MODULE TMPDIR=$TMPDIR"
printf '%s\n' "HostKey $dir/key" "AuthorizedKeysFile $dir/key.pub" "SetEnv $environment" \
    'StrictModes no' 'PermitRootLogin yes' 'UsePAM no' 'PidFile none' >"$dir/sshd_config"
for host in "2 dumpster $results" "3 drone1 $drone" "4 host1 -"; do
    read -r number name tree <<<"$host"
    unshare --mount "$0" sshd "$dir" "$drone" "$results" "$name" "$tree" "127.0.0.$number" >"$dir/$name.log" 2>&1 &
done
become dumpster "$results"
for name in dumpster drone1 host1; do
    timeout 20 bash -c 'until ssh -n -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "$1" true; do sleep 0.1; done' - "$name" 2>/dev/null
done
"$@"
