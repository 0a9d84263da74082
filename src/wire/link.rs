//! The host's side: one connection to the store that is kept up for ever, and the questions that are asked over it.
//!
//! A [`Link`] is a handle; an actor behind it connects, greets, reads and writes, and connects again after a pause. Requests that are
//! open when a session ends fail with [`LinkError::Down`], and nothing is sent twice by the link itself: whoever was uploading begins again with
//! [`Link::offer`], and the store says what it still wants.
//!
//! What it is not: it doesn't check blocks or records ([`crate::cache`] and [`crate::journal`] do), only that each answer fits its
//! question. Invariants: everything that the store can make it hold is bounded; an answer that doesn't fit ends the session; no lock is held
//! across an await.

mod backoff;
mod live;
mod records;
mod session;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use records::RecordBatch;

use self::live::{Answer, Ask, Live};
use super::{
    CommitRequest, Hello, Lost, PublishRequest, RefusalCode, RequestId, RetireUnit, ToStore, Welcome,
    chunks_in,
};
use crate::{
    catalog::{Head, Record, SnapshotChanges},
    chunk::{ObjectKind, Stretch},
    clock::{Clock, SystemClock},
    ids::{Hash, UnitId},
    limits,
    transport::Target,
};

/// Makes the Hello of each session: what is known changes between them.
pub type HelloSource = Arc<dyn Fn() -> Hello + Send + Sync>;

/// What the link tells of its own accord, in order.
#[derive(Debug)]
pub enum LinkEvent {
    /// A session began. Now [`Link::follow`] from where the replica stands.
    Up(Welcome),
    /// Records that follow those before. The store sends more as batches are dropped.
    Records(RecordBatch),
    /// The replica doesn't match the catalog, whose head is this: drop it and follow from the start.
    Resync(Head),
    /// What became of the snapshots: the answer to [`Link::watch`]. Ask again from the version that it names.
    Snapshots(SnapshotChanges),
    /// The store has lost something of what was committed: who has it sends it, and says when he has ([`Link::returned`]).
    Lost(Lost),
    /// A session ended, or an attempt at one failed.
    Down {
        /// Why, for people.
        reason: String,
        /// The store's own word on it, if it said one.
        refused: Option<RefusalCode>,
    },
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The session ended with the request open. Begin again with [`Link::offer`].
    #[error("connection to the store was lost: {0}")]
    Down(String),
    /// The store answered no.
    #[error("the store refused: {0}")]
    Rejected(String),
    /// No answer in time.
    #[error("the store did not answer in time")]
    Timeout,
    /// There is no session.
    #[error("not connected to the store: {0}")]
    NotConnected(String),
}

/// Where the link stands.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// Whether a session is open.
    pub connected: bool,
    /// What the store said of itself in this session or the last.
    pub store: Option<Welcome>,
    /// Since when it is as it is, ms since the epoch.
    pub since_ms: u64,
    /// Attempts since the last session.
    pub attempts: u32,
    /// Why the last session ended or attempt failed.
    pub last_error: Option<String>,
    /// Since start.
    pub bytes_sent: u64,
    /// Since start.
    pub bytes_received: u64,
    /// Whom it talks to.
    pub target: String,
}

/// The link's patience; the defaults are those of [`limits`].
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// First pause before another attempt.
    pub reconnect_min: Duration,
    /// Longest pause.
    pub reconnect_max: Duration,
    /// A session of this length was a good one: the next pause is the first again.
    pub lived: Duration,
    /// From starting to connect to Welcome.
    pub greeting: Duration,
    /// Without a byte for this long the session is dead; pings go out at a third of it.
    pub silence: Duration,
    /// A fetch's.
    pub fetch: Duration,
    /// Any other request's: a commit waits for other hosts' blocks and a disk's sync.
    pub request: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            reconnect_min: Duration::from_millis(limits::RECONNECT_MIN_MS),
            reconnect_max: Duration::from_millis(limits::RECONNECT_MAX_MS),
            lived: Duration::from_secs(10),
            greeting: Duration::from_millis(limits::GREETING_TIMEOUT_MS),
            silence: Duration::from_millis(limits::SILENCE_TIMEOUT_MS),
            fetch: Duration::from_millis(limits::FETCH_TIMEOUT_MS),
            request: Duration::from_secs(600),
        }
    }
}

/// A handle on the connection. When the last clone is dropped, the connection ends.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    _last: Arc<DropGuard>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("target", &self.shared.target).finish_non_exhaustive()
    }
}

/// What handle and actor share.
struct Shared {
    target: Target,
    hello: HelloSource,
    events: mpsc::UnboundedSender<LinkEvent>,
    timing: Timing,
    stop: CancellationToken,
    live: Mutex<Option<Arc<Live>>>,
    state: watch::Sender<LinkState>,
    bytes_sent: Arc<AtomicU64>,
    bytes_received: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
struct LinkState {
    connected: bool,
    store: Option<Welcome>,
    since_ms: u64,
    attempts: u32,
    last_error: Option<String>,
}

impl Link {
    /// Starts the actor on the current tokio runtime; it connects at once.
    pub fn start(target: Target, hello: HelloSource, events: mpsc::UnboundedSender<LinkEvent>) -> Self {
        Self::start_with(target, hello, events, Timing::default())
    }

