//! A unit's record and its transitions, as values: the journal stores what these functions return.
//!
//! ```text
//!            complete          seal          committed         evict
//!  Running ───────────► Complete ────► Sealed ─────► Committed ─────► Evicted
//!     ▲                    │             │   ◄─────    │    ◄─────      │
//!     └──── touch ─────────┴─────────────┴── unsend ───┴── recalled ────┘
//!           (next generation)
//! ```
//! A complete layer that is what was committed last goes straight back to `Committed` ([`UnitRecord::unchanged`]), in that commit's generation.
//! `unsend` is for a commit that the store has lost, from `Evicted`, too.
//!
//! Invariants: `manifest` is there exactly from `Sealed` on and describes `generation`; `committed` is there from `Committed`
//! on and is then of the same generation and manifest; an `Evicted` layer is partial; a partial one has `committed`, and only such a one is
//! stranded, and then it isn't `Committed` or `Evicted`.

use minicbor::{Decode, Encode};

use crate::{
    catalog::{Commit, Record},
    ids::{Generation, Hash, Incarnation, Seq, UnitId},
};

/// Where a unit's own layer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum State {
    /// Being written, or changed since it was complete.
    #[n(0)]
    Running,
    /// Complete, its bytes and names synced.
    #[n(1)]
    Complete,
    /// Its manifest is known and kept.
    #[n(2)]
    Sealed,
    /// The store holds it durably.
    #[n(3)]
    Committed,
    /// The store holds it, and the spool needn't.
    #[n(4)]
    Evicted,
}

impl State {
    /// Every state, in the order of a layer's life.
    pub const ALL: [Self; 5] = [Self::Running, Self::Complete, Self::Sealed, Self::Committed, Self::Evicted];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Sealed => "sealed",
            Self::Committed => "committed",
            Self::Evicted => "evicted",
        }
    }
}

/// The newest commit of a layer that the store has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Committed {
    #[n(0)]
    pub generation: Generation,
    #[n(1)]
    pub manifest: Hash,
    #[n(2)]
    pub seq: Seq,
    /// The store's time, ms since the epoch.
    #[n(3)]
    pub time_ms: u64,
}

impl Committed {
    /// As a catalog record says it.
    pub fn of(record: &Record, commit: &Commit) -> Self {
        Self {
            generation: commit.generation,
            manifest: commit.manifest,
            seq: record.seq,
            time_ms: record.time_ms,
        }
    }
}

/// How a unit came to be complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompleteHow {
    /// It never reached its end and is taken as it stands.
    pub lost: bool,
    /// Somebody said so.
    pub by_hand: bool,
}

/// What the journal knows of the host's own layer of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct UnitRecord {
    #[n(0)]
    pub unit: UnitId,
    #[n(1)]
    pub state: State,
    #[n(2)]
    pub generation: Generation,
    /// Of `generation`, from `Sealed` on.
    #[n(3)]
    pub manifest: Option<Hash>,
    #[n(4)]
    pub committed: Option<Committed>,
    /// What isn't in the spool is as the committed manifest says, unless it is gone.
    #[n(5)]
    pub partial: bool,
    #[n(6)]
    pub lost: bool,
    #[n(7)]
    pub by_hand: bool,
    /// When it got its record or was opened again, this host's clock, ms since the epoch; likewise below.
    #[n(8)]
    pub running_ms: Option<u64>,
    #[n(9)]
    pub complete_ms: Option<u64>,
    #[n(10)]
    pub sealed_ms: Option<u64>,
    #[n(11)]
    pub committed_ms: Option<u64>,
    #[n(12)]
    pub evicted_ms: Option<u64>,
    /// The unit's life that this layer is of.
    #[n(13)]
    pub incarnation: Incarnation,
    /// When this host learnt that the store has lost `committed`, which still says what isn't in the spool.
    #[n(14)]
    pub stranded_ms: Option<u64>,
    /// Why the last attempt to go on failed; in memory only.
    #[cbor(skip)]
    pub last_error: Option<String>,
}

impl UnitRecord {
    /// A running layer's record.
    pub(super) fn running(
        unit: UnitId,
        incarnation: Incarnation,
        generation: Generation,
        now_ms: u64,
    ) -> Self {
        Self {
            unit,
            incarnation,
            state: State::Running,
            generation,
            manifest: None,
            committed: None,
            partial: false,
            lost: false,
            by_hand: false,
            running_ms: Some(now_ms),
            complete_ms: None,
            sealed_ms: None,
            committed_ms: None,
            evicted_ms: None,
            stranded_ms: None,
            last_error: None,
        }
    }

