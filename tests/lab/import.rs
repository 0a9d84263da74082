//! `import`: a results directory of an Autotest without resultsfs becomes part of the store, over a real sshd and without a mount.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use resultsfs::demo;
use serde_json::Value;

use crate::{
    harness::{EXE, Lab, Machine, Random, assert_same, picture, play_job, play_task, run, text, wait_for},
    nasty,
    overlay::{job, put},
};

/// What an import said, by kind.
struct Said {
    code: Option<i32>,
    units: BTreeMap<String, Value>,
    /// Code and path.
    findings: Vec<(String, String)>,
    summary: Value,
    stderr: String,
}

fn said(out: &std::process::Output) -> Said {
    let lines = text(&out.stdout);
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let (mut units, mut findings, mut summary) = (BTreeMap::new(), Vec::new(), Value::Null);
    let word = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    for line in lines {
        match line["kind"].as_str() {
            Some("import") => _ = units.insert(word(&line, "unit"), line),
            Some("finding") => findings.push((word(&line, "code"), word(&line, "path"))),
            _ => summary = line,
        }
    }
    findings.sort();
    Said { code: out.status.code(), units, findings, summary, stderr: text(&out.stderr) }
}

fn import(machine: &Machine, dir: &Path, more: &[&str]) -> Said {
    let dir = dir.display().to_string();
    said(&machine.run(["--json", "import", &dir].iter().chain(more)))
}

impl Said {
    fn expect(self, code: i32, imported: u64, there: u64) -> Self {
        let counts = (self.summary["imported"].as_u64(), self.summary["there"].as_u64());
        let Self { findings, stderr, .. } = &self;
        assert_eq!((self.code, counts), (Some(code), (Some(imported), Some(there))), "{findings:?} {stderr}");
        self
    }

    fn finds(&self, expected: &[(&str, &str)]) {
        let found: Vec<_> = self.findings.iter().map(|(code, path)| (&**code, &**path)).collect();
        assert_eq!(found, expected);
    }
}

/// Jobs that were played to their end without resultsfs, a special task, and a job of everything odd.
fn history(top: &Path, jobs: u32) -> PathBuf {
    let (source, dir) = (top.join("source"), top.join("history"));
    fs::create_dir_all(&dir).expect("a directory");
    for id in 2..2 + jobs {
        demo::generate::job(&source, 3, id, 0.05).expect("a job");
        let from = fs::read_dir(&source).expect("jobs").flatten().next().expect("one job").path();
        play_job(&from, &dir, id);
        fs::remove_dir_all(&from).expect("gone");
    }
    play_task(&dir, 7);
    nasty::job(&dir);
    age(&dir);
    dir
}

/// Nothing in it was written just now, whatever time it has: the odd times stay.
fn age(dir: &Path) {
    run(Command::new("find")
        .arg(dir)
        .args(["-newermt", "-2 minutes", "!", "-newermt", "+2 minutes"])
        .args(["-exec", "touch", "-h", "-d", "1 hour ago", "{}", "+"]));
}

/// Waits until what has an odd time has been quiet for `settle_seconds`: that goes by when it was made.
fn settled(machine: &Machine, dir: &Path) {
    wait_for("the tree to settle", Duration::from_secs(30), || {
        import(machine, dir, &["--dry-run"]).findings.iter().all(|(code, _)| code != "settling")
    });
}

fn commits(lab: &Lab) -> u64 {
    let said = lab.machine("results").json(["verify", "--store", "--read-data"]);
    let summary = said.iter().find(|line| line["kind"] == "summary").expect("a summary");
    assert_eq!(summary["clean"], true, "{said:?}");
    summary["records"].as_u64().expect("a number")
}

