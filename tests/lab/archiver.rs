//! Autotest's own archiver beside resultsfs: the command lines that it runs, into the results host's mount.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use walkdir::WalkDir;

use crate::{
    harness::{Lab, Machine, assert_same, picture, text, wait_for},
    overlay::{append, commit_all, job, put, sh},
};

/// What `AbstractSSHHost.send_file(src, dst, delete_dest=True)` runs: rsync; if that fails, it clears the destination; if that succeeds, scp. The exit
/// codes are on the last line.
const ARCHIVER: &str = r#"
    options="-o StrictHostKeyChecking=no -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=300 -l root"
    rsync -L --delete --timeout=1800 --rsh="/usr/bin/ssh -a -x -F $3 $options" -az "$1/" root@dumpster:"$2"
    codes=$?
    ssh -a -x -F "$3" $options dumpster "rm -rf $2 && mkdir $2" &&
        scp -rq -F "$3" -o StrictHostKeyChecking=no "$1/"* "$1/".[!.]* "root@dumpster:\"$2\""
    echo "$codes $?""#;

/// Runs it for `dir`, from `a`'s mount into that of the results host.
fn archive(lab: &Lab, from: &Machine, to: &Machine, dir: &str) -> Output {
    let (from, to) = (from.mount.join(dir), to.mount.join(dir));
    let words = [&from, &to, &lab.path().join("ssh_config")];
    Command::new("bash").args(["-c", ARCHIVER, "archiver"]).args(words).output().expect("bash runs")
}

fn pack_bytes(lab: &Lab) -> u64 {
    let files = WalkDir::new(lab.store().join("packs")).into_iter().flatten();
    files.filter_map(|e| e.metadata().ok()).filter(|meta| meta.is_file()).map(|meta| meta.size()).sum()
}

/// As the manual has it: Autotest's own results host is the one of resultsfs.
fn as_in_the_manual(machine: &Machine) {
    let text = fs::read_to_string(&machine.config).expect("a configuration");
    let both = text.replace("results_host: localhost", "results_host: dumpster");
    fs::write(&machine.config, both).expect("a configuration");
}

fn results_of_a_test(exec: &Path) {
    put(exec, "sysinfo/uname", "Linux\n");
    put(exec, "test/sysinfo/iteration.1/df", "full\n");
    let noise: String = (0..4000).map(|i: u32| format!("{}\n", blake3::hash(&i.to_le_bytes()))).collect();
    put(exec, "debug/noise.log", &noise);
    sh(r#"cd "$1"; ln -s ../../sysinfo test/sysinfo/reboot_current; ln -s nowhere dangling"#, &[exec]);
}

fn says_so(machine: &Machine) {
    let findings = machine.json(["config"]);
    assert!(findings.iter().any(|line| line["code"] == "autotest-copies-too"), "{findings:?}");
    let status = machine.status();
    assert!(status["warnings"].to_string().contains("autotest-copies-too"), "{status}");
}

/// Autotest's own archiver beside resultsfs, by its real command lines into the results host's mount: `rsync -L --delete`, which a dangling link makes
/// fail, then `rm -rf` of the destination. Nothing of the drone's is lost or changed, also of what hasn't been offloaded yet, and nothing is
/// stored twice. `config` and `status` say that both copy.
#[test]
fn autotests_own_archiver_loses_nothing() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (a, results) = (lab.machine("drone1"), lab.machine("results"));
    as_in_the_manual(&a);
    lab.mount(&a);
    lab.mount(&results);
    says_so(&a);
    results_of_a_test(&a.mount.join("7-me/host1"));
    job(&a, "7-me");
    results.catch_up(&a);
    assert_same("the results host", &picture(&a.mount), &picture(&results.mount));
    append(&a, "7-me/host1/debug/client.DEBUG", "archiving\n");
    let (before, stored) = (picture(&a.mount), pack_bytes(&lab));

    let out = archive(&lab, &a, &results, "7-me/host1");
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    assert!(
        text(&out.stdout).ends_with("23 1\n"),
        "rsync by the dangling link, rm for want of the right: {said}"
    );
    assert_same("the drone's tree", &before, &picture(&a.mount));
    wait_for("both to have committed", Duration::from_secs(60), || {
        commit_all(&results);
        commit_all(&a);
        a.catch_up(&results);
        results.catch_up(&a);
        picture(&results.mount) == picture(&a.mount)
    });
    assert_same("the drone's tree, with what the archiver has written", &before, &picture(&a.mount));
    assert_same("the results host's", &before, &picture(&results.mount));
    let more = pack_bytes(&lab) - stored;
    assert!(more < 64 << 10, "{more} bytes more in the packs");
    let verify = results.run(["verify", "--store", "--read-data"]);
    assert_eq!(verify.status.code(), Some(0), "{}", text(&verify.stdout));
}

/// Autotest runs it while the job's last pidfile has one line: the unit still runs here, and the results host has it as a snapshot. Nothing of that
/// copy stays in the way of what the job ends with.
#[test]
fn autotests_own_archiver_copies_a_job_that_still_runs() {
    let mut lab = Lab::new(Duration::from_secs(240));
    let (a, results) = (lab.machine_with("drone1", "live_seconds: 1"), lab.machine("results"));
    as_in_the_manual(&a);
    lab.mount(&a);
    lab.mount(&results);
    let exec = a.mount.join("7-me/host1");
    results_of_a_test(&exec);
    put(&exec, ".autoserv_execute", "1\n0\n0\n");
    put(&exec, ".archiver_execute", "1\n");
    wait_for("the running job on the results host", Duration::from_secs(30), || {
        results.mount.join("7-me/host1/.archiver_execute").exists()
    });
    append(&a, "7-me/host1/debug/noise.log", "archiving\n");
    let out = archive(&lab, &a, &results, "7-me/host1");
    assert!(text(&out.stdout).ends_with("23 1\n"), "{}{}", text(&out.stdout), text(&out.stderr));
    put(&exec, ".archiver_execute", "1\n0\n0\n");
    let before = picture(&a.mount);
    wait_for("both to have committed", Duration::from_secs(60), || {
        commit_all(&a);
        commit_all(&results);
        a.catch_up(&results);
        results.catch_up(&a);
        picture(&results.mount) == picture(&a.mount)
    });
    // Directories in which rsync has made and removed its temporary files may have got another time.
    let files = |picture: &[String]| -> Vec<String> {
        picture.iter().filter(|line| !line.contains(" 40755 ")).cloned().collect()
    };
    assert_same("the results host's", &files(&before), &files(&picture(&results.mount)));
}
