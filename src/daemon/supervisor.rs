//! The small parent that keeps the mount where there is no systemd to do it: starts the daemon, keeps what the daemon gives it, and starts
//! the next one when that has died.
//!
//! It knows nothing of files. It does as little as possible, since with it the mount dies: no thread, no state of its own on disk, and it
//! never touches the tree.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair},
    process::{Pid, Signal, kill_process},
};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};
use tracing::{error, warn};

use super::holder::{Word, receive, send};
use crate::fuse;

/// What a daemon's death costs: one that never got ready is likely to do it again.
const FAILED_START: u32 = 20;
const FAILED_LIFE: u32 = 2;
/// Beyond it the supervisor gives up. A second of life takes one off: five starts in a row that fail, or fifty short lives.
const PATIENCE: u32 = 100;
/// Deaths up to here are followed by the next daemon at once.
const AT_ONCE: u32 = 20;
/// Above that it waits, the longer the worse it gets, up to a second.
const WAIT_PER_POINT: Duration = Duration::from_millis(12);

/// What to supervise.
#[derive(Debug)]
pub struct Supervised {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub mountpoint: PathBuf,
}

/// What is kept for the next daemon.
struct Kept {
    device: OwnedFd,
    state: OwnedFd,
    number: u32,
}

/// One daemon's life.
struct Life {
    child: Child,
    socket: AsyncFd<OwnedFd>,
    begun: Instant,
    was_ready: bool,
    has_ended: bool,
}

/// How it is going.
struct Supervisor {
    supervised: Supervised,
    kept: Option<Kept>,
    points: u32,
}

/// Supervises until the mount is over; the daemon's exit code.
pub fn supervise(supervised: Supervised) -> io::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Supervisor { supervised, kept: None, points: 0 }.run())
}

impl Supervisor {
    async fn run(mut self) -> io::Result<u8> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut life = self.start(Stdio::inherit())?;
        // The first daemon has what was standard output here, and says there how it went.
        if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(null);
        }
        loop {
            let status = tokio::select! {
                status = life.child.wait() => status?,
                message = next_message(&life.socket) => {
                    self.heard(&mut life, message);
                    continue;
                }
                _ = term.recv() => { life.pass_on(Signal::TERM); continue }
                _ = int.recv() => { life.pass_on(Signal::TERM); continue }
            };
            // What it said last.
            while let Ok(message) = receive(life.socket.get_ref().as_fd(), RecvFlags::DONTWAIT) {
                if message.0.is_empty() {
                    break;
                }
                self.heard(&mut life, message);
            }
            if life.has_ended || self.kept.is_none() {
                return Ok(exit_code(status));
            }
            if !self.may_go_on(&life, status) {
                self.give_up();
                return Ok(1);
            }
            life = self.next_life().await?;
        }
    }

    fn start(&self, stdout: Stdio) -> io::Result<Life> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        match &self.kept {
            Some(kept) => send(ours.as_fd(), b"left", &[kept.device.as_fd(), kept.state.as_fd()])?,
            None => send(ours.as_fd(), b"none", &[])?,
        }
        let mut command = Command::new(&self.supervised.program);
        command.args(&self.supervised.arguments).current_dir("/").stdin(theirs).stdout(stdout);
        let child = command.spawn()?;
        // SAFETY: an `OwnedFd` is open for as long as it lives, and its number doesn't change.
        let socket = unsafe { AsyncFd::register(ours) }.map_err(io::Error::from)?;
        Ok(Life { child, socket, begun: Instant::now(), was_ready: false, has_ended: false })
    }

    /// A program that can't be started just now (it is being replaced, say) is tried again as long as there is patience.
    async fn next_life(&mut self) -> io::Result<Life> {
        loop {
            let over = self.points.saturating_sub(AT_ONCE);
            tokio::time::sleep(WAIT_PER_POINT * over).await;
            match self.start(Stdio::null()) {
                Ok(life) => return Ok(life),
                Err(e) if self.points < PATIENCE => {
                    warn!("can't start the daemon again: {e}");
                    self.points += FAILED_START;
                }
                Err(e) => {
                    self.give_up();
                    return Err(e);
                }
            }
        }
    }

    fn heard(&mut self, life: &mut Life, (bytes, mut fds): (Vec<u8>, Vec<OwnedFd>)) {
        match Word::decode(&bytes) {
            Some(Word::Keep(number)) => {
                if let Some((state, device)) = fds.pop().zip(fds.pop()) {
                    self.kept = Some(Kept { device, state, number });
                }
            }
            Some(Word::Drop) => self.kept = None,
            Some(Word::Ready) => life.was_ready = true,
            Some(Word::Ended) => life.has_ended = true,
            Some(Word::Again(program)) => {
                // Asked for, so it costs nothing.
                self.points = self.points.saturating_sub(FAILED_LIFE);
                self.supervised.program = OsString::from_vec(program).into();
            }
            None => warn!("the daemon said something that the supervisor doesn't know"),
        }
    }

    fn may_go_on(&mut self, life: &Life, status: ExitStatus) -> bool {
        let lived = u32::try_from(life.begun.elapsed().as_secs()).unwrap_or(u32::MAX);
        self.points = self.points.saturating_sub(lived);
        // Killed from outside, it may be as good as any.
        let was_killed = status.signal() == Some(Signal::KILL.as_raw());
        self.points += if life.was_ready || was_killed { FAILED_LIFE } else { FAILED_START };
        warn!("the daemon has ended ({status}); the next one takes the mount over");
        self.points < PATIENCE
    }

    fn give_up(&mut self) {
        let place = self.supervised.mountpoint.display();
        error!("the daemon dies again and again: giving up, {place} is unmounted; files open in it fail");
        let Some(kept) = self.kept.take() else { return };
        // What waits for an answer fails now, and the name goes.
        if let Err(e) = fuse::abort_connection(kept.number) {
            warn!("can't abort the mount: {e}");
        }
        drop(kept);
        if let Err(e) = fuse::clear_dead(&self.supervised.mountpoint) {
            error!("{e}");
        }
    }
}

impl Life {
    fn pass_on(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            // It may just have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

/// The next message; never, once the daemon is gone.
async fn next_message(socket: &AsyncFd<OwnedFd>) -> (Vec<u8>, Vec<OwnedFd>) {
    while let Ok(mut ready) = socket.readable().await {
        match ready.try_io(|socket| receive(socket.get_ref().as_fd(), RecvFlags::DONTWAIT)) {
            Ok(Ok(message)) if !message.0.is_empty() => return message,
            // It has ended, perhaps without having read what it was sent.
            Ok(_) => break,
            Err(_would_block) => {}
        }
    }
    std::future::pending().await
}

fn exit_code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
