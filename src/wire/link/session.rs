//! The actor: connects, greets, runs a session, waits, and connects again.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{interval, sleep, timeout};

use super::{
    LinkEvent, Shared,
    backoff::Backoff,
    live::{Answer, Live, Queues},
    records::RecordBatch,
};
use crate::{
    transport::{self, BoxRead, BoxWrite, Connection, Guard, TransportError},
    wire::{
        FromStore, Hello, PROTOCOL_VERSION, RefusalCode, ToStore, Welcome,
        frame::{Bounds, Frame, FrameError, FrameKind, FrameReader, FrameWriter, StreamError},
        message_frame,
    },
};

/// How long the store's last word is waited for when it no longer takes ours.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The same failure again is logged after this long.
const TOLD_AGAIN: Duration = Duration::from_secs(3600);

/// Why a session or an attempt ended.
#[derive(Debug)]
enum End {
    /// The streams ended or failed; what ran them may know more.
    Stream(String),
    /// The store said so.
    Refused(RefusalCode, String),
    /// The store broke the protocol.
    Broken(String),
    /// [`super::Link::stop`].
    Stopped,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(why) => f.write_str(why),
            Self::Refused(_, why) => write!(f, "the store refused this host: {why}"),
            Self::Broken(why) => write!(f, "the store broke the protocol: {why}"),
            Self::Stopped => f.write_str("the link was stopped"),
        }
    }
}

impl From<StreamError> for End {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Frame(error) => Self::Broken(error.to_string()),
            other => Self::Stream(other.to_string()),
        }
    }
}

impl From<TransportError> for End {
    fn from(error: TransportError) -> Self {
        Self::Stream(error.to_string())
    }
}

fn closed() -> End {
    End::Stream("the store's end of the connection was closed".to_owned())
}

/// Runs until the link is stopped.
pub(super) async fn keep_up(shared: Arc<Shared>) {
    let mut backoff = Backoff::new(shared.timing.reconnect_min, shared.timing.reconnect_max);
    let mut told = Told::default();
    while !shared.stop.is_cancelled() {
        shared.attempt();
        let began = Instant::now();
        let ended = attempt(&shared).await;
        if began.elapsed() >= shared.timing.lived && matches!(ended, Ended::Session(_)) {
            backoff.reset();
        }
        report(&shared, ended, &mut backoff, &mut told);
        tokio::select! {
            () = sleep(backoff.pause(random())) => {}
            () = shared.stop.cancelled() => {}
        }
    }
}

/// What the log was told last: a store that is away for a night fails in the same way a thousand times.
#[derive(Default)]
struct Told(Option<(Instant, String)>);

impl Told {
    fn is_news(&mut self, reason: &str) -> bool {
        let is_known = |(at, told): &(Instant, String)| told == reason && at.elapsed() < TOLD_AGAIN;
        if self.0.as_ref().is_some_and(is_known) {
            return false;
        }
        self.0 = Some((Instant::now(), reason.to_owned()));
        true
    }
}

enum Ended {
    Session(End),
    Attempt(End),
}

fn report(shared: &Shared, ended: Ended, backoff: &mut Backoff, told: &mut Told) {
    let (Ended::Session(end) | Ended::Attempt(end)) = ended;
    let reason = format!("{}: {end}", shared.target);
    let refused = match end {
        End::Refused(code, _) => Some(code),
        End::Stream(_) | End::Broken(_) | End::Stopped => None,
    };
    if matches!(refused, Some(RefusalCode::Version | RefusalCode::Identity)) {
        backoff.slow_down();
    }
    match (shared.stop.is_cancelled(), told.is_news(&reason)) {
        (true, _) => tracing::info!("{reason}"),
        (false, true) => tracing::warn!("{reason}"),
        (false, false) => tracing::debug!("{reason}"),
    }
    shared.down(reason, refused);
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .expect("getrandom without flags on Linux neither blocks after boot nor fails");
    u64::from_ne_bytes(bytes)
}

