//! A child process whose standard streams are the connection.

use std::{
    collections::VecDeque,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{Connection, TransportError};

/// What is kept of a child's stderr: the last lines are the ones that say why it ended.
const STDERR_BYTES: usize = 4 << 10;
/// How long a child whose streams have ended may take to end itself.
const EXIT_WAIT: Duration = Duration::from_secs(2);

type Tail = Arc<Mutex<VecDeque<u8>>>;

/// Keeps a child alive; dropped, it kills it.
#[derive(Debug)]
pub struct Guard(Option<Running>);

#[derive(Debug)]
struct Running {
    child: Child,
    program: String,
    stderr: Tail,
    listener: JoinHandle<()>,
}

impl Guard {
    /// For streams without a child.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// How the child ended and what it said last, once its streams have ended. A child that goes on is killed.
    pub async fn epitaph(self) -> Option<String> {
        let Running { mut child, program, stderr, listener } = self.0?;
        let status = timeout(EXIT_WAIT, child.wait()).await;
        // The listener ends with the child's stderr, which a grandchild may keep open.
        let _ = timeout(EXIT_WAIT, listener).await;
        let how = match status {
            Ok(Ok(status)) if status.success() => format!("`{program}` ended"),
            Ok(Ok(status)) => format!("`{program}` failed ({status})"),
            _ => format!("`{program}` did not end and was killed"),
        };
        let said = said(&stderr);
        Some(if said.is_empty() { how } else { format!("{how}: {said}") })
    }
}

/// The tail as one line of printable text.
fn said(tail: &Tail) -> String {
    let bytes: Vec<u8> = tail.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    let text = String::from_utf8_lossy(&bytes);
    // Ssh frames what matters most with rows of signs.
    let words = |line: &str| line.chars().any(char::is_alphanumeric);
    let lines = text.lines().map(|line| line.trim_matches(|c: char| c == '@' || c.is_whitespace()));
    let lines: Vec<_> = lines.filter(|line| words(line)).collect();
    lines.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Starts `argv` with its standard streams as the connection.
pub(super) fn spawn(argv: &[String]) -> Result<Connection, TransportError> {
    let (program, arguments) = argv.split_first().ok_or(TransportError::NoCommand)?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for us: we end the connection when the last work is done.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| TransportError::Spawn { program: program.clone(), source })?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    stdin.iter().for_each(super::widen);
    stdout.iter().for_each(super::widen);
    let tail = Tail::default();
    let listener = tokio::spawn(listen(stderr.expect("was piped"), Arc::clone(&tail)));
    let running = Running { child, program: program.clone(), stderr: tail, listener };
    Ok(Connection {
        reader: Box::new(stdout.expect("was piped")),
        writer: Box::new(stdin.expect("was piped")),
        guard: Guard(Some(running)),
    })
}

async fn listen(mut stderr: impl AsyncRead + Unpin, tail: Tail) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&buffer[..read]);
        let excess = tail.len().saturating_sub(STDERR_BYTES);
        tail.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Connection {
        spawn(&["sh", "-c", script].map(String::from)).expect("sh runs")
    }

    #[tokio::test]
    async fn a_childs_last_words_and_status_are_told() {
        let mut connection = shell("echo no such host >&2; exit 255");
        let mut out = Vec::new();
        connection.reader.read_to_end(&mut out).await.expect("reads");
        let told = connection.guard.epitaph().await.expect("there was a child");
        assert_eq!(told, "`sh` failed (exit status: 255): no such host");
    }

    #[tokio::test]
    async fn a_talkative_child_is_kept_in_bounded_memory() {
        let connection = shell("yes noise | head -c 1000000 >&2; echo the end >&2");
        let told = connection.guard.epitaph().await.expect("there was a child");
        assert!(told.ends_with("the end") && told.len() < 2 * STDERR_BYTES, "{} bytes", told.len());
    }

    #[tokio::test]
    async fn a_child_dies_with_its_guard() {
        let Connection { mut reader, writer, guard } = shell("exec sleep 1000");
        drop(guard);
        let mut out = Vec::new();
        timeout(Duration::from_secs(10), reader.read_to_end(&mut out))
            .await
            .expect("it was killed")
            .expect("reads");
        drop(writer);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        let error = spawn(&["/nonexistent/ssh".to_owned()]).err().expect("can't run");
        assert!(error.to_string().contains("/nonexistent/ssh"), "{error}");
    }
}
