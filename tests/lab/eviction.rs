//! A spool that fills up frees the oldest committed layers by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::harness::{Lab, assert_same, picture, run, text, wait_for};

/// A small file system of its own for a spool; unmounted when dropped, which must be after the lab.
struct Disk(PathBuf);

impl Disk {
    fn new(dir: &Path) -> Self {
        let (image, place) = (dir.join("image"), dir.join("disk"));
        fs::create_dir(&place).expect("a directory");
        fs::File::create(&image).and_then(|f| f.set_len(100 << 20)).expect("an image");
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &place]));
        Self(place)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Beyond `spool_high_percent` committed layers are evicted, oldest first, down to `spool_low_percent`; readers notice nothing.
#[test]
fn a_spool_beyond_its_high_mark_is_emptied_to_its_low_mark() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Disk::new(dir.path());
    let mut lab = Lab::new(Duration::from_secs(120));
    let state = format!("state_dir: {}/state", disk.0.display());
    let mut drone = lab.machine_with(
        "drone1",
        &format!("{state}\nspool_high_percent: 50\nspool_low_percent: 30\ncache_max_mib: 16"),
    );
    drone.state = disk.0.join("state");
    lab.mount(&drone);
    for id in 1..=12u8 {
        let exec_dir = drone.mount.join(format!("{id}-me/host1"));
        fs::create_dir_all(&exec_dir).expect("a directory");
        let noise: Vec<u8> = (0..160_000u32)
            .flat_map(|n| *blake3::hash(&[&[id][..], &n.to_le_bytes()].concat()).as_bytes())
            .collect();
        fs::write(exec_dir.join("core"), noise).expect("a file");
        for label in ["autoserv", "parser", "archiver"] {
            fs::write(exec_dir.join(format!(".{label}_execute")), "1\n0\n0\n").expect("a pidfile");
        }
    }
    let before = picture(&drone.mount);
    drone.offload();
    let used = || drone.status()["spool"]["used_percent"].as_u64().expect("a number");
    wait_for("the low mark", Duration::from_secs(60), || used() <= 30);
    let units = drone.status()["units"].clone();
    assert!(units["evicted"].as_u64() > Some(0) && units["committed"].as_u64() > Some(0), "{units}");
    assert_same("after eviction", &before, &picture(&drone.mount));
    let out = drone.run(["verify", "--read-data"]);
    assert_eq!(out.status.code(), Some(0), "verify: {}{}", text(&out.stdout), text(&out.stderr));
}
