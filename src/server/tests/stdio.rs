//! The daemon and `serve --stdio`: who opens the store, and who joins.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    task::JoinHandle,
    time::timeout,
};

use super::{
    super::{
        Identity, OpenStoreError, ServeError, ServeOptions, SessionEnd, StoreApi, daemon::serve_until,
        mem::MemStore, stdio::serve_streams, streams::Streams,
    },
    fixture::*,
};
use crate::{
    manifest::Body,
    transport::Target,
    wire::{FromStore, RefusalCode, ToStore, rights::Rights},
};

/// `serve --stdio` as one process: streams in, the store opened by `open`.
fn stdio_process(
    socket: PathBuf,
    store: Arc<MemStore>,
    lock: Arc<AtomicBool>,
    identity: Identity,
) -> (UnixStream, JoinHandle<Result<(), ServeError>>) {
    let (near, far) = UnixStream::pair().expect("a pair");
    let input = OwnedFd::from(far.into_std().expect("a socket"));
    let output = input.try_clone().expect("a descriptor");
    let streams = Streams::new(input, output).expect("a socket is a stream");
    let process = tokio::spawn(async move {
        let options = ServeOptions { socket, settings: vec![], local_rights: Rights::default() };
        let open = move || match lock.swap(true, Ordering::SeqCst) {
            true => Err(OpenStoreError::Locked),
            false => Ok(Arc::clone(&store) as Arc<dyn StoreApi>),
        };
        serve_streams(streams, &open, options, identity, Duration::from_millis(500)).await
    });
    (near, process)
}

async fn greet(stream: UnixStream, name: &str) -> (Raw, FromStore) {
    let mut raw = Raw { stream, session: tokio::spawn(async { SessionEnd::Closed }) };
    raw.say(&ToStore::Hello(hello(name))).await;
    let answer = timeout(PATIENCE, raw.hear()).await.expect("in time");
    (raw, answer)
}

#[tokio::test]
async fn of_several_stdio_processes_one_opens_the_store_and_the_others_join_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("run/serve.sock");
    let (store, lock) = (MemStore::new(), Arc::default());
    let pinned = |name: &str| Identity { pinned_name: Some(name.to_owned()), rights: Rights::default() };
    let start = |name| stdio_process(socket.clone(), Arc::clone(&store), Arc::clone(&lock), pinned(name));
    let ((a, first), (b, second), (c, third)) = (start("a"), start("b"), start("c"));
    let ((a, hello_a), (b, hello_b)) = tokio::join!(greet(a, "a"), greet(b, "b"));
    for answer in [hello_a, hello_b] {
        assert!(matches!(answer, FromStore::Welcome(_)), "{answer:?}");
    }
    let (_c, answer) = greet(c, "not c").await;
    assert!(matches!(answer, FromStore::Refused(RefusalCode::Identity, _)), "the pin travels: {answer:?}");
    timeout(PATIENCE, third).await.expect("in time").expect("no panic").expect("ends well");

    // Whichever opened the store, it serves as long as anybody is there.
    drop(a);
    let mut b = b;
    b.say(&ToStore::Ping).await;
    assert_eq!(timeout(PATIENCE, b.hear()).await.expect("in time"), FromStore::Pong);
    drop(b);
    for process in [first, second] {
        timeout(PATIENCE, process).await.expect("in time").expect("no panic").expect("ends well");
    }
    assert!(!socket.exists());
}

/// A session that was handed over ends when the process that sshd waits for dies, and when the daemon does.
#[tokio::test]
async fn a_session_that_was_handed_over_lives_as_long_as_both_processes() {
    let mut lab = Lab::new().await;
    let start = || {
        let lock = Arc::new(AtomicBool::new(true));
        stdio_process(lab.socket(), Arc::clone(&lab.store), lock, Identity::default())
    };
    let ((first, first_process), (second, second_process)) = (start(), start());
    let (first, welcome) = greet(first, "drone1").await;
    assert!(matches!(welcome, FromStore::Welcome(_)), "{welcome:?}");
    let (mut second, welcome) = greet(second, "drone2").await;
    assert!(matches!(welcome, FromStore::Welcome(_)), "{welcome:?}");

    first_process.abort();
    ended(first).await;
    second.say(&ToStore::Ping).await;
    assert_eq!(timeout(PATIENCE, second.hear()).await.expect("in time"), FromStore::Pong);

    lab.kill().await;
    ended(second).await;
    timeout(PATIENCE, second_process).await.expect("in time").expect("no panic").expect("ends well");
}

/// A daemon that dies before it has taken the streams leaves nothing open, and the process that gave them says so.
#[tokio::test]
async fn streams_that_nobody_takes_are_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("serve.sock");
    let listener = UnixListener::bind(&socket).expect("binds");
    let lock = Arc::new(AtomicBool::new(true));
    let (host, process) = stdio_process(socket, MemStore::new(), lock, Identity::default());
    let (dying, _) = timeout(PATIENCE, listener.accept()).await.expect("in time").expect("accepts");
    timeout(PATIENCE, dying.readable()).await.expect("in time").expect("there is a message");
    drop(dying);
    let error = timeout(PATIENCE, process).await.expect("in time").expect("no panic").expect_err("is told");
    assert!(matches!(error, ServeError::NotTaken { .. }), "{error}");
    ended(Raw { stream: host, session: tokio::spawn(async { SessionEnd::Closed }) }).await;
}

/// What can't be waited for would hang the daemon.
#[tokio::test]
async fn a_file_is_no_stream() {
    let file = || OwnedFd::from(tempfile::tempfile().expect("a file"));
    let error = Streams::new(file(), file()).expect_err("is refused");
    assert!(error.to_string().contains("neither a pipe nor a socket"), "{error}");
}

/// Waits for the end of what the host hears.
async fn ended(mut host: Raw) {
    let mut rest = Vec::new();
    // With unread words behind it the end of a socket is a reset.
    let _ = timeout(PATIENCE, host.stream.read_to_end(&mut rest)).await.expect("in time");
}

#[tokio::test]
async fn a_store_that_is_locked_and_not_served_is_said_to_be_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let lock = Arc::new(AtomicBool::new(true));
    let (_near, process) = stdio_process(dir.path().join("s"), MemStore::new(), lock, Identity::default());
    let error =
        timeout(PATIENCE, process).await.expect("in time").expect("no panic").expect_err("can't serve");
    assert!(matches!(error, ServeError::Locked { .. }), "{error}");
}

#[tokio::test]
async fn the_daemon_serves_until_it_is_told_to_stop_and_a_second_one_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("run/serve.sock");
    let store = MemStore::new();
    let options = ServeOptions { socket: socket.clone(), settings: vec![], local_rights: Rights::default() };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (first, opened) = (options.clone(), Arc::clone(&store));
    let daemon = tokio::spawn(async move {
        let open = || Ok(Arc::clone(&opened) as Arc<dyn StoreApi>);
        serve_until(&open, first, async { stopped.await.expect("is told") }).await
    });
    let mut host = Host::connect(Target::Unix(socket.clone()), hello("drone1"));
    host.up().await;
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    let second = serve_until(&|| Err(OpenStoreError::Locked), options, std::future::pending()).await;
    assert!(matches!(second, Err(ServeError::Served { .. })), "{second:?}");
    stop.send(()).expect("it runs");
    timeout(PATIENCE, daemon).await.expect("in time").expect("no panic").expect("ends well");
    host.down().await;
    assert!(!socket.exists());
    drop(host);
    until("the store's last user", || Arc::strong_count(&store) == 1).await;
}
