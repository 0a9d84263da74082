//! What is wrong with a configuration: findings with stable codes, each with its place and the mend; and the
//! error that ends a start. A finding never quotes a whole line: a shadow file holds passwords.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Whether the program can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Read all the same, but probably not what was meant.
    Warning,
    /// No [`super::Config`] comes of it.
    Error,
}

impl Severity {
    /// `warning` or `error`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: u32,
}

/// `file:line`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable name of the kind of finding, for scripts.
    pub code: &'static str,
    /// Where; a finding about what is missing has no place.
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What to do, in words that can be followed.
    pub mend: String,
}

impl Finding {
    /// A finding that leaves no configuration.
    pub fn error(
        code: &'static str,
        place: Option<Place>,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Error, code, place, message: message.into(), mend: mend.into() }
    }

    /// A finding that the program can live with.
    pub fn warning(
        code: &'static str,
        place: Option<Place>,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, place, message, mend) }
    }

    /// Whether it leaves no configuration.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// `file:line: message; mend`, on one line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}; {}", self.message, self.mend)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file in any place.
    #[error("no global_config.ini found; looked for {}", list(.looked))]
    NotFound {
        /// The files looked for, in order.
        looked: Vec<PathBuf>,
    },
    /// The file is there and can't be read. (Autotest would go on with an empty configuration.)
    #[error("{source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says; names the file too.
        source: io::Error,
    },
    /// It was read and is wrong.
    #[error("{}", .findings.iter().filter(|f| f.is_error()).map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// Everything found, warnings too; at least one is an error.
        findings: Vec<Finding>,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => {
                "name the file with --config FILE, or set AUTOTEST_TOP_PATH to the directory that holds it"
            }
            Self::Read { .. } => "check the file's owner and mode, and those of the directories above it",
            Self::Invalid { .. } => {
                "`resultsfs config --explain` shows every setting and where it comes from"
            }
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}
