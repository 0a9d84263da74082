//! One session: a host's requests over a pair of streams.
//!
//! Four loops run side by side until the first of them ends: reading (which waits for the host, and where all hosts together are ahead of the
//! disk for room), writing, taking in blocks in order, and following the catalog. Questions run beside them on the blocking pool.
//!
//! Invariants: what a host can make the store hold is bounded (blocks by credit, questions and fetches by number, answers by the queues'
//! lengths); a commit begins when every block that came before it on the stream is taken in; nothing is done for a host before its Hello
//! was checked.

mod telling;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};

use super::{
    Identity, Server,
    api::{NewCommit, NewRetirement, StoreApi, StoreFault, on_store},
    end::{SessionEnd, protocol, store_failed},
    greeting::{self, Greeted},
    may,
    outbox::{self, Outbox},
    places::{Place, Share},
    promises::{Promiser, Relied},
};
use crate::{
    buffers,
    catalog::Record,
    chunk::{
        ObjectKind, Stretch,
        block::{self, parse_table},
        hashes_in,
    },
    ids::{Hash, HostUuid},
    limits::{self, FETCHES_OPEN, QUESTIONS_OPEN},
    wire::{
        CommitRequest, FromStore, Hello, PublishRequest, RefusalCode, RequestId, RetireUnit, ToStore, charge,
        frame::{Announced, Bounds, Frame, FrameKind, FrameReader, FrameWriter},
        rights::Rights,
    },
};
use telling::{Following, Watching};

/// How long a refused host may take to hear why.
const FAREWELL: Duration = Duration::from_secs(5);

/// Rejections that a session remembers to have logged.
const TOLD: usize = 64;

/// Greets and serves one host.
pub(super) async fn run<R, W>(
    server: &Arc<Server>,
    mut reader: FrameReader<R>,
    mut writer: FrameWriter<W>,
    identity: Identity,
) -> SessionEnd
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let greeted = greeting::greet(server, &mut reader, &identity).await;
    let Greeted { hello, place, share, present: _present } = match greeted {
        Ok(greeted) => greeted,
        Err(end) => {
            greeting::log_ungreeted(server, &identity, &end);
            refuse(&mut writer, &end).await;
            return end;
        }
    };
    tracing::info!(host = hello.host_name, uuid = %hello.host, "session began");
    reader.set_bounds(Bounds::TO_STORE);
    let (outbox, outlet) = outbox::new();
    let welcome = greeting::welcome(server, &hello, identity.rights);
    outbox.message(FromStore::Welcome(welcome)).await;
    let (session, queues) = Session::new(server, hello, identity.rights, outbox, place, share);
    let end = session.run(reader, writer, outlet, queues).await;
    server.promises.end(session.promiser);
    // A refusal was logged when it was made.
    if !matches!(end, SessionEnd::Refused(..)) {
        tracing::info!(host = session.host_name, ?end, "session ended");
    }
    end
}

async fn refuse<W: AsyncWrite + Unpin>(writer: &mut FrameWriter<W>, end: &SessionEnd) {
    if let SessionEnd::Refused(code, why) = end {
        let last = crate::wire::message_frame(&FromStore::Refused(*code, why.clone()));
        // Whoever can't be told, can't be told.
        let _ = timeout(FAREWELL, async {
            writer.write(&last).await?;
            writer.close().await
        })
        .await;
    }
}

/// What all loops and workers of a session share.
struct Session {
    server: Arc<Server>,
    host: HostUuid,
    host_name: String,
    rights: Rights,
    /// As whom it is told to send what others have, too.
    promiser: Promiser,
    relied: Relied,
    outbox: Outbox,
    intake: mpsc::UnboundedSender<Intake>,
    /// Charges of blocks in `intake`.
    queued: AtomicU64,
    questions: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
    place: Place,
    share: Arc<Share>,
    /// What was rejected and why, as far as it was logged.
    told: Mutex<HashSet<(String, String)>>,
    following: watch::Sender<Following>,
    watching: watch::Sender<Option<Watching>>,
    failed: mpsc::Sender<SessionEnd>,
}

