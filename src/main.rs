use std::process::ExitCode;

fn main() -> ExitCode {
    resultsfs::cli::run(std::env::args_os())
}
