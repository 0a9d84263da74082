//! One unit, from a look at it to its commit.
//!
//! Nothing is remembered before the store has answered, so that it can be cut off anywhere and begin again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    imported::Imported,
    look::{self, Look, Standing},
    sift::{self, SiftError, Sifted},
    told::{Done, Fate, Finding},
};
use crate::{
    catalog::Record,
    chunk::ObjectKind,
    client::{Client, ClientError},
    clock::{Clock, SystemClock},
    ids::{Generation, Hash, RelPath, UnitId},
    journal::LayerHead,
    layout::LayoutRules,
    manifest::{Manifest, OmittedKind},
    offload::{
        OwnerNames, SpoolTree, UplinkError,
        seal::{self, SealError, Subject, Unread},
        upload::{Layer, UploadError, Uploader},
    },
};

/// How often a unit is described anew because a file of it turned out otherwise when it was sent.
const ROUNDS: usize = 16;
/// Sessions in a row that may end over one layer.
const SESSIONS: usize = 6;

/// What all units share.
pub(super) struct Work {
    pub client: Client,
    pub tree: Arc<SpoolTree>,
    pub rules: LayoutRules,
    pub names: OwnerNames,
    pub uploader: Uploader,
    pub imported: Imported,
    pub is_dry_run: bool,
}

/// A layer that is ready to be sent, or why there is none.
enum Prepared {
    Layer {
        layer: Layer,
        there: u64,
        findings: Vec<Finding>,
    },
    /// The store has it; the manifest is a layer's, if nothing of it was left out.
    There {
        manifest: Hash,
        there: u64,
        findings: Vec<Finding>,
    },
    Failed(Vec<Finding>),
}

/// A layer as it was read.
struct Described {
    manifest: Manifest,
    errors: Vec<SealError>,
}

impl Work {
    /// Brings what the store lacks of `unit` there. An error is one that ends the import.
    pub async fn unit(self: &Arc<Self>, unit: &UnitId) -> Result<Done, ClientError> {
        let (work, of) = (self.clone(), unit.clone());
        let look = move || look::look(&work.tree, &of, &work.rules, SystemClock.now_ms());
        let Some(look) = self.run(look).await? else {
            let gone = Finding::of_unit("changed", unit, "it isn't there any more");
            return Ok(Self::nothing(unit, Fate::Skipped, vec![gone]));
        };
        let done = match self.known(unit, &look) {
            Some((fate, finding)) => {
                Done { findings: finding.into_iter().collect(), ..Self::as_seen(unit, &look, fate) }
            }
            None if self.is_dry_run => Self::as_seen(unit, &look, Fate::Planned),
            None => self.import(unit, &look).await?,
        };
        Ok(done)
    }

    /// What becomes of it without its contents being read.
    fn known(&self, unit: &UnitId, look: &Look) -> Option<(Fate, Option<Finding>)> {
        let skip = |code, why: String| Some((Fate::Skipped, Some(Finding::of_unit(code, unit, why))));
        match &look.standing {
            Standing::Running(why) => return skip("running", why.clone()),
            Standing::Settling => return skip("settling", "it was written just now".to_owned()),
            Standing::Over { .. } => {}
        }
        let journal = &self.client.journal;
        let past = journal.past_lives(unit);
        let kept = past.iter().flat_map(|life| life.layers.iter().filter(|layer| !life.is_given_up(layer)));
        let layers = kept.cloned().chain(journal.layers(unit));
        let layers: Vec<LayerHead> = layers.collect();
        let manifest = self.imported.manifest(unit, &look.stamp);
        if manifest.is_some_and(|manifest| layers.iter().any(|layer| layer.manifest == manifest)) {
            return Some((Fate::There, None));
        }
        if past.is_empty() {
            return None;
        }
        let why =
            "a unit of this name was retired or pruned, and of which of its lives this is can't be told";
        skip("retired", why.to_owned())
    }

