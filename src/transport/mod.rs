//! Byte streams to the store: ssh, a unix socket, or a local process.
//!
//! What it is not: it knows nothing of frames, and it keeps no connection alive; [`crate::wire::link`] does both.
//! Invariants: no name from the configuration reaches a local shell, and no host or user begins with `-`; a child dies with its
//! [`Guard`]; what a child says on stderr is kept in bounded memory.

mod child;

use std::{fmt, io, os::fd::AsFd, path::PathBuf};

use rustix::pipe::fcntl_setpipe_size;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

pub use child::Guard;

use crate::limits;

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// On another machine, behind ssh.
    Ssh {
        /// The ssh program and its options.
        command: Vec<String>,
        /// Whom to log in as; `None` = ssh decides.
        user: Option<String>,
        /// The machine.
        host: String,
        /// The program there, to which `serve --stdio` is added.
        remote_command: Vec<String>,
    },
    /// On this machine, behind a daemon's socket.
    Unix(PathBuf),
    /// Behind a daemon's socket on this machine while one answers there, elsewhere otherwise.
    UnixOr(PathBuf, Box<Target>),
    /// A process on this machine that speaks the protocol on its standard streams.
    Command(Vec<String>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh { user: Some(user), host, .. } => write!(f, "{user}@{host}"),
            Self::Ssh { user: None, host, .. } => write!(f, "{host}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::UnixOr(_, other) => write!(f, "{other}"),
            Self::Command(words) => write!(f, "{}", words.join(" ")),
        }
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A host or user name that ssh could take for something else.
    #[error("`{name}` can't be {what}: {why}")]
    Name { name: String, what: &'static str, why: &'static str },
    /// No program to run.
    #[error("the command to run is empty")]
    NoCommand,
    /// The program can't be started.
    #[error("can't run `{program}`: {source}")]
    Spawn { program: String, source: io::Error },
    /// The socket doesn't answer.
    #[error("can't connect to {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
}

/// A stream that can be read.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
/// A stream that can be written.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// A pair of streams and what keeps them alive.
pub struct Connection {
    /// From the store.
    pub reader: BoxRead,
    /// To the store.
    pub writer: BoxWrite,
    /// The child behind them, if there is one.
    pub guard: Guard,
}

/// Opens the streams. For ssh that means that the program runs, not that it has logged in.
pub async fn connect(target: &Target) -> Result<Connection, TransportError> {
    match target {
        Target::Unix(path) => {
            let fail = |source| TransportError::Connect { path: path.clone(), source };
            Ok(over_socket(UnixStream::connect(path).await.map_err(fail)?))
        }
        Target::UnixOr(path, other) => match UnixStream::connect(path).await {
            Ok(stream) => Ok(over_socket(stream)),
            Err(_nobody_there) => Box::pin(connect(other)).await,
        },
        Target::Command(words) => child::spawn(words),
        Target::Ssh { command, user, host, remote_command } => {
            child::spawn(&ssh_argv(command, user.as_deref(), host, remote_command)?)
        }
    }
}

/// Has a pipe hold more, since that costs fewer wake-ups. It keeps the usual size where the user has used up his pages.
pub fn widen(pipe: &impl AsFd) {
    let _ = fcntl_setpipe_size(pipe, limits::PIPE_BYTES);
}

fn over_socket(stream: UnixStream) -> Connection {
    let (reader, writer) = stream.into_split();
    Connection { reader: Box::new(reader), writer: Box::new(writer), guard: Guard::none() }
}

/// OpenSSH's own ciphers, those first that this CPU has instructions for: its default costs twice their time. What `ssh_command` says of
/// ciphers comes before it and wins.
const CIPHERS: &str = "Ciphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,\
                       aes256-ctr,aes192-ctr,aes128-ctr";

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Another program may not know the option.
fn is_openssh(program: &str) -> bool {
    std::path::Path::new(program).file_name().is_some_and(|name| name == "ssh")
}

/// The words that run the store's end on `host`.
fn ssh_argv(
    command: &[String],
    user: Option<&str>,
    host: &str,
    remote_command: &[String],
) -> Result<Vec<String>, TransportError> {
    check_name(host, "an ssh host")?;
    let mut argv = command.to_vec();
    argv.extend(["-o", "BatchMode=yes"].map(String::from));
    if has_aes() && is_openssh(&argv[0]) {
        argv.extend(["-o", CIPHERS].map(String::from));
    }
    if let Some(user) = user {
        check_name(user, "an ssh user")?;
        argv.extend(["-l", user].map(String::from));
    }
    argv.extend(["--", host].map(String::from));
    argv.extend_from_slice(remote_command);
    argv.extend(["serve", "--stdio"].map(String::from));
    Ok(argv)
}

/// ssh hands host and user on to `ProxyCommand` and `Match exec`, which are shells: only what a name needs gets through.
fn check_name(name: &str, what: &'static str) -> Result<(), TransportError> {
    let why = match name {
        "" => "it is empty",
        _ if name.starts_with('-') => "it begins with `-`",
        _ if name.chars().all(|c| c.is_alphanumeric() || "-_.:%@[]+".contains(c)) => return Ok(()),
        _ => "it has characters that no name has",
    };
    Err(TransportError::Name { name: name.to_owned(), what, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    #[test]
    fn ssh_gets_exactly_these_words() {
        let argv =
            ssh_argv(&words("ssh -p 2222"), Some("offloader"), "dumpster", &words("/opt/resultsfs -v"));
        let ciphers = if has_aes() { format!(" -o {CIPHERS}") } else { String::new() };
        let expected = format!(
            "ssh -p 2222 -o BatchMode=yes{ciphers} -l offloader -- dumpster /opt/resultsfs -v serve --stdio"
        );
        assert_eq!(argv.expect("good names").join(" "), expected);
        let other = ssh_argv(&words("dbclient"), None, "dumpster", &words("x")).expect("good names");
        assert_eq!(other.join(" "), "dbclient -o BatchMode=yes -- dumpster x serve --stdio");
    }

    #[test]
    fn no_name_becomes_an_option_or_a_command() {
        for bad in ["-oProxyCommand=reboot", "", "a b", "a;reboot", "$(reboot)", "a`b`", "a\nb", "a'b"] {
            assert!(ssh_argv(&words("ssh"), None, bad, &words("x")).is_err(), "host {bad:?}");
            assert!(ssh_argv(&words("ssh"), Some(bad), "dumpster", &words("x")).is_err(), "user {bad:?}");
        }
        for good in ["dumpster.lab.example", "10.0.0.1", "fe80::1%eth0", "[::1]"] {
            assert!(ssh_argv(&words("ssh"), None, good, &words("x")).is_ok(), "{good}");
        }
    }
}
