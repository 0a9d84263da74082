//! The bounds of the formats and of the protocol, and those that several modules share, each with its reason. Passing one is a typed
//! error, never a crash or an endless allocation. A bound on one module's own memory or patience stands at the top of that module.

/// Longest name of one path component: the kernel's NAME_MAX.
pub const NAME_BYTES: usize = 255;
/// Longest path below the top of a results tree: the kernel's PATH_MAX.
pub const PATH_BYTES: usize = 4096;

/// Components of the longest path to a unit's root: `hosts/<host>/<task>`.
pub const UNIT_ROOT_DEPTH: usize = 3;

/// Files of this size or more are cut into chunks; smaller ones are one chunk. Splitting from 256 KiB deduplicated best on the corpus.
pub const SPLIT_BYTES: u64 = 256 << 10;
/// Average chunk of FastCDC v2020; 16 to 32 KiB deduplicates best on the corpus. Kept in each store.
pub const CHUNK_AVG_BYTES: u32 = 32 << 10;
/// Smallest chunk but the last of a file.
pub const CHUNK_MIN_BYTES: u32 = CHUNK_AVG_BYTES / 4;
/// Largest chunk of a file that is cut.
pub const CHUNK_MAX_BYTES: u32 = CHUNK_AVG_BYTES * 4;

/// Raw bytes after which a block is closed: larger ones gain 0.2 %, smaller ones compress worse.
pub const BLOCK_RAW_TARGET_BYTES: usize = 1 << 20;
/// Largest raw block, tables excluded: a manifest is the only object that may be this large.
pub const BLOCK_RAW_MAX_BYTES: usize = 256 << 20;
/// Objects in one block: a million empty files must not make an endless table.
pub const BLOCK_OBJECTS: usize = 16 << 10;
/// Size after which a pack is closed: one inode a 64 MiB.
pub const PACK_BYTES: u64 = 64 << 20;

/// Largest manifest, encoded: 2 million entries of about 100 bytes.
pub const MANIFEST_BYTES: usize = BLOCK_RAW_MAX_BYTES;
/// Most entries in one manifest, and most of what it says can't be carried.
pub const MANIFEST_ENTRIES: usize = 2_000_000;
/// Most users, and most groups, that one manifest names: a job's files are of some ten.
pub const MANIFEST_NAMES: usize = 64 << 10;
/// Longest text of a user, group or host name.
pub const TEXT_BYTES: usize = 255;

/// Longest record of the store's catalog: a name and a path are 4.5 KiB.
pub const RECORD_BYTES: usize = 64 << 10;
/// Units that one record of the catalog retires, and bytes of their roots' paths: a push of such records is within a message.
pub const RETIRED_UNITS: usize = 128;
/// See [`RETIRED_UNITS`].
pub const RETIRED_PATHS_BYTES: usize = PATH_BYTES;
/// Packs that one record of the catalog says are gone: as many as are taken away together, 4 GiB.
pub const RECLAIMED_PACKS: usize = 64;
/// Other hosts' manifests that a host keeps, compressed: those of about 300,000 jobs.
pub const REPLICA_MANIFESTS_BYTES: u64 = 512 << 20;

/// Largest frame on the wire: the largest block with its tables.
pub const FRAME_BYTES: usize = BLOCK_RAW_MAX_BYTES + (4 << 20);
/// Longest message after the greeting: [`RECORDS_PER_PUSH`] records with paths of [`PATH_BYTES`] are 4.6 MiB, [`HASHES_PER_ASK`] hashes
/// 2.2 MiB.
pub const MESSAGE_BYTES: usize = 8 << 20;
/// Longest Hello, Welcome or Refused: a name and some settings, from somebody not known yet.
pub const HELLO_BYTES: usize = 64 << 10;
/// Longest join preamble: a name and a number.
pub const JOIN_BYTES: usize = 1 << 10;
/// Hashes in one question; a larger layer asks several times.
pub const HASHES_PER_ASK: usize = 64 << 10;
/// Catalog records in one push.
pub const RECORDS_PER_PUSH: usize = 1024;
/// Block bytes a drone may have on the way and not yet taken in by the store.
pub const UPLOAD_CREDIT_BYTES: u64 = 16 << 20;

