//! Frames: how messages and blocks follow one another on a byte stream.
//!
//! ```text
//! 0  body bytes   4   u32, little endian
//! 4  kind         1   0 message, 1 upload, 2 reply, 3 join
//! 5  body
//!      message: CBOR of `ToStore` or `FromStore`
//!      upload:  a block
//!      reply:   request id, u64 little endian, then a block
//!      join:    CBOR of `Join`; only first on a unix socket, with two descriptors
//! ```
//! There is no checksum: ssh authenticates every packet, a unix socket loses nothing, and what is kept, the block, has its own.
//!
//! Invariants: a length is checked against its kind's bound before anything is allocated, and a body's memory grows with the bytes that
//! arrived, not with what the header claims. A kind whose bound is 0 may not come at all at that point of the stream. A frame that has begun
//! ends, or fails: after the patience for silence it must have moved at a least rate since.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter},
    time::{Instant, timeout},
};

use super::RequestId;
use crate::{
    buffers,
    chunk::block,
    limits::{self, HELLO_BYTES, JOIN_BYTES, MESSAGE_BYTES},
};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 5;
const REPLY_ID_BYTES: usize = 8;
/// Memory for a body is taken in steps of at least this, so that one block is one allocation.
const GROW_BYTES: usize = 2 << 20;
/// Bytes handed to one write(2): progress is seen at this grain.
const WRITE_BYTES: usize = 256 << 10;
const BUFFER_BYTES: usize = 64 << 10;

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// CBOR of a message.
    Message = 0,
    /// A block on its way to the store.
    Upload = 1,
    /// A block that was asked for, with the number of the request.
    Reply = 2,
    /// Who joins, on a unix socket.
    Join = 3,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// CBOR of a message.
    Message(Vec<u8>),
    /// A block on its way to the store.
    Upload(Vec<u8>),
    /// A block that was asked for.
    Reply(RequestId, Vec<u8>),
    /// CBOR of a [`super::Join`].
    Join(Vec<u8>),
}

/// Why bytes aren't a frame that may come here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that this program doesn't know.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A kind that has no place at this point of the stream.
    #[error("a {0:?} frame can't come here")]
    Unexpected(FrameKind),
    /// Longer than its kind may be here.
    #[error("a {kind:?} frame of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge { kind: FrameKind, bytes: usize, limit: usize },
    /// Too short to be what its kind says.
    #[error("a {kind:?} frame of {bytes} bytes is too short")]
    TooShort { kind: FrameKind, bytes: usize },
}

/// Why no frame could be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The bytes break the rules.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame")]
    Cut,
    /// Nothing moved for this long.
    #[error("nothing moved on the connection for {} s", .0.as_secs())]
    Silent(Duration),
    /// A frame took longer than any line is slow.
    #[error("a frame came or went slower than {} bytes a second: {bytes} bytes in {} s", limits::FRAME_LEAST_BYTES_PER_S, .took.as_secs())]
    Slow { bytes: usize, took: Duration },
    /// The stream failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Longest body of each kind; 0 = may not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    message: usize,
    upload: usize,
    reply: usize,
    join: usize,
}

impl Bounds {
    const NONE: Self = Self { message: 0, upload: 0, reply: 0, join: 0 };
    /// What comes with descriptors on a unix socket.
    pub const JOIN: Self = Self { join: JOIN_BYTES, ..Self::NONE };
    /// Hello and its answer, before the two know one another.
    pub const GREETING: Self = Self { message: HELLO_BYTES, ..Self::NONE };
    /// What a welcome host sends.
    pub const TO_STORE: Self = Self { message: MESSAGE_BYTES, upload: limits::FRAME_BYTES, ..Self::NONE };
    /// What a store sends.
    pub const FROM_STORE: Self =
        Self { message: MESSAGE_BYTES, reply: limits::FRAME_BYTES + REPLY_ID_BYTES, ..Self::NONE };

    fn longest(&self, kind: FrameKind) -> usize {
        match kind {
            FrameKind::Message => self.message,
            FrameKind::Upload => self.upload,
            FrameKind::Reply => self.reply,
            FrameKind::Join => self.join,
        }
    }
}

impl FrameKind {
    fn parse(byte: u8) -> Result<Self, FrameError> {
        match byte {
            0 => Ok(Self::Message),
            1 => Ok(Self::Upload),
            2 => Ok(Self::Reply),
            3 => Ok(Self::Join),
            other => Err(FrameError::UnknownKind(other)),
        }
    }

    fn shortest(self) -> usize {
        match self {
            Self::Message | Self::Join => 1,
            Self::Upload => block::HEADER_BYTES,
            Self::Reply => REPLY_ID_BYTES + block::HEADER_BYTES,
        }
    }
}

