//! Who keeps the mount when this process dies: nobody, the supervisor that has started it, or systemd.
//!
//! The holder has the kernel's descriptor and the ledger, and gives them to the next daemon. With the supervisor (`supervisor`) the
//! daemon's standard input is a socket to it; systemd takes both into the service's store of descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{self, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags},
};
use sd_notify::NotifyState;
use tracing::warn;

/// Names in systemd's store.
const DEVICE_NAME: &str = "resultsfs-device";
const STATE_NAME: &str = "resultsfs-state";

/// The longest message: a word and a path.
const MESSAGE_BYTES: usize = 8 << 10;

/// Who is to keep the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeldBy {
    #[default]
    Nobody,
    /// The process at the other end of standard input.
    Supervisor,
    /// The service manager that has started this process.
    Systemd,
}

impl HeldBy {
    /// As `status` shows it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::Supervisor => "supervisor",
            Self::Systemd => "systemd",
        }
    }
}

/// What a predecessor has left with the holder.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) device: OwnedFd,
    pub(super) state: OwnedFd,
}

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Holder {
    by: HeldBy,
    socket: Option<OwnedFd>,
}

/// What a daemon tells its supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Keep these two, of the mount with this device number.
    Keep(u32),
    /// What you keep is of no use any more.
    Drop,
    /// The mount answers.
    Ready,
    /// The mount is over, and so is this process; none is to follow.
    Ended,
    /// Another process is to follow, of this program.
    Again(Vec<u8>),
}

impl Word {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Keep(device) => format!("keep {device}").into_bytes(),
            Self::Drop => b"drop".to_vec(),
            Self::Ready => b"ready".to_vec(),
            Self::Ended => b"ended".to_vec(),
            Self::Again(program) => [b"again ", program.as_slice()].concat(),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            b"drop" => Some(Self::Drop),
            b"ready" => Some(Self::Ready),
            b"ended" => Some(Self::Ended),
            _ => match bytes.split_at_checked(5)? {
                (b"keep ", device) => Some(Self::Keep(std::str::from_utf8(device).ok()?.parse().ok()?)),
                (b"again", [b' ', program @ ..]) => Some(Self::Again(program.to_vec())),
                _ => None,
            },
        }
    }
}

impl Holder {
    /// The holder, and what it has for this process.
    pub(super) fn open(by: HeldBy) -> io::Result<(Self, Option<Left>)> {
        match by {
            HeldBy::Nobody => Ok((Self { by, socket: None }, None)),
            HeldBy::Supervisor => {
                let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
                let (_, mut fds) = receive(socket.as_fd(), RecvFlags::empty())?;
                let left = fds.pop().zip(fds.pop()).map(|(state, device)| Left { device, state });
                Ok((Self { by, socket: Some(socket) }, left))
            }
            HeldBy::Systemd => Ok((Self { by, socket: None }, from_systemd()?)),
        }
    }

    /// Who keeps the mount now: a supervisor may be gone.
    pub(super) fn by(&self) -> HeldBy {
        match &self.socket {
            Some(socket) if is_closed(socket.as_fd()) => HeldBy::Nobody,
            _ => self.by,
        }
    }

    /// Hands both over.
    pub(super) fn keep(&self, device: BorrowedFd<'_>, number: u32, state: BorrowedFd<'_>) -> io::Result<()> {
        match (self.by, &self.socket) {
            (HeldBy::Systemd, _) => {
                // Not polled for their end: that would wake systemd at each request.
                for (fd, name) in [(device, DEVICE_NAME), (state, STATE_NAME)] {
                    let unpolled = NotifyState::Custom("FDPOLL=0");
                    let words = [NotifyState::FdStore, NotifyState::FdName(name), unpolled];
                    sd_notify::notify_with_fds(&words, &[fd])?;
                }
                Ok(())
            }
            (_, Some(socket)) => send(socket.as_fd(), &Word::Keep(number).encode(), &[device, state]),
            _ => Ok(()),
        }
    }

    /// What it keeps is of no use any more.
    pub(super) fn drop_kept(&self) {
        if self.by == HeldBy::Systemd {
            for name in [DEVICE_NAME, STATE_NAME] {
                let words = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
                if let Err(e) = sd_notify::notify(&words) {
                    warn!("can't tell systemd to forget the mount: {e}");
                }
            }
        }
        self.say(&Word::Drop);
    }

    /// Tells a supervisor, if there is one. It may be gone, and the mount goes on without.
    pub(super) fn say(&self, word: &Word) {
        if let Some(socket) = &self.socket {
            let _ = send(socket.as_fd(), &word.encode(), &[]);
        }
    }

    /// The next process is to be this program; under systemd it is the unit's.
    pub(super) fn ask_for_successor(&self, program: &Path) {
        self.say(&Word::Again(program.as_os_str().as_bytes().to_vec()));
    }
}

fn from_systemd() -> io::Result<Option<Left>> {
    let (mut device, mut state) = (None, None);
    for (fd, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: systemd has opened these for this process, and this is the only place that takes them, once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        match name.as_str() {
            DEVICE_NAME => device = Some(fd),
            STATE_NAME => state = Some(fd),
            _ => {}
        }
    }
    Ok(device.zip(state).map(|(device, state)| Left { device, state }))
}

fn is_closed(socket: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok() && asked[0].revents().contains(PollFlags::HUP)
}

/// One message with descriptors.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(net::SendAncillaryMessage::ScmRights(fds));
    }
    net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message with its descriptors; an empty one says that the other end is gone.
pub(super) fn receive(socket: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    bytes.truncate(got.bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let net::RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back() {
        let words =
            [Word::Keep(42), Word::Drop, Word::Ready, Word::Ended, Word::Again(b"/opt/new one".to_vec())];
        for word in words {
            assert_eq!(Word::decode(&word.encode()), Some(word));
        }
        assert_eq!(Word::decode(b"keep x"), None);
        assert_eq!(Word::decode(b""), None);
    }
}
