//! Whether the spool's disk takes writes. Jobs are told by what their writes return; this is for who looks after the machine.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tracing::{error, info};

use crate::durable;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(10);
/// A disk that takes longer for so little isn't busy, it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the last look has found.
#[derive(Debug, Default)]
pub(super) struct Trouble(Mutex<Option<String>>);

impl Trouble {
    /// Why it can't be written, if it can't.
    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, now: Option<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*known, &now) {
            (None, Some(why)) => error!("the spool's disk can't be written: {why}"),
            (Some(_), None) => info!("the spool's disk can be written again"),
            _ => {}
        }
        *known = now;
    }
}

/// Looks again and again, at `dir` on that disk.
pub(super) async fn watch(trouble: &Trouble, dir: PathBuf) {
    loop {
        let at = dir.clone();
        let mut look = tokio::task::spawn_blocking(move || durable::can_write(&at));
        let found = match timeout(PATIENCE, &mut look).await {
            Ok(found) => found,
            Err(_) => {
                trouble.set(Some(format!("it has not answered for {} s", PATIENCE.as_secs())));
                look.await
            }
        };
        trouble.set(match found {
            Ok(Err(e)) => Some(e.to_string()),
            _ => None,
        });
        sleep(PAUSE).await;
    }
}