/// What an Autotest without resultsfs has left is the same on every mount once it is imported, byte for byte and time for time, and where it was
/// nothing has changed. Again, it costs a walk; what was added since is imported, and what is gone there stays in the store.
#[test]
fn a_results_directory_becomes_part_of_the_tree() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (a, b) = (lab.machine("drone1"), lab.machine("drone2"));
    lab.mount(&a);
    lab.mount(&b);
    let dir = history(lab.path(), 3);
    put(&dir, "3-debug_user/host1/.transfer_failed", "");
    age(&dir.join("3-debug_user/host1"));
    let before = picture(&dir);
    settled(&a, &dir);
    let plan = import(&a, &dir, &["--dry-run"]);
    let units = plan.summary["planned"].as_u64().expect("a number");
    assert_eq!((plan.code, plan.summary["bytes_sent"].as_u64(), commits(&lab)), (Some(0), Some(0), 0));
    let first = import(&a, &dir, &[]).expect(0, units, 0);
    assert_eq!(first.units.keys().collect::<Vec<_>>(), plan.units.keys().collect::<Vec<_>>());
    assert_eq!(first.summary["transfer_failed"], 1);
    assert_eq!(first.units["3-debug_user/host1"]["transfer_failed"], true);
    assert_same("the directory", &before, &picture(&dir));
    for machine in [&a, &b] {
        wait_for("what was imported", Duration::from_secs(30), || machine.seq() >= units);
        assert_same(&machine.name, &before, &picture(&machine.mount));
    }
    assert_eq!(commits(&lab), units);

    let second = import(&a, &dir, &[]).expect(0, 0, units);
    assert_eq!(
        (second.summary["bytes_read"].as_u64(), second.summary["bytes_sent"].as_u64()),
        (Some(0), Some(0))
    );
    fs::remove_file(a.state.join("import/imported")).expect("a hint");
    let anew = import(&a, &dir, &[]).expect(0, 0, units);
    assert!(anew.summary["bytes_read"].as_u64() > Some(0) && anew.summary["bytes_sent"] == 0);

    // Half of it is gone, and a line is new.
    let gone = dir.join("2-debug_user/host1/debug");
    fs::remove_dir_all(&gone).expect("gone");
    put(&dir, "2-debug_user/host1/keyval.new", "late=1\n");
    age(&dir.join("2-debug_user/host1"));
    let third = import(&a, &dir, &[]).expect(0, 1, units - 1);
    assert_eq!(third.units["2-debug_user/host1"]["generation"], 2);
    wait_for("the new line", Duration::from_secs(30), || b.seq() > units);
    let shown = picture(&b.mount.join("2-debug_user"));
    assert!(shown.iter().any(|line| line.contains("keyval.new")));
    let was = picture(&a.mount.join("2-debug_user/host1/debug"));
    assert!(was.len() > 3 && was == picture(&b.mount.join("2-debug_user/host1/debug")));
}

/// `kill -9` in the middle, again and again: what was committed isn't sent again, nothing is committed twice, and in the end all of it is there.
#[test]
fn an_import_that_is_killed_goes_on() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (a, b) = (lab.machine_with("drone1", "store_dir: /nowhere"), lab.machine("drone2"));
    lab.mount(&b);
    let dir = history(lab.path(), 12);
    settled(&a, &dir);
    let mut random = Random(11);
    let mut seen = Vec::new();
    for round in 0..5 {
        let mut command = Command::new(EXE);
        command.arg("--config").arg(&a.config).args(["--json", "import"]).arg(&dir);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let told: Vec<Value> = lines
            .by_ref()
            .take(1 + random.below(4) as usize)
            .map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON"))
            .collect();
        thread::sleep(Duration::from_millis(random.below(30)));
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        let imported = told.iter().filter(|line| line["result"] == "imported").count();
        seen.push(imported);
        assert!(round > 0 || imported > 0, "{told:?}");
    }
    let last = import(&a, &dir, &[]);
    let (there, units) = (last.summary["there"].as_u64(), last.summary["units"].as_u64().expect("a number"));
    assert_eq!(last.code, Some(0), "{:?} {}", last.findings, last.stderr);
    assert!(there >= Some(seen.iter().sum::<usize>() as u64), "{seen:?} were imported, {there:?} were there");
    assert_eq!(commits(&lab), units, "each unit once");
    wait_for("all of it", Duration::from_secs(30), || b.seq() >= units);
    assert_same("the mount", &picture(&dir), &picture(&b.mount));
}

/// The connection goes away in the middle and comes back: the import waits and goes on.
#[test]
fn an_import_outlives_the_stores_daemon() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let a = lab.machine_with("drone1", "store_dir: /nowhere");
    let dir = history(lab.path(), 8);
    settled(&a, &dir);
    let mut command = Command::new(EXE);
    command.arg("--config").arg(&a.config).args(["--json", "import"]).arg(&dir);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.next().is_some(), "a unit");
    lab.kill_serve();
    lab.start_serve();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let end = child.wait_with_output().expect("our own child");
    assert!(end.status.success(), "{}: {rest:?} {}", end.status, text(&end.stderr));
    let summary: Value = serde_json::from_str(rest.last().expect("a summary")).expect("JSON");
    let told = |key: &str| summary[key].as_u64().expect("a number");
    assert_eq!((told("imported"), told("failed")), (told("units"), 0));
    assert_eq!(commits(&lab), told("units"));
}

