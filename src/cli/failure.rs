//! How a command fails: what happened, what to do, and the exit code that says it to scripts.

use std::{ffi::OsString, fmt::Display, os::unix::ffi::OsStrExt};

use super::say::talk;
use crate::control::ControlError;

/// A command's end: its exit code, or why it failed.
pub type Outcome = Result<u8, Failure>;

/// A failure for people and scripts.
#[derive(Debug)]
pub struct Failure {
    /// 1 failed, 2 usage; fsck(8)'s codes for `verify`.
    pub exit: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Something went wrong.
    pub fn new(message: impl Display) -> Self {
        Self { exit: 1, message: message.to_string(), hint: None }
    }

    /// The command was called wrongly.
    pub fn usage(message: impl Display) -> Self {
        Self { exit: usage_code(), message: message.to_string(), hint: None }
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// With another exit code.
    pub fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// The configuration can't be used. Its text has file, line and mend already.
    pub fn from_config(error: crate::config::ConfigError) -> Self {
        let hint = error.hint();
        Self::new(error).hint(hint)
    }

    /// The daemon could not be asked, or said no.
    pub fn from_control(error: ControlError) -> Self {
        match error {
            ControlError::NotRunning { .. } => Self::new(error)
                .hint("mount the tree first (`resultsfs mount`), or name its configuration with --config"),
            ControlError::NotAllowed { .. } => Self::new(error).hint("run it as root, or as that user"),
            ControlError::Failed { message, hint } => Self { exit: 1, message, hint },
            broken @ ControlError::Broken { .. } => Self::new(broken),
        }
    }

    /// Says it on stderr.
    pub fn print(&self, quiet: bool) {
        talk!("resultsfs: {}", self.message);
        if let Some(hint) = self.hint.as_ref().filter(|_| !quiet) {
            talk!("hint: {hint}");
        }
    }
}

/// Exit code for wrong usage: 2, and 16 where fsck(8)'s codes hold.
pub fn usage_code() -> u8 {
    if is_fsck(&std::env::args_os().collect::<Vec<_>>()) { 16 } else { 2 }
}

/// Whether the command is `verify`, as far as can be told of a line that couldn't be parsed.
fn is_fsck(argv: &[OsString]) -> bool {
    let Some((program, mut rest)) = argv.split_first() else { return false };
    if super::helper_of(program) == Some("verify") {
        return true;
    }
    while let [first, tail @ ..] = rest {
        match first.as_bytes() {
            b"--config" => rest = tail.get(1..).unwrap_or_default(),
            [b'-', ..] => rest = tail,
            word => return word == b"verify",
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_usage_of_verify_has_the_code_of_fsck() {
        let is_fsck = |line: &str| is_fsck(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in
            ["resultsfs verify -x", "resultsfs --json --config a.ini verify", "/sbin/fsck.resultsfs -x"]
        {
            assert!(is_fsck(line), "{line}");
        }
        for line in ["resultsfs", "resultsfs jobs verify", "resultsfs --config verify jobs"] {
            assert!(!is_fsck(line), "{line}");
        }
    }
}
