//! Control sockets: how commands talk to the daemons on this machine. One request a connection, JSON lines, and the bytes of files as they are.
//!
//! The mount daemon listens on `<state_dir>/control.sock`, whoever has the store open on `<store_dir>/control.sock`. A request is one line; the answer
//! is any number of `item` lines, of `bytes` lines with so many bytes behind each, and one `done` or `failed` line. Both sockets are for their owner and root only. The commands of [`crate::cli`] are the
//! only clients, of the same version: this is not an interface for others, `--json` is.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a command asks of the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// Who are you, and where is your mount?
    Hello,
    Status,
    Jobs {
        pattern: Option<String>,
    },
    Explain {
        path: RawPath,
    },
    /// What one host has committed at a path: its bytes.
    Cat {
        path: RawPath,
        host: String,
    },
    Offload {
        paths: Vec<RawPath>,
        wait: bool,
        timeout_s: u64,
    },
    Complete {
        paths: Vec<RawPath>,
    },
    Evict {
        paths: Vec<RawPath>,
    },
    Recall {
        paths: Vec<RawPath>,
    },
    /// Of this host's journal and spool.
    Verify {
        paths: Vec<RawPath>,
        read_data: bool,
        /// At most so many; 0 = no bound.
        #[serde(default)]
        mib_per_s: u32,
        repair: bool,
    },
    /// What is committed at these paths, in the present life of their units or in the one with this number: entries, each file's followed by its bytes.
    Export {
        paths: Vec<RawPath>,
        incarnation: Option<usize>,
    },
    /// Hides what is committed at these paths; or everywhere, in units whose last commit is older than a time (ms since the epoch). With `dry_run` only
    /// says what.
    Retire {
        paths: Vec<RawPath>,
        before_ms: Option<u64>,
        dry_run: bool,
    },
    /// Of whoever has the store open.
    VerifyStore(StoreCheck),
    /// Likewise: what is found is mended, for which its sessions end and the store is closed for a while. `level` is zstd's.
    RepairStore {
        check: StoreCheck,
        level: i32,
    },
    /// End without unmounting: a process of this program takes the mount over.
    HandOver {
        program: RawPath,
    },
    /// Of the store's daemon: makes a dead host's snapshots commits; with `dry_run` only says which.
    Adopt {
        host: String,
        dry_run: bool,
    },
    /// Of whoever has the store open: prunes by a rule, and gives up what was pruned long ago.
    Prune {
        rules: PruneRules,
    },
    /// Likewise: brings back what was pruned or retired at these paths, from the top of the results tree; with `dry_run` only says what.
    Undelete {
        paths: Vec<Vec<u8>>,
        dry_run: bool,
    },
    /// Of the store's daemon: reclaims what nothing needs; with `dry_run` only says what. `level` is zstd's.
    Gc {
        dry_run: bool,
        level: i32,
    },
    /// Of whoever has the store open: its sizes, and whether it can go on.
    StoreStatus,
    /// Unmount and end.
    Umount {
        lazy: bool,
        timeout_s: u64,
    },
}

/// How to check a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCheck {
    /// Read every byte.
    pub read_data: bool,
    /// And unpack it.
    pub unpack: bool,
    /// Of what is read, only this part of so many.
    pub sample: Option<(u32, u32)>,
    /// Not what a check that was cut off has read.
    pub resume: bool,
    /// At most so many; 0 = no bound.
    pub mib_per_s: u32,
}

/// By which rule to prune.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneRules {
    /// The configuration's; 0 = for ever.
    pub retention_days: u32,
    pub retention_days_failed: u32,
    /// What is pruned can be undeleted so long.
    pub grace_days: u32,
    /// In place of the configuration's ages.
    pub older_than: Option<OlderThan>,
    /// Only jobs that ended like this.
    pub outcome: Option<Outcome>,
    /// Only jobs of which nothing was read for so many days.
    #[serde(default)]
    pub unread_for_days: Option<u32>,
    /// Only this user's jobs.
    pub owner: Option<String>,
    /// Only job dirs, and tasks' directories, whose path matches this.
    pub pattern: Option<String>,
    /// Only say what.
    pub dry_run: bool,
    /// Also if that is everything.
    pub yes: bool,
}

/// An age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OlderThan {
    Days(u32),
    /// Ms since the epoch.
    Before(u64),
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Passed,
    Failed,
}

impl Outcome {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
        }
    }
}

