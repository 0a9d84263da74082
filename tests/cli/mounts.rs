//! `mount` and `umount`, by themselves and as mount(8) calls them.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    harness::{EXE, Lab, Machine, assert_same, picture, play_task, text, wait_for},
    said::{Said, called_as, link},
};

const BOUND: Duration = Duration::from_secs(90);

/// A lab without a results host, and one machine of it.
fn lab() -> (Lab, Machine) {
    let lab = Lab::bare(BOUND);
    let drone = lab.machine_with("drone1", "results_host: localhost");
    (lab, drone)
}

fn mount_line(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    let mark = format!(" {} ", path.display());
    mounts.lines().rfind(|l| l.contains(&mark)).map(str::to_owned)
}

fn is_mounted(machine: &Machine) -> bool {
    mount_line(&machine.mount).is_some()
}

fn mount(machine: &Machine, words: &[&str]) -> Said {
    let place = machine.mount.display().to_string();
    machine.run(["mount"].iter().chain(words).copied().chain([place.as_str()])).into()
}

fn umount(machine: &Machine, words: &[&str]) -> Said {
    let place = machine.mount.display().to_string();
    machine.run(["umount"].iter().chain(words).copied().chain([place.as_str()])).into()
}

fn kill(machine: &Machine) {
    let pid = i32::try_from(machine.pid()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("our own daemon");
    let socket = machine.state.join("control.sock");
    wait_for("the daemon to be gone", Duration::from_secs(10), || {
        std::os::unix::net::UnixStream::connect(&socket).is_err()
    });
}

/// As mount(8) calls it: SOURCE MOUNTPOINT, then options, of which most are not for us.
#[test]
fn the_helper_of_mount_takes_what_mount_gives_it() {
    let (mut lab, drone) = lab();
    let helper = link(lab.path(), "mount.fuse.resultsfs");
    let (config, place) = (drone.config.display().to_string(), drone.mount.display().to_string());
    lab.is_mounted(&drone);
    let options = "rw,_netdev,nofail,noatime,x-systemd.requires=foo";
    called_as(&helper, [&config, &place, "-o", options, "-n", "-s"]).expect(0, &[]);
    let line = mount_line(&drone.mount).expect("mounted");
    assert!(line.contains(&format!(" - fuse.resultsfs {config} ")), "{line}");
    fs::write(drone.mount.join("file"), "x").expect("writable");
    // The configuration is found from the mount.
    called_as(Path::new(EXE), ["umount", &place]).expect(0, &[]);
    assert!(!is_mounted(&drone));
}

/// `mount -t fuse.resultsfs`, with the helper in a /sbin of this test's own.
#[test]
fn mount_8_finds_the_helper() {
    let (mut lab, drone) = lab();
    let sbin = lab.path().join("sbin");
    fs::create_dir(&sbin).expect("made");
    link(&sbin, "mount.fuse.resultsfs");
    lab.is_mounted(&drone);
    let script = r#"set -e
        mount -t overlay overlay -o "lowerdir=$1:/usr/sbin" /usr/sbin
        mount -t fuse.resultsfs -o rw,_netdev,x-systemd.requires=foo "$2" "$3"
        findmnt -n -o FSTYPE,SOURCE "$3"
        echo x > "$3/file"
        "$4" umount "$3"
        ! findmnt "$3""#;
    let out = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", script, "sh"])
        .args([&sbin, &drone.config, &drone.mount])
        .arg(EXE)
        .stdin(Stdio::null())
        .output()
        .expect("unshare runs; root is needed");
    let said = Said::from(out).shows(0, &["fuse.resultsfs ", &drone.config.display().to_string()]);
    assert_eq!(said.err, "");
    assert!(drone.state.join("spool/file").exists());
}

/// The service has mounted before the mount unit comes to it: that is a success. Another place is not.
#[test]
fn mounting_again_is_a_success_and_mounting_elsewhere_is_not() {
    let (mut lab, drone) = lab();
    lab.mount(&drone);
    let pid = drone.pid();
    mount(&drone, &[]).expect(0, &[]);
    mount(&drone, &["--foreground"]).expect(0, &[]);
    let link = lab.path().join("link");
    std::os::unix::fs::symlink(lab.path().join("drone1"), &link).expect("a link");
    let by_link = Machine { mount: link.join("tree"), ..drone.clone() };
    mount(&by_link, &[]).expect(0, &[]);
    assert_eq!(drone.pid(), pid);
    let elsewhere = Machine { mount: lab.path().join("elsewhere"), ..drone.clone() };
    fs::create_dir(&elsewhere.mount).expect("made");
    let here = drone.mount.display().to_string();
    mount(&elsewhere, &[]).expect(1, &["has its mount at", &here, "hint: "]);
    umount(&elsewhere, &[]).expect(1, &["has its mount at", &here, "hint: "]);
    assert!(is_mounted(&drone) && !is_mounted(&elsewhere));
    umount(&by_link, &[]).expect(0, &[]);
    assert!(!is_mounted(&drone));
    umount(&drone, &[]).expect(1, &["isn't mounted"]);
}

/// What is in the way is not hidden: the mount is refused with the mends, and the first mend works.
#[test]
fn a_mount_point_that_is_not_empty_is_refused_with_the_mends() {
    let (mut lab, drone) = lab();
    play_task(&drone.mount, 3);
    let before = picture(&drone.mount);
    for words in [&[][..], &["--foreground"]] {
        mount(&drone, words).expect(1, &["is not empty", "--adopt", "elsewhere"]);
    }
    assert!(!is_mounted(&drone));
    assert_same("what was there", &before, &picture(&drone.mount));
    lab.is_mounted(&drone);
    mount(&drone, &["--adopt"]).expect(0, &[]);
    assert!(is_mounted(&drone));
    assert_same("the adopted tree", &before, &picture(&drone.mount));
    assert!(drone.json(["jobs"]).iter().any(|l| l["unit"] == "hosts/host1/3-verify"));
}

#[test]
fn a_mount_point_must_be_a_directory() {
    let (_lab, drone) = lab();
    let none = Machine { mount: drone.mount.join("none"), ..drone.clone() };
    mount(&none, &[]).expect(1, &["No such file"]);
    let file = Machine { mount: drone.config.clone(), ..drone.clone() };
    mount(&file, &[]).expect(1, &["is not a directory"]);
}

/// Open files hold an unmount up, and are named; `--lazy` doesn't wait for them.
#[test]
fn an_unmount_that_is_held_up_names_who_does() {
    let (mut lab, drone) = lab();
    lab.mount(&drone);
    let path = drone.mount.join("1-me.log");
    let open = fs::File::create(&path).expect("a file");
    let in_use = format!("{} (pid {}, ", path.display(), std::process::id());
    umount(&drone, &["--timeout", "1"]).expect(1, &["in use: ", &in_use, "--lazy"]);
    assert!(is_mounted(&drone), "nothing has changed");
    fs::write(&path, "still there").expect("writable");
    umount(&drone, &["--lazy"]).expect(0, &[]);
    assert!(!is_mounted(&drone));
    drop(open);
    lab.mount(&drone);
    assert_eq!(fs::read_to_string(&path).expect("there"), "still there");
    // One that is closed in time holds nothing up.
    let open = fs::File::open(&path).expect("a file");
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(open);
    });
    umount(&drone, &["--timeout", "20"]).expect(0, &[]);
    closer.join().expect("closed");
}

