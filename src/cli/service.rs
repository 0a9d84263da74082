//! Why systemd stops the service: its ExecStop= is the same for a restart, a stop, and after the daemon's death.

use std::process::Command;

/// Why.
#[derive(Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The daemon is gone already; systemd may start the next one.
    ByItself,
    /// The next one comes at once.
    ToRestart,
    ForGood,
}

/// Why `unit` is being stopped, asked in its ExecStop=.
pub fn why_stopped(unit: &str) -> Stopped {
    // systemd names the main process only while it lives.
    if std::env::var_os("MAINPID").is_none() {
        return Stopped::ByItself;
    }
    let jobs =
        Command::new("systemctl").args(["list-jobs", "--no-legend", "--no-pager", "--", unit]).output();
    match jobs {
        Ok(jobs) if is_restart(&String::from_utf8_lossy(&jobs.stdout), unit) => Stopped::ToRestart,
        // Nobody there to ask, or any other job: the mount must not outlive the service.
        _ => Stopped::ForGood,
    }
}

/// A line has the job's number, unit, type and state.
fn is_restart(jobs: &str, unit: &str) -> bool {
    let mut lines = jobs.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.any(|words| matches!(words[..], [_, name, "restart" | "try-restart", ..] if name == unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_restart_is_one() {
        let jobs = "123 resultsfs.service restart running\n124 other.service stop waiting\n";
        assert!(is_restart(jobs, "resultsfs.service"));
        assert!(!is_restart(jobs, "other.service"));
        assert!(!is_restart("", "resultsfs.service"));
        assert!(!is_restart("1 resultsfs.service stop running\n", "resultsfs.service"));
    }
}
