//! Windows: large files cut into chunks, a bounded stretch at a time.
//!
//! A window runs over the ends of files, so that many files of a few chunks cost one question to the store. Each file is read
//! once: cut, and hashed as a whole at the same time, and only a file that is what its manifest says ends in a recipe.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::Arc,
};

use super::upload::{Source, UploadError, Wanted};
use crate::{
    buffers,
    chunk::{ChunkParams, ChunkRef, Recipe, Stretch, cutter::Cutter},
    ids::{Hash, RelPath},
    limits,
    spool::sparse::SparseReader,
};

/// Bytes of a window: some 64 chunks a question, of which each layer has one open: 100 MB a second and layer at 20 ms a round trip.
pub const WINDOW_BYTES: usize = 2 << 20;
/// What a window is given room for: it is full once it has [`WINDOW_BYTES`].
const WINDOW_ROOM_BYTES: usize = WINDOW_BYTES + (256 << 10);

/// A stretch of chunks, and the recipes of the files that ended in it.
#[derive(Debug)]
pub struct Window {
    raw: Vec<u8>,
    parts: Vec<Part>,
    stretches: Vec<Stretch>,
}

/// One object of a window. A recipe comes after all its chunks.
#[derive(Debug)]
enum Part {
    Chunk(ChunkRef),
    Recipe { content: Hash, encoded: Vec<u8> },
}

/// The same, with its bytes.
pub enum Piece<'a> {
    Chunk(Hash, &'a [u8]),
    Recipe(Hash, &'a [u8]),
}

impl Drop for Window {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.raw));
    }
}

impl Window {
    /// Its objects in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut rest = &self.raw[..];
        self.parts.iter().map(move |part| match part {
            Part::Chunk(chunk) => {
                let (bytes, behind) = rest.split_at(chunk.bytes as usize);
                rest = behind;
                Piece::Chunk(chunk.hash, bytes)
            }
            Part::Recipe { content, encoded } => Piece::Recipe(*content, encoded),
        })
    }

    /// Which chunks of which files it has.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// File bytes in it.
    pub fn bytes(&self) -> usize {
        self.raw.len()
    }
}

/// Cuts one file after another.
pub struct WindowReader {
    source: Arc<Source>,
    params: ChunkParams,
    queue: VecDeque<Wanted>,
    current: Option<Cutting>,
}

/// A file that is being cut.
struct Cutting {
    path: RelPath,
    content: Hash,
    size: u64,
    cutter: Cutter<Hashing>,
    chunks: Vec<ChunkRef>,
}

/// Hashes what is read through it.
struct Hashing {
    file: io::Take<SparseReader>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Read for Hashing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        self.hasher.update(&into[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

impl WindowReader {
    /// Will cut the files in `queue`.
    pub fn new(source: Arc<Source>, params: ChunkParams, queue: VecDeque<Wanted>) -> Self {
        Self { source, params, queue, current: None }
    }

    /// The next window; `None` after the last file.
    pub fn next_window(&mut self) -> Result<Option<Window>, UploadError> {
        let (parts, stretches) = Default::default();
        let mut window = Window { raw: buffers::take(WINDOW_ROOM_BYTES), parts, stretches };
        while window.raw.len() < WINDOW_BYTES {
            if self.current.is_none() {
                let Some(wanted) = self.queue.pop_front() else { break };
                self.current = Some(self.begin(wanted)?);
            }
            self.cut_into(&mut window)?;
        }
        Ok((!window.parts.is_empty()).then_some(window))
    }

    fn begin(&self, wanted: Wanted) -> Result<Cutting, UploadError> {
        let (path, file) = self.source.open(&wanted)?;
        let file =
            SparseReader::new(file).map_err(|source| UploadError::Io { path: path.clone(), source })?;
        let file = file.take(self.source.reads_to(wanted.size));
        let reader = Hashing { file, hasher: blake3::Hasher::new(), bytes: 0 };
        let cutter = Cutter::new(reader, &self.params)?;
        Ok(Cutting { path, content: wanted.content, size: wanted.size, cutter, chunks: Vec::new() })
    }

    /// Cuts the current file to its end or until the window is full.
    fn cut_into(&mut self, window: &mut Window) -> Result<(), UploadError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let first = current.chunks.len();
        let mut is_whole = false;
        while window.raw.len() < WINDOW_BYTES && !is_whole {
            let next = current.cutter.next_chunk();
            match next.map_err(|source| UploadError::Io { path: current.path.clone(), source })? {
                Some((chunk, bytes)) => {
                    window.raw.extend_from_slice(bytes);
                    window.parts.push(Part::Chunk(chunk));
                    current.chunks.push(chunk);
                }
                None => is_whole = true,
            }
        }
        if let chunks @ [_, ..] = &current.chunks[first..] {
            let (content, first, chunks) = (current.content, first as u64, chunks.to_vec());
            window.stretches.push(Stretch { content, first, chunks });
        }
        if is_whole {
            let whole = self.current.take().expect("it was just cut");
            if !self.source.is_running() {
                whole.drop_pages();
            }
            window.parts.push(whole.finish()?);
        }
        Ok(())
    }
}

impl Cutting {
    /// It was hashed before and is sent now, and nobody writes it any more: its pages are worth less than others'.
    fn drop_pages(&self) {
        let file = self.cutter.source().file.get_ref().file();
        // The kernel may keep them.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }

    fn finish(self) -> Result<Part, UploadError> {
        let read = self.cutter.source();
        if read.bytes != self.size || Hash::from(read.hasher.finalize()) != self.content {
            return Err(UploadError::Changed { path: self.path });
        }
        let encoded = Recipe { chunks: self.chunks }.encode();
        if encoded.len() > limits::BLOCK_RAW_MAX_BYTES {
            return Err(UploadError::TooLarge { path: self.path });
        }
        Ok(Part::Recipe { content: self.content, encoded })
    }
}
