//! What others write: pidfiles, and Autotest's configuration.

use std::path::{Component, Path};

use resultsfs::{
    config::{self, Config, Examined, ResultsHost, Severity},
    layout::{PIDFILE_BYTES, Pidfile, parse},
    limits,
};

/// Input: a pidfile's bytes.
///
/// Nothing behind the bytes that are worth reading counts. A file that says something, written as Autotest writes it, says the same.
pub fn pidfile(data: &[u8]) {
    let said = parse(data);
    assert_eq!(parse(&data[..data.len().min(PIDFILE_BYTES + 1)]), said);
    assert_ne!(said.pid(), Some(0));
    let plain = match said {
        Pidfile::Running { pid } => format!("{pid}\n"),
        Pidfile::Done { pid, exit_status, failed } => format!("{pid}\n{exit_status}\n{failed}\n"),
        Pidfile::Torn { pid: Some(pid) } => format!("{pid}\n0\n"),
        Pidfile::Torn { pid: None } => String::new(),
        Pidfile::Corrupt { .. } => return,
    };
    assert_eq!(parse(plain.as_bytes()), said);
}

/// Input: length of the main file (0xffff = all, and no shadow), main file, shadow file.
///
/// Either it is a good configuration, and then its values are what `Config` promises, and read back from what is printed of them; or there is an error, which has a mend. What is told of it
/// can be shown as text and as JSON.
pub fn config(data: &[u8]) {
    let (length, rest) = super::number(data);
    let (global, shadow) = match length {
        u16::MAX => (rest, None),
        length => {
            let (global, shadow) = rest.split_at(rest.len().min(length.into()));
            (global, Some(shadow))
        }
    };
    let examined = config::examine_text(global, shadow, Some("drone1"));
    assert_eq!(examined.files.len(), 1 + usize::from(shadow.is_some()));
    let errors = examined.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    assert_eq!(examined.config().is_none(), errors > 0);
    for finding in &examined.findings {
        assert!(!finding.message.is_empty() && !finding.mend.is_empty());
        if let Some(place) = &finding.place {
            assert!(place.line > 0);
        }
    }
    // This takes as long as all the rest: for some will do.
    if data.len().is_multiple_of(16) {
        assert!(!config::text(&examined).is_empty());
        assert!(!config::json(&examined).is_empty());
    }
    if let Ok(config) = examined.clone().into_config() {
        reads_back(&examined);
        good(&config);
    }
}

/// The settings, printed as a file, are the same when that is read.
fn reads_back(examined: &Examined) {
    let printed = config::settings_text(examined);
    let again = config::examine_text(printed.as_bytes(), None, Some("drone1"));
    let values = |examined: &Examined| {
        // Of a command in several lines, blanks at their ends and lines of blanks don't come back; no other value has lines.
        let plain = |value: &str| {
            value
                .split('\n')
                .map(|line| line.trim_matches([' ', '\t', '\r', '\x0b', '\x0c']))
                .filter(|line| !line.is_empty())
                .collect::<Vec<_>>()
                .join("\n")
        };
        let values = examined.settings.iter().map(|s| (s.section, s.key.clone(), plain(&s.value)));
        values.collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(examined), "{printed}");
    assert!(again.config().is_some(), "{printed}");
}

fn good(config: &Config) {
    let (installation, output) = (&config.results_host_installation_directory, &config.test_output_dir);
    let dirs = [
        &config.drone_installation_directory,
        &config.autotest_top_path,
        &config.state_dir,
        &config.spool_dir,
        &config.store_dir,
        &config.serve_socket,
    ];
    for dir in dirs.into_iter().chain(installation).chain(output) {
        a_dir(dir);
    }
    a_dir(&config.mountpoint_default(true));
    a_name(&config.host_name);
    if let ResultsHost::Host { host, user } = config.results_host() {
        a_name(host);
        user.iter().for_each(|user| a_user(user));
    }
    for drone in &config.drones {
        a_name(&drone.host);
        drone.user.iter().for_each(|user| a_user(user));
    }
    for command in [&config.ssh_command, &config.remote_command] {
        assert!(!command[0].is_empty() && !command[0].starts_with('-'));
    }
    assert!(config.spool_low_percent < config.spool_high_percent && config.spool_high_percent <= 100);
    assert!((1..=10_000).contains(&config.max_transfer_processes));
    assert!((1..=22).contains(&config.compression_level));
    let hour_ms = 3_600_000;
    assert!(config.lost_hours >= 1 && config.lost_hours.checked_mul(hour_ms).is_some());
    assert!(config.keep_local_hours.checked_mul(hour_ms).is_some());
    assert!(config.settle_seconds <= 86_400 && config.live_seconds <= 86_400);
    assert!(config.bandwidth_bytes_per_s().is_none_or(|bytes| bytes >> 20 == config.bandwidth_mib_per_s));
    for name in &config.local_only {
        assert!(name.len() <= limits::NAME_BYTES && Path::new(name).components().count() == 1);
        assert!(matches!(Path::new(name).components().next(), Some(Component::Normal(_))));
    }
    // Fit to be handed to sendmail.
    for address in config.mail.grid_admin_email.iter().chain(&config.mail.notify_email_from) {
        a_name(&address.replace('@', "+"));
    }
    assert!(
        config.notify_command.first().is_none_or(|program| !program.is_empty() && !program.starts_with('-'))
    );
    // One line each, or the store couldn't compare them with another's.
    assert!(config.fingerprint().iter().all(|line| !line.contains('\n')));
}

fn a_dir(dir: &Path) {
    assert!(dir.is_absolute() && !dir.components().any(|c| c == Component::ParentDir), "{}", dir.display());
}

/// Fit to be handed to ssh.
fn a_name(name: &str) {
    let meant = |c: char| c.is_whitespace() || c.is_control() || "'\"$`;&|<>()\\*?!#~{}".contains(c);
    assert!(!name.is_empty() && !name.starts_with('-') && !name.contains(meant), "{name:?}");
}

fn a_user(user: &str) {
    a_name(&user.replace('\\', "+"));
}
