//! A session of fuser's: a new one, or one that goes on where another process was killed.
//!
//! fuser begins every session with the kernel's first request, which comes once in the life of a mount. So a successor shows it a made-up
//! one over a pair of sockets, offering what the predecessor had been granted, and then puts the kernel's descriptor in the place of the
//! socket. Requests that the predecessor had read and not answered the kernel sends again when it is asked to (Linux 6.9).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use fuser::InitFlags;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};

use super::{
    adapter::Adapter,
    notice::{self, NOTIFY_RESEND},
};

/// linux/fuse.h: `FUSE_INIT`, and the version that `FUSE_NOTIFY_RESEND` came with.
const FUSE_INIT: u32 = 26;
const ABI: (u32, u32) = (7, 40);
/// `struct fuse_in_header` and `struct fuse_init_in`.
const INIT_BYTES: usize = 40 + 64;
/// What the kernel's own first request offers; without effect on a session that goes on.
const READAHEAD_BYTES: u32 = 128 << 10;

/// A session that doesn't run yet.
pub(super) struct Prepared {
    session: fuser::Session<Adapter>,
    goes_on: bool,
}

pub(super) fn has_passthrough(capabilities: u64) -> bool {
    InitFlags::from_bits_retain(capabilities).contains(InitFlags::FUSE_PASSTHROUGH)
}

pub(super) fn has_resend(capabilities: u64) -> bool {
    InitFlags::from_bits_retain(capabilities).contains(InitFlags::FUSE_HAS_RESEND)
}

/// Whether the mount behind the descriptor still lives.
pub(super) fn is_alive(device: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok() && !asked[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

impl Prepared {
    /// A new mount's session.
    pub(super) fn begin(
        adapter: Adapter,
        device: OwnedFd,
        config: fuser::Config,
        acl: fuser::SessionACL,
    ) -> io::Result<Self> {
        let session = fuser::Session::from_fd(adapter, device, acl, config)?;
        Ok(Self { session, goes_on: false })
    }

    /// The session that another process has left.
    pub(super) fn go_on(
        adapter: Adapter,
        device: BorrowedFd<'_>,
        capabilities: u64,
        config: fuser::Config,
        acl: fuser::SessionACL,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::write(&ours, &first_request(capabilities))?;
        let session = fuser::Session::from_fd(adapter, theirs, acl, config)?;
        let (from, to) = (device.as_raw_fd(), session.as_fd().as_raw_fd());
        // SAFETY: both descriptors are open: `device` is borrowed, and the session owns the other one, which stays open, as the session
        // expects, and means another file from here on. Nobody else uses that number.
        if unsafe { libc::dup3(from, to, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { session, goes_on: true })
    }

    /// Has the kernel send again what the predecessor had read and not answered.
    pub(super) fn ask_again(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        if self.goes_on {
            // It takes no lock that a request holds.
            rustix::io::write(device, &notice::bare(NOTIFY_RESEND))?;
        }
        Ok(())
    }

    pub(super) fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

/// `FUSE_INIT` as the kernel would send it, offering these capabilities.
fn first_request(capabilities: u64) -> [u8; INIT_BYTES] {
    let offered = capabilities | InitFlags::FUSE_INIT_EXT.bits();
    let mut bytes = [0; INIT_BYTES];
    let words: [(usize, u32); 8] = [
        (0, INIT_BYTES as u32),
        (4, FUSE_INIT),
        (8, 1), // the request's number, which nobody else has
        (40, ABI.0),
        (44, ABI.1),
        (48, READAHEAD_BYTES),
        (52, offered as u32),
        (56, (offered >> 32) as u32),
    ];
    for (at, word) in words {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
