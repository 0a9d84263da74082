//! Stores that break the rules, or say nothing.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    time::timeout,
};

use super::{
    super::{Server, greeting, mem::MemStore},
    fixture::*,
};
use crate::{
    catalog::Head,
    chunk::ObjectKind,
    ids::{Hash, Seq},
    limits,
    transport::Target,
    wire::{
        FromStore, Lost,
        frame::Frame,
        link::{LinkError, Timing},
        message_frame,
        rights::Rights,
    },
};

/// A store that says what it likes: greets, then sends `frames`.
async fn lying_store(dir: &Path, frames: Vec<Vec<u8>>) -> PathBuf {
    let path = dir.join("liar.sock");
    let listener = UnixListener::bind(&path).expect("binds");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let store = MemStore::new();
        let server = Server::new(store, vec![]);
        let welcome = greeting::welcome(&server, &hello("x"), Rights::default());
        stream.write_all(&message_frame(&FromStore::Welcome(welcome)).encode()).await.expect("writes");
        for frame in frames {
            stream.write_all(&frame).await.expect("writes");
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    path
}

#[tokio::test]
async fn what_a_lying_store_says_ends_the_session() {
    let good = block(ObjectKind::Chunk, b"x");
    for lie in [
        Frame::Reply(1, good.clone()).encode(),
        Frame::Upload(good).encode(),
        message_frame(&FromStore::Known(1, true)).encode(),
        message_frame(&FromStore::Credit(1)).encode(),
        message_frame(&FromStore::Credit(u64::MAX)).encode(),
        message_frame(&FromStore::Records(vec![])).encode(),
        message_frame(&FromStore::Resync(Head { seq: Seq(1), chain: Hash::of(b"") })).encode(),
        message_frame(&FromStore::Lost(Lost {
            manifests: vec![Hash::of(b"m"); limits::HASHES_PER_ASK + 1],
            objects: Vec::new(),
        }))
        .encode(),
        [&u32::MAX.to_le_bytes()[..], &[2]].concat(),
        Frame::Message(b"what?".to_vec()).encode(),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let log = Log::capture();
        let mut host =
            Host::connect(Target::Unix(lying_store(dir.path(), vec![lie.clone()]).await), hello("drone1"));
        host.up().await;
        let (reason, _) = host.down().await;
        assert!(reason.contains("broke the protocol"), "{:?}: {reason}", &lie[..lie.len().min(20)]);
        // It has tried again by then, and failed in another way, twice.
        host.down().await;
        host.down().await;
        let lines = log.take();
        assert_eq!(lines.iter().filter(|line| line.contains("broke the protocol")).count(), 1, "{lines:#?}");
        assert_eq!(
            lines.iter().filter(|line| line.contains("WARN")).count(),
            2,
            "each reason once: {lines:#?}"
        );
    }
}

/// A store that sends a frame a byte at a time holds the host's memory no longer than a silent one, nearly.
#[tokio::test]
async fn a_store_that_hardly_moves_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("slow.sock");
    let listener = UnixListener::bind(&path).expect("binds");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let server = Server::new(MemStore::new(), vec![]);
        let welcome = greeting::welcome(&server, &hello("x"), Rights::default());
        stream.write_all(&message_frame(&FromStore::Welcome(welcome)).encode()).await.expect("writes");
        let lost = FromStore::Lost(Lost { manifests: vec![Hash::of(b"m"); 1000], objects: Vec::new() });
        for byte in message_frame(&lost).encode() {
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let timing = Timing { silence: Duration::from_millis(200), ..Timing::default() };
    let mut host = Host::connect_with(Target::Unix(path), hello("drone1"), timing);
    host.up().await;
    let (reason, _) = host.down().await;
    assert!(reason.contains("slower than"), "{reason}");
}

#[tokio::test]
async fn a_silent_store_is_given_up_and_a_slow_fetch_times_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = Target::Unix(lying_store(dir.path(), vec![]).await);
    let timing =
        Timing { silence: Duration::from_millis(300), fetch: Duration::from_millis(50), ..Timing::default() };
    let mut host = Host::connect_with(target, hello("drone1"), timing);
    host.up().await;
    assert_eq!(host.link.fetch(ObjectKind::Chunk, Hash::of(b"x")).await, Err(LinkError::Timeout));
    let error = host.link.offer(Hash::of(b"x")).await.expect_err("nobody answers");
    assert!(matches!(&error, LinkError::Down(why) if why.contains("nothing moved")), "{error}");
}

#[tokio::test]
async fn pings_keep_an_idle_session_alive() {
    let lab = Lab::new().await;
    let timing = Timing { silence: Duration::from_millis(150), ..Timing::default() };
    let mut host = Host::connect_with(Target::Unix(lab.socket()), hello("drone1"), timing);
    host.up().await;
    let quiet = timeout(Duration::from_millis(600), host.events.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_command_that_fails_is_quoted_in_the_reason() {
    let command = ["sh", "-c", "echo Permission denied >&2; exit 255"].map(String::from).to_vec();
    let mut host = Host::connect(Target::Command(command), hello("drone1"));
    let (reason, refused) = host.down().await;
    assert!(reason.contains("exit status: 255") && reason.contains("Permission denied"), "{reason}");
    assert_eq!(refused, None);
    let chatty = ["sh", "-c", "echo Welcome to dumpster"].map(String::from).to_vec();
    let mut host = Host::connect(Target::Command(chatty), hello("drone1"));
    assert!(host.down().await.0.contains("print something"));
}