async fn attempt(shared: &Arc<Shared>) -> Ended {
    let connection = tokio::select! {
        connection = timeout(shared.timing.greeting, transport::connect(&shared.target)) => connection,
        () = shared.stop.cancelled() => return Ended::Attempt(End::Stopped),
    };
    let Connection { reader, writer, guard } = match connection {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Ended::Attempt(error.into()),
        Err(_) => return Ended::Attempt(End::Stream("no connection in time".to_owned())),
    };
    match over(shared, reader, writer).await {
        Ended::Session(end) => Ended::Session(explain(end, guard).await),
        Ended::Attempt(end) => Ended::Attempt(explain(end, guard).await),
    }
}

/// Adds what the child said, which is the cause where streams just end.
async fn explain(end: End, guard: Guard) -> End {
    match end {
        End::Stream(why) => match guard.epitaph().await {
            Some(epitaph) => End::Stream(format!("{why}; {epitaph}")),
            None => End::Stream(why),
        },
        other => other,
    }
}

/// Greeting and session over streams that are there. When this returns, the streams are closed.
async fn over(shared: &Arc<Shared>, reader: BoxRead, writer: BoxWrite) -> Ended {
    let silence = shared.timing.silence;
    let mut reader = FrameReader::new(reader, Bounds::GREETING, silence, Arc::clone(&shared.bytes_received));
    let mut writer = FrameWriter::new(writer, silence, Arc::clone(&shared.bytes_sent));
    let hello = (shared.hello)();
    let host = hello.host;
    let welcome = tokio::select! {
        welcome = timeout(shared.timing.greeting, greet(hello, &mut reader, &mut writer)) => welcome,
        () = shared.stop.cancelled() => return Ended::Attempt(End::Stopped),
    };
    let welcome = match welcome {
        Ok(Ok(welcome)) => welcome,
        Ok(Err(end)) => return Ended::Attempt(end),
        Err(_) => return Ended::Attempt(End::Stream("no greeting in time".to_owned())),
    };
    reader.set_bounds(Bounds::FROM_STORE);
    let (live, mut queues) = Live::new(host);
    shared.up(Arc::clone(&live), welcome);
    let end = talk(shared, &live, reader, writer, &mut queues).await;
    // Before anybody hears that a request of it is lost: who then waits for a session must not be given this one.
    shared.ended(&end.to_string());
    live.end(&end.to_string());
    Ended::Session(end)
}

async fn greet(
    hello: Hello,
    reader: &mut FrameReader<BoxRead>,
    writer: &mut FrameWriter<BoxWrite>,
) -> Result<Welcome, End> {
    let sent = say_hello(hello, writer).await;
    // Where ours could not be sent, the other end has mostly said why before it went.
    let frame = match (reader.next().await, sent) {
        (Ok(Some(frame)), _) => frame,
        (Err(StreamError::Frame(error)), _) => return Err(not_a_store(&error)),
        (_, Err(error)) | (Err(error), Ok(())) => return Err(error.into()),
        (Ok(None), Ok(())) => return Err(closed()),
    };
    let Frame::Message(bytes) = frame else { return Err(End::Broken("no message to begin with".to_owned())) };
    match FromStore::decode(&bytes) {
        Ok(FromStore::Welcome(welcome)) if welcome.version == PROTOCOL_VERSION => Ok(welcome),
        Ok(FromStore::Welcome(welcome)) => Err(End::Refused(
            RefusalCode::Version,
            format!("the store speaks version {}, this host {PROTOCOL_VERSION}", welcome.version),
        )),
        Ok(FromStore::Refused(code, why)) => Err(End::Refused(code, printable(&why))),
        Ok(_) => Err(End::Broken("no greeting to begin with".to_owned())),
        Err(error) => Err(End::Broken(error.to_string())),
    }
}

async fn say_hello(hello: Hello, writer: &mut FrameWriter<BoxWrite>) -> Result<(), StreamError> {
    writer.write(&message_frame(&ToStore::Hello(hello))).await?;
    writer.flush().await
}

fn not_a_store(error: &FrameError) -> End {
    End::Broken(format!("{error}; does the remote user's shell print something at login?"))
}