    async fn import(self: &Arc<Self>, unit: &UnitId, look: &Look) -> Result<Done, ClientError> {
        let (mut passed_over, mut changed) = (BTreeSet::new(), BTreeSet::new());
        let mut of_files = Vec::new();
        let as_seen = |fate, mut findings: Vec<Finding>, more: &[Finding]| {
            findings.extend(more.iter().cloned());
            Done { findings, ..Self::as_seen(unit, look, fate) }
        };
        for _ in 0..ROUNDS {
            let (work, of, over) = (self.clone(), unit.clone(), passed_over.clone());
            let Standing::Over { lost } = look.standing else { unreachable!("only what is over is read") };
            let prepared = self.run(move || work.prepare(&of, lost, over)).await?;
            let (layer, there, findings) = match prepared {
                Prepared::Layer { layer, there, findings } => (layer, there, findings),
                Prepared::There { manifest, there, findings } => {
                    let done = as_seen(Fate::There, findings, &of_files);
                    self.remember(look, &done, manifest);
                    return Ok(Done { there, ..done });
                }
                Prepared::Failed(findings) => return Ok(as_seen(Fate::Failed, findings, &of_files)),
            };
            let error = match self.send(&layer).await? {
                Ok(record) => {
                    let done = as_seen(Fate::Imported, findings, &of_files);
                    self.remember(look, &done, layer.hash);
                    let (generation, seq) = (Some(layer.generation.0), Some(record.seq.0));
                    let (bytes, entries) = (layer.manifest.bytes(), layer.manifest.entries().len() as u64);
                    return Ok(Done { generation, seq, bytes, entries, there, ..done });
                }
                Err(error) => error,
            };
            match error {
                UploadError::Changed { path } | UploadError::Absent { path, .. } => {
                    if !changed.insert(path.clone()) {
                        of_files.push(Finding::within("changed", unit, &path, "it changes while it is read"));
                        passed_over.insert(path);
                    }
                }
                UploadError::Io { path, source } => {
                    of_files.push(Finding::within("unreadable", unit, &path, source.to_string()));
                    passed_over.insert(path);
                }
                UploadError::Link(UplinkError::Rejected(why)) => {
                    let refused = Finding::of_unit("rejected", unit, format!("the store refused it: {why}"));
                    return Ok(as_seen(Fate::Failed, vec![refused], &of_files));
                }
                other => {
                    let failed = Finding::of_unit("failed", unit, other.to_string());
                    return Ok(as_seen(Fate::Failed, vec![failed], &of_files));
                }
            }
        }
        let failed = Finding::of_unit("changed", unit, "too much of it changes while it is read");
        Ok(as_seen(Fate::Failed, vec![failed], &of_files))
    }

    /// Sends a layer, over several sessions if need be.
    async fn send(&self, layer: &Layer) -> Result<Result<Record, UploadError>, ClientError> {
        for _ in 0..SESSIONS {
            match self.uploader.send(layer).await {
                Err(UploadError::Link(UplinkError::Down(_) | UplinkError::Timeout)) => {
                    self.client.welcome().await?;
                    // Blocks that were on their way may be lost.
                    self.uploader.held.forget();
                }
                Err(UploadError::Stopped) => return Err(ClientError::Unreachable("stopped".to_owned())),
                sent => return Ok(sent),
            }
        }
        Err(ClientError::Unreachable(format!(
            "the connection ended {SESSIONS} times over one unit: {}",
            self.client.link.status().last_error.unwrap_or_default()
        )))
    }

    /// Reads it and takes out what the store has. Blocking.
    fn prepare(&self, unit: &UnitId, lost: bool, passed_over: BTreeSet<RelPath>) -> Prepared {
        let journal = &self.client.journal;
        let me = journal.host();
        let layers = journal.layers(unit);
        let own = layers.iter().find(|layer| layer.host == me);
        let generation = own.map_or(Generation::FIRST, |own| Generation(own.generation.0 + 1));
        let failed = |why: String| Prepared::Failed(vec![Finding::of_unit("failed", unit, why)]);
        let previous = match own.map(|own| self.manifest(&own.manifest)).transpose() {
            Ok(previous) => previous,
            Err(why) => return failed(why),
        };
        let described = match self.describe(unit, generation, own, previous.as_deref(), passed_over) {
            Ok(described) => described,
            Err(error) => return Prepared::Failed(vec![Finding::unread(unit, &error)]),
        };
        let mut findings: Vec<Finding> = described.errors.iter().map(|e| Finding::unread(unit, e)).collect();
        findings.extend(described.manifest.omitted().iter().map(|omitted| {
            let what = match omitted.kind {
                OmittedKind::Socket => "a socket isn't carried",
                OmittedKind::Device => "a device isn't carried",
            };
            Finding::within("special", unit, &omitted.path, what)
        }));
        let whole = Hash::of(&described.manifest.encode());
        let Sifted { manifest, there, left_out } =
            match self.sift(unit, generation, &layers, whole, described.manifest) {
                Ok(sifted) => sifted,
                Err(error) => return failed(error.to_string()),
            };
        findings
            .extend(left_out.iter().map(|(path, why)| Finding::within(why.code(), unit, path, why.text())));
        let hash = Hash::of(&manifest.encode());
        if !manifest.entries().iter().any(|entry| entry.since == generation) {
            let manifest = own.map_or(whole, |own| own.manifest);
            return Prepared::There { manifest, there, findings };
        }
        let (unit, incarnation) = (unit.clone(), journal.incarnation(unit));
        let layer = Layer {
            unit,
            incarnation,
            generation,
            manifest: Arc::new(manifest),
            hash,
            lost,
            partial: false,
            held: None,
        };
        Prepared::Layer { layer, there, findings }
    }

