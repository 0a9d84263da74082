//! Repair of a store that this process has open: its sessions end, it is closed, mended as one that nobody has open, and opened anew.
//!
//! Hosts connect again and again meanwhile, and wait. Whoever asked may go: what was begun is finished.

use std::{
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Server, desk, ticks::Ticks};
use crate::{
    clock::SystemClock,
    control::{Reply, StoreCheck},
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
    pub(super) fn place(&self, order: Order) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.came.notify_one();
    }

    /// Returns when there is one.
    pub(super) async fn come(&self) -> Order {
        loop {
            self.came.notified().await;
            let order = self.order.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(order) = order {
                return order;
            }
        }
    }
}

/// Closes the store and carries the order out. The sessions have ended; blocking.
pub(super) fn carry_out(mut server: Arc<Server>, order: &Order) {
    let began = Instant::now();
    // Callers on the control socket may still hold it.
    while let Err(shared) = Arc::try_unwrap(server) {
        if began.elapsed() >= CLOSE_WAIT {
            return refuse(order, "the store is still at work and could not be closed");
        }
        server = shared;
        thread::sleep(CLOSE_PAUSE);
    }
    let with = RepairWith { store: StoreOptions { clock: Arc::new(SystemClock) }, level: order.level };
    let ticks = Ticks::new(&order.caller);
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
    if desk::tell(&report, &order.caller).is_err() {
        tracing::info!("whoever asked for the repair is gone; `resultsfs verify --store` tells what is left");
    }
}

fn refuse(order: &Order, why: &str) {
    tracing::error!("nothing was repaired: {why}");
    let _ = desk::reply(&order.caller, &Reply::Failed { message: why.to_owned(), hint: None });
}