/// The loops' ends of the queues.
struct Queues {
    intake: mpsc::UnboundedReceiver<Intake>,
    following: watch::Receiver<Following>,
    watching: watch::Receiver<Option<Watching>>,
    failed: mpsc::Receiver<SessionEnd>,
}

/// What must keep the stream's order.
enum Intake {
    /// With its share of what may wait.
    Block(Vec<u8>, Room),
    Commit(RequestId, CommitRequest, OwnedSemaphorePermit),
    Publish(RequestId, PublishRequest, OwnedSemaphorePermit),
    Returned(RequestId, OwnedSemaphorePermit),
}

/// A block's share of what may wait, and of the large ones its host's only place.
#[derive(Debug)]
struct Room {
    _waiting: OwnedSemaphorePermit,
    _large: Option<OwnedSemaphorePermit>,
}

impl Session {
    fn new(
        server: &Arc<Server>,
        hello: Hello,
        rights: Rights,
        outbox: Outbox,
        place: Place,
        share: Arc<Share>,
    ) -> (Arc<Self>, Queues) {
        let (intake, intake_queue) = mpsc::unbounded_channel();
        let (following, following_seen) = watch::channel(Following::default());
        let (watching, watching_seen) = watch::channel(None);
        let (failed, failures) = mpsc::channel(1);
        let session = Self {
            server: Arc::clone(server),
            host: hello.host,
            host_name: hello.host_name,
            rights,
            promiser: server.promises.begin(),
            relied: Relied::default(),
            outbox,
            intake,
            queued: AtomicU64::new(0),
            questions: Arc::new(Semaphore::new(QUESTIONS_OPEN)),
            fetches: Arc::new(Semaphore::new(FETCHES_OPEN)),
            place,
            share,
            told: Mutex::default(),
            following,
            watching,
            failed,
        };
        let queues = Queues {
            intake: intake_queue,
            following: following_seen,
            watching: watching_seen,
            failed: failures,
        };
        (Arc::new(session), queues)
    }

