//! Disks that can fail: file systems of their own on loop images.

use std::{
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::harness::{Lab, run, wait_for};

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    /// With this many inodes.
    Ext4Inodes(u32),
    Xfs,
    Btrfs,
}

/// A file system on an image. The lab unmounts it in the end.
pub struct Disk {
    image: PathBuf,
    place: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    /// Made, and mounted at `place`, which is below the lab's directory, and made, too.
    pub fn at(lab: &mut Lab, place: &Path, kind: Kind, mib: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("resultsfs-disk").tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("an image");
        let mut make = match kind {
            Kind::Ext4 | Kind::Ext4Inodes(_) => Command::new("mkfs.ext4"),
            Kind::Xfs => Command::new("mkfs.xfs"),
            Kind::Btrfs => Command::new("mkfs.btrfs"),
        };
        match kind {
            Kind::Ext4 => make.args(["-q", "-F", "-m", "0"]),
            Kind::Ext4Inodes(count) => make.args(["-q", "-F", "-m", "0", "-N", &count.to_string()]),
            Kind::Xfs | Kind::Btrfs => make.args(["-q", "-f"]),
        };
        run(make.arg(&image));
        fs::create_dir_all(place).expect("a directory");
        let disk = Self { image, place: place.to_owned(), _dir: dir };
        disk.mount();
        lab.has_disk(place);
        disk
    }

    pub fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.place));
    }

    /// Waits for those who use it to be gone.
    pub fn umount(&self) {
        wait_for("the disk to be unmounted", Duration::from_secs(30), || {
            Command::new("umount").arg(&self.place).output().is_ok_and(|out| out.status.success())
        });
    }

    /// A disk that somebody is just writing to can't be made read-only: the daemon looks now and then whether it can be written.
    pub fn remount(&self, options: &str) {
        wait_for("the disk to be mounted otherwise", Duration::from_secs(30), || {
            let options = format!("remount,{options}");
            Command::new("mount")
                .args(["-o", &options])
                .arg(&self.place)
                .output()
                .is_ok_and(|out| out.status.success())
        });
    }

    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The power fails: every dirty page and every unwritten block of the file system's journal is gone, and whoever uses it from now on gets EIO.
    /// It is for ext4 and xfs.
    pub fn cut_power(&self) {
        /// EXT4_IOC_SHUTDOWN, which is XFS_IOC_GOINGDOWN.
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        static NO_LOG_FLUSH: u32 = 2;
        let place = fs::File::open(&self.place).expect("it is mounted");
        // SAFETY: the descriptor is open for the length of the call, and the argument is the u32 that this request reads.
        let done = unsafe { libc::ioctl(place.as_raw_fd(), SHUTDOWN, &raw const NO_LOG_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Free bytes.
    pub fn free(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.place).expect("it is mounted");
        free.f_bavail * free.f_frsize
    }

    /// Fills it but for about this many bytes; remove the file to have the room again.
    pub fn fill(&self, but: u64) -> PathBuf {
        let ballast = self.place.join("ballast");
        let file = fs::File::options().append(true).create(true).open(&ballast).expect("a file");
        for step in [1 << 20, 64 << 10, 4 << 10] {
            while self.free() >= but + step {
                let at = file.metadata().expect("a file").len();
                let end = libc::off_t::try_from(step).expect("small");
                let at = libc::off_t::try_from(at).expect("a small file");
                // SAFETY: the descriptor is open for the length of the call, and no memory is passed.
                if unsafe { libc::fallocate(file.as_raw_fd(), 0, at, end) } != 0 {
                    break;
                }
            }
        }
        ballast
    }
}