    /// [`Self::start`] with another patience.
    pub fn start_with(
        target: Target,
        hello: HelloSource,
        events: mpsc::UnboundedSender<LinkEvent>,
        timing: Timing,
    ) -> Self {
        let stop = CancellationToken::new();
        let state = LinkState {
            connected: false,
            store: None,
            since_ms: SystemClock.now_ms(),
            attempts: 0,
            last_error: None,
        };
        let shared = Arc::new(Shared {
            target,
            hello,
            events,
            timing,
            stop: stop.clone(),
            live: Mutex::new(None),
            state: watch::Sender::new(state),
            bytes_sent: Arc::default(),
            bytes_received: Arc::default(),
        });
        tokio::spawn(session::keep_up(Arc::clone(&shared)));
        Self { shared, _last: Arc::new(stop.drop_guard()) }
    }

    /// Ends the session and doesn't connect again.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Whether the store has this manifest with everything that it names.
    pub async fn offer(&self, manifest: Hash) -> Result<bool, LinkError> {
        let live = self.shared.live()?;
        match self.ask(&live, Ask::Offer, |id| ToStore::Offer(id, manifest)).await? {
            Answer::Known(known) => Ok(known),
            Answer::Rejected(why) => Err(LinkError::Rejected(why)),
            _ => Err(unfit()),
        }
    }

    /// Which of these objects the store lacks, in the order given. More than [`limits::HASHES_PER_ASK`] are asked in several questions.
    pub async fn missing(&self, kind: ObjectKind, hashes: Vec<Hash>) -> Result<Vec<bool>, LinkError> {
        let live = self.shared.live()?;
        let mut missing = Vec::with_capacity(hashes.len());
        for part in hashes.chunks(limits::HASHES_PER_ASK) {
            let question = |id| ToStore::Missing(id, kind, part.to_vec());
            let bits = match self.ask(&live, Ask::Missing { count: part.len() }, question).await? {
                Answer::Wanted(bits) => bits,
                Answer::Rejected(why) => return Err(LinkError::Rejected(why)),
                _ => return Err(unfit()),
            };
            missing.extend(flags(&bits, part.len()));
        }
        Ok(missing)
    }

    /// The same of the chunks of these stretches, at most [`limits::HASHES_PER_ASK`] of them.
    pub async fn cut(&self, stretches: Vec<Stretch>) -> Result<Vec<bool>, LinkError> {
        let live = self.shared.live()?;
        let count = chunks_in(&stretches);
        match self.ask(&live, Ask::Missing { count }, |id| ToStore::Cut(id, stretches)).await? {
            Answer::Wanted(bits) => Ok(flags(&bits, count)),
            Answer::Rejected(why) => Err(LinkError::Rejected(why)),
            _ => Err(unfit()),
        }
    }

    /// Hands over an encoded block; waits for credit. Returns when it is queued: only a commit that follows says that it arrived.
    pub async fn send_block(&self, block: Vec<u8>) -> Result<(), LinkError> {
        let live = self.shared.live()?;
        live.upload(block).await
    }

    /// Makes durable what was sent for this layer and enters it in the catalog. Everything that this session sent before is taken in first.
    pub async fn commit(&self, request: CommitRequest) -> Result<Record, LinkError> {
        let live = self.shared.live()?;
        match self.ask(&live, Ask::Commit(request.clone()), |id| ToStore::Commit(id, request)).await? {
            Answer::Committed(record) => Ok(record),
            Answer::Rejected(why) => Err(LinkError::Rejected(why)),
            _ => Err(unfit()),
        }
    }

    /// Shows what was sent for this layer to other hosts, or takes back what is shown. Not durable.
    pub async fn publish(&self, request: PublishRequest) -> Result<(), LinkError> {
        let live = self.shared.live()?;
        match self.ask(&live, Ask::Publish, |id| ToStore::Publish(id, request)).await? {
            Answer::Published => Ok(()),
            Answer::Rejected(why) => Err(LinkError::Rejected(why)),
            _ => Err(unfit()),
        }
    }

    /// Tells what was read here: noted durably when it returns. [`limits::UNITS_READ`] at most.
    pub async fn read(&self, units: Vec<UnitId>) -> Result<(), LinkError> {
        let live = self.shared.live()?;
        match self.ask(&live, Ask::Read, |id| ToStore::Read(id, units)).await? {
            Answer::Noted => Ok(()),
            Answer::Rejected(why) => Err(LinkError::Rejected(why)),
            _ => Err(unfit()),
        }
    }

    /// All that this host has of what the store named as lost was sent before: what has come back by it is durable when this returns.
    pub async fn returned(&self) -> Result<(), LinkError> {
        let live = self.shared.live()?;
        match self.ask(&live, Ask::Returned, ToStore::Returned).await? {
            Answer::Noted => Ok(()),
            Answer::Rejected(why) => Err(LinkError::Rejected(why)),
            _ => Err(unfit()),
        }
    }

