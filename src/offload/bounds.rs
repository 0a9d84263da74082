//! What all layers share that are under way: cores, memory, the connection's rate; so that many at once cost no more than they should.
//!
//! Whoever asks first goes first, and asks again after a short piece of work ([`Core::yield_now`]), so that a layer of a few files gets on beside
//! one of 50 GB.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    task::{JoinError, JoinHandle},
};

use super::{background::Background, effort::Effort, pace::Pace, packer::OpenBlock, upload::UploadError};

/// Layers that may read and pack at the same time; each holds two windows, a buffer of the cutter and a few blocks, some 10 MiB. Others ask
/// and wait for commits meanwhile.
const SMALL_LAYERS_PACKING: usize = 4;
/// Likewise, of those with [`LARGE_BYTES`] to send: however many there are and however large, small ones don't wait for them.
const LARGE_LAYERS_PACKING: usize = 2;
/// Bytes to send that make a layer large: a second's work.
const LARGE_BYTES: u64 = 256 << 20;

/// What all uploads share, so that many at once cost no more memory and processor than they should.
#[derive(Debug, Clone)]
pub struct Bounds {
    cpu: Arc<Semaphore>,
    packing_small: Arc<Semaphore>,
    packing_large: Arc<Semaphore>,
    pub(super) pace: Arc<Pace>,
    pub(super) effort: Arc<Effort>,
    is_urgent: Arc<AtomicBool>,
}

/// A core for a piece of work.
#[derive(Debug)]
pub struct Core {
    cpu: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    runtime: Handle,
}

impl Core {
    /// Lets those go first who wait for a core. To be called now and then by work that is long; not from an async task.
    pub fn yield_now(&mut self) {
        self.permit = None;
        // It is closed when the program ends, and then the core isn't needed.
        self.permit = self.runtime.block_on(self.cpu.clone().acquire_owned()).ok();
    }
}

impl Bounds {
    /// One thread a core that hashes, cuts or compresses; at least two, since one of them may wait for the disk.
    /// Blocks leave at no more than `bytes_per_s`; 0 = unlimited. `level` is zstd's, where nothing limits.
    pub fn new(bytes_per_s: u64, level: i32) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpu: Arc::new(Semaphore::new(cores.max(2))),
            packing_small: Arc::new(Semaphore::new(SMALL_LAYERS_PACKING)),
            packing_large: Arc::new(Semaphore::new(LARGE_LAYERS_PACKING)),
            pace: Arc::new(Pace::new(bytes_per_s)),
            effort: Arc::new(Effort::new(level)),
            is_urgent: Arc::default(),
        }
    }

    /// Runs `work` on the blocking pool when a core is free for it. Whoever asked first goes first.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, UploadError> {
        let permit = self.cpu.clone().acquire_owned().await.map_err(|_| UploadError::Stopped)?;
        let mut core = Core { cpu: self.cpu.clone(), permit: Some(permit), runtime: Handle::current() };
        let is_urgent = self.is_urgent.load(Ordering::Relaxed);
        let work = move || {
            let _class = (!is_urgent).then(Background::enter);
            work(&mut core)
        };
        join(tokio::task::spawn_blocking(work)).await
    }

    /// Compresses a block in its turn, as hard as there is time for; it is under way when this returns.
    pub(super) fn compress(&self, block: OpenBlock) -> JoinHandle<io::Result<Vec<u8>>> {
        let bounds = self.clone();
        let level = self.effort.level(self.cpu.available_permits() > 0);
        tokio::spawn(async move {
            let packed = bounds.run(move |_| block.finish(level)).await;
            packed.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
        })
    }

    /// Whether the work is done before anybody else's, because the disk is filling up, or when nobody else wants the machine.
    pub fn set_urgent(&self, is_urgent: bool) {
        self.is_urgent.store(is_urgent, Ordering::Relaxed);
    }

    /// A turn to read and pack for a layer that has this much to send.
    pub(super) async fn packing(&self, bytes: u64) -> Result<SemaphorePermit<'_>, UploadError> {
        let class = if bytes < LARGE_BYTES { &self.packing_small } else { &self.packing_large };
        class.acquire().await.map_err(|_| UploadError::Stopped)
    }
}

/// Runs `work`, which waits for the disk more than it computes, on the blocking pool.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UploadError> {
    join(tokio::task::spawn_blocking(work)).await
}

/// Waits for a task; its panic goes on here.
pub(super) async fn join<T>(task: JoinHandle<T>) -> Result<T, UploadError> {
    task.await.map_err(|e: JoinError| match e.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_cancelled) => UploadError::Stopped,
    })
}
