//! The log where systemd keeps it: as journal entries with fields, so that `journalctl RESULTSFS_UNIT=12-me/host1` finds what was said of a unit.
//!
//! journald's native protocol: a datagram an entry, of each field its name, the length of its value and the value. What can't be sent so goes to stderr, which journald reads, too.

use std::{
    fmt::{self, Write as _},
    io,
    os::{fd::AsFd, unix::net::UnixDatagram},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

const SOCKET: &str = "/run/systemd/journal/socket";
/// Before the names of our fields: others' have meanings.
const PREFIX: &str = "RESULTSFS_";

/// Writes each event as an entry.
pub struct Journald {
    socket: UnixDatagram,
}

impl Journald {
    /// If stderr is connected to journald.
    pub fn of_stderr() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let stat = rustix::fs::fstat(io::stderr().as_fd()).ok()?;
        if stream != format!("{}:{}", stat.st_dev, stat.st_ino) {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(SOCKET).ok()?;
        Some(Self { socket })
    }
}

impl<S: Subscriber> Layer<S> for Journald {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        let metadata = event.metadata();
        let Entry { message, more, mut fields } = entry;
        let said = format!("{message}{more}");
        let priority = priority(*metadata.level());
        field(&mut fields, "MESSAGE", &said);
        field(&mut fields, "PRIORITY", &priority.to_string());
        field(&mut fields, "SYSLOG_IDENTIFIER", "resultsfs");
        field(&mut fields, "CODE_MODULE", metadata.target());
        if self.socket.send(&fields).is_err() {
            use io::Write;
            let _ = writeln!(io::stderr(), "<{priority}>{said}");
        }
    }
}

/// syslog(3)'s.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// What an event says.
#[derive(Default)]
struct Entry {
    message: String,
    /// For who reads only the message: the fields again.
    more: String,
    fields: Vec<u8>,
}

impl Entry {
    fn enter(&mut self, name: &str, value: &str) {
        let _ = write!(self.more, " {name}={value}");
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        field(&mut self.fields, &format!("{PREFIX}{name}"), value);
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.enter(name, value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

fn field(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend(name.as_bytes());
    entry.push(b'\n');
    entry.extend((value.len() as u64).to_le_bytes());
    entry.extend(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn parse(mut entry: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let mut fields = Vec::new();
        while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
            let bytes = u64::from_le_bytes(entry[end + 1..end + 9].try_into().expect("eight")) as usize;
            fields.push((text(&entry[..end]), text(&entry[end + 9..end + 9 + bytes])));
            assert_eq!(entry[end + 9 + bytes], b'\n');
            entry = &entry[end + 10 + bytes..];
        }
        fields
    }

    #[test]
    fn an_event_is_an_entry_with_its_fields() {
        let (socket, journal) = UnixDatagram::pair().expect("a pair");
        let log = tracing_subscriber::registry().with(Journald { socket });
        tracing::subscriber::with_default(log, || {
            tracing::warn!(unit = %"1-me/host\n1", seq = 7, "kept {}", "it");
        });
        let mut bytes = [0; 4096];
        let length = journal.recv(&mut bytes).expect("an entry");
        let fields = parse(&bytes[..length]);
        let has = |name: &str, value: &str| fields.contains(&(name.to_owned(), value.to_owned()));
        assert!(has("MESSAGE", "kept it unit=1-me/host\n1 seq=7"), "{fields:?}");
        assert!(has("RESULTSFS_UNIT", "1-me/host\n1") && has("RESULTSFS_SEQ", "7"), "{fields:?}");
        assert!(has("PRIORITY", "4") && has("SYSLOG_IDENTIFIER", "resultsfs"), "{fields:?}");
        assert!(fields.iter().any(|(name, module)| name == "CODE_MODULE" && module.contains("journald")));
    }
}
