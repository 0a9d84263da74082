//! What a command said, and how it ended.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::harness::{EXE, text};

/// A command that has ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let code = output.status.code().expect("it ends by itself");
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Said {
    /// It ended so, and these words are on stderr.
    #[track_caller]
    pub fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {}", self.err);
        }
        self
    }

    /// It ended so, and these words are on stdout.
    #[track_caller]
    pub fn shows(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        for word in words {
            assert!(self.out.contains(word), "no {word:?} in {}", self.out);
        }
        self
    }

    /// stdout as JSON lines, each with version and kind.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let lines = self.out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}")));
        let lines: Vec<Value> = lines.collect();
        assert!(lines.iter().all(|l| l["v"] == 1 && l["kind"].is_string()), "{lines:?}");
        lines
    }
}

/// Runs the program with these words and nothing of this machine's configuration.
pub fn resultsfs<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Said {
    called_as(Path::new(EXE), words)
}

/// Runs it by another of its names.
pub fn called_as<S: AsRef<OsStr>>(program: &Path, words: impl IntoIterator<Item = S>) -> Said {
    let output = Command::new(program)
        .args(words)
        .env("AUTOTEST_TOP_PATH", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    output.into()
}

/// A symbolic link to the program.
pub fn link(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::os::unix::fs::symlink(EXE, &path).expect("a link");
    path
}