    /// The next generation, open for changes.
    pub(super) fn touched(&self, now_ms: u64) -> Self {
        Self {
            committed: self.committed,
            partial: self.partial,
            stranded_ms: self.stranded_ms,
            ..Self::running(self.unit.clone(), self.incarnation, self.generation.next(), now_ms)
        }
    }

    /// Open again; one that runs goes on in its generation.
    pub(super) fn again(&self, now_ms: u64) -> Self {
        if self.state == State::Running { self.clone() } else { self.touched(now_ms) }
    }

    /// Another made a snapshot of this layer its commit: what is here follows as the next generation.
    pub(super) fn overtaken(&self, committed: Committed, now_ms: u64) -> Self {
        let (generation, stranded_ms) = (committed.generation, None);
        let committed_then = Self { generation, committed: Some(committed), stranded_ms, ..self.clone() };
        committed_then.touched(now_ms)
    }

    pub(super) fn completed(&self, how: CompleteHow, now_ms: u64) -> Option<Self> {
        (self.state == State::Running).then(|| Self {
            state: State::Complete,
            lost: how.lost,
            by_hand: how.by_hand,
            complete_ms: Some(now_ms),
            last_error: None,
            ..self.clone()
        })
    }

    pub(super) fn sealed(&self, generation: Generation, manifest: Hash, now_ms: u64) -> Option<Self> {
        (self.state == State::Complete && self.generation == generation).then(|| Self {
            state: State::Sealed,
            manifest: Some(manifest),
            sealed_ms: Some(now_ms),
            last_error: None,
            ..self.clone()
        })
    }

    /// Described, and the same as the last commit: this generation never was.
    pub(super) fn unchanged(&self, generation: Generation, manifest: Hash, now_ms: u64) -> Option<Self> {
        let committed = self.committed.filter(|committed| committed.manifest == manifest)?;
        (self.state == State::Complete && self.generation == generation).then(|| Self {
            state: State::Committed,
            generation: committed.generation,
            manifest: Some(manifest),
            committed_ms: Some(now_ms),
            last_error: None,
            ..self.clone()
        })
    }

    /// With the store's answer. The layer may have moved on meanwhile: then only `committed` follows.
    pub(super) fn acknowledged(&self, committed: Committed, now_ms: u64) -> Self {
        let is_current = self.state == State::Sealed && self.manifest == Some(committed.manifest);
        if is_current && self.generation == committed.generation {
            return Self {
                state: State::Committed,
                committed: Some(committed),
                committed_ms: Some(now_ms),
                stranded_ms: None,
                last_error: None,
                ..self.clone()
            };
        }
        // A number of a commit that was lost says nothing.
        let known_seq = |known: Committed| self.stranded_ms.is_none().then_some(known.seq);
        let is_newer = self
            .committed
            .is_none_or(|c| (c.generation, known_seq(c)) < (committed.generation, Some(committed.seq)));
        match is_newer {
            true => Self { committed: Some(committed), stranded_ms: None, ..self.clone() },
            false => self.clone(),
        }
    }

    /// Without the commit, which the store doesn't have any more. A partial layer goes on as what that said: the store may have the contents, or get
    /// them from another.
    pub(super) fn unsent(&self, now_ms: u64) -> Self {
        let state = self.state.min(State::Sealed);
        let (committed, stranded_ms) = match self.partial {
            true => (self.committed, self.stranded_ms.or(Some(now_ms))),
            false => (None, None),
        };
        Self { state, committed, stranded_ms, committed_ms: None, evicted_ms: None, ..self.clone() }
    }

    pub(super) fn evicted(&self, now_ms: u64) -> Option<Self> {
        (self.state == State::Committed).then(|| Self {
            state: State::Evicted,
            partial: true,
            evicted_ms: Some(now_ms),
            ..self.clone()
        })
    }

    /// Whole again; the state doesn't change but from `Evicted`.
    pub(super) fn recalled(&self) -> Option<Self> {
        let state = if self.state == State::Evicted { State::Committed } else { self.state };
        let committed = self.committed.filter(|_| self.stranded_ms.is_none());
        let stranded_ms = None;
        self.partial.then(|| Self {
            state,
            committed,
            partial: false,
            evicted_ms: None,
            stranded_ms,
            ..self.clone()
        })
    }

    /// The manifests that this record needs kept.
    pub(super) fn manifests(&self) -> impl Iterator<Item = Hash> {
        self.manifest.into_iter().chain(self.committed.map(|c| c.manifest))
    }
}
