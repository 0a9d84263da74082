//! `health` and `metrics`: what monitoring sees of a host.

use std::{fs, os::unix::net::UnixStream, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    harness::{Lab, Machine, play_task, wait_for},
    said::Said,
};

fn run(machine: &Machine, words: &[&str]) -> Said {
    machine.run(words).into()
}

#[test]
fn a_host_is_well_until_its_daemon_is_gone() {
    let mut lab = Lab::bare(Duration::from_secs(120));
    let results = lab.machine("results");
    run(&results, &["health"]).shows(3, &["UNKNOWN - there is neither"]);
    lab.start_serve();
    lab.mount_with(&results, &["--unsupervised"]);
    play_task(&results.mount, 1);
    run(&results, &["offload", "--wait", "--timeout", "60"]).expect(0, &[]);
    run(&results, &["health"])
        .shows(0, &["OK - mount: connection up, 0 units wait", "; store: 3 records, 1 packs"]);
    let said = run(&results, &["--json", "health"]).shows(0, &[]).json();
    assert!(said.len() == 1 && said[0]["kind"] == "health" && said[0]["level"] == "OK", "{said:?}");

    // Whoever is at the store's desk, with a long check or with nothing to say, is in nobody's way.
    let at_the_desk = UnixStream::connect(lab.store().join("control.sock")).expect("answers");
    run(&results, &["health"]).shows(0, &["; store: 3 records, 1 packs"]);
    drop(at_the_desk);

    let metrics = run(&results, &["metrics"]).shows(
        0,
        &[
            "resultsfs_up{part=\"mount\"} 1\n",
            "resultsfs_up{part=\"store\"} 1\n",
            "resultsfs_connected 1\n",
            "resultsfs_units{state=\"committed\"} 3\n",
            "resultsfs_committed_layers_total 3\n",
            "resultsfs_store_records 3\n",
            "resultsfs_store_has_room 1\n",
            "resultsfs_store_lost_manifests 0\n",
        ],
    );
    drop(metrics);
    let file = lab.path().join("resultsfs.prom");
    run(&results, &["metrics", "--to", file.to_str().expect("text")]).shows(0, &[]);
    assert!(fs::read_to_string(&file).expect("written").contains("resultsfs_catalog_seq 3\n"));
    run(&results, &["metrics", "--to", "/nowhere/file"]).expect(1, &["/nowhere/file"]);

    // A store that its socket starts when somebody comes is as it should be.
    lab.kill_serve();
    run(&results, &["health"]).shows(0, &["connection down", "nobody has it open"]);
    let pid = results.pid();
    kill_process(Pid::from_raw(pid.cast_signed()).expect("a pid"), Signal::KILL).expect("our own");
    wait_for("its end", Duration::from_secs(20), || !Path::new(&format!("/proc/{pid}")).exists());
    run(&results, &["health"]).shows(2, &["CRITICAL - mount: no daemon runs"]);
    run(&results, &["metrics"]).shows(0, &["resultsfs_up{part=\"mount\"} 0\n"]);
}
