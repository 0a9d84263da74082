//! Pidfiles: `.<label>_execute`, in which Autotest's processes say that they run and how they ended.
//!
//! Lines: the pid, flushed at the start; then `((exit & 0xFF) << 8) | signal` and the number of tests failed, written together
//! at the end (`client/shared/pidfile.py`). One line is running, two are torn, three are done, more are corrupt
//! (`scheduler/drone_manager.py`, `_parse_pidfile`). As there, a last line without its newline counts as a line.

use std::fmt;

/// Which step of a job writes the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// `.autoserv_execute`: the job or task itself.
    Autoserv,
    /// `.collect_crashinfo_execute`: only after autoserv was killed.
    CollectCrashinfo,
    /// `.parser_execute`: `tko/parse`.
    Parser,
    /// `.archiver_execute`: the last step of a job.
    Archiver,
}

/// Every pidfile there is, in the order in which a job goes through them.
pub const PIDFILES: [Label; 4] = [Label::Autoserv, Label::CollectCrashinfo, Label::Parser, Label::Archiver];

/// Longest pidfile worth reading: three numbers are 30 bytes; what is longer is corrupt.
pub const PIDFILE_BYTES: usize = 1024;

impl Label {
    /// The file's name.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Autoserv => ".autoserv_execute",
            Self::CollectCrashinfo => ".collect_crashinfo_execute",
            Self::Parser => ".parser_execute",
            Self::Archiver => ".archiver_execute",
        }
    }

    /// The label of the pidfile called `name`, if that is a pidfile's name.
    pub fn of(name: &[u8]) -> Option<Self> {
        PIDFILES.into_iter().find(|label| label.file_name().as_bytes() == name)
    }
}

/// The file's name.
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}

/// What a pidfile says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pidfile {
    /// One line: the process runs, or died without a word.
    Running {
        /// The process.
        pid: u32,
    },
    /// None or two lines: a write is on its way; look again.
    Torn {
        /// The process, if there is a line.
        pid: Option<u32>,
    },
    /// Three lines.
    Done {
        /// The process that was.
        pid: u32,
        /// `((exit & 0xFF) << 8) | signal`, as wait(2) gives it.
        exit_status: i32,
        /// Tests failed.
        failed: u32,
    },
    /// Anything else.
    Corrupt {
        /// The process, if the first line is one.
        pid: Option<u32>,
        /// What is wrong.
        why: &'static str,
    },
}

impl Pidfile {
    /// The process that the file names, for a look at whether it is alive.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Running { pid } | Self::Done { pid, .. } => Some(*pid),
            Self::Torn { pid } | Self::Corrupt { pid, .. } => *pid,
        }
    }
}

/// Reads a pidfile's bytes. Give it at least the first [`PIDFILE_BYTES`] + 1 of them.
pub fn parse(bytes: &[u8]) -> Pidfile {
    let lines: Vec<&[u8]> = lines(&bytes[..bytes.len().min(PIDFILE_BYTES + 1)]);
    let pid = lines.first().and_then(|line| number::<u32>(line)).filter(|pid| *pid > 0);
    let corrupt = |why| Pidfile::Corrupt { pid, why };
    if bytes.len() > PIDFILE_BYTES {
        return corrupt("it is too long");
    }
    if lines.len() > 3 {
        return corrupt("it has more than three lines");
    }
    if !lines.is_empty() && pid.is_none() {
        return corrupt("its first line is not a pid");
    }
    match (&lines[..], pid) {
        ([_], Some(pid)) => Pidfile::Running { pid },
        ([_, status, failed], Some(pid)) => match (number(status), number(failed)) {
            (Some(exit_status), Some(failed)) => Pidfile::Done { pid, exit_status, failed },
            (None, _) => corrupt("its second line is not an exit status"),
            (_, None) => corrupt("its third line is not a count of failed tests"),
        },
        _ => Pidfile::Torn { pid },
    }
}

/// The lines of `bytes`; the last one may lack its newline.
fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    let bytes = bytes.strip_suffix(b"\n").map_or(bytes, |rest| if rest.is_empty() { b"\n" } else { rest });
    if bytes.is_empty() { Vec::new() } else { bytes.split(|b| *b == b'\n').collect() }
}

/// A decimal number, with the white space around it that Python's `int` allows.
fn number<T: std::str::FromStr>(line: &[u8]) -> Option<T> {
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn done(pid: u32, exit_status: i32, failed: u32) -> Pidfile {
        Pidfile::Done { pid, exit_status, failed }
    }

    #[test]
    fn a_pidfile_is_read_as_the_scheduler_reads_it() {
        for (bytes, expected) in [
            (&b""[..], Pidfile::Torn { pid: None }),
            (b"1042\n", Pidfile::Running { pid: 1042 }),
            (b"1042", Pidfile::Running { pid: 1042 }),
            (b"1042\n0\n", Pidfile::Torn { pid: Some(1042) }),
            (b"1042\n0", Pidfile::Torn { pid: Some(1042) }),
            (b"1042\n0\n0\n", done(1042, 0, 0)),
            (b"1042\n0\n0", done(1042, 0, 0)),
            (b"1042\n271\n3\n", done(1042, 271, 3)),
            (b"1042\n65280\n0\n", done(1042, 65280, 0)),
            (b" 1042 \r\n0\r\n0\r\n", done(1042, 0, 0)),
        ] {
            assert_eq!(parse(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_pidfile_is_corrupt_and_keeps_the_pid_it_has() {
        for (bytes, pid, why) in [
            (&b"1042\n0\n0\n0\n"[..], Some(1042), "it has more than three lines"),
            (b"1042\n0\n0\n\n", Some(1042), "it has more than three lines"),
            (b"\n", None, "its first line is not a pid"),
            (b"x\n", None, "its first line is not a pid"),
            (b"0\n", None, "its first line is not a pid"),
            (b"-1\n0\n0\n", None, "its first line is not a pid"),
            (b"\n1\n", None, "its first line is not a pid"),
            (b"1042\nexit\n0\n", Some(1042), "its second line is not an exit status"),
            (b"1042\n0\n-\n", Some(1042), "its third line is not a count of failed tests"),
            (b"\xff\xfe\n", None, "its first line is not a pid"),
            (&[b'1'; PIDFILE_BYTES + 9], None, "it is too long"),
        ] {
            assert_eq!(parse(bytes), Pidfile::Corrupt { pid, why }, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn pidfiles_are_known_by_their_names() {
        for label in PIDFILES {
            assert_eq!(Label::of(label.to_string().as_bytes()), Some(label));
        }
        for name in [&b".parse.lock"[..], b"autoserv_execute", b".autoserv_execute~", b".other_execute", b""]
        {
            assert_eq!(Label::of(name), None, "{}", name.escape_ascii());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            parse(&bytes);
        }
    }
}