    fn sift(
        &self,
        unit: &UnitId,
        generation: Generation,
        layers: &[LayerHead],
        whole: Hash,
        manifest: Manifest,
    ) -> Result<Sifted, SiftError> {
        let (journal, view) = (&self.client.journal, &self.client.view);
        let me = journal.host();
        let nothing = || Manifest::new(Vec::new(), Vec::new(), Vec::new(), Vec::new());
        if layers.iter().any(|layer| layer.host != me && layer.manifest == whole) {
            let there = manifest.contents().count() as u64;
            return Ok(Sifted { manifest: nothing()?, there, left_out: Vec::new() });
        }
        if !sift::is_shared(journal, me, unit) {
            return Ok(Sifted { manifest, there: 0, left_out: Vec::new() });
        }
        sift::sift(view, me, unit, generation, &manifest)
    }

    /// Describes a layer, twice if something changes meanwhile.
    fn describe(
        &self,
        unit: &UnitId,
        generation: Generation,
        own: Option<&LayerHead>,
        previous: Option<&Manifest>,
        passed_over: BTreeSet<RelPath>,
    ) -> Result<Described, SealError> {
        let mut unread = Unread { passed_over, ..Unread::default() };
        let committed_as = |since| own.and_then(|own| own.seq_of(since)).unwrap_or_default();
        let describe = |unread: &Unread| {
            let subject = Subject {
                tree: &self.tree,
                unit,
                generation,
                previous,
                partial: true,
                notes: &BTreeMap::new(),
                committed_as: &committed_as,
                names: &self.names,
                live: None,
                unread: Some(unread),
                breathe: &|| {},
            };
            let described = seal::describe(&subject)?;
            self.uploader.counters.bytes_hashed.add(described.bytes_read);
            Ok::<_, SealError>(described.manifest)
        };
        let mut manifest = describe(&unread)?;
        let is_change = |e: &SealError| matches!(e, SealError::Changed { .. });
        if unread.errors.get_mut().iter().any(is_change) {
            unread.errors.get_mut().clear();
            manifest = describe(&unread)?;
        }
        Ok(Described { manifest, errors: unread.errors.into_inner() })
    }

    /// An own manifest from before.
    fn manifest(&self, hash: &Hash) -> Result<Arc<Manifest>, String> {
        let journal = &self.client.journal;
        if let Some(manifest) = journal.manifest(hash).map_err(|e| e.to_string())? {
            return Ok(manifest);
        }
        let fail = |e: &dyn std::fmt::Display| format!("what was imported of it before can't be read: {e}");
        let encoded = self.client.cache.get(ObjectKind::Manifest, hash).map_err(|e| fail(&e))?;
        journal.keep_manifest(hash, &encoded).map_err(|e| fail(&e))
    }

    fn remember(&self, look: &Look, done: &Done, manifest: Hash) {
        if !done.findings.is_empty() {
            return;
        }
        if let Err(error) = self.imported.add(&done.unit, look.stamp, manifest) {
            tracing::warn!("{} will be read again by the next import: {error}", done.unit);
        }
    }

    /// On a thread of its own, when a core is free for it.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ClientError> {
        self.uploader.bounds.run(|_| work()).await.map_err(|e| ClientError::Unreachable(e.to_string()))
    }

    fn nothing(unit: &UnitId, fate: Fate, findings: Vec<Finding>) -> Done {
        let (unit, generation, seq) = (unit.clone(), None, None);
        let (bytes, entries, there) = (0, 0, 0);
        let (lost, has_failed_transfer) = (false, false);
        Done { unit, fate, generation, seq, bytes, entries, lost, has_failed_transfer, there, findings }
    }

    fn as_seen(unit: &UnitId, look: &Look, fate: Fate) -> Done {
        Done {
            bytes: look.bytes,
            entries: look.entries,
            lost: look.standing == Standing::Over { lost: true },
            has_failed_transfer: look.has_failed_transfer,
            ..Self::nothing(unit, fate, Vec::new())
        }
    }
}
