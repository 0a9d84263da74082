//! Stands at the [desk](super::desk) of a store that this process has closed for its repair, and tells how it is. Who asks anything else asks again.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use fs_err as fs;
use serde_json::json;

use super::{CONTROL_SOCKET, desk};
use crate::control::{self, Reply, Request};

/// Answers as long as it lives.
pub(super) struct StandIn {
    socket: PathBuf,
    over: Arc<AtomicBool>,
}

impl StandIn {
    /// In the place of the desk, which is gone.
    pub(super) fn begin(dir: &Path) -> Option<Self> {
        let socket = dir.join(CONTROL_SOCKET);
        // The desk's thread may still wait for somebody.
        let _ = UnixStream::connect(&socket);
        let listener = desk::bind(&socket).ok()?;
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let work = move || {
            for stream in listener.incoming().flatten() {
                if until.load(Ordering::Relaxed) {
                    return;
                }
                let _ = answer(&stream);
            }
        };
        thread::Builder::new().name("store-stand-in".into()).spawn(work).ok()?;
        Some(Self { socket, over })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.socket);
        let _ = fs::remove_file(&self.socket);
    }
}

fn answer(stream: &UnixStream) -> io::Result<()> {
    if !control::may_ask(stream) {
        return desk::reply(stream, &control::not_allowed());
    }
    if matches!(desk::request(stream)?, Some(Request::StoreStatus)) {
        desk::item(stream, json!({"v": 1, "kind": "store-status", "under_repair": true}))?;
        desk::reply(stream, &Reply::Done { exit: 0 })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::control::{ControlError, StoreCheck};

    /// Also in the place of a socket at which nobody answers any more.
    #[test]
    fn a_stand_in_tells_how_it_is_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join(CONTROL_SOCKET);
        drop(UnixListener::bind(&socket).expect("binds"));
        let stand_in = StandIn::begin(dir.path()).expect("begins");
        let mut told = Vec::new();
        let asked = control::ask(&socket, &Request::StoreStatus, |item| told.push(item));
        assert!(matches!(asked, Ok(0)) && told.len() == 1 && told[0]["under_repair"] == true, "{told:?}");
        let asked = control::ask(&socket, &Request::VerifyStore(StoreCheck::default()), |_| {});
        assert!(matches!(asked, Err(ControlError::Broken { .. })), "{asked:?}");
        drop(stand_in);
        let asked = control::ask(&socket, &Request::StoreStatus, |_| {});
        assert!(matches!(asked, Err(ControlError::NotRunning { .. })), "{asked:?}");
    }
}
