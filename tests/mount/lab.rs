//! A mount in a temporary directory.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use resultsfs::{
    cache::Cache,
    clock::SystemClock,
    fs::{Fs, FsParts, Invalidation, view::View},
    fuse::{self, MountOptions, Mounted, Passthrough},
    ids::UnitId,
    journal::Journal,
    layout::LayoutRules,
    spool::{Spool, activity::Activity},
};
use tempfile::TempDir;

use crate::store::FakeStore;

/// No test takes longer, not even on a busy machine.
const BOUND: Duration = Duration::from_secs(180);

/// A live mount; unmounted when dropped.
pub struct Lab {
    pub fs: Arc<Fs>,
    pub mounted: Mounted,
    pub activity: Arc<Activity>,
    pub journal: Arc<Journal>,
    pub store: Arc<FakeStore>,
    pub cache: Arc<Cache>,
    pub dir: TempDir,
    _watchdog: mpsc::Sender<()>,
}

/// How the labs mount.
pub fn options() -> MountOptions {
    MountOptions { program: env!("CARGO_BIN_EXE_resultsfs").into(), ..MountOptions::default() }
}

impl Lab {
    pub fn new(passthrough: Passthrough) -> Self {
        Self::over(passthrough, |dir| Spool::open(dir).expect("spool"))
    }

    pub fn over(passthrough: Passthrough, open: impl Fn(&Path) -> Arc<Spool>) -> Self {
        let dir = tempfile::Builder::new().prefix("rfs-mount-").tempdir().expect("a directory");
        for name in ["spool", "tmp", "mnt", "state"] {
            std::fs::create_dir(dir.path().join(name)).expect("made");
        }
        let spool = open(&dir.path().join("spool"));
        let (activity, _) = Activity::new();
        let journal = Journal::open(&dir.path().join("state"), Arc::new(SystemClock)).expect("journal");
        let cache = Cache::open(&dir.path().join("cache"), 64 << 20).expect("cache");
        let store = Arc::new(FakeStore::new(journal.clone()));
        cache.set_source(store.clone());
        let fs = Fs::new(FsParts {
            spool,
            activity: activity.clone(),
            view: Arc::new(View::new(journal.clone(), cache.clone())),
            journal: journal.clone(),
            cache: cache.clone(),
            rules: LayoutRules::default(),
            tmp_dir: dir.path().join("tmp"),
            keep: None,
        })
        .expect("file system");
        let options = MountOptions { passthrough, ..options() };
        let mounted = fuse::mount(fs.clone(), &dir.path().join("mnt"), &options).expect("mounted");
        let _watchdog = watch(mounted.device());
        Self { fs, mounted, activity, journal, store, cache, dir, _watchdog }
    }

    /// A path in the mount.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        under(&self.dir.path().join("mnt"), path.as_ref())
    }

    /// The same path in the spool.
    pub fn spool(&self, path: impl AsRef<Path>) -> PathBuf {
        under(&self.dir.path().join("spool"), path.as_ref())
    }
}

impl Lab {
    /// Another host commits what stands in `source` as its layer of `unit`, and this host hears of it.
    pub fn foreign(&self, unit: &UnitId, source: &Path) {
        self.store.commit_foreign(unit, source);
        self.told(self.fs.remote_changed(std::slice::from_ref(unit)));
    }

    /// Another host runs what stands in `source` as its layer of `unit`, and this host hears of it.
    pub fn runs(&self, unit: &UnitId, source: &Path) {
        self.store.run_foreign(unit, source);
        self.told(self.fs.remote_changed(std::slice::from_ref(unit)));
    }

    /// Another host commits the deletion of these paths, and this host hears of it.
    pub fn foreign_deletes(&self, unit: &UnitId, paths: &[&str]) {
        self.store.commit_deletions(unit, paths);
        self.told(self.fs.remote_changed(std::slice::from_ref(unit)));
    }

    /// This host's layer of `unit` is committed as it shows.
    pub fn commit(&self, unit: &UnitId) {
        self.store.commit_own(unit, self.fs.spool());
        self.told(self.fs.remote_changed(std::slice::from_ref(unit)));
    }

