//! Who may look at what: the modes of what the daemons make, whatever the umask; and other users, on the sockets and in the tree.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::harness::{EXE, Lab, Machine, play_task, run, terminate, text, wait_for};

const BOUND: Duration = Duration::from_secs(180);
const NOBODY: u32 = 65534;

/// A child that is ended whatever happens.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            terminate(child);
        }
    }
}

/// The program, with another umask than ours.
fn with_umask(umask: &str, machine: &Machine) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "umask $0; exec \"$@\"", umask, EXE, "--config"]).arg(&machine.config);
    command.stdin(Stdio::null());
    command
}

/// Everything at or below `dir` but what is below `not`, that isn't as `docs/security.md` says.
fn lax(dir: &Path, not: &Path) -> Vec<String> {
    let entries = walkdir::WalkDir::new(dir).into_iter().filter_entry(|e| e.path() != not);
    let lax = entries.filter_map(|entry| {
        let entry = entry.expect("readable");
        let meta = entry.path().symlink_metadata().expect("is there");
        let (mode, kind) = (meta.permissions().mode() & 0o7777, meta.file_type());
        let wanted = if kind.is_dir() { 0o700 } else { 0o600 };
        (mode != wanted).then(|| format!("{} {mode:o}", entry.path().display()))
    });
    lax.collect()
}

