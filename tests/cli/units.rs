//! What the daemon says of units, and what is done to them.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    harness::{EXE, Lab, Machine, play_task, text, wait_for},
    said::Said,
};

const BOUND: Duration = Duration::from_secs(120);
const TASK: &str = "hosts/host1/1-verify";

fn put(machine: &Machine, path: &str, content: &str) {
    let path = machine.mount.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn run(machine: &Machine, words: &[&str]) -> Said {
    machine.run(words).into()
}

/// A drone with a committed task dir.
fn with_a_committed_task(more: &str) -> (Lab, Machine) {
    let mut lab = Lab::new(BOUND);
    let drone = lab.machine_with("drone1", more);
    lab.mount(&drone);
    play_task(&drone.mount, 1);
    run(&drone, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
    (lab, drone)
}

fn state_of(machine: &Machine, unit: &str) -> Value {
    let lines = machine.json(["jobs", unit]);
    lines.into_iter().find(|l| l["unit"] == unit).map_or(Value::Null, |l| l["state"].clone())
}

/// All fields that docs/cli.md lists for `kind` are in `object`; those in braces are in the field before the brace. What comes after the first
/// semicolon is there at times.
fn has_the_documented_fields(object: &Value, kind: &str) {
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md")).expect("docs");
    let row = docs.lines().find(|l| l.starts_with(&format!("| `{kind}` |"))).expect("a row of the table");
    let fields = row.split('|').nth(3).and_then(|f| f.split(';').next()).expect("a column of fields");
    let (mut inside, mut last, mut in_note) = (None, "", false);
    for (at, word) in fields.split('`').enumerate() {
        if at % 2 == 0 {
            // Between words in backquotes: braces, parentheses, commas.
            for mark in word.chars() {
                match mark {
                    '{' => inside = Some(&object[last]),
                    '}' => inside = None,
                    '(' => in_note = true,
                    ')' => in_note = false,
                    _ => {}
                }
            }
            // After a colon there are values, up to the comma.
            in_note = (in_note || word.contains(':')) && !word.contains(',');
        } else if !in_note {
            last = word;
            assert!(inside.unwrap_or(object).get(word).is_some(), "{kind}: no `{word}` in {object}");
        }
    }
    assert!(!last.is_empty(), "{row}");
}

#[test]
fn status_has_the_documented_fields() {
    let (_lab, drone) = with_a_committed_task("");
    let said = run(&drone, &["--json", "status"]).shows(0, &[]);
    let [status] = &said.json()[..] else { panic!("one line: {}", said.out) };
    has_the_documented_fields(status, "status");
    assert_eq!((&status["host"], &status["connection"]["state"]), (&"drone1".into(), &"up".into()));
    assert!(status["units"]["committed"].as_u64() >= Some(1), "{status}");
    run(&drone, &["status"]).shows(0, &["drone1", "connected to ", "committed", "data path"]);
}

#[test]
fn jobs_lists_what_the_pattern_takes() {
    let (mut lab, drone) = with_a_committed_task("");
    put(&drone, "12-me/host1/x", "");
    put(&drone, "12-me/host2/x", "");
    let units = |pattern: &[&str]| -> Vec<String> {
        let lines = run(&drone, &[&["--json", "jobs"], pattern].concat()).shows(0, &[]).json();
        lines.iter().for_each(|l| has_the_documented_fields(l, "unit"));
        lines.iter().map(|l| l["unit"].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(units(&["12-me/host?"]), ["12-me/host1", "12-me/host2"]);
    assert_eq!(units(&["host2"]), ["12-me/host2"]);
    assert_eq!(units(&["verify"]), [TASK]);
    assert_eq!(units(&["nothing"]), Vec::<String>::new());
    assert!(units(&[]).len() >= 3);
    run(&drone, &["jobs", "host1/1"]).shows(0, &["committed", "drone1", TASK]);
    // Another host's layers are there, too.
    let other = lab.machine("drone2");
    lab.mount(&other);
    other.catch_up(&drone);
    let line = &other.json(["jobs", TASK])[0];
    assert_eq!((&line["state"], &line["host"]), (&"remote".into(), &"drone1".into()));
}

#[test]
fn explain_knows_every_kind_of_path() {
    let (_lab, drone) = with_a_committed_task("");
    put(&drone, "12-me/host1/.autoserv_execute", "1\n");
    put(&drone, "own_things/x", "");
    put(&drone, "drone_tmp/x", "");
    let explain = |path: &str| run(&drone, &["explain", path]);
    explain("12-me/host1/.autoserv_execute")
        .shows(0, &["unit: 12-me/host1\n", "state: running\n", "why: ", "next: "]);
    explain("own_things").shows(0, &["`resultsfs complete own_things`"]);
    explain("drone_tmp/x").shows(0, &["never offloaded"]);
    let keyval =
        fs::read_dir(drone.mount.join(TASK)).expect("there").flatten().next().expect("a file").path();
    let by_mount = explain(&keyval.display().to_string());
    let by_mount = by_mount.shows(0, &["state: committed\n", "seq: ", "manifest: ", "host: drone1\n"]);
    assert!(by_mount.out.contains(&format!("unit: {TASK}\n")), "{}", by_mount.out);
    let from_top = format!("{TASK}/{}", keyval.file_name().expect("a name").to_string_lossy());
    assert_eq!(explain(&from_top).out, by_mount.out);
    explain("99-nobody/host1").shows(0, &["nothing of it"]);
    explain("/etc/passwd").expect(1, &["hint: give a path in the mount"]);
    let line = run(&drone, &["--json", "explain", TASK]).json().remove(0);
    has_the_documented_fields(&line, "path");
}

/// A directory that isn't Autotest's stays here until somebody says that it is complete.
#[test]
fn an_unrecognised_directory_is_offloaded_once_complete_is_said() {
    let (_lab, drone) = with_a_committed_task("");
    put(&drone, "own_things/a/b", "content");
    run(&drone, &["complete", "own_things/a"]).expect(1, &["hint: "]);
    run(&drone, &["offload", "own_things"]).expect(1, &["belongs to no unit", "hint: "]);
    run(&drone, &["complete", "own_things"]).expect(0, &["own_things"]);
    run(&drone, &["offload", "--wait", "--timeout", "60", "own_things"]).expect(0, &[]);
    assert_eq!(state_of(&drone, "own_things"), "committed");
    run(&drone, &["verify", "--read-data"]).expect(0, &[]);
}

/// P2 **Nothing is freed early**, and what may be freed goes by itself.
#[test]
fn eviction_after_keep_local_hours_happens_by_itself() {
    let (_lab, drone) = with_a_committed_task("keep_local_hours: 0");
    let pidfile = drone.mount.join(TASK).join(".autoserv_execute");
    let in_spool = drone.state.join("spool").join(TASK).join(".autoserv_execute");
    wait_for("the eviction", Duration::from_secs(60), || state_of(&drone, TASK) == "evicted");
    assert!(!in_spool.exists());
    assert_eq!(fs::read_to_string(&pidfile).expect("readable").lines().count(), 3);
    run(&drone, &["recall", TASK]).expect(0, &["local"]);
}

/// 3: done, but for what is in use.
#[test]
fn a_unit_in_use_is_kept() {
    let (_lab, drone) = with_a_committed_task("");
    put(&drone, "12-me/host1/x", "");
    let open = fs::File::open(drone.mount.join(TASK).join(".autoserv_execute")).expect("a file");
    run(&drone, &["evict", TASK]).expect(3, &["kept", TASK]);
    run(&drone, &["evict", "12-me/host1"]).expect(3, &["kept"]);
    run(&drone, &["evict", "99-nobody"]).expect(1, &["belongs to no unit"]);
    drop(open);
    wait_for("the close", Duration::from_secs(5), || drone.status()["open_handles"] == 0);
    let line = run(&drone, &["--json", "evict", TASK]).shows(0, &[]).json().remove(0);
    assert_eq!(
        (&line["kind"], &line["unit"], &line["result"]),
        (&"progress".into(), &TASK.into(), &"evicted".into())
    );
    assert_eq!(state_of(&drone, TASK), "evicted");
    run(&drone, &["recall", TASK]).expect(0, &[]);
    assert_eq!(state_of(&drone, TASK), "committed");
}

/// P8 **Writers never wait for the network**; only who asks for the offload is told.
#[test]
fn an_offload_without_a_store_fails_in_time() {
    let mut lab = Lab::bare(BOUND);
    let drone = lab.machine("drone1");
    lab.mount(&drone);
    play_task(&drone.mount, 1);
    run(&drone, &["offload"]).expect(0, &[]);
    run(&drone, &["offload", "--wait", "--timeout", "1"])
        .expect(1, &["not committed after 1 s", TASK, "hint: "]);
    run(&drone, &["status"]).shows(0, &["NOT connected"]);
    let alone = lab.machine_with("drone2", "results_host: localhost");
    lab.mount(&alone);
    play_task(&alone.mount, 1);
    run(&alone, &["offload", "--wait"]).expect(1, &["nothing is copied"]);
    run(&alone, &["status"]).shows(0, &["nothing is copied"]);
}

/// What a script wrote just before it asked for the offload counts, whether the daemon's tasks have heard of it yet or not.
#[test]
fn an_offload_right_after_the_last_write_takes_it_along() {
    let (_lab, drone) = with_a_committed_task("");
    for id in 2..22 {
        play_task(&drone.mount, id);
        run(&drone, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
        assert_eq!(state_of(&drone, &format!("hosts/host1/{id}-verify")), "committed");
    }
}

/// A pipe that nobody reads from any more.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// Who reads what a command says may have seen enough (`| head -1`): it ends quietly, as any program would. That nobody reads its talk is no
/// reason not to do what was asked.
#[test]
fn a_reader_who_goes_away_ends_a_command_quietly() {
    let (_lab, drone) = with_a_committed_task("");
    let start = |words: &str| {
        let mut command = Command::new(EXE);
        command.arg("--config").arg(&drone.config).args(words.split(' ')).stdin(Stdio::null());
        command
    };
    for words in [
        "status",
        "--json status",
        "jobs",
        "--json jobs",
        &format!("explain {TASK}"),
        &format!("explain {TASK}/keyval --cat drone1"),
        "verify --local",
        "--json verify --local",
        "config",
        "config --explain",
        "--json config",
        &format!("--json evict {TASK}"),
    ] {
        let out = start(words).stdout(closed_pipe()).output().expect("runs");
        assert_eq!((out.status.code(), text(&out.stderr).as_str()), (Some(141), ""), "{words}");
    }
    for words in [format!("recall {TASK}"), format!("evict {TASK}")] {
        let status = start(&words).stderr(closed_pipe()).status().expect("runs");
        assert_eq!(status.code(), Some(0), "{words}");
    }
    assert_eq!(state_of(&drone, TASK), "evicted");
}
