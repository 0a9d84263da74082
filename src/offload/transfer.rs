//! A transfer: one unit from `Complete` to `Committed`, as far as it goes now.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use super::{
    bounds::{self, Core},
    engine::Shared,
    live::Taker,
    seal::{self, Described, SealError, Subject},
    uplink::UplinkError,
    upload::{Layer, UploadError, Uploader},
};
use crate::{
    ids::{Generation, Hash, RelPath, UnitId},
    journal::{JournalError, Note, State, UnitRecord},
    manifest::Manifest,
};

/// How a transfer ended.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing is left to do for this generation.
    Done,
    /// It goes on when the store can be reached.
    AwaitsLink,
    /// It was changed meanwhile; its next generation comes when it is complete.
    Changed,
    /// It failed and is tried again after a pause.
    Failed(String),
}

/// Why a unit couldn't be brought further.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the journal lacks the manifest that it names")]
    NoManifest,
}

/// Brings `unit` as far as it goes now.
pub async fn run(shared: &Arc<Shared>, unit: &UnitId) -> Outcome {
    match advance(shared, unit).await {
        Ok(outcome) => outcome,
        Err(error) => settle(shared, unit, error).await,
    }
}

async fn advance(shared: &Arc<Shared>, unit: &UnitId) -> Result<Outcome, TransferError> {
    loop {
        let Some(record) = shared.journal.get(unit) else { return Ok(Outcome::Done) };
        match record.state {
            State::Complete => seal_layer(shared, record).await?,
            State::Sealed => match shared.uploader() {
                Some(uploader) => send_layer(shared, &uploader, &record).await?,
                None => return Ok(Outcome::AwaitsLink),
            },
            State::Running => return Ok(Outcome::Changed),
            State::Committed | State::Evicted => return Ok(Outcome::Done),
        }
    }
}

/// Describes a complete layer and journals its manifest, unless that is the one that was committed last: who writes the same again (rsync
/// by Autotest itself does) has changed nothing.
async fn seal_layer(shared: &Arc<Shared>, record: UnitRecord) -> Result<(), TransferError> {
    let (unit, generation) = (record.unit.clone(), record.generation);
    let worker = shared.clone();
    let described =
        shared.bounds.run(move |core| Subjected::of(&worker, &record.unit)?.describe(&worker, core, None));
    let described = described.await??;
    count_sealed(shared, &described);
    let (journal, counters, sealed) = (shared.journal.clone(), shared.counters.clone(), unit.clone());
    let keep = move || -> Result<bool, JournalError> {
        let manifest = Hash::of(&described.manifest.encode());
        let committed = journal.get(&sealed).and_then(|record| record.committed);
        let is_unchanged = committed.is_some_and(|committed| committed.manifest == manifest);
        if is_unchanged {
            counters.layers_unchanged.one();
            journal.settle_unchanged(&sealed, generation, manifest)?;
        } else {
            journal.seal(&sealed, generation, &described.manifest)?;
        }
        Ok(is_unchanged)
    };
    let is_unchanged = bounds::blocking(keep).await??;
    tracing::debug!(%unit, %generation, is_unchanged, "described");
    Ok(())
}

fn count_sealed(shared: &Shared, described: &Described) {
    shared.counters.layers_sealed.one();
    shared.counters.files_sealed.add(described.manifest.contents().count() as u64);
    shared.counters.bytes_hashed.add(described.bytes_read);
}

/// A layer that is to be described, as the journal has it.
pub struct Subjected {
    pub unit: UnitId,
    pub state: State,
    pub generation: Generation,
    /// Its newest commit's manifest.
    pub previous: Option<Arc<Manifest>>,
    partial: bool,
    notes: BTreeMap<RelPath, Note>,
}

impl Subjected {
    /// `unit`'s own layer. One without a record runs in its first generation.
    pub fn of(shared: &Shared, unit: &UnitId) -> Result<Self, TransferError> {
        let record = shared.journal.get(unit);
        let (state, generation, partial, committed) = match record {
            Some(record) => (record.state, record.generation, record.partial, record.committed),
            None => (State::Running, Generation::FIRST, false, None),
        };
        let previous = match committed {
            Some(committed) => Some(committed_manifest(shared, &committed.manifest)?),
            None => None,
        };
        let notes = shared.journal.notes(unit);
        Ok(Self { unit: unit.clone(), state, generation, previous, partial, notes })
    }

