//! Hosts that break the rules.

use tokio::{io::AsyncReadExt, time::timeout};

use super::{
    super::{Identity, SessionEnd, mem::MemStore},
    fixture::*,
};
use crate::{
    chunk::{ChunkRef, ObjectKind, Stretch},
    ids::Hash,
    limits,
    manifest::Body,
    wire::{
        Hello, JOIN_VERSION, Join, PROTOCOL_VERSION, RefusalCode, ToStore, frame::Frame, message_frame,
        rights::Rights,
    },
};

#[tokio::test]
async fn hostile_frames_are_refused() {
    let (store, log) = (MemStore::new(), Log::capture());
    let header = |bytes: u32, kind: u8| [&bytes.to_le_bytes()[..], &[kind]].concat();
    let good = block(ObjectKind::Chunk, b"x");
    let mut damaged = good.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    let hashes = vec![Hash::of(b"x"); limits::HASHES_PER_ASK + 1];
    let chunks = vec![ChunkRef { hash: Hash::of(b"x"), bytes: 1 }; limits::HASHES_PER_ASK / 2 + 1];
    let stretch = Stretch { content: Hash::of(b"xx"), first: 0, chunks };
    let units = vec![request("1-a/h", Hash::of(b"m")).unit; limits::UNITS_READ + 1];
    for (what, bytes, code) in [
        ("unknown kind", header(10, 77), RefusalCode::Protocol),
        ("endless message", header(u32::MAX, 0), RefusalCode::Protocol),
        ("endless block", header(u32::MAX, 1), RefusalCode::Protocol),
        ("a reply", Frame::Reply(1, good.clone()).encode(), RefusalCode::Protocol),
        ("garbage", Frame::Message(b"GET / HTTP/1.1".to_vec()).encode(), RefusalCode::Protocol),
        ("a second Hello", message_frame(&ToStore::Hello(hello("x"))).encode(), RefusalCode::Protocol),
        (
            "too many hashes",
            message_frame(&ToStore::Missing(1, ObjectKind::Chunk, hashes)).encode(),
            RefusalCode::Protocol,
        ),
        (
            "too many chunks",
            message_frame(&ToStore::Cut(1, vec![stretch; 2])).encode(),
            RefusalCode::Protocol,
        ),
        ("too many units", message_frame(&ToStore::Read(1, units)).encode(), RefusalCode::Protocol),
        ("a damaged block", Frame::Upload(damaged).encode(), RefusalCode::Block),
        (
            "a join",
            Join { version: JOIN_VERSION, pinned_name: None, rights: Rights::default() }.frame().encode(),
            RefusalCode::Protocol,
        ),
    ] {
        let mut raw = Raw::welcome(&store).await;
        raw.send(&bytes).await;
        let (got, why) = raw.refused().await;
        assert_eq!(got, code, "{what}: {why}");
        log.tells_once(what, &why);
    }
}

#[tokio::test]
async fn more_blocks_than_credit_and_more_questions_than_allowed_are_refused() {
    let store = MemStore::new();
    store.hold_blocks(true);
    let mut raw = Raw::welcome(&store).await;
    let block = Frame::Upload(block(ObjectKind::Chunk, &noise(1, 1 << 20))).encode();
    for _ in 0..17 {
        raw.send(&block).await;
    }
    assert!(raw.refused().await.1.contains("credit"));
    let mut raw = Raw::welcome(&store).await;
    raw.send(&block).await;
    for id in 0..=limits::QUESTIONS_OPEN as u64 {
        raw.say(&ToStore::Commit(id, request("1-a/h", Hash::of(b"m")))).await;
    }
    assert!(raw.refused().await.1.contains("questions"));
    store.hold_blocks(false);
}

#[tokio::test]
async fn a_host_that_reads_nothing_is_held_in_bounded_memory() {
    let store = MemStore::new();
    let text = noise(1, 1 << 20);
    store.put(&block(ObjectKind::Chunk, &text));
    let mut raw = Raw::welcome(&store).await;
    for id in 0..=limits::FETCHES_OPEN as u64 + 10 {
        raw.say(&ToStore::Fetch(id, ObjectKind::Chunk, Hash::of(&text))).await;
    }
    let end = timeout(PATIENCE, &mut raw.session);
    let drain = async { while raw.stream.read_u8().await.is_ok() {} };
    let (end, ()) = tokio::join!(end, drain);
    let end = end.expect("in time").expect("no panic");
    assert!(
        matches!(&end, SessionEnd::Refused(RefusalCode::Protocol, why) if why.contains("fetches")),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_session_begins_with_a_good_hello_or_not_at_all() {
    let store = MemStore::new();
    let pinned = Identity { pinned_name: Some("drone1".to_owned()), rights: Rights::default() };
    let mut late = hello("drone1");
    late.version = PROTOCOL_VERSION + 1;
    for (first, code) in [
        (ToStore::Ping, RefusalCode::Protocol),
        (ToStore::Hello(late), RefusalCode::Version),
        (ToStore::Hello(hello("drone2")), RefusalCode::Identity),
        (ToStore::Hello(hello("")), RefusalCode::Identity),
        (ToStore::Hello(hello(&"x".repeat(256))), RefusalCode::Identity),
    ] {
        let mut raw = Raw::new(&store, pinned.clone());
        raw.say(&first).await;
        assert_eq!(raw.refused().await.0, code, "{first:?}");
    }
    let mut raw = Raw::new(&store, pinned);
    raw.send(&Frame::Upload(block(ObjectKind::Chunk, b"x")).encode()).await;
    assert_eq!(raw.refused().await.0, RefusalCode::Protocol);
}

/// P10: a UUID is in everybody's catalog, so knowing one must not let a pinned drone continue its layers.
#[tokio::test]
async fn a_pinned_drone_cannot_use_another_hosts_uuid() {
    let lab = Lab::new().await;
    let victim = lab.host("drone1");
    victim.wait_up().await;
    victim.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    let thief = Hello { host: victim.hello.host, ..hello("drone2") };
    let pinned = Identity { pinned_name: Some("drone2".to_owned()), rights: Rights::default() };
    let mut raw = Raw::new(&lab.store, pinned);
    raw.say(&ToStore::Hello(thief)).await;
    assert_eq!(raw.refused().await.0, RefusalCode::Identity);
}
