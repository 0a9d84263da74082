//! The messages between a host and the store, and the frames that carry them. Described in `docs/protocol.md`.
//!
//! The host sends hashes, the store answers what it wants: the store is the only authority on what it holds. A session is two ordered streams
//! of frames; requests carry a number, and answers to different numbers may overtake one another.

pub mod frame;
pub mod link;
pub mod rights;

use minicbor::{Decode, Encode};

use crate::{
    catalog::{Head, Record, SnapshotChanges},
    cbor,
    chunk::{ChunkParams, ObjectKind, Stretch},
    ids::{Generation, Hash, HostUuid, Incarnation, Seq, StoreUuid, UnitId, decoding_failed},
    limits,
};
use frame::Frame;
use rights::Rights;

/// Version of the protocol that this program speaks.
pub const PROTOCOL_VERSION: u32 = 7;
/// Version of [`Join`], between two processes on the results host.
pub const JOIN_VERSION: u32 = 3;

/// What a block of `bytes` takes of [`limits::UPLOAD_CREDIT_BYTES`]. A block beyond all of it travels alone.
pub fn charge(bytes: usize) -> u64 {
    (bytes as u64).min(limits::UPLOAD_CREDIT_BYTES)
}

/// Why bytes aren't a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not this encoding, or a message of a later version.
    #[error("message doesn't decode: {0}")]
    Encoding(String),
    /// Something follows the message in its frame.
    #[error("message with {0} bytes after its end")]
    Trailing(usize),
    /// Lists that are beyond their limit together; one alone doesn't decode.
    #[error("message with {0} {1}")]
    TooMany(usize, &'static str),
}

/// Puts a message into a frame.
pub fn message_frame<T: Encode<()>>(message: &T) -> Frame {
    Frame::Message(minicbor::to_vec(message).expect("encoding into a Vec can't fail"))
}

fn decode_all<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, MessageError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let message = decoder.decode().map_err(|e| MessageError::Encoding(decoding_failed(&e)))?;
    match bytes.len() - decoder.position() {
        0 => Ok(message),
        more => Err(MessageError::Trailing(more)),
    }
}

/// Number that ties an answer to its request; the host counts up from 1 in each session.
pub type RequestId = u64;

