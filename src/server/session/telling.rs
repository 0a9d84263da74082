//! What a host hears without asking each time: the catalog's records, what others run, what the store has lost.

use std::time::Duration;

use tokio::sync::watch;

use super::Session;
use crate::{
    catalog::Head,
    ids::Seq,
    limits::{self, FOLLOW_WINDOW},
    server::{
        api::on_store,
        end::{SessionEnd, store_failed},
    },
    wire::{FromStore, Lost},
};

/// What was lost is told not more often than this.
const LOSSES_PAUSE: Duration = Duration::from_secs(1);

/// What a host asked to follow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Following {
    /// Counts the Follow messages.
    pub(super) asked: u64,
    pub(super) from: Option<Head>,
    pub(super) taken: Seq,
}

/// From where a host wants to hear of snapshots: version, and the version at which it began anew. Answered once.
pub(super) type Watching = (u64, Option<u64>);

impl Session {
    /// Answers each question about snapshots as soon as there is something to say; who asks from nothing hears at once.
    pub(super) async fn tell_snapshots(&self, wanted: &mut watch::Receiver<Option<Watching>>) -> SessionEnd {
        let slots = self.server.store.slots();
        let mut versions = slots.watch();
        loop {
            let asked = *wanted.borrow_and_update();
            let version = *versions.borrow_and_update();
            match asked {
                Some((from, started)) if from != version || from == 0 => {
                    self.watching.send_if_modified(|now| {
                        // Another question may have come meanwhile.
                        if *now == asked {
                            *now = None;
                        }
                        false
                    });
                    self.outbox.snapshots(slots.since(from, started)).await;
                }
                _ => tokio::select! {
                    Ok(()) = wanted.changed() => {}
                    Ok(()) = versions.changed() => {}
                    else => return store_failed("the slots have closed".to_owned()),
                },
            }
        }
    }

    /// Asks the host for what was lost; again when another has given something back, by which more may be known of what is lacking.
    pub(super) async fn tell_losses(&self) {
        let mut changes = self.server.store.watch_losses();
        let mut told = Lost::default();
        if !self.rights.add {
            return std::future::pending().await;
        }
        loop {
            changes.mark_unchanged();
            match on_store(&self.server.store, |store| store.lost()).await {
                Ok(lost) if lost == told => {}
                Ok(lost) => {
                    self.outbox.message(FromStore::Lost(lost.clone())).await;
                    told = lost;
                }
                Err(fault) => tracing::error!("what was lost can't be told: {fault}"),
            }
            tokio::time::sleep(LOSSES_PAUSE).await;
            if changes.changed().await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }

    pub(super) async fn follow(&self, wanted: &mut watch::Receiver<Following>) -> SessionEnd {
        let mut heads = self.server.store.watch();
        let mut answered = 0;
        let mut at = None;
        loop {
            let following = *wanted.borrow_and_update();
            let head = *heads.borrow_and_update();
            if following.asked != answered {
                answered = following.asked;
                at = match self.agree(following.from).await {
                    Ok(at) => at,
                    Err(end) => return end,
                };
            }
            // A `Taken` beyond what was sent can't make the window larger.
            let limit = at.map(|at: Seq| Seq(following.taken.min(at).0 + FOLLOW_WINDOW).min(head.seq));
            match (at, limit) {
                (Some(from), Some(limit)) if from < limit => match self.push(from, limit).await {
                    Ok(sent) => at = Some(sent),
                    Err(end) => return end,
                },
                _ => tokio::select! {
                    Ok(()) = wanted.changed() => {}
                    Ok(()) = heads.changed() => {}
                    else => return store_failed("the catalog has closed".to_owned()),
                },
            }
        }
    }

    /// Whether the host's replica is a beginning of this catalog; if not, says so and sends nothing.
    async fn agree(&self, from: Option<Head>) -> Result<Option<Seq>, SessionEnd> {
        let Some(from) = from else { return Ok(None) };
        let agreed = on_store(&self.server.store, move |store| match from.seq {
            Seq(0) => Ok(from == Head::genesis(store.uuid())),
            seq => Ok(store.record(seq)?.is_some_and(|record| record.link() == from)),
        });
        match agreed.await {
            Ok(true) => Ok(Some(from.seq)),
            Ok(false) => {
                self.outbox.message(FromStore::Resync(self.server.store.head())).await;
                Ok(None)
            }
            Err(fault) => Err(store_failed(fault.to_string())),
        }
    }

    async fn push(&self, from: Seq, limit: Seq) -> Result<Seq, SessionEnd> {
        let max = usize::try_from(limit.0 - from.0).unwrap_or(usize::MAX).min(limits::RECORDS_PER_PUSH);
        let records = on_store(&self.server.store, move |s| s.records_after(from, max)).await;
        let records = records.map_err(|fault| store_failed(fault.to_string()))?;
        let Some(last) = records.last().map(|r| r.seq) else {
            return Err(store_failed(format!("the catalog has no record after {from}")));
        };
        self.outbox.records(records).await;
        Ok(last)
    }
}
