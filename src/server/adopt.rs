//! Adoption: a dead host's running units are closed at their last snapshot, which becomes their next commit, under the host's own UUID.
//!
//! It is the store's act at an administrator's request, through [`super::desk`]; no session can ask for it, since nobody commits as another host.
//! What the host still brings, should it come back, follows in a later generation (`docs/architecture.md`, "Adoption").

use super::{
    Server,
    api::{NewCommit, StoreFault},
};
use crate::{
    catalog::Snapshot,
    ids::{HostUuid, Seq},
};

/// Why nothing is adopted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Nothing speaks for a host of that name or UUID.
    #[error("no running unit of a host `{0}` was ever shown here, or all were committed")]
    NoSnapshots(String),
    /// It is alive.
    #[error("the host `{0}` is connected: what it runs is its own to complete")]
    Connected(String),
}

impl Refusal {
    /// What to do about it.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::NoSnapshots(_) => {
                "`resultsfs jobs` on any host lists what runs elsewhere, as `live`; give the host's name or UUID"
            }
            Self::Connected(_) => {
                "a connection that is gone is noticed within a minute; if the machine is really dead, try again then"
            }
        }
    }
}

/// What became of a unit.
pub(super) enum Adopted {
    /// It is committed under this number.
    At(Seq),
    /// It isn't, and why.
    Not(String),
}

/// The snapshots of a host, by name or UUID, that isn't connected. A name that was given to a new machine stands for the old one's, too.
pub(super) fn plan(server: &Server, host: &str) -> Result<Vec<Snapshot>, Refusal> {
    let mut snapshots = server.store.slots().all();
    snapshots.retain(|s| s.host_name == host || s.host.to_string() == host);
    if snapshots.is_empty() {
        return Err(Refusal::NoSnapshots(host.to_owned()));
    }
    snapshots.retain(|s| !is_connected(server, s.host));
    if snapshots.is_empty() {
        return Err(Refusal::Connected(host.to_owned()));
    }
    snapshots.sort_by(|a, b| (&a.unit, a.host).cmp(&(&b.unit, b.host)));
    Ok(snapshots)
}

fn is_connected(server: &Server, host: HostUuid) -> bool {
    server.live.is_connected(host)
}

/// Commits one, if it is still as planned.
pub(super) fn adopt(server: &Server, snapshot: &Snapshot, by: &str) -> Adopted {
    if is_connected(server, snapshot.host) {
        return Adopted::Not("its host has connected".to_owned());
    }
    if !server.store.slots().all().contains(snapshot) {
        return Adopted::Not("it has been published anew or committed meanwhile".to_owned());
    }
    let Snapshot { host, host_name, unit, generation, manifest, incarnation, .. } = snapshot.clone();
    let (lost, adopted_by) = (true, Some(by.to_owned()));
    let commit = NewCommit { host, host_name, unit, generation, manifest, lost, adopted_by, incarnation };
    let _turn = server.turns.take(commit.host, &commit.unit);
    match server.store.commit(commit) {
        Ok(record) => {
            tracing::info!(unit = %snapshot.unit, host = snapshot.host_name, by, seq = %record.seq, "adopted");
            Adopted::At(record.seq)
        }
        Err(StoreFault::Unacceptable(why) | StoreFault::Full(why) | StoreFault::Broken(why)) => {
            Adopted::Not(why)
        }
    }
}
