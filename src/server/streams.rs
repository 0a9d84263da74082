//! A session's two streams as descriptors. `serve --stdio` opens them itself or gives them to the process that has the store open, so that no
//! byte passes through a third process.
//!
//! Given are the descriptors and the [`Join`] frame, in one message on the unix socket. A process that dies with a message unread closes
//! what is in it, so nothing is left open whoever dies.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::FileType,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use tokio::{
    io::Interest,
    net::{UnixStream, unix::pipe},
};

use crate::{
    limits,
    transport::{self, BoxRead, BoxWrite},
    wire::{Join, frame::HEADER_BYTES},
};

/// Descriptors in a message: one to read, one to write.
const STREAMS: usize = 2;

/// The host's end of a session: pipes or sockets, as sshd makes them.
#[derive(Debug)]
pub(super) struct Streams {
    input: OwnedFd,
    output: OwnedFd,
}

/// What comes first on the socket.
#[derive(Debug)]
pub(super) struct First {
    pub(super) bytes: Vec<u8>,
    /// Of somebody who joins.
    pub(super) streams: Option<Streams>,
}

impl Streams {
    /// These two, if they can be waited for.
    pub(super) fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        is_pipe(&input)?;
        is_pipe(&output)?;
        Ok(Self { input, output })
    }

    /// Standard input and output, which this process has no longer then: whoever is given them has the only ones.
    pub(super) fn standard() -> io::Result<Self> {
        let take = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let streams = Self::new(take(rustix::stdio::stdin())?, take(rustix::stdio::stdout())?)?;
        let null = fs_err::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(streams)
    }

    /// Makes them ready for this process to serve.
    pub(super) fn open(self) -> io::Result<(BoxRead, BoxWrite)> {
        transport::widen(&self.input);
        transport::widen(&self.output);
        let reader: BoxRead = match self.input {
            fd if is_pipe(&fd)? => Box::new(pipe::Receiver::from_owned_fd(fd)?),
            fd => Box::new(socket_of(fd)?),
        };
        let writer: BoxWrite = match self.output {
            fd if is_pipe(&fd)? => Box::new(pipe::Sender::from_owned_fd(fd)?),
            fd => Box::new(socket_of(fd)?),
        };
        Ok((reader, writer))
    }

    /// Gives them to the process behind `socket`, for the session that `join` says.
    pub(super) async fn give(self, socket: &UnixStream, join: &Join) -> io::Result<()> {
        let bytes = join.frame().encode();
        let send = || {
            let fds = [self.input.as_fd(), self.output.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fits = control.push(SendAncillaryMessage::ScmRights(&fds));
            assert!(fits, "the space is for two descriptors");
            Ok(sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?)
        };
        match socket.async_io(Interest::WRITABLE, send).await? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// The first bytes on a socket and the streams that came with them. A join is there as a whole; of anything else it may be a part.
pub(super) async fn receive(socket: &UnixStream) -> io::Result<First> {
    let receive = || {
        let mut bytes = vec![0; HEADER_BYTES + limits::JOIN_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        bytes.truncate(got.bytes);
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok((bytes, fds))
    };
    let (bytes, fds) = socket.async_io(Interest::READABLE, receive).await?;
    let mut fds = fds.into_iter();
    let streams = match (fds.next(), fds.next()) {
        (Some(input), Some(output)) => Some(Streams { input, output }),
        _ => None,
    };
    Ok(First { bytes, streams })
}

fn is_pipe(fd: &OwnedFd) -> io::Result<bool> {
    match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
        FileType::Fifo => Ok(true),
        FileType::Socket => Ok(false),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a pipe nor a socket, as sshd makes them",
        )),
    }
}

fn socket_of(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