    /// Its manifest as the spool is now; with a taker, while others write.
    pub fn describe(
        &self,
        shared: &Shared,
        core: &mut Core,
        live: Option<&Taker<'_>>,
    ) -> Result<Described, TransferError> {
        let host = shared.journal.host();
        let committed_as =
            |since: Generation| shared.journal.seq_of(host, &self.unit, since).unwrap_or_default();
        let core = RefCell::new(core);
        let subject = Subject {
            tree: &shared.tree,
            unit: &self.unit,
            generation: self.generation,
            previous: self.previous.as_deref(),
            partial: self.partial,
            notes: &self.notes,
            committed_as: &committed_as,
            names: &shared.names,
            live,
            unread: None,
            breathe: &|| core.borrow_mut().yield_now(),
        };
        Ok(seal::describe(&subject)?)
    }
}

/// The manifest of an own commit: from the journal, or from the store if the host knows that commit from the catalog alone. Without it, what
/// didn't change since couldn't be told from what did.
fn committed_manifest(shared: &Shared, hash: &Hash) -> Result<Arc<Manifest>, TransferError> {
    if let Some(manifest) = shared.journal.manifest(hash)? {
        return Ok(manifest);
    }
    let encoded = shared.contents.manifest(hash).map_err(|_| TransferError::NoManifest)?;
    Ok(shared.journal.keep_manifest(hash, &encoded)?)
}

/// Sends a sealed layer and journals the store's answer.
async fn send_layer(
    shared: &Arc<Shared>,
    uploader: &Uploader,
    record: &UnitRecord,
) -> Result<(), TransferError> {
    let hash = record.manifest.ok_or(TransferError::NoManifest)?;
    let journal = shared.journal.clone();
    let manifest = bounds::blocking(move || journal.manifest(&hash)).await??;
    let manifest = manifest.ok_or(TransferError::NoManifest)?;
    shared.note_queued(&record.unit, manifest.bytes());
    let (unit, generation, lost) = (record.unit.clone(), record.generation, record.lost);
    let incarnation = record.incarnation;
    let partial = record.partial;
    let layer = Layer { unit, incarnation, generation, manifest, hash, lost, partial, held: None };
    let answer = uploader.send(&layer).await?;
    let journal = shared.journal.clone();
    let (unit, generation, seq) = (layer.unit.clone(), layer.generation, answer.seq);
    let keep = move || journal.committed(&layer.unit, layer.generation, &answer);
    bounds::blocking(keep).await??;
    tracing::info!(%unit, %generation, %seq, "committed");
    Ok(())
}

/// What a failure means for the unit.
async fn settle(shared: &Arc<Shared>, unit: &UnitId, error: TransferError) -> Outcome {
    match error {
        TransferError::Journal(JournalError::Stale { .. }) => Outcome::Changed,
        TransferError::Upload(UploadError::Link(UplinkError::Down(_) | UplinkError::Timeout)) => {
            Outcome::AwaitsLink
        }
        TransferError::Upload(UploadError::Stopped) => Outcome::AwaitsLink,
        // What a partial layer lacks is nowhere: describing it again would find the same.
        TransferError::Upload(UploadError::Absent { .. })
            if shared.journal.get(unit).is_some_and(|record| record.partial) =>
        {
            Outcome::Failed(error.to_string())
        }
        TransferError::Seal(SealError::Changed { .. })
        | TransferError::Upload(UploadError::Changed { .. } | UploadError::Absent { .. }) => {
            reopen(shared, unit, &error).await
        }
        other => Outcome::Failed(other.to_string()),
    }
}

/// The layer isn't what it was when it was complete. Whoever changed it has opened the next generation; if nobody did (it was changed
/// behind the mount), it is opened here, so that it is described anew.
async fn reopen(shared: &Arc<Shared>, unit: &UnitId, why: &TransferError) -> Outcome {
    let is_running = shared.journal.get(unit).is_some_and(|record| record.state == State::Running);
    if !is_running {
        tracing::warn!(%unit, %why, "changed though nobody said so; described again");
        let (journal, unit) = (shared.journal.clone(), unit.clone());
        let touched = bounds::blocking(move || journal.touch(&unit)).await;
        if let Ok(Err(error)) = touched {
            return Outcome::Failed(error.to_string());
        }
    }
    Outcome::Changed
}