/// From a host to the store.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum ToStore {
    /// First on every session.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Is the manifest known, with everything that it names?
    #[n(1)]
    Offer(#[n(0)] RequestId, #[n(1)] Hash),
    /// Which of these objects does the store lack?
    #[n(2)]
    Missing(
        #[n(0)] RequestId,
        #[n(1)] ObjectKind,
        #[cbor(n(2), decode_with = "cbor::at_most::<{ limits::HASHES_PER_ASK }, _, _>")] Vec<Hash>,
    ),
    /// Files are cut like this. Which of these chunks does the store lack? One that is named twice is asked for twice.
    #[n(15)]
    Cut(
        #[n(0)] RequestId,
        #[cbor(n(1), decode_with = "cbor::at_most::<{ limits::HASHES_PER_ASK }, _, _>")] Vec<Stretch>,
    ),
    /// Everything for this layer was sent: make it durable and enter it.
    #[n(3)]
    Commit(#[n(0)] RequestId, #[n(1)] CommitRequest),
    /// The block that holds an object, please.
    #[n(4)]
    Fetch(#[n(0)] RequestId, #[n(1)] ObjectKind, #[n(2)] Hash),
    /// Send the catalog's records after this point, and new ones as they come.
    #[n(5)]
    Follow(#[n(0)] Head),
    /// Are you there?
    #[n(6)]
    Ping,
    /// Records up to here were taken in: the store may send [`limits::FOLLOW_WINDOW`] more.
    #[n(7)]
    Taken(#[n(0)] Seq),
    /// These units may begin anew: what was committed of them isn't shown any more.
    #[n(8)]
    Retire(
        #[n(0)] RequestId,
        #[cbor(n(1), decode_with = "cbor::at_most::<{ limits::RETIRED_UNITS }, _, _>")] Vec<RetireUnit>,
    ),
    /// Everything for this snapshot was sent: put it in its layer's slot.
    #[n(12)]
    Publish(#[n(0)] RequestId, #[n(1)] PublishRequest),
    /// What became of the snapshots since this version; 0 = all. One answer, as soon as there is something to say. While it comes
    /// in parts, with the `started` of the part before.
    #[n(13)]
    Watch(#[n(0)] u64, #[n(1)] Option<u64>),
    /// Somebody has read something of these units on this host.
    #[n(14)]
    Read(
        #[n(0)] RequestId,
        #[cbor(n(1), decode_with = "cbor::at_most::<{ limits::UNITS_READ }, _, _>")] Vec<UnitId>,
    ),
    /// Of what was named as lost, all that this host has was sent before this.
    #[n(16)]
    Returned(#[n(0)] RequestId),
}

impl ToStore {
    /// Takes a message's bytes from outside.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        match decode_all(bytes)? {
            Self::Cut(_, stretches) if chunks_in(&stretches) > limits::HASHES_PER_ASK => {
                Err(MessageError::TooMany(chunks_in(&stretches), "chunks"))
            }
            message => Ok(message),
        }
    }
}

/// How many chunks there are in these.
pub fn chunks_in(stretches: &[Stretch]) -> usize {
    stretches.iter().map(|stretch| stretch.chunks.len()).sum()
}

/// First on a unix socket, with the descriptors of two streams, when a process speaks for somebody else: who that is and what he may do.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Join {
    #[n(0)]
    pub version: u32,
    /// The only host name that this session may use.
    #[n(1)]
    pub pinned_name: Option<String>,
    #[n(2)]
    pub rights: Rights,
}

impl Join {
    /// Takes a preamble's bytes from outside.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        decode_all(bytes)
    }

    /// Puts it into its frame.
    pub fn frame(&self) -> Frame {
        Frame::Join(minicbor::to_vec(self).expect("encoding into a Vec can't fail"))
    }
}

/// Who connects and what it knows.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    #[n(0)]
    pub version: u32,
    #[n(1)]
    pub host: HostUuid,
    #[n(2)]
    pub host_name: String,
    /// The store that this host has worked with, and where its replica of the catalog stands.
    #[n(3)]
    pub known: Option<(StoreUuid, Head)>,
    /// Settings that must agree, as `name=value` lines.
    #[n(4)]
    pub settings: Vec<String>,
}

/// A layer to be entered in the catalog.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct CommitRequest {
    #[n(0)]
    pub unit: UnitId,
    #[n(1)]
    pub generation: Generation,
    #[n(2)]
    pub manifest: Hash,
    #[n(3)]
    pub lost: bool,
    /// The unit's life that the layer is of.
    #[n(4)]
    pub incarnation: Incarnation,
}

/// A unit to be retired, as whoever asks has seen it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RetireUnit {
    #[n(0)]
    pub unit: UnitId,
    /// Its last commit, of whatever host: what came later hasn't been seen.
    #[n(1)]
    pub seq: Seq,
}

/// A running layer to be shown to others.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct PublishRequest {
    #[n(0)]
    pub unit: UnitId,
    /// The one in which the layer runs.
    #[n(1)]
    pub generation: Generation,
    /// None: there is nothing of it any more, and nothing was committed.
    #[n(2)]
    pub manifest: Option<Hash>,
    /// The unit's life that the layer is of.
    #[n(3)]
    pub incarnation: Incarnation,
}

