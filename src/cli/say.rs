//! What a command says, whoever listens.
//!
//! Who reads the data may have seen enough (`| head -1`) and close the pipe: then the command ends at once and quietly, with the code that a shell gives
//! a program that the signal for this has ended. `println!` would panic.

use std::{
    fmt::Arguments,
    io::{self, Write},
    process::exit,
};

/// 128 + SIGPIPE.
pub(super) const PIPE_CLOSED: i32 = 141;

/// A line of data, to stdout.
macro_rules! say {
    ($($arg:tt)*) => { $crate::cli::say::data(format_args!("{}\n", format_args!($($arg)*))) };
}

/// A line of talk, to stderr. That nobody listens is no reason not to go on.
macro_rules! talk {
    ($($arg:tt)*) => { $crate::cli::say::spoken(format_args!("{}\n", format_args!($($arg)*))) };
}

pub(super) use say;
pub(super) use talk;

/// Writes data.
pub(super) fn data(text: Arguments<'_>) {
    done(io::stdout().lock().write_fmt(text));
}

/// Writes data that isn't text.
pub(super) fn bytes(bytes: &[u8]) {
    done(io::stdout().lock().write_all(bytes));
}

/// Whether it was written. It ends the program if not.
fn done(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => exit(PIPE_CLOSED),
        Err(e) => {
            spoken(format_args!("resultsfs: standard output: {e}\n"));
            exit(1)
        }
    }
}

/// Writes talk.
pub(super) fn spoken(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}