/// A path as the user gave it, and made absolute by the client's working directory. Bytes, since names needn't be UTF-8.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RawPath {
    pub given: Vec<u8>,
    pub absolute: Vec<u8>,
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// One object of output.
    Item(Value),
    /// So many bytes of a file come behind this line, [`PIECE_BYTES`] at most.
    Bytes(usize),
    /// The end, with the command's exit code.
    Done { exit: u8 },
    /// The end: it could not be done.
    Failed { message: String, hint: Option<String> },
}

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no daemon answers on {path}")]
    NotRunning { path: String },
    /// The socket, or the directory that it is in, is another user's.
    #[error("this user may not ask the daemon on {path}: only root and the user that it runs as may")]
    NotAllowed { path: String },
    /// The conversation broke.
    #[error("the daemon's answer on {path} broke off: {source}")]
    Broken { path: String, source: io::Error },
    /// It said no.
    #[error("{message}")]
    Failed { message: String, hint: Option<String> },
}

/// Bytes of a file told at a time, at most.
pub const PIECE_BYTES: usize = 1 << 20;

/// Whether who is at the other end may ask anything: root, and the user that this process runs as.
pub fn may_ask(stream: impl AsFd) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream).map(|cred| cred.uid);
    peer.is_ok_and(|uid| uid.is_root() || uid == rustix::process::geteuid())
}

/// What the daemon answers to somebody else.
pub fn not_allowed() -> Reply {
    let message = "only root and the user that the daemon runs as may ask it".to_owned();
    Reply::Failed { message, hint: None }
}

/// A part of an answer.
#[derive(Debug)]
pub enum Told {
    Item(Value),
    Bytes(Vec<u8>),
}

/// Asks the daemon at `socket`; `each` gets every item as it comes. Returns the command's exit code.
pub fn ask(socket: &Path, request: &Request, mut each: impl FnMut(Value)) -> Result<u8, ControlError> {
    hear(socket, request, |told| match told {
        Told::Item(item) => each(item),
        Told::Bytes(_) => {}
    })
}

/// The same where the bytes of files are among the answer.
pub fn hear(socket: &Path, request: &Request, mut each: impl FnMut(Told)) -> Result<u8, ControlError> {
    let path = socket.display().to_string();
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => ControlError::NotAllowed { path: path.clone() },
        _ => ControlError::NotRunning { path: path.clone() },
    })?;
    let broken = |source| ControlError::Broken { path: path.clone(), source };
    let mut line = serde_json::to_string(request).map_err(|e| broken(e.into()))?;
    line.push('\n');
    // Whoever may not ask is told so before he has asked: what went wrong with the question counts where there is no answer.
    let mut unsent = (&stream).write_all(line.as_bytes()).err();
    let mut answer = BufReader::new(&stream);
    loop {
        let unsent = unsent.take();
        match next(&mut answer).map_err(|unheard| broken(unsent.unwrap_or(unheard)))? {
            Reply::Item(value) => each(Told::Item(value)),
            Reply::Bytes(count) => each(Told::Bytes(piece(&mut answer, count).map_err(broken)?)),
            Reply::Done { exit } => return Ok(exit),
            Reply::Failed { message, hint } => return Err(ControlError::Failed { message, hint }),
        }
    }
}

fn next(answer: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = Vec::new();
    match answer.read_until(b'\n', &mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(serde_json::from_slice(&line)?),
    }
}

fn piece(answer: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    if count > PIECE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{count} bytes at a time")));
    }
    let mut bytes = vec![0; count];
    answer.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// How far long work is, as an item: for a progress bar, never for output. `done` of `total` bytes if `is_bytes`, and `what` else there is to say.
pub fn tick_item(done: u64, total: u64, is_bytes: bool, what: &str) -> Value {
    serde_json::json!({"tick": {"done": done, "total": total, "is_bytes": is_bytes, "what": what}})
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn heard(answer: &[u8]) -> Result<(Vec<Told>, u8), ControlError> {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).expect("listens");
        let answer = answer.to_vec();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("is asked");
            BufReader::new(&stream).read_line(&mut String::new()).expect("a request");
            stream.write_all(&answer).expect("answers");
        });
        let mut told = Vec::new();
        let asked = hear(&socket, &Request::Hello, |part| told.push(part));
        answering.join().expect("answered");
        asked.map(|exit| (told, exit))
    }

    /// Whatever the bytes are, line feeds among them.
    #[test]
    fn bytes_come_as_they_are() {
        let bytes: Vec<u8> = (0..=255).collect();
        let lines = [&b"{\"bytes\":256}\n"[..], &bytes, b"{\"item\":{\"v\":1}}\n{\"done\":{\"exit\":3}}\n"];
        let (told, exit) = heard(&lines.concat()).expect("is whole");
        assert!(matches!(&told[..], [Told::Bytes(b), Told::Item(_)] if *b == bytes));
        assert_eq!(exit, 3);
    }

    #[test]
    fn an_answer_that_breaks_off_or_is_too_much_is_an_error() {
        for answer in [&b"{\"bytes\":5}\nabc"[..], b"{\"item\":1}\n", b"{\"bytes\":99999999}\n", b"{\"it"] {
            let error = heard(answer).expect_err("isn't whole");
            assert!(matches!(error, ControlError::Broken { .. }), "{error}");
        }
    }
}