    async fn run<R, W>(
        self: &Arc<Self>,
        mut reader: FrameReader<R>,
        mut writer: FrameWriter<W>,
        outlet: outbox::Outlet,
        mut queues: Queues,
    ) -> SessionEnd
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let writing = outlet.run(&mut writer);
        tokio::pin!(writing);
        let end = tokio::select! {
            end = self.read(&mut reader) => end,
            // Who takes nothing can't be told anything.
            error = &mut writing => return SessionEnd::Broken(error.to_string()),
            end = self.take_in(&mut queues.intake) => end,
            end = self.follow(&mut queues.following) => end,
            end = self.tell_snapshots(&mut queues.watching) => end,
            () = self.tell_losses() => unreachable!("it doesn't end"),
            Some(end) = queues.failed.recv() => end,
            crowded = self.place.overtaken() => crowded.into(),
            () = self.server.stop.cancelled() => SessionEnd::Stopped,
        };
        if let SessionEnd::Refused(code, why) = &end {
            match code {
                // There may be many; that there are too many is logged with those that aren't let in.
                RefusalCode::Busy => tracing::info!(host = self.host_name, "session ended: {why}"),
                _ => tracing::warn!(host = self.host_name, ?code, "session ended, refused: {why}"),
            }
            self.outbox.last(*code, why.clone());
            // The writer goes on from wherever it is in a frame, says the last word and ends.
            let _ = timeout(FAREWELL, writing).await;
        }
        end
    }

    /// Ends the session from a worker. The first word counts.
    fn fail(&self, end: SessionEnd) {
        let _ = self.failed.try_send(end);
    }

    async fn read<R: AsyncRead + Unpin>(self: &Arc<Self>, reader: &mut FrameReader<R>) -> SessionEnd {
        loop {
            match self.read_one(reader).await {
                Ok(true) => {}
                Ok(false) => return SessionEnd::Closed,
                Err(end) => return end,
            }
        }
    }

    /// `false` = the stream has ended.
    async fn read_one<R: AsyncRead + Unpin>(
        self: &Arc<Self>,
        reader: &mut FrameReader<R>,
    ) -> Result<bool, SessionEnd> {
        let Some(announced) = reader.announced().await? else { return Ok(false) };
        self.place.heard();
        let large = self.expect(&announced).await?;
        let frame = reader.payload(announced).await?;
        self.place.heard();
        match frame {
            Frame::Upload(block) => self.upload(block, large).await?,
            Frame::Message(bytes) => {
                let message = ToStore::decode(&bytes).map_err(|error| protocol(error.to_string()))?;
                self.message(message)?;
            }
            Frame::Reply(..) | Frame::Join(_) => unreachable!("the reader's bounds stop these"),
        }
        Ok(true)
    }

    /// Whether the host may send what it has announced. Memory for a large block is one host's for one at a time: the stream waits for it.
    async fn expect(&self, announced: &Announced) -> Result<Option<OwnedSemaphorePermit>, SessionEnd> {
        if announced.kind != FrameKind::Upload {
            return Ok(None);
        }
        if !self.rights.add {
            return Err(protocol("a block from a host that may not add"));
        }
        if self.queued.load(Ordering::Relaxed) + charge(announced.payload_bytes())
            > limits::UPLOAD_CREDIT_BYTES
        {
            return Err(protocol("blocks beyond the credit"));
        }
        if announced.payload_bytes() <= limits::FRAME_LARGE_BYTES {
            return Ok(None);
        }
        let permit = Arc::clone(&self.share.large).acquire_owned().await;
        permit.map(Some).map_err(|_| SessionEnd::Stopped)
    }

    /// Where all hosts together have sent more than is to wait, this one's stream waits.
    async fn upload(&self, block: Vec<u8>, large: Option<OwnedSemaphorePermit>) -> Result<(), SessionEnd> {
        let charged = charge(block.len());
        self.queued.fetch_add(charged, Ordering::Relaxed);
        let room = u32::try_from(charged).expect("a charge is at most the credit of one host");
        let room = Arc::clone(&self.server.room).acquire_many_owned(room).await;
        let room = Room { _waiting: room.map_err(|_| SessionEnd::Stopped)?, _large: large };
        self.enqueue(Intake::Block(block, room))
    }

    fn enqueue(&self, intake: Intake) -> Result<(), SessionEnd> {
        self.intake.send(intake).map_err(|_| SessionEnd::Stopped)
    }

    fn message(self: &Arc<Self>, message: ToStore) -> Result<(), SessionEnd> {
        match message {
            ToStore::Hello(_) => Err(protocol("a second Hello")),
            ToStore::Offer(id, manifest) => self.offer(id, manifest),
            ToStore::Missing(id, kind, hashes) => self.missing(id, kind, hashes),
            ToStore::Cut(id, stretches) => self.cut(id, stretches),
            ToStore::Commit(id, request) => {
                let permit = open(&self.questions, QUESTIONS_OPEN, "questions")?;
                self.enqueue(Intake::Commit(id, request, permit))
            }
            ToStore::Fetch(id, kind, hash) => self.fetch(id, kind, hash),
            ToStore::Retire(id, units) => {
                let permit = open(&self.questions, QUESTIONS_OPEN, "questions")?;
                self.beside(permit, async move |session| session.retire(id, units).await);
                Ok(())
            }
            ToStore::Follow(head) => {
                self.following.send_modify(|f| {
                    *f = Following { asked: f.asked + 1, from: Some(head), taken: head.seq };
                });
                Ok(())
            }
            ToStore::Taken(seq) => {
                self.following.send_modify(|f| f.taken = f.taken.max(seq));
                Ok(())
            }
            ToStore::Publish(id, request) => {
                let permit = open(&self.questions, QUESTIONS_OPEN, "questions")?;
                self.enqueue(Intake::Publish(id, request, permit))
            }
            ToStore::Read(id, units) => {
                let permit = open(&self.questions, QUESTIONS_OPEN, "questions")?;
                self.beside(permit, async move |session| {
                    let noted = on_store(&session.server.store, move |s| s.note_reads(&units)).await;
                    session.answer(id, noted.map(|()| FromStore::Noted(id))).await;
                });
                Ok(())
            }
            ToStore::Returned(_) if !self.rights.add => {
                Err(protocol("something given back by a host that may not add"))
            }
            ToStore::Returned(id) => {
                let permit = open(&self.questions, QUESTIONS_OPEN, "questions")?;
                self.enqueue(Intake::Returned(id, permit))
            }
            ToStore::Watch(version, started) => {
                self.watching.send_replace(Some((version, started)));
                Ok(())
            }
            ToStore::Ping => {
                let told = self.outbox.try_message(FromStore::Pong);
                told.then_some(())
                    .ok_or_else(|| SessionEnd::Broken("the host doesn't read its answers".to_owned()))
            }
        }
    }

    fn offer(self: &Arc<Self>, id: RequestId, manifest: Hash) -> Result<(), SessionEnd> {
        let permit = open(&self.questions, QUESTIONS_OPEN, "questions")?;
        self.beside(permit, async move |session| {
            let known = on_store(&session.server.store, move |s| s.manifest_known(&manifest)).await;
            session.answer(id, known.map(|known| FromStore::Known(id, known))).await;
        });
        Ok(())
    }

    fn missing(
        self: &Arc<Self>,
        id: RequestId,
        kind: ObjectKind,
        hashes: Vec<Hash>,
    ) -> Result<(), SessionEnd> {
        self.lacking(id, kind, move |store| {
            let missing = store.missing(kind, &hashes)?;
            Ok((hashes, missing))
        })
    }

    fn cut(self: &Arc<Self>, id: RequestId, stretches: Vec<Stretch>) -> Result<(), SessionEnd> {
        let may_add = self.rights.add;
        self.lacking(id, ObjectKind::Chunk, move |store| {
            let hashes = hashes_in(&stretches);
            // Who may not send them has nothing to tell of them.
            let missing =
                if may_add { store.cut(&stretches) } else { store.missing(ObjectKind::Chunk, &hashes) };
            Ok((hashes, missing?))
        })
    }

    /// Answers which objects the store lacks, and nobody else is about to send.
    fn lacking(
        self: &Arc<Self>,
        id: RequestId,
        kind: ObjectKind,
        look: impl FnOnce(&dyn StoreApi) -> Result<(Vec<Hash>, Vec<bool>), StoreFault> + Send + 'static,
    ) -> Result<(), SessionEnd> {
        let permit = open(&self.questions, QUESTIONS_OPEN, "questions")?;
        self.beside(permit, async move |session| {
            let (server, asker) = (Arc::clone(&session.server), Arc::clone(&session));
            let missing = on_store(&session.server.store, move |store| {
                let (hashes, mut missing) = look(store)?;
                if asker.rights.add {
                    let Session { promiser, relied, .. } = &*asker;
                    server.promises.share(*promiser, relied, kind, &hashes, &mut missing);
                }
                Ok(missing)
            });
            session.answer(id, missing.await.map(|missing| FromStore::Wanted(id, bits(&missing)))).await;
        });
        Ok(())
    }

    fn fetch(self: &Arc<Self>, id: RequestId, kind: ObjectKind, hash: Hash) -> Result<(), SessionEnd> {
        let permit = open(&self.fetches, FETCHES_OPEN, "fetches")?;
        self.beside(permit, async move |session| {
            let Ok(slot) = Arc::clone(&session.share.fetching).acquire_owned().await else { return };
            match on_store(&session.server.store, move |s| s.fetch(kind, &hash)).await {
                Ok(Some(block)) => session.outbox.block(id, block, slot).await,
                Ok(None) => session.outbox.message(FromStore::NotFound(id)).await,
                // Damage to one block is that block's; it is for `verify` to say, and no reason to end uploads.
                Err(fault) => {
                    tracing::error!(%hash, "can't read an object: {fault}");
                    session.outbox.message(FromStore::Rejected(id, fault.to_string())).await;
                }
            }
        });
        Ok(())
    }

    /// Runs a worker that holds `permit` until it has answered.
    fn beside<F>(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let session = Arc::clone(self);
        tokio::spawn(async move {
            work(session).await;
            drop(permit);
        });
    }

    async fn answer(&self, id: RequestId, answer: Result<FromStore, StoreFault>) {
        match answer {
            Ok(message) => self.outbox.message(message).await,
            Err(StoreFault::Full(why)) => self.outbox.message(FromStore::Rejected(id, why)).await,
            Err(StoreFault::Unacceptable(why)) => self.fail(protocol(why)),
            Err(StoreFault::Broken(why)) => self.fail(store_failed(why)),
        }
    }

    async fn take_in(self: &Arc<Self>, queue: &mut mpsc::UnboundedReceiver<Intake>) -> SessionEnd {
        while let Some(next) = queue.recv().await {
            match next {
                Intake::Block(block, _room) => {
                    if let Err(end) = self.append(block).await {
                        return end;
                    }
                }
                Intake::Commit(id, request, permit) => {
                    self.beside(permit, async move |session| session.commit(id, request).await);
                }
                Intake::Publish(id, request, permit) => {
                    self.beside(permit, async move |session| session.publish(id, request).await);
                }
                Intake::Returned(id, permit) => {
                    self.beside(permit, async move |session| {
                        let returned = on_store(&session.server.store, |store| store.returned()).await;
                        session.answer(id, returned.map(|()| FromStore::Noted(id))).await;
                    });
                }
            }
        }
        SessionEnd::Stopped
    }

    async fn append(&self, block: Vec<u8>) -> Result<(), SessionEnd> {
        let charged = charge(block.len());
        let server = Arc::clone(&self.server);
        let append = move |store: &dyn StoreApi| {
            let appended = store.append_block(&block);
            if appended.is_ok()
                && let Ok(table) = block::Header::parse(&block).and_then(|head| parse_table(&head, &block))
            {
                server.promises.keep(table.iter().map(|entry| (entry.kind, &entry.hash)));
            }
            buffers::give(block);
            appended
        };
        match on_store(&self.server.store, append).await {
            Ok(()) | Err(StoreFault::Full(_)) => {
                // One for which there is no room is dropped: the commit that needs it is rejected, and says why. Free for the host to use before it is told so.
                self.queued.fetch_sub(charged, Ordering::Relaxed);
                self.outbox.message(FromStore::Credit(charged)).await;
                Ok(())
            }
            Err(StoreFault::Unacceptable(why)) => Err(SessionEnd::Refused(RefusalCode::Block, why)),
            Err(StoreFault::Broken(why)) => Err(store_failed(why)),
        }
    }

    async fn commit(&self, id: RequestId, request: CommitRequest) {
        let CommitRequest { unit, generation, manifest, lost, incarnation } = request;
        let (host, host_name) = (self.host, self.host_name.clone());
        let adopted_by = None;
        let commit = NewCommit { host, host_name, unit, generation, manifest, lost, adopted_by, incarnation };
        let mut committed = self.enter(&commit).await;
        if self.is_over(is_rejected(&committed)).await {
            committed = self.enter(&commit).await;
        }
        let committed = committed.map(|record| FromStore::Committed(id, record));
        self.decided(id, committed, || format!("a commit of {}", commit.unit)).await;
    }

    /// Says yes or no to what honest hosts may ask for in vain. A no is logged once a session, since hosts try again what was rejected.
    async fn decided(
        &self,
        id: RequestId,
        decided: Result<FromStore, StoreFault>,
        what: impl FnOnce() -> String,
    ) {
        match decided {
            Ok(message) => self.outbox.message(message).await,
            Err(StoreFault::Unacceptable(why) | StoreFault::Full(why)) => {
                let what = what();
                if self.is_news(&what, &why) {
                    tracing::warn!(host = self.host_name, "rejected {what}: {why}");
                }
                self.outbox.message(FromStore::Rejected(id, why)).await;
            }
            Err(StoreFault::Broken(why)) => self.fail(store_failed(why)),
        }
    }

    fn is_news(&self, what: &str, why: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= TOLD {
            told.clear();
        }
        told.insert((what.to_owned(), why.to_owned()))
    }

    async fn enter(&self, commit: &NewCommit) -> Result<Record, StoreFault> {
        let (server, rights, commit) = (Arc::clone(&self.server), self.rights, commit.clone());
        let enter = move |store: &dyn StoreApi| {
            let _turn = server.turns.take(commit.host, &commit.unit);
            may::commit(store, &server.history, rights, &commit)?;
            store.commit(commit)
        };
        on_store(&self.server.store, enter).await
    }

    /// Whether what was rejected may be tried again: others were still sending something that this host was told not to, and that is over.
    async fn is_over(&self, is_rejected: bool) -> bool {
        is_rejected && self.server.promises.settle(&self.relied).await
    }

    async fn retire(&self, id: RequestId, units: Vec<RetireUnit>) {
        let (host, host_name, rights) = (self.host, self.host_name.clone(), self.rights);
        let retired = on_store(&self.server.store, move |store| {
            may::retire(rights, &units)?;
            let units = units.into_iter().map(|wanted| (wanted.unit, wanted.seq)).collect();
            store.retire(NewRetirement { host, host_name, units })
        });
        let retired = retired.await.map(|record| FromStore::Retired(id, record));
        self.decided(id, retired, || "a retirement".to_owned()).await;
    }

    /// Rights are those of a commit; without any, a host can take back what it has shown.
    async fn publish(&self, id: RequestId, request: PublishRequest) {
        let PublishRequest { unit, generation, manifest, incarnation } = request;
        let shown = unit.clone();
        let (host, host_name) = (self.host, self.host_name.clone());
        let published = match manifest {
            None => {
                let withdraw = move |store: &dyn StoreApi| {
                    store.withdraw(host, &unit, generation);
                    Ok(())
                };
                on_store(&self.server.store, withdraw).await
            }
            Some(manifest) => {
                let (lost, adopted_by) = (false, None);
                let snapshot =
                    NewCommit { host, host_name, unit, generation, manifest, lost, adopted_by, incarnation };
                let mut published = self.show(&snapshot).await;
                if self.is_over(is_rejected(&published)).await {
                    published = self.show(&snapshot).await;
                }
                published
            }
        };
        self.decided(id, published.map(|()| FromStore::Published(id)), || format!("a snapshot of {shown}"))
            .await;
    }

    async fn show(&self, snapshot: &NewCommit) -> Result<(), StoreFault> {
        let (server, rights, snapshot) = (Arc::clone(&self.server), self.rights, snapshot.clone());
        let show = move |store: &dyn StoreApi| {
            let may = may::publish(store, &server.history, rights, &snapshot);
            if let Err(StoreFault::Unacceptable(_)) = may {
                // What it showed before may be what it may not.
                store.withdraw(snapshot.host, &snapshot.unit, snapshot.generation);
            }
            may?;
            store.publish(snapshot)
        };
        on_store(&self.server.store, show).await
    }
}

fn is_rejected<T>(answer: &Result<T, StoreFault>) -> bool {
    matches!(answer, Err(StoreFault::Unacceptable(_)))
}

fn open(permits: &Arc<Semaphore>, limit: usize, what: &str) -> Result<OwnedSemaphorePermit, SessionEnd> {
    let permit = Arc::clone(permits).try_acquire_owned();
    permit.map_err(|_| protocol(format!("more than {limit} {what} open at once")))
}

/// One bit an object, least significant first.
fn bits(missing: &[bool]) -> Vec<u8> {
    let byte = |part: &[bool]| part.iter().enumerate().fold(0, |byte, (i, &bit)| byte | u8::from(bit) << i);
    missing.chunks(8).map(byte).collect()
}