    /// Retires units: durable when it is answered. [`limits::RETIRED_UNITS`] at most.
    pub async fn retire(&self, units: Vec<RetireUnit>) -> Result<Record, LinkError> {
        let live = self.shared.live()?;
        match self.ask(&live, Ask::Retire(units.clone()), |id| ToStore::Retire(id, units)).await? {
            Answer::Retired(record) => Ok(record),
            Answer::Rejected(why) => Err(LinkError::Rejected(why)),
            _ => Err(unfit()),
        }
    }

    /// Asks what became of the snapshots since `version`, 0 = all that there are; `started` as the part before says it, while it
    /// wasn't the last. Without a session it does nothing, as [`Link::follow`].
    pub fn watch(&self, version: u64, started: Option<u64>) {
        if let Ok(live) = self.shared.live() {
            live.watch(version, started);
        }
    }

    /// The encoded block that holds an object, unchecked; `None` = the store doesn't hold it.
    pub async fn fetch(&self, kind: ObjectKind, hash: Hash) -> Result<Option<Vec<u8>>, LinkError> {
        let live = self.shared.live()?;
        let answer = self.ask(&live, Ask::Fetch, |id| ToStore::Fetch(id, kind, hash));
        match timeout(self.shared.timing.fetch, answer).await.map_err(|_| LinkError::Timeout)?? {
            Answer::Block(block) => Ok(Some(block)),
            Answer::NotFound => Ok(None),
            Answer::Rejected(why) => Err(LinkError::Rejected(why)),
            _ => Err(unfit()),
        }
    }

    /// Asks for the catalog's records after `head`, and new ones as they come. Without a session it does nothing: the next [`LinkEvent::Up`]
    /// is the time to ask again.
    pub fn follow(&self, head: Head) {
        if let Ok(live) = self.shared.live() {
            live.follow(head);
        }
    }

    /// Where it stands now.
    pub fn status(&self) -> LinkStatus {
        let state = self.shared.state.borrow().clone();
        LinkStatus {
            connected: state.connected,
            store: state.store,
            since_ms: state.since_ms,
            attempts: state.attempts,
            last_error: state.last_error,
            bytes_sent: self.shared.bytes_sent.load(Ordering::Relaxed),
            bytes_received: self.shared.bytes_received.load(Ordering::Relaxed),
            target: self.shared.target.to_string(),
        }
    }

    /// Waits until a session is open, and gives what the store said.
    pub async fn wait_up(&self, patience: Duration) -> Result<Welcome, LinkError> {
        let mut state = self.shared.state.subscribe();
        let up = state.wait_for(|s| s.connected && s.store.is_some());
        let up = timeout(patience, up).await.ok().and_then(Result::ok).and_then(|s| s.store.clone());
        up.ok_or_else(|| LinkError::NotConnected(self.shared.why_not()))
    }

    async fn ask(
        &self,
        live: &Arc<Live>,
        ask: Ask,
        question: impl FnOnce(RequestId) -> ToStore,
    ) -> Result<Answer, LinkError> {
        let answer = live.ask(ask, |id| super::message_frame(&question(id)));
        timeout(self.shared.timing.request, answer).await.map_err(|_| LinkError::Timeout)?
    }
}

/// [`Live`] lets only fitting answers through; this is what a mistake there would look like.
fn unfit() -> LinkError {
    LinkError::Down("an answer that doesn't fit its question".to_owned())
}

impl Shared {
    fn lock_live(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> Result<Arc<Live>, LinkError> {
        self.lock_live().clone().ok_or_else(|| LinkError::NotConnected(self.why_not()))
    }

    fn why_not(&self) -> String {
        if self.stop.is_cancelled() {
            return "the link was stopped".to_owned();
        }
        self.state.borrow().last_error.clone().unwrap_or_else(|| "still connecting".to_owned())
    }

    /// An event nobody listens to any more is no error: the receiver is dropped at shutdown.
    fn tell(&self, event: LinkEvent) {
        let _ = self.events.send(event);
    }

    fn attempt(&self) {
        self.state.send_modify(|s| s.attempts += 1);
    }

    fn up(&self, live: Arc<Live>, welcome: Welcome) {
        *self.lock_live() = Some(live);
        self.state.send_modify(|s| {
            s.connected = true;
            s.since_ms = SystemClock.now_ms();
            s.attempts = 0;
            s.last_error = None;
            s.store = Some(welcome.clone());
        });
        self.tell(LinkEvent::Up(welcome));
    }

    /// Nothing is asked in this session any more.
    fn ended(&self, reason: &str) {
        *self.lock_live() = None;
        self.state.send_modify(|s| {
            s.connected = false;
            s.since_ms = SystemClock.now_ms();
            s.last_error = Some(reason.to_owned());
        });
    }

    /// A session or an attempt is over, and this is all that is known of why.
    fn down(&self, reason: String, refused: Option<RefusalCode>) {
        self.state.send_modify(|s| s.last_error = Some(reason.clone()));
        self.tell(LinkEvent::Down { reason, refused });
    }
}

/// One for each of `count` bits.
fn flags(bits: &[u8], count: usize) -> Vec<bool> {
    (0..count).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect()
}
