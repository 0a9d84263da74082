//! Frames and the messages in them.

use std::{
    cell::RefCell,
    fmt::Debug,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use resultsfs::{
    catalog::Record,
    limits,
    wire::{
        FromStore, Join, ToStore, chunks_in,
        frame::{Bounds, Frame, FrameError, FrameReader, StreamError},
        message_frame,
    },
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    runtime::{Builder, Runtime},
};

/// Input: which bounds hold, how many bytes come at a time (0 = all), and what comes.
///
/// The pure decoder and the one that reads a stream find the same frames and end alike; each frame is the bytes that it was made of, and
/// within its bounds.
pub fn frame(data: &[u8]) {
    let [which, step, stream @ ..] = data else { return };
    let bounds =
        [Bounds::JOIN, Bounds::GREETING, Bounds::TO_STORE, Bounds::FROM_STORE][usize::from(which % 4)];
    let (frames, end) = whole(stream, &bounds);
    let read = thread_local_runtime(|runtime| runtime.block_on(read(stream, *step, bounds)));
    assert_eq!(read.0, frames);
    match (read.1, end) {
        (None, End::Clean) | (Some(StreamError::Cut), End::Cut) => {}
        (Some(StreamError::Frame(read)), End::Wrong(pure)) => assert_eq!(read, pure),
        other => panic!("{other:?}"),
    }
}

#[derive(Debug)]
enum End {
    Clean,
    Cut,
    Wrong(FrameError),
}

fn whole(stream: &[u8], bounds: &Bounds) -> (Vec<Frame>, End) {
    let (mut frames, mut rest) = (Vec::new(), stream);
    loop {
        match Frame::decode(rest, bounds) {
            Ok(Some((frame, used))) => {
                assert_eq!(frame.encode(), rest[..used]);
                assert!(longest(&frame) <= bounds_of(bounds, &frame), "{:?}", frame.kind());
                frames.push(frame);
                rest = &rest[used..];
            }
            Ok(None) if rest.is_empty() => return (frames, End::Clean),
            Ok(None) => return (frames, End::Cut),
            Err(wrong) => return (frames, End::Wrong(wrong)),
        }
    }
}

fn longest(frame: &Frame) -> usize {
    match frame {
        Frame::Message(body) | Frame::Upload(body) | Frame::Join(body) => body.len(),
        Frame::Reply(_, body) => 8 + body.len(),
    }
}

/// As `docs/protocol.md` has them.
fn bounds_of(bounds: &Bounds, frame: &Frame) -> usize {
    match frame {
        Frame::Message(_) if *bounds == Bounds::GREETING => 64 << 10,
        Frame::Message(_) => 8 << 20,
        Frame::Upload(_) if *bounds == Bounds::TO_STORE => 260 << 20,
        Frame::Reply(..) if *bounds == Bounds::FROM_STORE => (260 << 20) + 8,
        Frame::Join(_) if *bounds == Bounds::JOIN => 1 << 10,
        Frame::Upload(_) | Frame::Reply(..) | Frame::Join(_) => panic!("has no place there"),
    }
}

async fn read(stream: &[u8], step: u8, bounds: Bounds) -> (Vec<Frame>, Option<StreamError>) {
    let step = if step == 0 { usize::MAX } else { step.into() };
    let mut reader =
        FrameReader::new(Slow { rest: stream, step }, bounds, Duration::from_secs(60), Arc::default());
    let mut frames = Vec::new();
    loop {
        match reader.next().await {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

/// Gives so many bytes at a time.
struct Slow<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Slow<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let (now, later) = self.rest.split_at(self.step.min(out.remaining()).min(self.rest.len()));
        out.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

fn thread_local_runtime<T>(run: impl FnOnce(&Runtime) -> T) -> T {
    thread_local! {
        static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
    }
    RUNTIME.with_borrow_mut(|runtime| {
        run(runtime
            .get_or_insert_with(|| Builder::new_current_thread().enable_time().build().expect("a runtime")))
    })
}

/// Input: the bytes of a message, whoever sends it.
///
/// What decodes is no longer than its bytes when it is encoded again, and decodes to the same; its lists are within their limits.
pub fn message(data: &[u8]) {
    if let Ok(message) = ToStore::decode(data) {
        let (count, limit) = match &message {
            ToStore::Missing(_, _, hashes) => (hashes.len(), limits::HASHES_PER_ASK),
            ToStore::Cut(_, stretches) => (chunks_in(stretches), limits::HASHES_PER_ASK),
            ToStore::Retire(_, units) => (units.len(), limits::RETIRED_UNITS),
            ToStore::Read(_, units) => (units.len(), limits::UNITS_READ),
            _ => (0, 0),
        };
        assert!(count <= limit);
        again(data, &message, &message_frame(&message), ToStore::decode);
    }
    if let Ok(message) = FromStore::decode(data) {
        let (count, limit) = match &message {
            FromStore::Records(records) => (records.len(), limits::RECORDS_PER_PUSH),
            FromStore::Snapshots(told) => (told.changes.len(), limits::SNAPSHOTS_PER_PUSH),
            FromStore::Lost(lost) => (lost.manifests.len() + lost.objects.len(), limits::HASHES_PER_ASK),
            _ => (0, 0),
        };
        assert!(count <= limit);
        again(data, &message, &message_frame(&message), FromStore::decode);
        match &message {
            FromStore::Records(records) => records.iter().for_each(a_record),
            FromStore::Committed(_, record) | FromStore::Retired(_, record) => a_record(record),
            _ => {}
        }
    }
    if let Ok(join) = Join::decode(data) {
        again(data, &join, &join.frame(), Join::decode);
    }
}

fn again<T: PartialEq + Debug, E: PartialEq + Debug>(
    data: &[u8],
    value: &T,
    frame: &Frame,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) {
    let (Frame::Message(bytes) | Frame::Join(bytes)) = frame else { panic!("a message's frame") };
    assert!(bytes.len() <= data.len(), "grows from {} to {} bytes", data.len(), bytes.len());
    assert_eq!(decode(bytes).as_ref(), Ok(value));
}

/// A record follows the head that it names as the one before, and no other; and it says of a unit what it lists.
fn a_record(record: &Record) {
    let after = record.link();
    assert_eq!(after.seq, record.seq);
    assert_eq!(after.follow(record), None, "a record doesn't follow itself");
    let lives = record.undeleted().iter().chain(record.purged()).map(|life| &life.unit);
    for unit in record.retired().iter().chain(lives).chain(record.commit().map(|commit| &commit.unit)) {
        assert!(record.names(unit));
    }
}
