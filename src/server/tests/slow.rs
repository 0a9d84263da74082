//! Hosts, and stores, that take their time: on a clock that only the test moves.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    super::{Identity, Server, SessionEnd, mem::MemStore},
    fixture::*,
};
use crate::{
    chunk::ObjectKind,
    limits,
    wire::{FromStore, RefusalCode, ToStore, frame::Frame, message_frame},
};

/// A connection to a server, and the end of its session.
fn connect(server: &Arc<Server>) -> (DuplexStream, JoinHandle<SessionEnd>) {
    let server = Arc::clone(server);
    let (near, far) = duplex(64 << 10);
    let session = tokio::spawn(async move {
        let (reader, writer) = tokio::io::split(far);
        server.run_session(reader, writer, Identity::default()).await
    });
    (near, session)
}

async fn hear(stream: &mut DuplexStream) -> FromStore {
    let bytes = stream.read_u32_le().await.expect("a length");
    stream.read_u8().await.expect("a kind");
    let mut body = vec![0; bytes as usize];
    stream.read_exact(&mut body).await.expect("a body");
    FromStore::decode(&body).expect("a message")
}

/// Sends a byte of `bytes` each `pause` until the other end closes; what it said last, and after how long.
async fn trickle(mut stream: DuplexStream, bytes: &[u8], pause: Duration) -> (FromStore, Duration) {
    let began = Instant::now();
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        sleep(pause).await;
    }
    let mut last = hear(&mut stream).await;
    while !matches!(last, FromStore::Refused(..)) {
        last = hear(&mut stream).await;
    }
    (last, began.elapsed())
}

async fn greeted(server: &Arc<Server>, name: &str) -> (DuplexStream, JoinHandle<SessionEnd>) {
    let (mut stream, session) = connect(server);
    stream.write_all(&message_frame(&ToStore::Hello(hello(name))).encode()).await.expect("is taken");
    let FromStore::Welcome(_) = hear(&mut stream).await else { panic!("not welcome") };
    (stream, session)
}

/// An honest host that asks something now and then, as long as the test lasts.
async fn pings(server: &Arc<Server>) -> JoinHandle<()> {
    let (mut stream, _session) = greeted(server, "honest").await;
    tokio::spawn(async move {
        loop {
            stream.write_all(&message_frame(&ToStore::Ping).encode()).await.expect("the session lives");
            assert_eq!(hear(&mut stream).await, FromStore::Pong);
            sleep(Duration::from_secs(20)).await;
        }
    })
}

fn server() -> Arc<Server> {
    Server::new(MemStore::new(), vec![])
}

const SECOND: Duration = Duration::from_secs(1);

/// Whoever takes longer than 30 s to greet, whether bytes come or not, is told so and ends; that is logged once.
#[tokio::test(start_paused = true)]
async fn a_greeting_that_does_not_come_in_time_is_refused() {
    let (server, log) = (server(), Log::capture());
    let honest = pings(&server).await;
    let greeting = message_frame(&ToStore::Hello(hello("drone6"))).encode();
    log.take();
    for (what, bytes) in [("a byte each two seconds", &greeting[..]), ("nothing", &[])] {
        let (stream, session) = connect(&server);
        let (last, _) = trickle(stream, bytes, 2 * SECOND).await;
        let FromStore::Refused(RefusalCode::Protocol, why) = &last else { panic!("{what}: {last:?}") };
        assert_eq!(why, "no Hello in 30 s", "{what}");
        assert_eq!(session.await.expect("no panic"), SessionEnd::Refused(RefusalCode::Protocol, why.clone()));
        let lines = log.take();
        assert_eq!(lines.iter().filter(|line| line.contains(why)).count(), 1, "{what}: {lines:#?}");
    }
    assert!(!honest.is_finished());
}