/// The store, the state directory with journal, cache and log, and all sockets are for their owner, made with a umask that takes nothing away as with one
/// that takes everything; and in the spool's directory, which is below, files are as the jobs made them.
#[test]
fn what_the_daemons_make_is_for_their_owner_only() {
    for umask in ["000", "077"] {
        let lab = Lab::bare(BOUND);
        let results = lab.machine("results");
        let log = fs::File::create(lab.path().join("serve.log")).expect("a log");
        let serve = with_umask(umask, &results).arg("serve").stderr(log).spawn().expect("it starts");
        let _serve = Running(Some(serve));
        let socket = lab.path().join("results/serve.sock");
        wait_for("serve's socket", Duration::from_secs(20), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        let mounted = with_umask(umask, &results).arg("mount").arg(&results.mount).output().expect("it runs");
        assert!(mounted.status.success(), "{}", text(&mounted.stderr));
        let mut lab = lab;
        lab.is_mounted(&results);
        play_task(&results.mount, 1);
        results.offload();
        let unit = "hosts/host1/1-verify";
        results.run(["evict", unit]);
        fs::read(results.mount.join(unit).join(".autoserv_execute"))
            .expect("comes from the store, through the cache");
        play_task(&results.mount, 2);

        let spool = results.state.join("spool");
        let made: Vec<_> = ["host", "journal.redb", "daemon.log", "control.sock", "cache"]
            .map(|name| results.state.join(name))
            .into();
        for place in made.iter().chain([&spool, &lab.store().join("control.sock"), &socket]) {
            assert!(place.exists(), "{}", place.display());
        }
        assert_eq!(lax(&lab.store(), Path::new("")), Vec::<String>::new(), "umask {umask}");
        assert_eq!(lax(&results.state, &spool), Vec::<String>::new(), "umask {umask}");
        let socket = socket.metadata().expect("is there");
        assert!(socket.file_type().is_socket());
        assert_eq!(socket.permissions().mode() & 0o777, 0o600);
        assert_eq!(results.state.metadata().expect("is there").permissions().mode() & 0o777, 0o700);
        // Ours is the usual one, with which the task was played.
        let played = spool.join("hosts/host1/2-verify/.autoserv_execute").metadata().expect("is there");
        let reference = lab.path().join("reference");
        play_task(&reference, 2);
        let reference =
            reference.join("hosts/host1/2-verify/.autoserv_execute").metadata().expect("is there");
        assert_eq!(played.permissions().mode(), reference.permissions().mode(), "umask {umask}");
    }
}

/// A program that other users can run.
fn for_all(lab: &Lab) -> PathBuf {
    fs::set_permissions(lab.path(), fs::Permissions::from_mode(0o755)).expect("may be entered");
    let program = lab.path().join("resultsfs");
    if fs::hard_link(EXE, &program).is_err() {
        fs::copy(EXE, &program).expect("a copy");
    }
    program
}

fn as_nobody(words: &[&str]) -> Output {
    let nobody = NOBODY.to_string();
    Command::new("setpriv")
        .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
        .args(words)
        // Which `serve --stdio` wants; and it ends at once.
        .stdin(Stdio::piped())
        .current_dir("/")
        .output()
        .expect("setpriv runs")
}

/// Another user is told that he may not, and not that nothing runs; also where somebody has opened the directories and sockets to all, which the daemons
/// don't rely on.
#[test]
fn another_user_may_ask_no_daemon_and_is_told_so() {
    let mut lab = Lab::new(BOUND);
    let results = lab.machine("results");
    lab.mount(&results);
    let program = for_all(&lab);
    let config = results.config.display().to_string();
    let asks = |words: &[&str]| {
        let program = program.display().to_string();
        as_nobody(&[&[program.as_str(), "--config", &config], words].concat())
    };
    let expect = |words: &[&str], said: &str| {
        let out = asks(words);
        let all = text(&out.stderr) + &text(&out.stdout);
        assert!(!out.status.success() && all.contains(said), "{words:?}: {all}");
    };
    let commands: [&[&str]; 4] = [&["status"], &["jobs"], &["evict", "x"], &["retire", "hosts"]];
    for words in commands {
        expect(words, "only root and the user that it runs as may");
    }
    expect(&["serve", "--stdio"], "belong to another user");
    // Opened to all, and still refused by who listens.
    let socket = lab.path().join("results/serve.sock");
    for (place, mode) in [
        (results.state.clone(), 0o755),
        (results.state.join("control.sock"), 0o666),
        (lab.store(), 0o755),
        (lab.store().join("control.sock"), 0o666),
        (socket, 0o666),
    ] {
        fs::set_permissions(&place, fs::Permissions::from_mode(mode)).expect("opened");
    }
    for words in commands {
        expect(words, "only root and the user that the daemon runs as may");
    }
    for words in [&["gc"][..], &["prune", "--older-than", "1"], &["adopt", "drone9"]] {
        expect(words, "only root and the user that the daemon runs as may");
    }
    expect(&["serve", "--stdio"], "another user");
    let logs = fs::read_to_string(lab.path().join("serve.log")).expect("a log");
    assert!(
        logs.contains("refused a command from nobody") && logs.contains("refused a connection"),
        "{logs}"
    );
    assert!(results.run(["status"]).status.success());
}

/// What other users may do in the tree.
const LOOKS: &str = r#"
    cd "$1/7-me/host1" && [ "$(id -u)" = 65534 ]
    no() { if "$@" 2> /dev/null; then echo "allowed: $*" >&2; exit 1; fi; }
    [ "$(cat public)" = public ] && [ "$(stat -c %U:%a secret)" = root:600 ]
    no cat secret
    no ls closed
    no cat closed/inside
    no stat closed/inside
    [ "$(stat -c %a closed)" = 700 ]
    # Searched but not listed.
    no ls through && [ "$(cat through/known)" = known ]
    no sh -c 'echo more >> public'
    no rm -f public
    no mv public other
    no touch new
    no mkdir new
    no chmod 666 public
    no chown 65534 public
    # No right comes from a file's mode.
    [ "$(./whoami -u)" = 65534 ]
"#;

const MAKES: &str = r#"
    cd "$1/7-me/host1/open"
    umask 022; echo mine > mine; mkdir dir; echo too > dir/too; ln -s mine link; chmod 600 mine
    [ "$(stat -c %u:%g:%a mine)" = 65534:65534:600 ] && [ "$(stat -c %u dir)" = 65534 ]
    chown 0 mine 2> /dev/null && exit 1
    echo theirs | tee -a ../public 2> /dev/null > /dev/null && exit 1
    exit 0
"#;

fn looks(mount: &Path, what: &str, script: &str) {
    let out = as_nobody(&["bash", "-euc", script, "bash", &mount.display().to_string()]);
    assert!(out.status.success(), "{what}: {}{}", text(&out.stdout), text(&out.stderr));
}

/// Through the mount a user sees what modes and owners allow: on the host where a job ran, before and after its bytes have left it, and on another. What he
/// makes is his everywhere.
#[test]
fn other_users_may_do_in_the_tree_what_modes_allow() {
    let mut lab = Lab::new(BOUND);
    let (drone, other) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&drone);
    lab.mount(&other);
    for_all(&lab);
    let job = drone.mount.join("7-me/host1");
    let script = r#"
        mkdir -p "$1" && cd "$1" && umask 022
        echo public > public; echo secret > secret; chmod 600 secret
        mkdir closed through open; echo inside > closed/inside; echo known > through/known
        chmod 700 closed; chmod 711 through; chmod 777 open
        cp /usr/bin/id whoami; chmod 4755 whoami
    "#;
    run(Command::new("bash").args(["-euc", script, "bash"]).arg(&job));
    looks(&drone.mount, "while it runs", LOOKS);
    looks(&drone.mount, "while it runs", MAKES);
    for label in ["autoserv", "parser", "archiver"] {
        fs::write(job.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
    }
    drone.offload();
    looks(&drone.mount, "after it was committed", LOOKS);
    other.catch_up(&drone);
    looks(&other.mount, "on another host", LOOKS);
    let out = drone.run(["evict", "7-me/host1"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(!drone.state.join("spool/7-me/host1/secret").exists());
    looks(&drone.mount, "after its bytes have gone", LOOKS);
    for mount in [&drone.mount, &other.mount] {
        let meta = |name: &str| fs::symlink_metadata(mount.join("7-me/host1").join(name)).expect("is there");
        for name in ["open/mine", "open/dir", "open/dir/too", "open/link"] {
            assert_eq!(
                (meta(name).uid(), meta(name).gid()),
                (NOBODY, NOBODY),
                "{name} in {}",
                mount.display()
            );
        }
        assert_eq!(meta("whoami").mode() & 0o7777, 0o4755, "is carried, and without effect");
        looks(
            mount,
            "one's own",
            r#"cd "$1/7-me/host1/open"; [ "$(cat mine dir/too link)" = "mine
too
mine" ]"#,
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let line = mounts.lines().find(|l| l.contains(&mount.display().to_string())).expect("it is mounted");
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    }
}
