//! Tells the store what was read on this host: `prune --unread-for` goes by it.

use std::{sync::Arc, time::Duration};

use super::Host;
use crate::clock::{Clock, SystemClock};

/// How often there is a look at what was read since: one message then, at most, and mostly none.
const EVERY: Duration = Duration::from_secs(2);

/// Until the program ends. While there is no connection, it waits; what was read isn't lost by that.
pub(super) async fn tell(host: Arc<Host>) {
    let Some(link) = host.link.clone() else { return };
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let reads = host.fs.reads();
        reads.forget_old(SystemClock.now_ms());
        let units = reads.waiting();
        if units.is_empty() || !link.status().connected {
            continue;
        }
        match link.read(units.clone()).await {
            Ok(()) => reads.told(&units, SystemClock.now_ms()),
            Err(error) => tracing::debug!("the store isn't told what was read: {error}"),
        }
    }
}