/// A drone has offloaded part of it before, and more since: what is the same is there already, what is newer shows, what was deleted stays deleted,
/// and each path that stays out is named.
#[test]
fn an_import_hides_nothing_and_brings_nothing_back() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (a, admin) = (lab.machine("drone1"), lab.machine_with_delete("admin"));
    let results = lab.machine("results");
    lab.mount(&a);
    lab.mount(&admin);
    for name in ["7-me", "8-me", "9-me"] {
        job(&a, name);
    }
    // The copy as Autotest's archiver leaves it: taken in the middle, and with what only the results host has.
    let dir = lab.path().join("history");
    fs::create_dir(&dir).expect("made");
    for name in ["7-me", "8-me", "9-me"] {
        run(Command::new("cp").arg("-a").arg(a.mount.join(name)).arg(&dir));
    }
    let at = dir.join("7-me/host1");
    let mut archiver = Command::new("true").spawn().expect("starts");
    archiver.wait().expect("our own child");
    put(&at, ".archiver_execute", &format!("{}\n", archiver.id()));
    put(&at, "job_failure", "it failed\n");
    put(&at, "keyval", "a=b\nlate=1\n");
    put(&at, "debug/client.DEBUG", "l");
    put(&dir, "8-me/host1/job_failure", "it failed\n");
    run(Command::new("touch")
        .args(["-d", "2 hours ago"])
        .args([at.join(".archiver_execute"), at.join("debug/client.DEBUG")]));
    run(Command::new("touch").args(["-d", "3 minutes ago"]).args([
        &at,
        &at.join("keyval"),
        &at.join("job_failure"),
        &at.join("debug"),
        &dir.join("8-me/host1"),
        &dir.join("8-me/host1/job_failure"),
    ]));
    admin.catch_up(&a);
    fs::remove_file(admin.mount.join("8-me/host1/keyval")).expect("deleted");
    fs::remove_dir_all(admin.mount.join("8-me/host1/debug")).expect("deleted");
    wait_for("the deletion to be committed", Duration::from_secs(60), || {
        admin.run(["complete", "8-me"]);
        admin.offload();
        let own = admin.json(["jobs", "8-me/host1"]);
        own.iter().any(|unit| unit["host"] == "admin" && unit["state"] == "committed")
    });
    let retired = admin.run(["retire", "9-me"]);
    assert!(retired.status.success(), "{}", text(&retired.stderr));

    let said = import(&results, &dir, &[]);
    said.finds(&[
        ("deleted", "8-me/host1/debug"),
        ("deleted", "8-me/host1/keyval"),
        ("older", "7-me/host1/.archiver_execute"),
        ("older", "7-me/host1/debug/client.DEBUG"),
        ("retired", "9-me"),
        ("retired", "9-me/host1"),
    ]);
    let said = said.expect(3, 2, 2);
    assert_eq!(said.units["7-me/host1"]["result"], "imported");
    let head = commits(&lab);
    wait_for("the import", Duration::from_secs(30), || a.seq() >= head && admin.seq() >= head);
    for machine in [&a, &admin] {
        let of = |path: &str| fs::read_to_string(machine.mount.join(path)).expect("shown");
        assert_eq!(of("7-me/host1/.archiver_execute"), "1\n0\n0\n");
        assert_eq!(of("7-me/host1/debug/client.DEBUG"), "log\n");
        assert_eq!(of("7-me/host1/job_failure"), "it failed\n");
        assert_eq!(of("7-me/host1/keyval"), "a=b\nlate=1\n");
        assert_eq!(of("8-me/host1/job_failure"), "it failed\n");
        assert!(!machine.mount.join("8-me/host1/keyval").exists() && !machine.mount.join("9-me").exists());
        let local = machine.run(["verify", "--local"]);
        assert_eq!(local.status.code(), Some(0), "{}", text(&local.stdout));
    }
    // It is the same again: what is new is there by now.
    let again = import(&results, &dir, &[]).expect(3, 0, 4);
    assert_eq!(again.findings, said.findings);
}