/// A header that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: FrameKind,
    bytes: usize,
}

impl Header {
    fn parse(head: &[u8; HEADER_BYTES], bounds: &Bounds) -> Result<Self, FrameError> {
        let kind = FrameKind::parse(head[4])?;
        let bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        match bounds.longest(kind) {
            0 => Err(FrameError::Unexpected(kind)),
            limit if bytes > limit => Err(FrameError::TooLarge { kind, bytes, limit }),
            _ if bytes < kind.shortest() => Err(FrameError::TooShort { kind, bytes }),
            _ => Ok(Self { kind, bytes }),
        }
    }
}

impl Frame {
    /// What it is.
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Message(_) => FrameKind::Message,
            Self::Upload(_) => FrameKind::Upload,
            Self::Reply(..) => FrameKind::Reply,
            Self::Join(_) => FrameKind::Join,
        }
    }

    fn payload(&self) -> &[u8] {
        match self {
            Self::Message(body) | Self::Upload(body) | Self::Reply(_, body) | Self::Join(body) => body,
        }
    }

    /// Everything before the payload: the header, and a reply's number.
    fn prefix(&self) -> Vec<u8> {
        let id = match self {
            Self::Reply(id, _) => &id.to_le_bytes()[..],
            _ => &[],
        };
        let bytes = id.len() + self.payload().len();
        let bytes = u32::try_from(bytes).expect("no sender makes a frame above limits::FRAME_BYTES");
        [&bytes.to_le_bytes()[..], &[self.kind() as u8], id].concat()
    }

    /// It is written, or nobody wants it: its memory is for the next one.
    pub fn recycle(self) {
        let (Self::Message(body) | Self::Upload(body) | Self::Reply(_, body) | Self::Join(body)) = self;
        buffers::give(body);
    }

    /// Its bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        [&self.prefix()[..], self.payload()].concat()
    }

    /// The first frame of `bytes` and how many of them it takes; `None` = it isn't all there yet.
    pub fn decode(bytes: &[u8], bounds: &Bounds) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = Header::parse(head, bounds)?;
        let end = HEADER_BYTES + header.bytes;
        let Some(body) = bytes.get(HEADER_BYTES..end) else { return Ok(None) };
        let frame = match header.kind {
            FrameKind::Message => Self::Message(body.to_vec()),
            FrameKind::Upload => Self::Upload(body.to_vec()),
            FrameKind::Join => Self::Join(body.to_vec()),
            FrameKind::Reply => {
                let (id, block) = body.split_first_chunk().expect("a reply's shortest body holds its number");
                Self::Reply(u64::from_le_bytes(*id), block.to_vec())
            }
        };
        Ok(Some((frame, end)))
    }
}

/// What is known of a frame before its payload is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// What it is.
    pub kind: FrameKind,
    /// The request that a reply answers; 0 for the other kinds.
    pub id: RequestId,
    payload_bytes: usize,
}

impl Announced {
    /// Bytes of what follows.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }
}