    /// Frees a committed unit as the engine does.
    pub fn evict(&self, unit: &UnitId) {
        let until = Instant::now() + Duration::from_secs(10);
        let frozen = loop {
            match self.activity.try_freeze(unit) {
                Some(frozen) => break frozen,
                // The kernel's last release may still be on its way.
                None => assert!(Instant::now() < until, "{:?}", self.activity.snapshot(unit)),
            }
            thread::sleep(Duration::from_millis(2));
        };
        self.journal.evict(unit).expect("evicted");
        let _ = std::fs::remove_dir_all(self.spool(unit.root.as_path()));
        let invalidations = self.fs.evicted(std::slice::from_ref(unit));
        drop(frozen);
        self.told(invalidations);
    }

    /// What of `unit` the kernel and the node table know is looked up anew, as after a start of the daemon.
    pub fn forget_all(&self, unit: &UnitId) {
        self.told(self.fs.evicted(std::slice::from_ref(unit)));
        self.told(self.fs.remote_changed(std::slice::from_ref(unit)));
    }

    pub fn told(&self, invalidations: Vec<Invalidation>) {
        self.mounted.notifier().tell(invalidations);
        self.mounted.notifier().flush();
    }
}

fn under(dir: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { dir.to_owned() } else { dir.join(path) }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let ended = self.mounted.unmount(false).or_else(|_| self.mounted.unmount(true));
        if ended.is_err() {
            let _ = fuse::abort_connection(self.mounted.device());
        }
    }
}

fn watch(device: u32) -> mpsc::Sender<()> {
    let (alive, watched) = mpsc::channel();
    thread::spawn(move || {
        if watched.recv_timeout(BOUND) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("the mount hangs; aborting connection {device}");
            let _ = fuse::abort_connection(device);
        }
    });
    alive
}

/// Runs a shell script and gives what it says; fails if it fails. `$1`… are `args`.
pub fn sh(script: &str, args: &[&Path]) -> String {
    let mut command = Command::new("timeout");
    command.args(["150", "bash", "-euo", "pipefail", "-c", script, "test"]).args(args);
    let output = command.output().expect("runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}{err}");
    out.into_owned()
}

/// Everything that stat(2) says of a tree and P1 promises, with contents.
pub fn describe(root: &Path) -> String {
    sh(
        r#"cd "$1"; find . -printf '%p %y %m %U %G %s %T@ %n %l\n' | grep -v '^\. ' | sed 's/ d \([0-9]*\) \([0-9]*\) \([0-9]*\) [0-9]* \([^ ]*\) [0-9]* / d \1 \2 \3 - \4 - /' | LC_ALL=C sort
           find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum"#,
        &[root],
    )
}

/// Both trees are the same by [`describe`]; says the first lines that differ.
pub fn assert_same_tree(found: &Path, expected: &str) {
    let found_lines = describe(found);
    let differences: Vec<_> =
        found_lines.lines().zip(expected.lines()).filter(|(a, b)| a != b).take(3).collect();
    assert!(differences.is_empty(), "{}: {differences:#?}", found.display());
    assert_eq!(found_lines.lines().count(), expected.lines().count(), "{}", found.display());
}

/// Makes each test three times: with passthrough, the same with a descriptor for each node instead of a file handle, and plain.
#[macro_export]
macro_rules! all_ways {
    ($($(#[$doc:meta])* fn $name:ident($lab:ident) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(#[$doc])*
            #[test]
            fn passthrough() {
                let $lab = $crate::lab::Lab::new(resultsfs::fuse::Passthrough::Auto);
                $body
                assert!($lab.mounted.is_passthrough(), "the kernel has refused passthrough");
            }

            $(#[$doc])*
            #[test]
            fn without_handles() {
                let open = |dir: &std::path::Path| resultsfs::spool::Spool::open_without_handles(dir).expect("spool");
                let $lab = $crate::lab::Lab::over(resultsfs::fuse::Passthrough::Auto, open);
                $body
            }

            $(#[$doc])*
            #[test]
            fn plain() {
                let $lab = $crate::lab::Lab::new(resultsfs::fuse::Passthrough::Off);
                $body
            }
        }
    )*};
}