/// What runs, what was written just now and what isn't Autotest's stays out and is named; a job whose process is gone goes marked lost; what a mount
/// has isn't imported, nor what isn't a directory.
#[test]
fn only_what_is_over_is_imported() {
    let mut lab = Lab::new(Duration::from_secs(120));
    let a = lab.machine("drone1");
    lab.mount(&a);
    let dir = lab.path().join("history");
    for unit in ["1-me/running", "2-me/dead", "3-me/fresh", "default", "drone_tmp", "hosts/h/1-verify"] {
        put(&dir, &format!("{unit}/log"), "x\n");
    }
    let mut sleep = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().expect("sleeps");
    put(&dir, "1-me/running/.autoserv_execute", &format!("{}\n", sleep.id()));
    put(&dir, "2-me/dead/.autoserv_execute", "4194305\n");
    run(Command::new("find").arg(&dir).args([
        "-path",
        "*/running/*",
        "-o",
        "-exec",
        "touch",
        "-d",
        "1 hour ago",
        "{}",
        "+",
    ]));
    run(Command::new("touch").args(["-d", "30 seconds ago"]).arg(dir.join("1-me/running/log")));
    let _socket = UnixListener::bind(dir.join("2-me/dead/socket")).expect("a socket");
    run(Command::new("touch")
        .args(["-d", "1 hour ago"])
        .args([dir.join("2-me/dead"), dir.join("2-me/dead/socket")]));
    let far = std::time::SystemTime::now() + Duration::from_secs(3600);
    let fresh = lab.machine_with("drone1", "settle_seconds: 3000");
    fs::File::open(dir.join("3-me/fresh/log")).expect("a file").set_modified(far).expect("a time");

    let said = import(&fresh, &dir, &[]);
    said.finds(&[
        ("running", "1-me/running"),
        ("settling", "3-me/fresh"),
        ("special", "2-me/dead/socket"),
        ("unrecognised", "default"),
    ]);
    assert_eq!((said.code, &said.units["2-me/dead"]["lost"]), (Some(3), &Value::Bool(true)));
    assert!(!said.units.contains_key("drone_tmp"));
    assert_eq!(said.units["hosts/h/1-verify"]["result"], "imported");
    sleep.kill().and_then(|()| sleep.wait()).expect("our own child");
    // Its pidfile has just been written, and has to settle.
    let (machine, mut then) = (lab.machine("drone1"), None);
    wait_for("the pidfile to settle", Duration::from_secs(60), || {
        let said = import(&machine, &dir, &[]);
        let is_settled = said.units["1-me/running"]["result"] != "skipped";
        then = Some(said);
        is_settled
    });
    let then = then.expect("it was imported");
    assert_eq!(
        (&then.units["1-me/running"]["result"], &then.units["1-me/running"]["lost"]),
        (&"imported".into(), &true.into())
    );

    let inside = a.mount.join("2-me");
    wait_for("the import", Duration::from_secs(30), || inside.exists());
    for (place, why) in [
        (a.mount.clone(), "in a mount of resultsfs"),
        (inside, "in a mount of resultsfs"),
        (a.state.join("spool"), "spool"),
        (lab.path().to_owned(), "or holds it"),
        (dir.join("2-me/dead/log"), "not a directory"),
        (dir.join("nothing"), "No such file"),
    ] {
        let refused = import(&a, &place, &[]);
        assert!(
            refused.code == Some(1) && refused.stderr.contains(why),
            "{}: {}",
            place.display(),
            refused.stderr
        );
    }
}

