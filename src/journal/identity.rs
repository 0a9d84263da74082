//! The state directory: whose it is, and that only one process uses it.

use std::{
    fs::File,
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use rustix::fs::{FlockOperation, flock};

use super::error::JournalError;
use crate::{durable, ids::HostUuid};

/// How long a process that has unmounted, or was killed, may take to end. Whoever comes next waits for it.
const ENDING: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Creates `dir` if need be and takes it for this process, as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File, JournalError> {
    create_durably(dir)?;
    let path = dir.join("lock");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    let file = file.into_parts().0;
    let end = Instant::now() + ENDING;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => thread::sleep(PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(JournalError::Locked { dir: dir.to_owned() }),
            Err(e) => {
                return Err(
                    io::Error::new(io::Error::from(e).kind(), format!("{}: {e}", path.display())).into()
                );
            }
        }
    }
}

/// Makes `dir` and what is missing above it, so that a power cut can't take it away with all that was written below.
fn create_durably(dir: &Path) -> Result<(), JournalError> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.display())))?;
    let parents = missing.iter().filter_map(|dir| dir.parent());
    let mut parents = parents.map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    Ok(parents.try_for_each(durable::sync_dir)?)
}

/// The UUID in `dir/host`, if the file is there.
pub(super) fn read_host(dir: &Path) -> Result<Option<HostUuid>, JournalError> {
    let path = dir.join("host");
    match fs::read(&path) {
        Ok(bytes) => match std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()) {
            Some(host) => Ok(Some(host)),
            None => Err(JournalError::Damaged { path, why: "it holds no UUID".into() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Writes `dir/host`.
pub(super) fn write_host(dir: &Path, host: HostUuid) -> Result<(), JournalError> {
    Ok(durable::write_atomic(&dir.join("host"), format!("{host}\n").as_bytes())?)
}
