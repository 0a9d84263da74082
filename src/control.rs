//! Control sockets: how commands talk to the daemons on this machine. One request a connection, JSON lines.
//!
//! The mount daemon listens on `<state_dir>/control.sock`, whoever has the store open on `<store_dir>/control.sock`. A request is one line; the answer
//! is any number of `item` lines and one `done` or `failed` line. Both sockets are for their owner and root only. The commands of [`crate::cli`] are the
//! only clients, of the same version: this is not an interface for others, `--json` is.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
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
    /// What one host has committed at a path: its bytes, in hexadecimal pieces.
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
    /// Of the store that is open here. `sample` is part and number of parts.
    VerifyStore {
        read_data: bool,
        unpack: bool,
        sample: Option<(u32, u32)>,
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
    /// Unmount and end.
    Umount {
        lazy: bool,
        timeout_s: u64,
    },
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
    /// The conversation broke.
    #[error("the daemon's answer on {path} broke off: {source}")]
    Broken { path: String, source: io::Error },
    /// It said no.
    #[error("{message}")]
    Failed { message: String, hint: Option<String> },
}

/// Asks the daemon at `socket`; `each` gets every item as it comes. Returns the command's exit code.
pub fn ask(socket: &Path, request: &Request, mut each: impl FnMut(Value)) -> Result<u8, ControlError> {
    let path = socket.display().to_string();
    let stream = UnixStream::connect(socket).map_err(|_| ControlError::NotRunning { path: path.clone() })?;
    let broken = |source| ControlError::Broken { path: path.clone(), source };
    let mut line = serde_json::to_string(request).map_err(|e| broken(e.into()))?;
    line.push('\n');
    (&stream).write_all(line.as_bytes()).map_err(broken)?;
    for line in BufReader::new(&stream).lines() {
        let reply = serde_json::from_str(&line.map_err(broken)?).map_err(|e| broken(e.into()))?;
        match reply {
            Reply::Item(value) => each(value),
            Reply::Done { exit } => return Ok(exit),
            Reply::Failed { message, hint } => return Err(ControlError::Failed { message, hint }),
        }
    }
    Err(broken(io::ErrorKind::UnexpectedEof.into()))
}

/// How far long work is, as an item: for a progress bar, never for output. `done` of `total` bytes if `is_bytes`, and `what` else there is to say.
pub fn tick_item(done: u64, total: u64, is_bytes: bool, what: &str) -> Value {
    serde_json::json!({"tick": {"done": done, "total": total, "is_bytes": is_bytes, "what": what}})
}

/// Bytes as an item: JSON carries none.
pub fn bytes_item(bytes: &[u8]) -> Value {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serde_json::json!({"bytes": hex})
}

/// The bytes of a [`bytes_item`]; none of anything else.
pub fn bytes_of(item: &Value) -> Vec<u8> {
    let hex = item["bytes"].as_str().unwrap_or_default().as_bytes();
    let digit = |hex: u8| char::from(hex).to_digit(16).unwrap_or_default() as u8;
    hex.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_being_an_item() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes_of(&bytes_item(&bytes)), bytes);
        assert!(bytes_of(&serde_json::json!({"v": 1})).is_empty());
    }
}
