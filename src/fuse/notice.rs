//! Telling the kernel what to forget, from a process of its own.
//!
//! A notice takes locks in the kernel that a request which waits for us may hold. So a handler must never send one; and a thread of this
//! process must not either: killed while it waits for such a lock it can't end, nor can the process, and no successor would come to
//! answer the request. The process that sends them ([`carry`]) has nothing but the kernel's descriptor and a socket; where it has to wait
//! while the daemon dies, it waits for the successor, as every client does.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::fs::Invalidation;

/// linux/fuse.h: `struct fuse_out_header`, whose error is a notice's kind, and the kinds.
const HEADER_BYTES: usize = 16;
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INVAL_ENTRY: i32 = 3;
pub(super) const NOTIFY_RESEND: i32 = 7;
/// Of ours: the other process answers it with a byte, when it has sent all before.
const NOTHING: i32 = 0;
/// A name has 255 bytes at most.
const NOTICE_BYTES: usize = 512;

/// As many are sent at once.
const BATCH: usize = 256;
/// As much is kept, to be sent again, before an answer is waited for.
const UNCONFIRMED_BYTES: usize = 64 << 10;
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);

/// Takes notices for the kernel. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Notices(mpsc::Sender<Notice>);

#[derive(Debug)]
enum Notice {
    Tell(Invalidation),
    /// Only a node's attributes.
    Attributes(u64),
    Done(mpsc::Sender<()>),
}

/// How to start the process that sends notices.
pub(super) struct Carriage {
    /// This program, whose `notifier` it is.
    pub(super) program: PathBuf,
    pub(super) device: OwnedFd,
    /// For who looks at the list of processes.
    pub(super) mountpoint: PathBuf,
}

/// That process.
struct Carrier {
    child: Child,
    socket: UnixStream,
}

impl Notices {
    /// Starts the process, and a thread that feeds it.
    pub(super) fn start(carriage: Carriage) -> io::Result<Self> {
        let carrier = carriage.start()?;
        let (sender, receiver) = mpsc::channel();
        let run = move || feed(&receiver, &carriage, carrier);
        thread::Builder::new().name("fuse-notices".to_owned()).spawn(run)?;
        Ok(Self(sender))
    }

    /// Tells the kernel, soon.
    pub fn tell(&self, invalidations: impl IntoIterator<Item = Invalidation>) {
        for invalidation in invalidations {
            // The receiver is gone only when the mount is, and then nobody remembers anything.
            let _ = self.0.send(Notice::Tell(invalidation));
        }
    }

    pub(super) fn attributes(&self, node: u64) {
        let _ = self.0.send(Notice::Attributes(node));
    }

    /// Waits until the kernel was told all that was said before. Not from a handler.
    pub fn flush(&self) {
        let (sender, done) = mpsc::channel();
        if self.0.send(Notice::Done(sender)).is_ok() {
            let _ = done.recv();
        }
    }
}

impl Carriage {
    fn start(&self) -> io::Result<Carrier> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new(&self.program)
            .arg0("resultsfs")
            .arg("notifier")
            .arg(&self.mountpoint)
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(self.device.try_clone()?)
            .stderr(Stdio::null())
            // What a terminal sends is for the daemon.
            .process_group(0)
            .spawn()
            .map_err(|e| {
                let program = self.program.display();
                io::Error::new(e.kind(), format!("can't start {program} for notices to the kernel: {e}"))
            })?;
        Ok(Carrier { child, socket })
    }

    fn start_again(&self, ended: Carrier) -> Carrier {
        ended.end();
        loop {
            match self.start() {
                Ok(carrier) => return carrier,
                Err(e) => tracing::error!("{e}"),
            }
            thread::sleep(BETWEEN_ATTEMPTS);
        }
    }
}

impl Carrier {
    /// Hands it these. To be confirmed, they end with what is answered: then it returns when all were sent.
    fn carry(&mut self, notices: &[u8], is_confirmed: bool) -> io::Result<()> {
        self.socket.write_all(notices)?;
        if is_confirmed { self.socket.read_exact(&mut [0]) } else { Ok(()) }
    }

    fn end(mut self) {
        drop(self.socket);
        let _ = self.child.wait();
    }
}