/// The store's text for people, fit for one line of a terminal.
fn printable(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

async fn talk(
    shared: &Arc<Shared>,
    live: &Arc<Live>,
    mut reader: FrameReader<BoxRead>,
    mut writer: FrameWriter<BoxWrite>,
    queues: &mut Queues,
) -> End {
    let reading = read(shared, live, &mut reader);
    tokio::pin!(reading);
    tokio::select! {
        end = &mut reading => end,
        end = write(&mut writer, queues) => timeout(LAST_WORD, reading).await.unwrap_or(end),
        () = ping(shared, live) => unreachable!("pings go on for ever"),
        () = shared.stop.cancelled() => End::Stopped,
    }
}

async fn ping(shared: &Shared, live: &Live) {
    let mut ticks = interval(shared.timing.silence / 3);
    loop {
        ticks.tick().await;
        live.say(&ToStore::Ping);
    }
}

async fn write(writer: &mut FrameWriter<BoxWrite>, queues: &mut Queues) -> End {
    loop {
        let waiting = queues.urgent.try_recv().ok().or_else(|| queues.bulk.try_recv().ok());
        let frame = match waiting {
            Some(frame) => frame,
            None => match (writer.flush().await, next(queues)) {
                (Err(error), _) => return error.into(),
                (Ok(()), next) => match next.await {
                    Some(frame) => frame,
                    None => return End::Stopped,
                },
            },
        };
        if let Err(error) = writer.write(&frame).await {
            return error.into();
        }
        frame.recycle();
    }
}

async fn next(queues: &mut Queues) -> Option<Frame> {
    tokio::select! {
        biased;
        frame = queues.urgent.recv() => frame,
        frame = queues.bulk.recv() => frame,
    }
}

async fn read(shared: &Shared, live: &Arc<Live>, reader: &mut FrameReader<BoxRead>) -> End {
    loop {
        match read_one(shared, live, reader).await {
            Ok(()) => {}
            Err(end) => return end,
        }
    }
}

async fn read_one(shared: &Shared, live: &Arc<Live>, reader: &mut FrameReader<BoxRead>) -> Result<(), End> {
    let announced = reader.announced().await?.ok_or_else(closed)?;
    if announced.kind == FrameKind::Reply && !live.awaits_block(announced.id) {
        return Err(End::Broken("a block that was not asked for".to_owned()));
    }
    match reader.payload(announced).await? {
        Frame::Reply(id, block) => live.answer(id, Answer::Block(block)).map_err(End::Broken),
        Frame::Message(bytes) => take(shared, live, &bytes),
        Frame::Upload(_) | Frame::Join(_) => unreachable!("the reader's bounds don't let these through"),
    }
}

fn take(shared: &Shared, live: &Arc<Live>, bytes: &[u8]) -> Result<(), End> {
    let answer = |id, answer| live.answer(id, answer);
    let fits = match FromStore::decode(bytes).map_err(|e| End::Broken(e.to_string()))? {
        FromStore::Welcome(_) => Err("a second greeting".to_owned()),
        FromStore::Refused(code, why) => return Err(End::Refused(code, printable(&why))),
        FromStore::Known(id, known) => answer(id, Answer::Known(known)),
        FromStore::Wanted(id, bits) => answer(id, Answer::Wanted(bits)),
        FromStore::Committed(id, record) => answer(id, Answer::Committed(record)),
        FromStore::Rejected(id, why) => answer(id, Answer::Rejected(printable(&why))),
        FromStore::NotFound(id) => answer(id, Answer::NotFound),
        FromStore::Records(records) => live.records(&records).map(|wanted| {
            if wanted {
                shared.tell(LinkEvent::Records(RecordBatch::new(records, Arc::downgrade(live))));
            }
        }),
        FromStore::Resync(head) => live.resync().map(|()| shared.tell(LinkEvent::Resync(head))),
        FromStore::Credit(bytes) => live.credited(bytes),
        FromStore::Pong => Ok(()),
        FromStore::Retired(id, record) => answer(id, Answer::Retired(record)),
        FromStore::Published(id) => answer(id, Answer::Published),
        FromStore::Noted(id) => answer(id, Answer::Noted),
        FromStore::Lost(lost) => {
            shared.tell(LinkEvent::Lost(lost));
            Ok(())
        }
        FromStore::Snapshots(changes) => live.watched().map(|()| shared.tell(LinkEvent::Snapshots(changes))),
    };
    fits.map_err(End::Broken)
}