/// A frame that has begun must go on: one that stops is given up after 60 s, and one of which a byte comes each 50 s, so that it never stops, soon
/// after that. What it had in memory is free then.
#[tokio::test(start_paused = true)]
async fn a_frame_that_hardly_moves_is_given_up() {
    let (server, log) = (server(), Log::capture());
    let honest = pings(&server).await;
    let upload = Frame::Upload(block(ObjectKind::Chunk, &noise(1, 1 << 20))).encode();
    for (what, at_once, pause, names, bound) in [
        ("silence between frames", 0, 1000 * SECOND, "nothing moved on the connection for 60 s", 60),
        ("silence within a frame", 1000, 1000 * SECOND, "nothing moved on the connection for 60 s", 60),
        ("a byte each 50 s", 0, 50 * SECOND, "slower than 1024 bytes a second", 150),
        ("a byte each 50 s of a header", 0, 50 * SECOND, "slower than 1024 bytes a second", 150),
        ("a byte each second after a half", 512 << 10, SECOND, "slower than 1024 bytes a second", 60 + 600),
    ] {
        let (mut stream, session) = greeted(&server, "drone6").await;
        log.take();
        let began = Instant::now();
        let rest = if what.ends_with("header") { &upload[..4] } else { &upload[at_once..] };
        if at_once > 0 {
            stream.write_all(&upload[..at_once]).await.expect("is taken");
        }
        let rest = if what.starts_with("silence") { &[] } else { rest };
        let (last, _) = trickle(stream, rest, pause).await;
        let FromStore::Refused(RefusalCode::Protocol, why) = &last else { panic!("{what}: {last:?}") };
        assert!(why.contains(names), "{what}: {why}");
        session.await.expect("no panic");
        let took = began.elapsed().as_secs();
        assert!(took <= bound + 60, "{what}: {took} s");
        let lines = log.take();
        assert_eq!(lines.iter().filter(|line| line.contains(why)).count(), 1, "{what}: {lines:#?}");
        assert_eq!(lines.iter().filter(|line| line.contains("WARN")).count(), 1, "{what}: {lines:#?}");
    }
    assert!(!honest.is_finished());
    assert_eq!(server.places.taken(), 1, "the honest host's");
}

/// A slow line isn't a hostile one: a block at twice the least rate, with a pause of 50 s in it, arrives.
#[tokio::test(start_paused = true)]
async fn a_slow_line_is_fast_enough() {
    let server = server();
    let (mut stream, _session) = greeted(&server, "drone1").await;
    let upload = Frame::Upload(block(ObjectKind::Chunk, &noise(1, 200 << 10))).encode();
    for (n, piece) in upload.chunks(2 * limits::FRAME_LEAST_BYTES_PER_S as usize).enumerate() {
        stream.write_all(piece).await.expect("is taken");
        sleep(if n == 40 { 50 * SECOND } else { SECOND }).await;
    }
    assert!(matches!(hear(&mut stream).await, FromStore::Lost(_) | FromStore::Credit(_)));
}

/// Large blocks of one host come one at a time, however many sessions it has: so one host can't take the memory of ten. Another's come meanwhile.
#[tokio::test]
async fn a_host_sends_one_large_block_at_a_time() {
    let store = MemStore::new();
    let server = Server::new(Arc::clone(&store) as _, vec![]);
    let large = Frame::Upload(block(ObjectKind::Chunk, &noise(1, 5 << 20))).encode();
    let uuid = hello("drone6");
    let begin = async |name: &str| {
        let mut raw = Raw::of(&server, pinned(name, "add"));
        let hello = crate::wire::Hello { host_name: name.to_owned(), ..uuid.clone() };
        let hello = if name == "drone6" { hello } else { super::fixture::hello(name) };
        raw.say(&ToStore::Hello(hello)).await;
        let FromStore::Welcome(_) = raw.hear().await else { panic!("not welcome") };
        raw
    };
    let mut first = begin("drone6").await;
    first.send(&large[..4 << 20]).await;
    let mut second = begin("drone6").await;
    let mut other = begin("drone7").await;
    let sent = tokio::time::timeout(Duration::from_millis(300), second.send(&large)).await;
    assert!(sent.is_err(), "the second waits with its stream");
    other.send(&large).await;
    until("the other's block", || store.objects() == 1).await;
    first.send(&large[4 << 20..]).await;
    drop(first);
    // It was cut off in the middle of a frame, and has the rest to say.
    let mut third = begin("drone6").await;
    drop(second);
    third.send(&Frame::Upload(block(ObjectKind::Chunk, &noise(2, 5 << 20))).encode()).await;
    until("its turn", || store.objects() == 2).await;
}
