//! Looking for damage in the state directory's databases while no daemon has them open, and putting them aside.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::{db, error::JournalError, identity};
use crate::durable;

/// What can be damaged, and be rebuilt: from spool and store, and from the store.
const DATABASES: [&str; 2] = ["journal.redb", "replica.redb"];
/// Memory for pages while one is checked.
const CACHE_BYTES: usize = 8 << 20;

/// A database that can't be relied on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    pub why: String,
}

impl Damage {
    /// Whether it is the journal itself; otherwise it is the replica.
    pub fn is_journal(&self) -> bool {
        self.path.ends_with(DATABASES[0])
    }
}

/// Compares every page that is in use with its checksum. The database would mend what it can when it is told to check, so it is told that of a copy.
pub fn damage(state_dir: &Path) -> Result<Vec<Damage>, JournalError> {
    let _lock = identity::lock(state_dir)?;
    let mut found = Vec::new();
    for path in DATABASES.map(|name| state_dir.join(name)) {
        if !path.exists() {
            continue;
        }
        match check(&path) {
            Ok(()) => {}
            Err(JournalError::Damaged { why, .. }) => found.push(Damage { path, why }),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn check(path: &Path) -> Result<(), JournalError> {
    if fs::metadata(path)?.len() == 0 {
        return Err(JournalError::Damaged { path: path.to_owned(), why: "it is empty".to_owned() });
    }
    let copy = path.with_extension("check");
    let checked = fs::copy(path, &copy)
        .map_err(JournalError::from)
        .and_then(|_| db::check_integrity(&copy, CACHE_BYTES));
    fs::remove_file(&copy)?;
    checked
}

/// Moves a damaged database to `quarantine` beside it, durably. The next opening begins it anew.
pub fn put_aside(state_dir: &Path, damage: &Damage) -> Result<PathBuf, JournalError> {
    let _lock = identity::lock(state_dir)?;
    let dir = state_dir.join("quarantine");
    durable::Disk::create_dir(&durable::RealDisk, &dir)?;
    let name = damage.path.file_name().expect("a database has a name").to_string_lossy().into_owned();
    let free = (1u32..).map(|number| dir.join(format!("{name}.{number}"))).find(|path| !path.exists());
    let to = free.expect("some number is free");
    fs::rename(&damage.path, &to)?;
    durable::sync_dir(&dir)?;
    durable::sync_dir(state_dir)?;
    Ok(to)
}