/// A daemon that was killed and that nobody supervises leaves a dead mount; both commands clear it.
#[test]
fn a_dead_mount_is_cleared() {
    let (mut lab, drone) = lab();
    lab.mount_with(&drone, &["--unsupervised"]);
    fs::write(drone.mount.join("file"), "x").expect("written");
    kill(&drone);
    assert!(is_mounted(&drone));
    umount(&drone, &[]).expect(0, &["dead mount", "cleared"]);
    assert!(!is_mounted(&drone));
    lab.mount_with(&drone, &["--unsupervised"]);
    kill(&drone);
    mount(&drone, &[]).expect(0, &[]);
    assert_eq!(fs::read_to_string(drone.mount.join("file")).expect("alive"), "x");
}

#[test]
fn options_have_their_effect() {
    let (mut lab, drone) = lab();
    lab.is_mounted(&drone);
    mount(&drone, &["-o", "ro,passthrough=off"]).expect(0, &[]);
    let refused = fs::write(drone.mount.join("file"), "x").expect_err("read only");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(drone.status()["data_path"], "ordinary");
}

/// In the foreground it logs to stderr, and a signal ends it in order.
#[test]
fn a_signal_unmounts() {
    let (mut lab, drone) = lab();
    lab.is_mounted(&drone);
    let daemon = Command::new(EXE)
        .args(["--config".as_ref(), drone.config.as_os_str(), "mount".as_ref(), "--foreground".as_ref()])
        .arg(&drone.mount)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    wait_for("the mount", Duration::from_secs(20), || {
        is_mounted(&drone) && !drone.json(["status"]).is_empty()
    });
    kill_process(Pid::from_child(&daemon), Signal::TERM).expect("our own child");
    let out = daemon.wait_with_output().expect("ended");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("is mounted"), "{}", text(&out.stderr));
    assert!(!is_mounted(&drone));
}

/// Files are made beside the spool and renamed into it, which must be on one disk.
#[test]
fn a_spool_that_is_a_disks_root_is_refused_with_the_mend() {
    let mut lab = Lab::bare(BOUND);
    let disk = lab.path().join("disk");
    fs::create_dir(&disk).expect("a directory");
    assert!(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&disk).status().expect("runs").success());
    lab.has_disk(&disk);
    let spool = |dir: &Path| format!("results_host: localhost\nspool_dir: {}", dir.display());
    let drone = lab.machine_with("drone1", &spool(&disk));
    let below = disk.join("spool");
    mount(&drone, &[])
        .expect(1, &["a disk is mounted at the spool", &format!("spool_dir: {}", below.display())]);
    assert!(!is_mounted(&drone));
    fs::create_dir(&below).expect("a directory");
    let drone = lab.machine_with("drone1", &spool(&below));
    mount(&drone, &[]).expect(0, &[]);
    umount(&drone, &[]).expect(0, &[]);
}