/// Takes notices to the process for as long as anybody has some.
fn feed(notices: &mpsc::Receiver<Notice>, carriage: &Carriage, mut carrier: Carrier) {
    let mut unconfirmed = Vec::new();
    while let Ok(first) = notices.recv() {
        let (begun, mut waiting) = (unconfirmed.len(), Vec::new());
        for notice in [first].into_iter().chain(notices.try_iter().take(BATCH)) {
            match notice {
                Notice::Tell(Invalidation::Entry { parent, name }) => entry(&mut unconfirmed, parent, &name),
                Notice::Tell(Invalidation::Node { node }) => inode(&mut unconfirmed, node, 0),
                Notice::Attributes(node) => inode(&mut unconfirmed, node, -1),
                Notice::Done(sender) => waiting.push(sender),
            }
        }
        let is_confirmed = !waiting.is_empty() || unconfirmed.len() > UNCONFIRMED_BYTES;
        if is_confirmed {
            frame(&mut unconfirmed, NOTHING, &[]);
        }
        let mut sent = carrier.carry(&unconfirmed[begun..], is_confirmed);
        // One may reach the kernel twice, but none is lost with a process.
        while let Err(e) = sent {
            tracing::warn!(
                "the process that sends notices to the kernel has ended ({e}); it is started again"
            );
            carrier = carriage.start_again(carrier);
            sent = carrier.carry(&unconfirmed, is_confirmed);
        }
        if is_confirmed {
            unconfirmed.clear();
        }
        for sender in waiting {
            let _ = sender.send(());
        }
    }
    carrier.end();
}

fn frame(notices: &mut Vec<u8>, kind: i32, body: &[&[u8]]) {
    let len = HEADER_BYTES + body.iter().map(|part| part.len()).sum::<usize>();
    notices.extend((len as u32).to_ne_bytes());
    notices.extend(kind.to_ne_bytes());
    notices.extend(0u64.to_ne_bytes());
    body.iter().for_each(|part| notices.extend(*part));
}

/// `struct fuse_notify_inval_inode_out`: from `offset` to the end, and the attributes; a negative one means only these.
fn inode(notices: &mut Vec<u8>, node: u64, offset: i64) {
    frame(notices, NOTIFY_INVAL_INODE, &[&node.to_ne_bytes(), &offset.to_ne_bytes(), &0i64.to_ne_bytes()]);
}

/// `struct fuse_notify_inval_entry_out` and the name.
fn entry(notices: &mut Vec<u8>, parent: u64, name: &[u8]) {
    let (len, flags) = ((name.len() as u32).to_ne_bytes(), 0u32.to_ne_bytes());
    frame(notices, NOTIFY_INVAL_ENTRY, &[&parent.to_ne_bytes(), &len, &flags, name, &[0]]);
}

/// A notice without a body, for the kernel.
pub(super) fn bare(kind: i32) -> Vec<u8> {
    let mut notice = Vec::new();
    frame(&mut notice, kind, &[]);
    notice
}

/// What the process does that sends notices: takes them from the socket and writes them to the kernel's descriptor, each by one
/// write(2), until the daemon is gone.
pub fn carry(socket: &UnixStream, device: BorrowedFd<'_>) -> io::Result<()> {
    let (mut from, mut to) = (BufReader::new(socket), socket);
    let mut notice = [0; NOTICE_BYTES];
    while !from.fill_buf()?.is_empty() {
        from.read_exact(&mut notice[..HEADER_BYTES])?;
        let len = u32::from_ne_bytes(notice[..4].try_into().expect("four bytes")) as usize;
        from.read_exact(notice.get_mut(HEADER_BYTES..len).ok_or(io::ErrorKind::InvalidData)?)?;
        if notice[4..8] == NOTHING.to_ne_bytes() {
            to.write_all(&[0])?;
        } else {
            // The kernel may not know what it is to forget, and a mount that has ended forgets everything.
            let _ = rustix::io::write(device, &notice[..len]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::{fd::AsFd, unix::net::UnixDatagram};

    #[test]
    fn each_notice_is_one_write_and_only_the_question_is_answered() {
        let (mut daemon, carrier) = UnixStream::pair().expect("sockets");
        let (kernel, device) = UnixDatagram::pair().expect("sockets");
        let carrying = thread::spawn(move || carry(&carrier, device.as_fd()));
        let mut notices = Vec::new();
        entry(&mut notices, 7, &[b'n'; 255]);
        inode(&mut notices, 8, -1);
        frame(&mut notices, NOTHING, &[]);
        // As a socket may cut them.
        notices.chunks(100).for_each(|part| daemon.write_all(part).expect("sent"));
        daemon.read_exact(&mut [0]).expect("answered");
        let mut got = [0; 1024];
        let len = kernel.recv(&mut got).expect("the first");
        assert_eq!((len, &got[..8]), (288, [288u32.to_ne_bytes(), 3i32.to_ne_bytes()].as_flattened()));
        assert_eq!(&got[16..28], [7u64.to_ne_bytes().as_slice(), &255u32.to_ne_bytes()].concat());
        assert_eq!(got[32..288], [[b'n'; 255].as_slice(), &[0]].concat());
        let len = kernel.recv(&mut got).expect("the second");
        assert_eq!((len, &got[..8]), (40, [40u32.to_ne_bytes(), 2i32.to_ne_bytes()].as_flattened()));
        assert_eq!(got[16..40], [8i64, -1, 0].map(i64::to_ne_bytes).concat());
        drop(daemon);
        carrying.join().expect("no panic").expect("it ends with the daemon");
        kernel.set_nonblocking(true).expect("set");
        assert!(kernel.recv(&mut got).is_err(), "nothing else");
    }
}