/// A key that is pinned to a host is good for its import, and for no other host's. Two imports of one host at a time aren't.
#[test]
fn a_pinned_key_imports_for_its_host() {
    let mut lab = Lab::new(Duration::from_secs(120));
    let script = lab.path().join("pinned");
    let config = lab.path().join("results/global_config.ini");
    fs::write(
        &script,
        format!("#!/bin/sh\nexec {EXE} --config {} \"$@\" --drone drone1\n", config.display()),
    )
    .expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("may be run");
    let remote = format!("remote_command: {}", script.display());
    let (a, other) = (lab.machine_with("drone1", &remote), lab.machine_with("drone2", &remote));
    lab.mount(&a);
    let dir = lab.path().join("history");
    put(&dir, "1-me/host1/log", "x\n");
    age(&dir);
    import(&a, &dir, &[]).expect(0, 2, 0);
    let refused = import(&other, &dir, &[]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("this key is for the host"),
        "{}",
        refused.stderr
    );
    let shown = a.json(["jobs", "1-me/host1"]);
    assert_eq!(shown[0]["host"], "drone1+import");
    let lock = fs::File::open(a.state.join("import/lock")).expect("a lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    let second = import(&a, &dir, &[]);
    assert!(second.code == Some(1) && second.stderr.contains("another import runs"), "{}", second.stderr);
}

/// On a results host where nothing runs, by who may not read everything: the command opens the store itself; what it can't read is named, and the
/// rest of each unit is there.
#[test]
fn what_cant_be_read_is_named() {
    let mut lab = Lab::bare(Duration::from_secs(120));
    let results = lab.machine_with("results", "results_host: localhost");
    fs::set_permissions(lab.path(), fs::Permissions::from_mode(0o755)).expect("may be entered");
    let program = lab.path().join("resultsfs");
    fs::copy(EXE, &program).expect("a copy");
    fs::create_dir(lab.store()).expect("made");
    run(Command::new(EXE).args(["generate-history", "--jobs", "1", "--first", "900"]).arg(lab.store()));
    run(Command::new("chown").args(["-R", "nobody"]).arg(lab.path().join("results")));
    let dir = lab.path().join("history");
    for path in
        ["1-me/host1/log", "1-me/host1/secret", "1-me/host1/closed/in", "2-me/host1/log", "3-me/host1/log"]
    {
        put(&dir, path, path);
    }
    let deep = dir.join("1-me/host1").join(vec!["d".repeat(200); 18].join("/"));
    fs::create_dir_all(&deep).expect("directories");
    age(&dir);
    run(Command::new("python3").arg("-c").arg(BEYOND).arg(&deep));
    for path in ["1-me/host1/secret", "1-me/host1/closed", "3-me"] {
        fs::set_permissions(dir.join(path), fs::Permissions::from_mode(0o000)).expect("closed");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.arg(&program).arg("--config").arg(&results.config).args(["--json", "import"]).arg(&dir);
    let said = said(&command.output().expect("runs"));
    let codes: Vec<&str> = said.findings.iter().map(|(code, _)| &**code).collect();
    let paths: Vec<&str> = said.findings.iter().map(|(_, path)| &**path).collect();
    assert!(codes.iter().all(|code| *code == "unreadable"), "{:?}", said.findings);
    for path in ["1-me/host1/closed", "1-me/host1/secret", "3-me"] {
        assert!(paths.contains(&path), "{paths:?}");
    }
    assert!(said.findings.len() > 3, "and what is too deep: {paths:?}");
    assert_eq!((said.code, &said.summary["imported"]), (Some(3), &Value::from(4)), "{}", said.stderr);
    run(Command::new("chown").args(["-R", "root"]).arg(lab.path().join("results")));
    lab.start_serve();
    lab.start_sshd();
    let reader = lab.machine("drone1");
    lab.mount(&reader);
    wait_for("what was imported", Duration::from_secs(30), || reader.mount.join("1-me/host1/log").exists());
    assert_eq!(fs::read_to_string(reader.mount.join("1-me/host1/log")).expect("shown"), "1-me/host1/log");
    assert!(
        reader.mount.join("1-me/host1/closed").exists() && !reader.mount.join("1-me/host1/secret").exists()
    );
}

/// Makes directories one in another until no path reaches the last.
const BEYOND: &str = r#"
import os, sys
os.chdir(sys.argv[1])
for _ in range(4):
    os.mkdir("e" * 200)
    os.chdir("e" * 200)
open("bottom", "w").write("x")
os.utime("bottom", (1e9, 1e9))
for _ in range(5):
    os.utime(".", (1e9, 1e9))
    os.chdir("..")
"#;

/// A disk that fails at one file: that is named, and the rest of its unit is imported.
#[test]
fn an_io_error_is_one_files() {
    let lab = Lab::new(Duration::from_secs(120));
    let a = lab.machine("drone1");
    let dir = lab.path().join("history");
    for path in ["1-me/host1/log", "1-me/host1/broken", "2-me/host1/log"] {
        put(&dir, path, path);
    }
    age(&dir);
    let broken = dir.join("1-me/host1/broken");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(&broken);
    command.args(["-e", "trace=read", "-e", "inject=read:error=EIO"]);
    command.arg(EXE).arg("--config").arg(&a.config).args(["--json", "import"]).arg(&dir);
    let said = said(&command.output().expect("runs; tests/run installs it"));
    said.finds(&[("unreadable", "1-me/host1/broken")]);
    said.expect(3, 4, 0);
    let mended = import(&a, &dir, &[]).expect(0, 1, 3);
    assert_eq!(mended.units["1-me/host1"]["generation"], 2);
}
