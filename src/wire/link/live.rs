//! One session's shared state: what is asked and not yet answered, credit, and the queues to the writer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::LinkError;
use crate::{
    catalog::{Head, Record, RecordBody},
    ids::{HostUuid, Seq},
    limits::{self, FETCHES_OPEN, FOLLOW_WINDOW, QUESTIONS_OPEN},
    wire::{CommitRequest, RequestId, RetireUnit, ToStore, charge, frame::Frame, message_frame},
};

/// A question, as far as its answer must fit it.
#[derive(Debug)]
pub(super) enum Ask {
    Offer,
    Missing { count: usize },
    Commit(CommitRequest),
    Publish,
    Read,
    Returned,
    Retire(Vec<RetireUnit>),
    Fetch,
}

/// An answer that fitted.
#[derive(Debug)]
pub(super) enum Answer {
    Known(bool),
    Wanted(Vec<u8>),
    Committed(Record),
    Published,
    Noted,
    Retired(Record),
    Rejected(String),
    NotFound,
    Block(Vec<u8>),
}

/// A session.
#[derive(Debug)]
pub(super) struct Live {
    host: HostUuid,
    urgent: mpsc::UnboundedSender<Frame>,
    bulk: mpsc::UnboundedSender<Frame>,
    credit: Semaphore,
    questions: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last_id: RequestId,
    waiting: HashMap<RequestId, Waiting>,
    /// Charges of blocks sent and not credited.
    charged: u64,
    following: Option<Following>,
    /// Watches that weren't answered.
    watches: usize,
    /// A Follow was sent while an earlier one was answered: batches that don't fit may be the earlier one's.
    may_be_stale: bool,
    ended: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    ask: Ask,
    tell: oneshot::Sender<Result<Answer, LinkError>>,
    /// Given back with the answer, not when the asker loses patience: the store counts open questions too.
    _slot: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Following {
    next: Seq,
    taken: Seq,
}

/// The writer's ends of a session's queues. Urgent frames go first. The queues are bounded by credit and by the number of open questions.
pub(super) struct Queues {
    pub(super) urgent: mpsc::UnboundedReceiver<Frame>,
    pub(super) bulk: mpsc::UnboundedReceiver<Frame>,
}

impl Live {
    pub(super) fn new(host: HostUuid) -> (Arc<Self>, Queues) {
        let (urgent, urgent_queue) = mpsc::unbounded_channel();
        let (bulk, bulk_queue) = mpsc::unbounded_channel();
        let live = Self {
            host,
            urgent,
            bulk,
            credit: Semaphore::new(limits::UPLOAD_CREDIT_BYTES as usize),
            questions: Arc::new(Semaphore::new(QUESTIONS_OPEN)),
            fetches: Arc::new(Semaphore::new(FETCHES_OPEN)),
            inner: Mutex::default(),
        };
        (Arc::new(live), Queues { urgent: urgent_queue, bulk: bulk_queue })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn down(&self) -> LinkError {
        LinkError::Down(self.lock().ended.clone().unwrap_or_else(|| "the session has ended".to_owned()))
    }

    /// Asks and waits for the answer, the session's end, or being dropped.
    pub(super) async fn ask(
        &self,
        ask: Ask,
        question: impl FnOnce(RequestId) -> Frame,
    ) -> Result<Answer, LinkError> {
        let slots = if matches!(ask, Ask::Fetch) { &self.fetches } else { &self.questions };
        let slot = Arc::clone(slots).acquire_owned().await.map_err(|_| self.down())?;
        let (tell, answer) = oneshot::channel();
        // A commit must not overtake the blocks that it needs, nor a snapshot, nor what is given back; everything else may.
        let queue = if matches!(ask, Ask::Commit(_) | Ask::Publish | Ask::Returned) {
            &self.bulk
        } else {
            &self.urgent
        };
        let id = self.register(Waiting { ask, tell, _slot: slot })?;
        queue.send(question(id)).map_err(|_| self.down())?;
        answer.await.unwrap_or_else(|_| Err(self.down()))
    }

    fn register(&self, waiting: Waiting) -> Result<RequestId, LinkError> {
        let mut inner = self.lock();
        if let Some(reason) = &inner.ended {
            return Err(LinkError::Down(reason.clone()));
        }
        inner.last_id += 1;
        let id = inner.last_id;
        inner.waiting.insert(id, waiting);
        Ok(id)
    }

    /// Queues a block when there is credit for it.
    pub(super) async fn upload(&self, block: Vec<u8>) -> Result<(), LinkError> {
        if block.len() > limits::FRAME_BYTES {
            return Err(LinkError::Rejected(format!("a block of {} bytes is beyond the limit", block.len())));
        }
        let charged = charge(block.len());
        let permits = u32::try_from(charged).expect("a charge is at most UPLOAD_CREDIT_BYTES");
        self.credit.acquire_many(permits).await.map_err(|_| self.down())?.forget();
        self.lock().charged += charged;
        self.bulk.send(Frame::Upload(block)).map_err(|_| self.down())
    }

    /// The store took in blocks.
    pub(super) fn credited(&self, bytes: u64) -> Result<(), String> {
        let mut inner = self.lock();
        inner.charged = inner.charged.checked_sub(bytes).ok_or("credit for blocks that were not sent")?;
        drop(inner);
        self.credit.add_permits(usize::try_from(bytes).expect("at most UPLOAD_CREDIT_BYTES were charged"));
        Ok(())
    }

    /// Whether a block may come under this number.
    pub(super) fn awaits_block(&self, id: RequestId) -> bool {
        self.lock().waiting.get(&id).is_some_and(|w| matches!(w.ask, Ask::Fetch))
    }

    /// Hands an answer to who asked, if it fits the question. Who lost patience doesn't hear it.
    pub(super) fn answer(&self, id: RequestId, answer: Answer) -> Result<(), String> {
        let waiting = self.lock().waiting.remove(&id).ok_or("an answer to a question that was not asked")?;
        if !self.fits(&waiting.ask, &answer) {
            return Err("an answer that doesn't fit its question".to_owned());
        }
        let _ = waiting.tell.send(Ok(answer));
        Ok(())
    }

    fn fits(&self, ask: &Ask, answer: &Answer) -> bool {
        match (ask, answer) {
            (Ask::Offer, Answer::Known(_) | Answer::Rejected(_))
            | (Ask::Missing { .. }, Answer::Rejected(_))
            | (Ask::Commit(_) | Ask::Retire(_), Answer::Rejected(_))
            | (Ask::Publish, Answer::Published | Answer::Rejected(_))
            | (Ask::Read | Ask::Returned, Answer::Noted | Answer::Rejected(_))
            | (Ask::Fetch, Answer::NotFound | Answer::Rejected(_) | Answer::Block(_)) => true,
            (Ask::Missing { count }, Answer::Wanted(bits)) => {
                let spare = bits.len() * 8 - count.min(&(bits.len() * 8));
                bits.len() == count.div_ceil(8)
                    && bits.last().is_none_or(|b| b.leading_zeros() as usize >= spare)
            }
            (Ask::Commit(asked), Answer::Committed(record)) => record.commit().is_some_and(|commit| {
                commit.host == self.host
                    && commit.unit == asked.unit
                    && commit.incarnation == asked.incarnation
                    && commit.generation == asked.generation
                    && commit.manifest == asked.manifest
            }),
            (Ask::Retire(asked), Answer::Retired(record)) => match &record.body {
                RecordBody::Retire(retirement) => {
                    retirement.host == self.host
                        && retirement.units.iter().eq(asked.iter().map(|wanted| &wanted.unit))
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Asks for the records after `head`.
    pub(super) fn follow(&self, head: Head) {
        {
            let mut inner = self.lock();
            inner.may_be_stale |= inner.following.is_some();
            inner.following = Some(Following { next: head.seq.next(), taken: head.seq });
        }
        self.say(&ToStore::Follow(head));
    }

    /// Whether a batch is the next one. `Ok(false)` = one to be forgotten.
    pub(super) fn records(&self, records: &[Record]) -> Result<bool, String> {
        let mut inner = self.lock();
        let stale = inner.may_be_stale;
        let unfit = |why: &str| if stale { Ok(false) } else { Err(why.to_owned()) };
        let Some(following) = &mut inner.following else { return unfit("records that were not asked for") };
        let mut next = following.next;
        for record in records {
            if record.seq != next {
                return unfit("records out of order");
            }
            next = next.next();
        }
        if records.is_empty() || next.0 - 1 > following.taken.0 + FOLLOW_WINDOW {
            return unfit("records beyond the window");
        }
        following.next = next;
        inner.may_be_stale = false;
        Ok(true)
    }

    /// Records up to here are with the replica.
    pub(super) fn taken(&self, seq: Seq) {
        {
            let mut inner = self.lock();
            match &mut inner.following {
                Some(f) if seq > f.taken && seq < f.next => f.taken = seq,
                _ => return,
            }
        }
        self.say(&ToStore::Taken(seq));
    }

    /// The store sends no more records until it is asked again. Two of these without a question between would be one too many.
    pub(super) fn resync(&self) -> Result<(), String> {
        let mut inner = self.lock();
        inner.may_be_stale = false;
        inner.following.take().map(drop).ok_or_else(|| "a resync that nobody asked for".to_owned())
    }

    /// Asks what became of the snapshots since `version`. One answer to each question bounds what the store can make us hold.
    pub(super) fn watch(&self, version: u64, started: Option<u64>) {
        self.lock().watches += 1;
        self.say(&ToStore::Watch(version, started));
    }

    /// The store has answered a watch.
    pub(super) fn watched(&self) -> Result<(), String> {
        let mut inner = self.lock();
        inner.watches = inner.watches.checked_sub(1).ok_or("snapshots that nobody asked for")?;
        Ok(())
    }

    /// Sends a message that has no answer. Where the session has ended, nobody needs it.
    pub(super) fn say(&self, message: &ToStore) {
        let _ = self.urgent.send(message_frame(message));
    }

    /// The session is over: everything open fails.
    pub(super) fn end(&self, reason: &str) {
        let waiting = {
            let mut inner = self.lock();
            inner.ended = Some(reason.to_owned());
            std::mem::take(&mut inner.waiting)
        };
        self.credit.close();
        self.questions.close();
        self.fetches.close();
        for (_, waiting) in waiting {
            let _ = waiting.tell.send(Err(LinkError::Down(reason.to_owned())));
        }
    }
}
