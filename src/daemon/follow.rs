//! Follows the store's catalog: keeps the replica, tells the kernel what has changed, and notices a store that isn't the one it was.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Host, giving::give_back, live::LiveFollower, shown::Telling};
use crate::{
    catalog::{Head, Record},
    fs::Invalidation,
    fuse::Notices,
    ids::{Scope, StoreUuid, UnitId},
    journal::{Comparison, JournalError, State},
    manifest::Manifest,
    wire::{Welcome, link::LinkEvent},
};

/// Takes the connection's events until it ends.
pub async fn follow(host: Arc<Host>, notices: Notices, mut events: mpsc::UnboundedReceiver<LinkEvent>) {
    let live = LiveFollower::new(host.clone(), notices.clone());
    let mut follower = Follower { host, notices, live, store: None, comparison: None };
    while let Some(event) = events.recv().await {
        follower.take(event);
    }
}

struct Follower {
    host: Arc<Host>,
    notices: Notices,
    live: LiveFollower,
    store: Option<StoreUuid>,
    /// What is to be compared when the replica has come up to where the store stood when this session began.
    comparison: Option<Comparison>,
}

impl Follower {
    fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(welcome) => self.up(&welcome),
            LinkEvent::Records(records) => self.records(&records),
            LinkEvent::Resync(head) => self.resync(head),
            LinkEvent::Snapshots(part) => self.live.take(part),
            LinkEvent::Lost(lost) => give_back(&self.host, lost),
            // The link has logged why.
            LinkEvent::Down { .. } => self.host.engine.link_down(),
        }
    }

    fn up(&mut self, welcome: &Welcome) {
        info!("connected to store {} at sequence number {}", welcome.store, welcome.head.seq);
        welcome.differences.iter().for_each(|d| warn!("settings differ from the store's: {d}"));
        self.store = Some(welcome.store);
        let known = self.host.journal.head();
        if known.is_some_and(|(store, _)| store != welcome.store) {
            warn!("this is another store than before; the replica begins anew");
        }
        let from = match known {
            Some((store, head)) if store == welcome.store => head,
            _ => self.begin_anew(welcome.store),
        };
        // Before anything can be committed in this session.
        self.comparison = Some(Comparison::begin(&self.host.journal, welcome.head));
        if let Err(e) = self.host.journal.set_may_delete(welcome.store, welcome.may_delete) {
            warn!("can't remember whether this host may delete: {e}");
        }
        self.host.link.as_ref().expect("events come from the link").follow(from);
        self.live.begin();
        self.host.fs.set_params(welcome.params);
        self.host.engine.link_up(welcome.params);
        self.compare_when_complete();
    }

    fn begin_anew(&self, store: StoreUuid) -> Head {
        if let Err(e) = self.host.journal.reset_replica(store) {
            warn!("can't reset the replica of the catalog: {e}");
        }
        Head::genesis(store)
    }

    /// The store has another history than the replica: it was restored from a backup.
    fn resync(&mut self, head: Head) {
        let Some(store) = self.store else { return };
        warn!(
            "the store's catalog isn't the one that was followed (it ends at {}); the replica begins anew",
            head.seq
        );
        let from = self.begin_anew(store);
        self.comparison = Some(Comparison::begin(&self.host.journal, head));
        self.host.link.as_ref().expect("events come from the link").follow(from);
        self.compare_when_complete();
    }

    fn records(&mut self, records: &[Record]) {
        let Some(store) = self.store else { return };
        let mut reopened = self.begin_adopted(records);
        match self.pass_borders(store, records) {
            Ok(units) => reopened.extend(units),
            Err(e) => {
                warn!("what was retired, pruned or undeleted can't be taken in: {e}");
                return;
            }
        }
        let telling = records.first().map(|first| self.host.shown.begin(first.seq));
        if let Err(e) = self.host.journal.follow(store, records) {
            warn!("records don't follow the replica ({e}); it begins anew");
            let from = self.begin_anew(store);
            self.host.link.as_ref().expect("events come from the link").follow(from);
            return;
        }
        self.host.engine.overtaken(&reopened);
        let own = self.host.journal.host();
        let mut foreign: BTreeSet<UnitId> = records
            .iter()
            .filter_map(Record::commit)
            .filter(|c| c.host != own)
            .map(|c| c.unit.clone())
            .collect();
        foreign.extend(records.iter().flat_map(Record::undeleted).map(|life| life.unit.clone()));
        let retired: Vec<UnitId> = records.iter().flat_map(Record::retired).cloned().collect();
        let is_hidden = !retired.is_empty();
        self.hide(retired);
        self.show(foreign.into_iter().collect(), is_hidden, telling);
        self.compare_when_complete();
    }

    /// Own units of which somebody made a snapshot a commit while this host was away. Those that are in the spool go on from there.
    fn begin_adopted(&self, records: &[Record]) -> Vec<UnitId> {
        let Host { journal, spool, .. } = &*self.host;
        let own = records.iter().filter_map(Record::commit).filter(|commit| commit.host == journal.host());
        let adopted: Vec<UnitId> = own.filter(|c| c.adopted_by.is_some()).map(|c| c.unit.clone()).collect();
        for unit in adopted.iter().filter(|unit| unit.root.under(spool.path()).symlink_metadata().is_ok()) {
            warn!(
                "{unit} was adopted at its last snapshot while this host was away; it goes on as the next generation"
            );
            if let Err(e) = journal.begin(unit) {
                warn!("{unit}: {e}");
            }
        }
        adopted
    }

    /// What is in the spool of units whose life ends, and has no record yet, belongs to that life; and what runs here of units whose life is back goes on
    /// with that. Record by record, each durably before it is taken in. Units that are open again.
    fn pass_borders(&self, store: StoreUuid, records: &[Record]) -> Result<Vec<UnitId>, JournalError> {
        let Host { journal, spool, .. } = &*self.host;
        let border = journal.border(store)?;
        let mut reopened = Vec::new();
        for record in records {
            if !record.retired().is_empty() && record.seq > border {
                let here = record.retired().iter().filter(|unit| is_in_spool(spool.path(), unit));
                journal.pass_border(store, record.seq, &here.cloned().collect::<Vec<_>>())?;
            }
            let back = record.undeleted();
            if !back.is_empty() {
                // A directory alone has attributes, which its own host's layer tells.
                let is_here = |unit: &UnitId, had_layer: bool| match had_layer {
                    true => is_here(spool.path(), unit),
                    false => is_in_spool(spool.path(), unit),
                };
                reopened.extend(journal.bring_back(store, record.seq, back, is_here)?);
            }
            reopened.extend(journal.give_up(record.purged())?);
        }
        Ok(reopened)
    }

    /// Lets the kernel forget units that were retired, and frees what is here of them. (What is still to be committed goes when it is.)
    fn hide(&self, units: Vec<UnitId>) {
        if units.is_empty() {
            return;
        }
        // At once: what comes there next is another job's.
        for unit in &units {
            self.notices.tell(match self.host.journal.get(unit) {
                Some(_) => self.host.fs.remote_changed(std::slice::from_ref(unit)),
                None => self.host.fs.retired_elsewhere(unit),
            });
        }
        let host = self.host.clone();
        tokio::spawn(async move {
            if let Err(e) = host.engine.free_retired().await {
                warn!("retired units aren't freed: {e}");
            }
        });
    }

    /// Lets the kernel forget what it has cached of these units, and what was hidden before, which ends `telling`, and fetches manifests ahead where there is a local layer.
    fn show(&self, units: Vec<UnitId>, is_hidden: bool, telling: Option<Telling>) {
        if units.is_empty() && !is_hidden {
            return;
        }
        let (host, notices) = (self.host.clone(), self.notices.clone());
        tokio::task::spawn_blocking(move || {
            let mut named = Vec::new();
            for unit in &units {
                let is_looked_at = host.fs.known(&unit.root).is_some() && is_here(host.spool.path(), unit);
                if is_looked_at || host.journal.get(unit).is_some() {
                    fetch_ahead(&host, unit);
                }
                if is_looked_at {
                    named.extend(named_elsewhere(&host, unit));
                }
            }
            notices.tell(host.fs.remote_changed(&units));
            notices.tell(named);
            notices.flush();
            drop(telling);
        });
    }

    /// Layers of lives that the store has lost go on in the one that it knows.
    fn take_back(&self) {
        for record in self.host.journal.units() {
            match self.host.journal.take_back(&record.unit) {
                Ok(false) => {}
                Ok(true) => {
                    warn!("the store has lost the retirement of {}; it is the old one's again", record.unit)
                }
                Err(e) => warn!("{}: {e}", record.unit),
            }
        }
    }

    /// Once the replica has caught up with where the store stood at connect: layers that the journal calls committed and the catalog
    /// doesn't know are sent again while the spool has them.
    fn compare_when_complete(&mut self) {
        let is_due = |comparison: &mut Comparison| comparison.is_due(&self.host.journal);
        let Some(comparison) = self.comparison.take_if(is_due) else { return };
        self.take_back();
        for record in comparison.lost(&self.host.journal) {
            match (record.partial, record.state) {
                (false, State::Committed) => warn!("the store has lost {}; it is sent again", record.unit),
                (true, _) => {
                    warn!("the store has lost {}; what is here of it is sent again", record.unit);
                }
                (false, _) => continue,
            }
            if let Err(e) = self.host.journal.unsend(&record.unit) {
                warn!("{}: {e}", record.unit);
            }
            self.host.engine.journal_changed();
        }
    }
}

