//! Every bound of the program, with its reason. Passing one is a typed error, never a crash or an endless allocation.

/// Longest name of one path component: the kernel's NAME_MAX.
pub const NAME_BYTES: usize = 255;
/// Longest path below the top of a results tree: the kernel's PATH_MAX.
pub const PATH_BYTES: usize = 4096;

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
/// Most entries in one manifest.
pub const MANIFEST_ENTRIES: usize = 2_000_000;
/// Longest text of a user, group or host name.
pub const TEXT_BYTES: usize = 255;

/// Largest frame on the wire: the largest block with its tables.
pub const FRAME_BYTES: usize = BLOCK_RAW_MAX_BYTES + (4 << 20);
/// Hashes in one question; a larger layer asks several times.
pub const HASHES_PER_ASK: usize = 64 << 10;
/// Catalog records in one push.
pub const RECORDS_PER_PUSH: usize = 1024;
/// Block bytes a drone may have on the way and not yet taken in by the store.
pub const UPLOAD_CREDIT_BYTES: u64 = 16 << 20;

/// First and longest pause before a connection is tried again.
pub const RECONNECT_MIN_MS: u64 = 250;
/// See [`RECONNECT_MIN_MS`]; an administrator who mends the network shall not wait longer than this.
pub const RECONNECT_MAX_MS: u64 = 30_000;
/// A remote read fails after this long without an answer.
pub const FETCH_TIMEOUT_MS: u64 = 20_000;
/// A connection that says nothing this long is dead: pings go out at a third of it.
pub const SILENCE_TIMEOUT_MS: u64 = 60_000;
