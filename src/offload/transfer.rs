//! A transfer: one unit from `Complete` to `Committed`, as far as it goes now.

use std::sync::Arc;

use super::{
    engine::Shared,
    seal::{self, Described, SealError, Subject},
    uplink::UplinkError,
    upload::{self, Layer, UploadError, Uploader},
};
use crate::{
    ids::{Generation, UnitId},
    journal::{JournalError, State, UnitRecord},
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
enum TransferError {
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

/// Describes a complete layer and journals its manifest.
async fn seal_layer(shared: &Arc<Shared>, record: UnitRecord) -> Result<(), TransferError> {
    let (unit, generation) = (record.unit.clone(), record.generation);
    let worker = shared.clone();
    let described = shared.bounds.run(move || describe(&worker, &record)).await??;
    count_sealed(shared, &described);
    let (journal, sealed) = (shared.journal.clone(), unit.clone());
    upload::blocking(move || journal.seal(&sealed, generation, &described.manifest)).await??;
    tracing::debug!(%unit, %generation, "sealed");
    Ok(())
}

fn count_sealed(shared: &Shared, described: &Described) {
    shared.counters.layers_sealed.one();
    shared.counters.files_sealed.add(described.manifest.contents().count() as u64);
    shared.counters.bytes_hashed.add(described.bytes_read);
}

fn describe(shared: &Shared, record: &UnitRecord) -> Result<Described, TransferError> {
    let unit = &record.unit;
    let previous = match record.committed {
        Some(committed) => shared.journal.manifest(&committed.manifest)?,
        None => None,
    };
    if record.partial && previous.is_none() {
        return Err(TransferError::NoManifest);
    }
    let notes = shared.journal.notes(unit);
    let host = shared.journal.host();
    let committed_as = |since: Generation| shared.journal.seq_of(host, unit, since).unwrap_or_default();
    let subject = Subject {
        tree: &shared.tree,
        unit,
        generation: record.generation,
        previous: previous.as_deref(),
        partial: record.partial,
        notes: &notes,
        committed_as: &committed_as,
        names: &shared.names,
    };
    Ok(seal::describe(&subject)?)
}

/// Sends a sealed layer and journals the store's answer.
async fn send_layer(
    shared: &Arc<Shared>,
    uploader: &Uploader,
    record: &UnitRecord,
) -> Result<(), TransferError> {
    let hash = record.manifest.ok_or(TransferError::NoManifest)?;
    let journal = shared.journal.clone();
    let manifest = upload::blocking(move || journal.manifest(&hash)).await??;
    let manifest = manifest.ok_or(TransferError::NoManifest)?;
    shared.note_queued(&record.unit, manifest.bytes());
    let layer =
        Layer { unit: record.unit.clone(), generation: record.generation, manifest, hash, lost: record.lost };
    let answer = uploader.send(&layer).await?;
    let journal = shared.journal.clone();
    let (unit, generation, seq) = (layer.unit.clone(), layer.generation, answer.seq);
    let keep = move || journal.committed(&layer.unit, layer.generation, &answer);
    upload::blocking(keep).await??;
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
        let touched = upload::blocking(move || journal.touch(&unit)).await;
        if let Ok(Err(error)) = touched {
            return Outcome::Failed(error.to_string());
        }
    }
    Outcome::Changed
}
