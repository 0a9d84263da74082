//! Progress bars: on a terminal, for long work, and nowhere else.

use std::{fs, path::Path, process::Command, time::Duration};

use crate::harness::{EXE, Lab, Machine, run, text};

/// What a terminal shows of a command.
fn on_a_terminal(machine: &Machine, words: &str, env: &[(&str, &str)]) -> String {
    let line = format!("{EXE} --config {} {words}", machine.config.display());
    let mut script = Command::new("script");
    script.env_remove("NO_COLOR").env("TERM", "xterm").envs(env.iter().copied());
    run(script.args(["-qec", &line, "/dev/null"]))
}

/// A job with so many bytes that nothing makes smaller.
fn noise(dir: &Path, job: &str, mib: usize) {
    let at = dir.join(job).join("host1");
    fs::create_dir_all(&at).expect("a directory");
    let mut bytes = vec![0; mib << 20];
    blake3::Hasher::new().update(job.as_bytes()).finalize_xof().fill(&mut bytes);
    fs::write(at.join("noise"), bytes).expect("written");
    run(Command::new("find").arg(dir.join(job)).args(["-exec", "touch", "-d", "1 hour ago", "{}", "+"]));
}

const CYAN: &str = "\u{1b}[36m";

/// Of `import` and of `offload --wait`, which a bound on the bandwidth makes long; not with `--quiet`, not with `--json`, not into a pipe, and without
/// colours where nobody wants any.
#[test]
fn long_work_shows_a_bar_on_a_terminal_only() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let a = lab.machine_with("drone1", "bandwidth_mib_per_s: 2");
    let dir = lab.path().join("history");
    let import = |words: &str, job: &str, env: &[(&str, &str)]| {
        noise(&dir, job, 4);
        on_a_terminal(&a, &format!("{words} import {}", dir.display()), env)
    };
    let shown = import("", "1-me", &[]);
    assert!(shown.contains("of 2 units") && shown.contains("read") && shown.contains(CYAN), "{shown:?}");
    let plain = import("", "2-me", &[("NO_COLOR", "1")]);
    assert!(plain.contains("of 4 units") && !plain.contains(CYAN), "{plain:?}");
    assert_eq!(import("--quiet", "3-me", &[]), "");
    let json = import("--json", "4-me", &[]);
    assert!(json.lines().all(|line| line.starts_with('{')) && !json.contains('\u{1b}'), "{json:?}");
    noise(&dir, "5-me", 4);
    let piped = a.run(["import", &dir.display().to_string()]);
    assert!(!text(&piped.stderr).contains("of 10 units"), "{}", text(&piped.stderr));

    lab.mount(&a);
    noise(&a.mount, "6-me", 6);
    let shown = on_a_terminal(&a, "offload --wait", &[]);
    assert!(shown.contains("units, ") && shown.contains("MiB sent"), "{shown:?}");
    noise(&a.mount, "7-me", 4);
    let said = a.run(["--json", "offload", "--wait"]);
    assert_eq!((said.status.code(), text(&said.stdout)), (Some(0), String::new()), "no tick is output");
}