/// Whether a frame that began then may have moved no more than this by now.
fn keep_pace(began: Instant, bytes: usize, silence: Duration) -> Result<(), StreamError> {
    let took = began.elapsed();
    match took > silence + Duration::from_millis(bytes as u64 * 1000 / limits::FRAME_LEAST_BYTES_PER_S) {
        true => Err(StreamError::Slow { bytes, took }),
        false => Ok(()),
    }
}

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: BufReader<R>,
    bounds: Bounds,
    silence: Duration,
    received: Arc<AtomicU64>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `inner`, counts bytes into `received`, and gives up when nothing comes for `silence`.
    pub fn new(inner: R, bounds: Bounds, silence: Duration, received: Arc<AtomicU64>) -> Self {
        Self { inner: BufReader::with_capacity(BUFFER_BYTES, inner), bounds, silence, received }
    }

    /// From the next frame on, other bounds hold.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// The next frame; `None` = the stream ended where a frame may end. Not to be cancelled half-way.
    pub async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        match self.announced().await? {
            Some(announced) => self.payload(announced).await.map(Some),
            None => Ok(None),
        }
    }

    /// What comes next, so that the caller can refuse it before its payload is read.
    pub async fn announced(&mut self) -> Result<Option<Announced>, StreamError> {
        let mut head = Vec::with_capacity(HEADER_BYTES + REPLY_ID_BYTES);
        if self.some(&mut head, HEADER_BYTES).await? == 0 {
            return Ok(None);
        }
        let began = Instant::now();
        self.fill(&mut head, HEADER_BYTES, began).await?;
        let header = Header::parse(head.first_chunk().expect("just filled"), &self.bounds)?;
        if header.kind != FrameKind::Reply {
            return Ok(Some(Announced { kind: header.kind, id: 0, payload_bytes: header.bytes }));
        }
        head.clear();
        self.fill(&mut head, REPLY_ID_BYTES, began).await?;
        let id = u64::from_le_bytes(*head.first_chunk().expect("just filled"));
        let payload_bytes = header.bytes - REPLY_ID_BYTES;
        Ok(Some(Announced { kind: header.kind, id, payload_bytes }))
    }

    /// The frame that was announced. Time that the caller has let it wait isn't the sender's.
    pub async fn payload(&mut self, announced: Announced) -> Result<Frame, StreamError> {
        let mut body = buffers::take(announced.payload_bytes.min(GROW_BYTES));
        self.fill(&mut body, announced.payload_bytes, Instant::now()).await?;
        Ok(match announced.kind {
            FrameKind::Message => Frame::Message(body),
            FrameKind::Upload => Frame::Upload(body),
            FrameKind::Join => Frame::Join(body),
            FrameKind::Reply => Frame::Reply(announced.id, body),
        })
    }

    async fn fill(&mut self, buffer: &mut Vec<u8>, bytes: usize, began: Instant) -> Result<(), StreamError> {
        while buffer.len() < bytes {
            keep_pace(began, buffer.len(), self.silence)?;
            if self.some(buffer, bytes).await? == 0 {
                return Err(StreamError::Cut);
            }
        }
        Ok(())
    }

    /// Reads something towards `bytes` in all; 0 = the stream has ended.
    async fn some(&mut self, buffer: &mut Vec<u8>, bytes: usize) -> Result<usize, StreamError> {
        let room = (bytes - buffer.len()).min(buffer.len().max(GROW_BYTES));
        if buffer.capacity() == buffer.len() {
            buffer.reserve_exact(room);
        }
        let room = room.min(buffer.capacity() - buffer.len());
        let mut limited = (&mut self.inner).take(room as u64);
        let read = timeout(self.silence, limited.read_buf(buffer))
            .await
            .map_err(|_| StreamError::Silent(self.silence))??;
        self.received.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Writes frames to a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: BufWriter<W>,
    silence: Duration,
    sent: Arc<AtomicU64>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `inner`, counts bytes into `sent`, and gives up when nothing is taken for `silence`.
    pub fn new(inner: W, silence: Duration, sent: Arc<AtomicU64>) -> Self {
        Self { inner: BufWriter::with_capacity(BUFFER_BYTES, inner), silence, sent }
    }

    /// Writes one frame; it may stay in a buffer until [`Self::flush`].
    pub async fn write(&mut self, frame: &Frame) -> Result<(), StreamError> {
        let began = Instant::now();
        self.all(&frame.prefix(), began).await?;
        self.all(frame.payload(), began).await
    }

    async fn all(&mut self, bytes: &[u8], began: Instant) -> Result<(), StreamError> {
        let mut written = 0;
        for piece in bytes.chunks(WRITE_BYTES) {
            let mut rest = piece;
            while !rest.is_empty() {
                keep_pace(began, written, self.silence)?;
                let wrote = self.moving(|inner| inner.write(rest)).await?;
                if wrote == 0 {
                    return Err(io::Error::from(io::ErrorKind::WriteZero).into());
                }
                rest = &rest[wrote..];
                written += wrote;
                self.sent.fetch_add(wrote as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Sends what is buffered.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        self.moving(AsyncWriteExt::flush).await
    }

    /// Sends what is buffered and says that nothing follows.
    pub async fn close(&mut self) -> Result<(), StreamError> {
        self.moving(AsyncWriteExt::shutdown).await
    }

    async fn moving<'a, F, T>(
        &'a mut self,
        step: impl FnOnce(&'a mut BufWriter<W>) -> F,
    ) -> Result<T, StreamError>
    where
        F: Future<Output = io::Result<T>>,
    {
        let silence = self.silence;
        Ok(timeout(silence, step(&mut self.inner)).await.map_err(|_| StreamError::Silent(silence))??)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANY: Bounds = Bounds { message: 9000, upload: 9000, reply: 9000, join: 9000 };

    fn frames() -> impl Strategy<Value = Frame> {
        let body = |least| prop::collection::vec(any::<u8>(), least..4000usize);
        prop_oneof![
            body(1).prop_map(Frame::Message),
            body(block::HEADER_BYTES).prop_map(Frame::Upload),
            (any::<u64>(), body(block::HEADER_BYTES)).prop_map(|(id, b)| Frame::Reply(id, b)),
            body(1).prop_map(Frame::Join),
        ]
    }

    fn reader(bytes: &[u8], bounds: Bounds) -> FrameReader<&[u8]> {
        FrameReader::new(bytes, bounds, Duration::from_secs(5), Arc::default())
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(sent in prop::collection::vec(frames(), 0..8)) {
            run(async {
                let mut wire = Vec::new();
                let mut writer = FrameWriter::new(&mut wire, Duration::from_secs(5), Arc::default());
                for frame in &sent {
                    writer.write(frame).await.expect("writes");
                }
                writer.flush().await.expect("flushes");
                assert_eq!(wire, sent.iter().flat_map(Frame::encode).collect::<Vec<_>>());
                let mut reader = reader(&wire, ANY);
                let mut rest = &wire[..];
                for frame in &sent {
                    assert_eq!(reader.next().await.expect("reads").as_ref(), Some(frame));
                    let (decoded, used) = Frame::decode(rest, &ANY).expect("decodes").expect("is whole");
                    assert_eq!(&decoded, frame);
                    rest = &rest[used..];
                }
                assert!(reader.next().await.expect("ends well").is_none() && rest.is_empty());
            });
        }

        #[test]
        fn garbage_is_an_error_or_a_frame_and_both_decoders_agree(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let pure = Frame::decode(&bytes, &ANY);
            let read = run(async { reader(&bytes, ANY).next().await });
            match (pure, read) {
                (Ok(Some((a, _))), Ok(Some(b))) => assert_eq!(a, b),
                (Ok(None), Err(StreamError::Cut)) => {}
                (Ok(None), Ok(None)) => assert!(bytes.is_empty()),
                (Err(a), Err(StreamError::Frame(b))) => assert_eq!(a, b),
                other => panic!("{other:?}"),
            }
        }

        #[test]
        fn a_cut_frame_is_never_taken_for_a_whole_one(frame in frames(), cut in 1..4000usize) {
            let wire = frame.encode();
            let cut = &wire[..wire.len() - cut.min(wire.len() - 1)];
            assert_eq!(Frame::decode(cut, &ANY), Ok(None));
            assert!(matches!(run(async { reader(cut, ANY).next().await }), Err(StreamError::Cut)));
        }
    }

    #[test]
    fn a_length_beyond_its_bound_is_refused_before_the_body() {
        let head = |bytes: u32, kind: u8| [&bytes.to_le_bytes()[..], &[kind]].concat();
        for (bytes, kind, bounds) in [
            (HELLO_BYTES as u32 + 1, FrameKind::Message, Bounds::GREETING),
            (MESSAGE_BYTES as u32 + 1, FrameKind::Message, Bounds::TO_STORE),
            (u32::MAX, FrameKind::Upload, Bounds::TO_STORE),
            (u32::MAX, FrameKind::Reply, Bounds::FROM_STORE),
        ] {
            let got = Frame::decode(&head(bytes, kind as u8), &bounds);
            assert!(matches!(got, Err(FrameError::TooLarge { .. })), "{kind:?}: {got:?}");
        }
        for (kind, bounds) in [
            (FrameKind::Upload, Bounds::GREETING),
            (FrameKind::Join, Bounds::GREETING),
            (FrameKind::Join, Bounds::TO_STORE),
            (FrameKind::Reply, Bounds::TO_STORE),
            (FrameKind::Upload, Bounds::FROM_STORE),
        ] {
            assert_eq!(Frame::decode(&head(100, kind as u8), &bounds), Err(FrameError::Unexpected(kind)));
        }
        assert_eq!(Frame::decode(&head(1, 9), &ANY), Err(FrameError::UnknownKind(9)));
        assert!(matches!(Frame::decode(&head(47, 1), &ANY), Err(FrameError::TooShort { .. })));
    }

    #[tokio::test]
    async fn memory_grows_with_what_came_not_with_what_was_claimed() {
        let wire = [&(limits::FRAME_BYTES as u32).to_le_bytes()[..], &[1], &[7; 100]].concat();
        let mut reader = reader(&wire, Bounds::TO_STORE);
        let mut body = Vec::new();
        assert!(reader.announced().await.expect("a good header").is_some());
        assert!(matches!(
            reader.fill(&mut body, limits::FRAME_BYTES, Instant::now()).await,
            Err(StreamError::Cut)
        ));
        assert!(body.len() == 100 && body.capacity() <= GROW_BYTES);
    }

    #[tokio::test]
    async fn a_silent_peer_is_given_up_in_either_direction() {
        let (near, _far) = tokio::io::duplex(64);
        let (read, write) = tokio::io::split(near);
        let silence = Duration::from_millis(20);
        let mut reader = FrameReader::new(read, ANY, silence, Arc::default());
        assert!(matches!(reader.next().await, Err(StreamError::Silent(_))));
        let mut writer = FrameWriter::new(write, silence, Arc::default());
        let large = Frame::Message(vec![0; 1 << 20]);
        assert!(matches!(writer.write(&large).await, Err(StreamError::Silent(_))));
    }
}