/// Whether anything is in the spool that is in this unit.
fn is_in_spool(spool: &Path, unit: &UnitId) -> bool {
    let root = unit.root.under(spool);
    match unit.scope {
        Scope::Tree => root.symlink_metadata().is_ok(),
        Scope::Loose => std::fs::read_dir(root)
            .is_ok_and(|dir| dir.flatten().any(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))),
    }
}

/// Whether the directory of a unit is in the spool.
fn is_here(spool: &Path, unit: &UnitId) -> bool {
    unit.root.under(spool).symlink_metadata().is_ok()
}

/// What the kernel may take for absent in a unit's directories that are here.
fn named_elsewhere(host: &Host, unit: &UnitId) -> Vec<Invalidation> {
    let manifests = host.journal.layers(unit).into_iter();
    let manifests = manifests.filter_map(|layer| host.journal.manifest(&layer.manifest).ok().flatten());
    let named = |manifest: Arc<Manifest>| {
        host.fs.named_elsewhere(unit, manifest.entries().iter().map(|entry| &entry.path))
    };
    manifests.flat_map(named).collect()
}

/// Manifests of a unit with a layer of our own, so that looking into it never needs the network.
fn fetch_ahead(host: &Host, unit: &UnitId) {
    if let Err(need) = host.view.list(&unit.root)
        && let Err(e) = host.view.fetch(&need)
    {
        info!("manifests of {unit} can't be fetched ahead: {e}");
    }
}
