//! Follows what other hosts run: asks the store for the snapshots' changes, one part after another, and lets the kernel forget what
//! they change.
//!
//! A part is taken on the blocking pool, and the next is asked for when that is done, so that one is on the way at a time. Where somebody
//! has looked into a unit, the new manifest is fetched before it shows: a listing that worked goes on working.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};

use tracing::info;

use super::Host;
use crate::{
    catalog::{Snapshot, SnapshotChange, SnapshotChanges},
    fs::view::Need,
    fuse::Notices,
    ids::{Hash, HostUuid, RelPath, UnitId},
    manifest::{Entry, Manifest},
};

/// Clones are the same one.
#[derive(Clone)]
pub(super) struct LiveFollower {
    host: Arc<Host>,
    notices: Notices,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Counts the sessions: what belongs to an earlier one is of no use.
    session: u64,
    /// While the store tells everything from the beginning: at which version it began, and what it has named.
    began: Option<u64>,
    named: HashSet<(HostUuid, UnitId)>,
}

impl LiveFollower {
    pub fn new(host: Arc<Host>, notices: Notices) -> Self {
        Self { host, notices, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics under this lock")
    }

    /// A session has begun: everything is asked for. Until it is told, what was known shows.
    pub fn begin(&self) {
        let mut state = self.state();
        let session = state.session + 1;
        *state = State { session, ..State::default() };
        drop(state);
        self.ask(0, None);
    }

    fn ask(&self, version: u64, started: Option<u64>) {
        if let Some(link) = &self.host.link {
            link.watch(version, started);
        }
    }

    /// Takes a part, not waiting for it.
    pub fn take(&self, part: SnapshotChanges) {
        let (follower, session) = (self.clone(), self.state().session);
        tokio::task::spawn_blocking(move || follower.take_part(session, part));
    }

    fn take_part(&self, session: u64, part: SnapshotChanges) {
        let is_current = || self.state().session == session;
        self.note_named(&part);
        for change in part.changes {
            if !is_current() {
                return;
            }
            match change {
                SnapshotChange::Set(snapshot) => self.set(snapshot),
                SnapshotChange::Gone(host, unit) => self.drop_one(host, &unit),
            }
        }
        if part.is_all && part.started.is_some() {
            self.drop_unnamed();
        }
        if is_current() {
            let started = part.started.filter(|_| !part.is_all);
            self.ask(part.upto, started);
        }
    }

    fn note_named(&self, part: &SnapshotChanges) {
        let mut state = self.state();
        if state.began != part.started {
            state.began = part.started;
            state.named.clear();
        }
        if part.started.is_some() {
            let named = part.changes.iter().filter_map(|change| match change {
                SnapshotChange::Set(snapshot) => Some((snapshot.host, snapshot.unit.clone())),
                SnapshotChange::Gone(..) => None,
            });
            state.named.extend(named);
        }
    }

    fn drop_unnamed(&self) {
        let named = std::mem::take(&mut self.state().named);
        for snapshot in self.host.journal.snapshots() {
            if !named.contains(&(snapshot.host, snapshot.unit.clone())) {
                self.drop_one(snapshot.host, &snapshot.unit);
            }
        }
    }

    fn drop_one(&self, host: HostUuid, unit: &UnitId) {
        if self.host.journal.drop_snapshot(host, unit).is_some() {
            self.notices.tell(self.host.fs.remote_changed(std::slice::from_ref(unit)));
        }
    }

    fn set(&self, snapshot: Snapshot) {
        let journal = &self.host.journal;
        if snapshot.host == journal.host() {
            return;
        }
        let (unit, hash) = (snapshot.unit.clone(), snapshot.manifest);
        let old = journal.shown_layers(&unit).into_iter().find(|layer| layer.host == snapshot.host);
        let old = old.and_then(|layer| journal.manifest(&layer.manifest).ok().flatten());
        let is_looked_into = old.is_some() || journal.get(&unit).is_some();
        if is_looked_into && let Err(error) = self.fetch(hash) {
            info!(%unit, %error, "a snapshot can't be fetched; what was known before it goes on showing");
            return;
        }
        let new = journal.manifest(&hash).ok().flatten();
        journal.set_snapshot(snapshot);
        let fs = &self.host.fs;
        self.notices.tell(match (old, new) {
            (Some(old), Some(new)) => fs.remote_paths_changed(&unit, &differences(&old, &new)),
            _ => fs.remote_changed(std::slice::from_ref(&unit)),
        });
    }

    fn fetch(&self, hash: Hash) -> Result<(), crate::cache::FetchError> {
        self.host.journal.expect_snapshot(hash);
        if self.host.journal.manifest(&hash).is_ok_and(|manifest| manifest.is_some()) {
            return Ok(());
        }
        self.host.view.fetch(&Need { manifests: vec![hash] })
    }
}

/// Paths at which two manifests of a layer say something else.
fn differences(old: &Manifest, new: &Manifest) -> Vec<RelPath> {
    let says = |manifest: &Manifest, entry: &Entry| manifest.get(&entry.path).cloned();
    let differs = |a: &Entry, b: Option<Entry>| b.is_none_or(|b| (&b.attrs, &b.body) != (&a.attrs, &a.body));
    let changed = new.entries().iter().filter(|entry| differs(entry, says(old, entry)));
    let gone = old.entries().iter().filter(|entry| new.get(&entry.path).is_none());
    let paths: BTreeSet<RelPath> = changed.chain(gone).map(|entry| entry.path.clone()).collect();
    paths.into_iter().collect()
}