/// Such bytes of all hosts together that the store holds in memory; a host whose next block would be beyond it waits with its stream.
pub const UPLOADS_WAITING_BYTES: usize = 2 * UPLOAD_CREDIT_BYTES as usize;

/// Running units of one host that may have a snapshot: a drone runs some hundred jobs at most.
pub const SNAPSHOTS_PER_HOST: usize = 4096;
/// Snapshots of all hosts together, some 300 bytes of memory each.
pub const SNAPSHOTS: usize = 64 << 10;
/// Snapshots in one message: with paths of [`PATH_BYTES`] 2.3 MiB.
pub const SNAPSHOTS_PER_PUSH: usize = 512;
/// Emptied slots that the store remembers, so that a follower needn't begin anew.
pub const SNAPSHOTS_GONE: usize = 8192;

/// Units in one message that tells what was read: with paths of [`PATH_BYTES`] 4 MiB.
pub const UNITS_READ: usize = 1024;
/// Units that a host remembers to have been read, until it has told the store and for a day.
pub const READS_NOTED: usize = 64 << 10;

/// Questions (Offer, Missing, Commit, Publish) that a host may have open: a few layers at once, several questions each.
pub const QUESTIONS_OPEN: usize = 256;
/// Fetches that a host may have open: as many readers wait at once.
pub const FETCHES_OPEN: usize = 64;
/// Of these, blocks that the store reads ahead for a host that is slow to take them, in all its sessions together: each may be large.
pub const FETCHES_READ: usize = 8;
/// Records that the store may send ahead of what the host says it has taken in.
pub const FOLLOW_WINDOW: u64 = 4 * RECORDS_PER_PUSH as u64;
/// Messages waiting for a host that reads slowly.
pub const OUTBOX_MESSAGES: usize = 1024;
/// Blocks and record batches likewise.
pub const OUTBOX_LARGE: usize = 4;
/// Sessions of one daemon at once: twice a large lab's hosts. Each is three descriptors, of the 65,536 that the unit allows.
pub const SESSIONS: usize = 1000;
/// Of one host: its mount, the daemon that takes over from it, imports and exports, and what is left of connections that broke without a
/// word, of which there are at most ten in [`SILENCE_TIMEOUT_MS`].
pub const SESSIONS_PER_HOST: usize = 32;
/// Of those whose key is nobody's and that have not greeted: that takes milliseconds, and a whole lab may come back at once.
pub const SESSIONS_UNNAMED: usize = 256;
/// Connections that are open, with those that are being told why they end: beyond it they wait in the socket's queue.
pub const CONNECTIONS: usize = 4 * SESSIONS;

/// A frame above this is a large one: blocks of the usual size are a quarter of it, and no object but a manifest of some 100,000 entries makes one.
pub const FRAME_LARGE_BYTES: usize = 4 << 20;
/// Large frames of one host, in all its sessions, that the store takes from the stream at once: each may be [`FRAME_BYTES`].
pub const FRAMES_LARGE: usize = 1;
/// A frame that comes or goes slower than this is given up, after the patience for silence: otherwise a byte a minute would keep its memory
/// for ever. The slowest line on which a lab's results get anywhere is faster.
pub const FRAME_LEAST_BYTES_PER_S: u64 = 1 << 10;

/// What the pipes to and from ssh and sshd are made to hold, where the user may: the kernel's usual 64 KiB are a wake-up each for both sides.
pub const PIPE_BYTES: usize = 1 << 20;

/// First and longest pause before a connection is tried again.
pub const RECONNECT_MIN_MS: u64 = 250;
/// See [`RECONNECT_MIN_MS`]; an administrator who mends the network shall not wait longer than this.
pub const RECONNECT_MAX_MS: u64 = 30_000;
/// How long either side waits for the other's greeting, and the daemon for a joining process to say for whom.
pub const GREETING_TIMEOUT_MS: u64 = 30_000;
/// A remote read fails after this long without an answer.
pub const FETCH_TIMEOUT_MS: u64 = 20_000;
/// A connection that says nothing this long is dead: pings go out at a third of it.
pub const SILENCE_TIMEOUT_MS: u64 = 60_000;
