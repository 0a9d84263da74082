//! Repair of a store that this process has open: its sessions end, it is closed, mended as one that nobody has open, and opened anew.
//!
//! Hosts connect again and again meanwhile, and wait. Whoever asked may go, or listen no more: what was begun is finished, and nobody waits for him.

use std::{
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Server, desk, stand_in::StandIn, ticks::Ticks};
use crate::{
    clock::SystemClock,
    control::StoreCheck,
    store::{StoreError, StoreOptions},
    verify::{
        Report,
        store::{RepairWith, repair_store},
    },
};

/// How long work that was under way may hold the store open; then nothing is repaired.
const CLOSE_WAIT: Duration = Duration::from_secs(60);
const CLOSE_PAUSE: Duration = Duration::from_millis(20);

/// What to repair, how, and who asked.
pub(super) struct Order {
    pub(super) dir: PathBuf,
    pub(super) check: StoreCheck,
    /// zstd's.
    pub(super) level: i32,
    pub(super) caller: UnixStream,
}

/// An order that waits until the process that serves the store sees to it.
#[derive(Default)]
pub(super) struct Orders {
    order: Mutex<Option<Order>>,
    came: Notify,
}

impl Orders {
    /// One that is there and hasn't been seen to.
    pub(super) fn take(&self) -> Option<Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn place(&self, order: Order) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.came.notify_one();
    }

    /// Returns when there is one.
    pub(super) async fn come(&self) -> Order {
        loop {
            self.came.notified().await;
            if let Some(order) = self.take() {
                return order;
            }
        }
    }
}

/// Closes the store and carries the order out; returns what there is to tell. The sessions have ended; blocking.
pub(super) fn carry_out(mut server: Arc<Server>, order: Order) -> Answer {
    let began = Instant::now();
    // Callers on the control socket may still hold it.
    while let Err(shared) = Arc::try_unwrap(server) {
        if began.elapsed() >= CLOSE_WAIT {
            let why = "the store is still at work and could not be closed";
            tracing::error!("nothing was repaired: {why}");
            return Answer { report: Report::not_run(why), caller: order.caller, is_heard: true };
        }
        server = shared;
        thread::sleep(CLOSE_PAUSE);
    }
    let with = RepairWith { store: StoreOptions { clock: Arc::new(SystemClock) }, level: order.level };
    let ticks = Ticks::new(&order.caller);
    let _stand_in = StandIn::begin(&order.dir);
    let repair = || {
        repair_store(&order.dir, &order.check.into(), &with, &|at| {
            // Whoever asked may go: it is better to have it done.
            ticks.tell(at.done, at.total, at.is_bytes(), at.phase);
            true
        })
    };
    let mut repaired = repair();
    // What a session had begun to write holds the store, too.
    while matches!(repaired, Err(StoreError::Locked(_))) && began.elapsed() < CLOSE_WAIT {
        thread::sleep(CLOSE_PAUSE);
        repaired = repair();
    }
    let report = repaired.unwrap_or_else(|error| Report::not_run(error.to_string()));
    match &report.could_not_run {
        Some(why) => tracing::error!("the store was not repaired: {why}"),
        None => {
            tracing::info!(repaired = report.repaired, exit = report.exit_code(), "the store was repaired")
        }
    }
    let is_heard = ticks.is_heard();
    Answer { report, caller: order.caller, is_heard }
}

/// What became of an order, and who wants to know.
pub(super) struct Answer {
    report: Report,
    caller: UnixStream,
    is_heard: bool,
}

impl Answer {
    /// Tells it. Whoever reads it page by page holds nobody up who calls this on a thread of its own.
    pub(super) fn tell(self) {
        let told = self.is_heard && desk::tell(&self.report, &self.caller).is_ok();
        if !told {
            tracing::info!(
                "whoever asked for the repair is gone; `resultsfs verify --store` tells what is left"
            );
        }
    }
}
