//! When to try again where a write has failed. After that nothing is written until whoever wrote has opened its files anew, which is for the next process;
//! and that there is a next one helps only once the disk takes writes again.

use std::{io, path::Path, time::Duration};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// Bytes that must find room: what a journal or an index grows by.
const ROOM_BYTES: u64 = 1 << 20;
/// Bytes of these that are written.
const PROBE_BYTES: usize = 4096;

/// Returns when `failure` has told of a failed write and the file system of `dir` can be written again. The failure is logged once, with what it means
/// for as long.
pub async fn mended(dir: &Path, meanwhile: &str, failure: impl Fn() -> Option<String>) {
    let mut is_told = false;
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(why) = failure() else { continue };
        if !is_told {
            tracing::error!(dir = %dir.display(), "{why}; {meanwhile}, until that disk can be written again");
            is_told = true;
        }
        let dir = dir.to_owned();
        if matches!(tokio::task::spawn_blocking(move || can_write(&dir)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Whether there is room in `dir` for a MiB, and what is written reaches the disk, as far as a file without a name tells that is gone afterwards. A file system that has none is
/// taken for good.
pub fn can_write(dir: &Path) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(dir, flags, Mode::RUSR) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => return Ok(()),
        file => file?,
    };
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, ROOM_BYTES) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(e) => return Err(e.into()),
    }
    let mut file = fs_err::File::from_parts(file.into(), dir);
    io::Write::write_all(&mut file, &[0; PROBE_BYTES])?;
    file.sync_all()
}