/// From the store to a host.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum FromStore {
    /// The answer to Hello.
    #[n(0)]
    Welcome(#[n(0)] Welcome),
    /// The session ends, and why. The only answer to a broken rule.
    #[n(1)]
    Refused(#[n(0)] RefusalCode, #[n(1)] String),
    /// To Offer: whether it is known.
    #[n(2)]
    Known(#[n(0)] RequestId, #[n(1)] bool),
    /// To Missing and Cut: one bit an object in the order asked, least significant first; 1 = missing.
    #[n(3)]
    Wanted(#[n(0)] RequestId, #[cbor(n(1), with = "minicbor::bytes")] Vec<u8>),
    /// To Commit: durable, under this record.
    #[n(4)]
    Committed(#[n(0)] RequestId, #[n(1)] Record),
    /// To Commit: not entered, to Fetch: there but can't be read; and why. The session goes on.
    #[n(5)]
    Rejected(#[n(0)] RequestId, #[n(1)] String),
    /// To Fetch: the store doesn't hold it. (A block that is there comes in a block frame.)
    #[n(6)]
    NotFound(#[n(0)] RequestId),
    /// New records, in order.
    #[n(7)]
    Records(#[cbor(n(0), decode_with = "cbor::at_most::<{ limits::RECORDS_PER_PUSH }, _, _>")] Vec<Record>),
    /// The replica doesn't match this catalog at the point it named: drop it and follow from the start.
    #[n(8)]
    Resync(#[n(0)] Head),
    /// This many bytes of block frames were taken in.
    #[n(9)]
    Credit(#[n(0)] u64),
    /// To Ping.
    #[n(10)]
    Pong,
    /// To Retire: durable, under this record.
    #[n(11)]
    Retired(#[n(0)] RequestId, #[n(1)] Record),
    /// To Publish: the slot is as wished.
    #[n(15)]
    Published(#[n(0)] RequestId),
    /// To Watch.
    #[n(16)]
    Snapshots(#[n(0)] SnapshotChanges),
    /// To Read and Returned: noted, durably.
    #[n(17)]
    Noted(#[n(0)] RequestId),
    /// Something of what was committed was lost. Whoever committed one of these manifests sends it again, and whoever has one of these objects sends that.
    #[n(18)]
    Lost(#[n(0)] Lost),
}

impl FromStore {
    /// Takes a message's bytes from outside.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        match decode_all(bytes)? {
            Self::Lost(lost) if lost.manifests.len() + lost.objects.len() > limits::HASHES_PER_ASK => {
                Err(MessageError::TooMany(lost.manifests.len() + lost.objects.len(), "lost objects"))
            }
            message => Ok(message),
        }
    }
}

/// What a store has lost of what was committed; [`limits::HASHES_PER_ASK`] together at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Lost {
    /// Committed manifests that name something lost, or are lost themselves.
    #[cbor(n(0), decode_with = "cbor::at_most::<{ limits::HASHES_PER_ASK }, _, _>")]
    pub manifests: Vec<Hash>,
    #[cbor(n(1), decode_with = "cbor::at_most::<{ limits::HASHES_PER_ASK }, _, _>")]
    pub objects: Vec<(ObjectKind, Hash)>,
}

/// The store introduces itself.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    #[n(0)]
    pub version: u32,
    #[n(1)]
    pub store: StoreUuid,
    #[n(2)]
    pub head: Head,
    #[n(3)]
    pub params: ChunkParams,
    /// Whether this session may delete or replace other hosts' entries.
    #[n(4)]
    pub may_delete: bool,
    /// Settings that differ between the two, as text for people.
    #[n(5)]
    pub differences: Vec<String>,
}

/// Why a session was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum RefusalCode {
    /// Versions don't fit.
    #[n(0)]
    Version,
    /// The session is pinned to another name, or another live host has this name.
    #[n(1)]
    Identity,
    /// A message or frame that breaks the protocol.
    #[n(2)]
    Protocol,
    /// A block that is damaged or lies.
    #[n(3)]
    Block,
    /// The store can't go on (disk full, I/O error).
    #[n(4)]
    Store,
    /// Too many sessions are open, of this host or of all: try again later.
    #[n(5)]
    Busy,
}
