//! What a host asks of a store, and what it may.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    super::{NewCommit, StoreApi},
    fixture::*,
};
use crate::{
    catalog::Head,
    chunk::{ObjectKind, block::Block},
    ids::{Generation, Hash, HostUuid, Incarnation, Seq},
    limits,
    manifest::{Body, Manifest},
    transport::Target,
    wire::{
        CommitRequest, PublishRequest, RefusalCode, RetireUnit,
        link::{LinkError, LinkEvent},
        rights::Rights,
    },
};

#[tokio::test]
async fn a_layer_goes_from_offer_to_commit_over_a_unix_socket() {
    let lab = Lab::new().await;
    let mut host = lab.host("drone1");
    let welcome = host.up().await;
    assert_eq!((welcome.store, welcome.may_delete), (lab.store.uuid(), false));
    assert_eq!(welcome.differences.len(), 1, "complete_on differs: {:?}", welcome.differences);

    let layer = manifest("debug", Body::Dir);
    let name = Hash::of(&layer.encode());
    assert!(!host.link.offer(name).await.expect("answers"));
    let texts: Vec<_> = (0..11u8).map(|i| vec![i; 100]).collect();
    let hashes: Vec<_> = texts.iter().map(|t| Hash::of(t)).collect();
    lab.store.put(&block(ObjectKind::Chunk, &texts[3]));
    let missing = host.link.missing(ObjectKind::Chunk, hashes.clone()).await.expect("answers");
    assert_eq!(missing, (0..11).map(|i| i != 3).collect::<Vec<_>>());
    assert_eq!(host.link.missing(ObjectKind::Chunk, vec![]).await, Ok(vec![]));
    for text in &texts {
        host.link.send_block(block(ObjectKind::Chunk, text)).await.expect("is queued");
    }
    let record = host.add("1-me/host1", &layer).await.expect("commits");
    assert_eq!(record.commit().expect("a commit").host_name, "drone1");
    assert_eq!(lab.store.objects(), 12, "a commit's answer comes after every block before it");
    assert!(host.link.offer(name).await.expect("answers"));

    let fetched = host.link.fetch(ObjectKind::Chunk, hashes[5]).await.expect("answers").expect("is there");
    let fetched = Block::open(&fetched).expect("a good block");
    assert_eq!(fetched.get(ObjectKind::Chunk, &hashes[5]), Some(&texts[5][..]));
    assert_eq!(host.link.fetch(ObjectKind::Recipe, hashes[5]).await, Ok(None));
    let status = host.link.status();
    assert!(status.connected && status.bytes_sent > 1000 && status.bytes_received > 100, "{status:?}");
}

#[tokio::test]
async fn a_rejected_commit_leaves_the_session_standing() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let error =
        host.link.commit(request("1-me/host1", Hash::of(b"never sent"))).await.expect_err("is refused");
    assert!(matches!(error, LinkError::Rejected(_)), "{error}");
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("the next one commits");
}

#[tokio::test]
async fn what_a_host_tells_that_was_read_is_noted() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let units: Vec<_> =
        (0..limits::UNITS_READ).map(|i| request(&format!("{i}-me/host1"), Hash::of(b"m")).unit).collect();
    host.link.read(units.clone()).await.expect("is noted");
    assert_eq!(lab.store.reads(), units);
    lab.store.fill_up(true);
    let error = host.link.read(units[..1].to_vec()).await.expect_err("can't be noted");
    assert!(matches!(error, LinkError::Rejected(_)), "{error}");
    lab.store.fill_up(false);
    host.link.read(units[..1].to_vec()).await.expect("the session goes on");
}

#[tokio::test]
async fn a_question_of_more_hashes_than_fit_one_message_is_asked_in_parts() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let hashes: Vec<_> = (0..limits::HASHES_PER_ASK as u64 + 3).map(|i| Hash::of(&i.to_le_bytes())).collect();
    let missing = host.link.missing(ObjectKind::Chunk, hashes.clone()).await.expect("answers");
    assert!(missing.len() == hashes.len() && missing.iter().all(|m| *m));
}

#[tokio::test]
async fn what_is_open_when_the_connection_ends_fails_and_the_link_comes_back() {
    let mut lab = Lab::new().await;
    let mut host = lab.host("drone1");
    host.up().await;
    lab.store.hold_blocks(true);
    host.link.send_block(block(ObjectKind::Chunk, b"x")).await.expect("is queued");
    let (link, asked) = (host.link.clone(), request("1-me/host1", Hash::of(b"m")));
    let commit = tokio::spawn(async move { link.commit(asked).await });
    let store = Arc::clone(&lab.store);
    until("the block", || store.is_holding()).await;
    lab.kill().await;
    let error = commit.await.expect("no panic").expect_err("can't have committed");
    assert!(matches!(error, LinkError::Down(_)), "{error}");
    assert!(!host.link.status().connected, "who waits for a session now must get the next");
    host.down().await;
    lab.store.hold_blocks(false);
    assert!(matches!(host.link.offer(Hash::of(b"m")).await, Err(LinkError::NotConnected(_))));
    lab.start(Rights::default()).await;
    host.up().await;
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("begins again and commits");
}

#[tokio::test]
async fn uploads_wait_for_credit_and_a_fetch_overtakes_a_hundred_blocks() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let wanted = noise(1000, 2000);
    lab.store.put(&block(ObjectKind::Chunk, &wanted));
    lab.store.hold_blocks(true);
    let (link, sent) = (host.link.clone(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let counted = Arc::clone(&sent);
    let upload = tokio::spawn(async move {
        for i in 0..100 {
            link.send_block(block(ObjectKind::Chunk, &noise(i, 256 << 10)))
                .await
                .expect("is queued in the end");
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let queued = || sent.load(std::sync::atomic::Ordering::Relaxed);
    let fits = (limits::UPLOAD_CREDIT_BYTES / (256 << 10)) as usize - 1;
    until("all credit's use", || queued() == fits).await;
    // The store takes no block in, and answers all the same.
    let fetched = timeout(PATIENCE, host.link.fetch(ObjectKind::Chunk, Hash::of(&wanted))).await;
    assert!(fetched.expect("in time").expect("answers").is_some());
    assert!(host.link.missing(ObjectKind::Chunk, vec![Hash::of(&wanted)]).await.is_ok());
    assert_eq!(queued(), fits, "no block goes out without credit");
    lab.store.hold_blocks(false);
    timeout(PATIENCE, upload).await.expect("in time").expect("no panic");
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    assert_eq!(lab.store.objects(), 102);
}

#[tokio::test]
async fn a_block_larger_than_all_credit_travels_alone() {
    let lab = Lab::new().await;
    let host = lab.host("drone1");
    host.wait_up().await;
    let large = noise(1, limits::UPLOAD_CREDIT_BYTES as usize + 100_000);
    for text in [&b"small"[..], &large, b"small too"] {
        host.link.send_block(block(ObjectKind::Chunk, text)).await.expect("is queued");
    }
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    let fetched = host.link.fetch(ObjectKind::Chunk, Hash::of(&large)).await.expect("answers");
    assert!(fetched.is_some_and(|b| b.len() > large.len()));
}

#[tokio::test]
async fn two_hosts_at_once_see_each_others_commits() {
    let lab = Lab::new().await;
    let (mut a, mut b) = (lab.host("drone1"), lab.host("drone2"));
    for host in [&mut a, &mut b] {
        host.up().await;
        host.link.follow(genesis(&lab.store));
    }
    for i in 0..20u32 {
        let layer = manifest(&format!("f{i}"), Body::Dir);
        let (first, second) = (format!("{i}-a/h"), format!("{i}-b/h"));
        let both = tokio::join!(a.add(&first, &layer), b.add(&second, &layer));
        both.0.expect("a commits");
        both.1.expect("b commits");
    }
    for host in [&mut a, &mut b] {
        let mut head = genesis(&lab.store);
        while head.seq < Seq(40) {
            for record in host.records().await {
                head = head.follow(&record).expect("the chain holds");
            }
        }
        assert_eq!(head, lab.store.head());
    }
}

#[tokio::test]
async fn a_long_catalog_comes_no_faster_than_it_is_taken() {
    let lab = Lab::new().await;
    let layer = manifest("a", Body::Dir);
    lab.store.put(&block(ObjectKind::Manifest, &layer.encode()));
    let total = limits::FOLLOW_WINDOW + 2000;
    for i in 0..total {
        let CommitRequest { unit, generation, manifest, lost, incarnation } =
            request(&format!("{i}-a/h"), Hash::of(&layer.encode()));
        let (host, host_name) = (HostUuid([7; 16]), "drone7".to_owned());
        let adopted_by = None;
        let commit = NewCommit { host, host_name, unit, generation, manifest, lost, adopted_by, incarnation };
        lab.store.commit(commit).expect("commits");
    }
    let mut host = lab.host("drone1");
    host.up().await;
    host.link.follow(genesis(&lab.store));
    let mut held = Vec::new();
    for _ in 0..4 {
        let LinkEvent::Records(batch) = host.event().await else { panic!("not records") };
        held.push(batch);
    }
    // An answered question proves that whatever the store sent before it has arrived.
    host.link.offer(Hash::of(b"x")).await.expect("answers");
    assert!(host.events.try_recv().is_err(), "the window is used up");
    let mut head = genesis(&lab.store);
    for batch in held {
        head = batch.iter().fold(head, |head, record| head.follow(record).expect("the chain holds"));
    }
    while head.seq < Seq(total) {
        for record in host.records().await {
            head = head.follow(&record).expect("the chain holds");
        }
    }
}

#[tokio::test]
async fn a_replica_of_another_history_is_told_to_begin_again() {
    let lab = Lab::new().await;
    let mut host = lab.host("drone1");
    host.up().await;
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("commits");
    let ahead = Head { seq: Seq(9), chain: Hash::of(b"?") };
    let other = Head { seq: Seq(1), chain: Hash::of(b"?") };
    let foreign = Head::genesis(crate::ids::StoreUuid::random());
    for wrong in [ahead, other, foreign] {
        host.link.follow(wrong);
        let LinkEvent::Resync(head) = host.event().await else { panic!("not a resync") };
        assert_eq!(head, lab.store.head());
    }
    host.link.follow(genesis(&lab.store));
    assert_eq!(host.records().await.len(), 1);
    host.link.follow(lab.store.head());
    host.add("2-me/host1", &manifest("b", Body::Dir)).await.expect("commits");
    assert_eq!(host.records().await[0].seq, Seq(2));
}

#[tokio::test]
async fn one_name_with_two_live_uuids_is_refused_and_let_in_when_the_other_is_gone() {
    let lab = Lab::new().await;
    let first = lab.host("drone1");
    first.wait_up().await;
    let mut second = lab.host("drone1");
    let (reason, refused) = second.down().await;
    assert_eq!(refused, Some(RefusalCode::Identity), "{reason}");
    let again = Host::connect(Target::Unix(lab.socket()), first.hello.clone());
    again.wait_up().await;
    again.link.stop();
    first.link.stop();
    second.wait_up().await;
}

#[tokio::test]
async fn a_store_that_has_failed_refuses_and_says_why() {
    let lab = Lab::new().await;
    let mut host = lab.host("drone1");
    host.up().await;
    lab.store.break_down();
    host.link.send_block(block(ObjectKind::Chunk, b"x")).await.expect("is queued");
    let (reason, refused) = host.down().await;
    assert_eq!(refused, Some(RefusalCode::Store));
    assert!(reason.contains("input/output error"), "{reason}");
}

/// Without room nothing new is taken in, and whoever brings it hears why; the session goes on, what is here can be read, and with room the
/// next attempt succeeds.
#[tokio::test]
async fn a_full_store_says_no_and_goes_on() {
    let lab = Lab::new().await;
    let mut host = lab.host("drone1");
    host.up().await;
    let (old, new) = (manifest("a", Body::Dir), manifest("b", Body::Dir));
    host.add("1-me/host1", &old).await.expect("commits");
    let is_full = |error: LinkError| match error {
        LinkError::Rejected(why) => assert!(why.contains("disk is full"), "{why}"),
        other => panic!("{other}"),
    };
    lab.store.fill_up(true);
    let hash = Hash::of(&new.encode());
    is_full(host.link.offer(hash).await.expect_err("no room"));
    is_full(host.link.missing(ObjectKind::Chunk, vec![hash]).await.expect_err("no room"));
    is_full(host.add("2-me/host1", &new).await.expect_err("what was on its way is dropped"));
    let publish = PublishRequest {
        unit: request("3-me/host1", hash).unit,
        generation: Generation::FIRST,
        manifest: Some(hash),
        incarnation: Incarnation::FIRST,
    };
    is_full(host.link.publish(publish).await.expect_err("no room"));
    assert!(host.link.offer(Hash::of(&old.encode())).await.expect("it is here"));
    assert!(host.link.fetch(ObjectKind::Manifest, Hash::of(&old.encode())).await.expect("reads").is_some());
    lab.store.fill_up(false);
    host.add("2-me/host1", &new).await.expect("commits, in the same session");
    assert!(host.link.status().connected && host.link.status().attempts == 0);
}

/// P10: what a session may do is settled before it says anything.
#[tokio::test]
async fn rights_are_checked_at_the_commit() {
    let mut lab = Lab::new().await;
    let whiteout = manifest("gone", Body::Whiteout);
    let host = lab.host("drone1");
    host.wait_up().await;
    let error = host.add("1-me/host1", &whiteout).await.expect_err("has no right");
    assert!(error.to_string().contains("`delete`"), "{error}");
    host.add("1-me/host1", &manifest("a", Body::Dir)).await.expect("adds");

    lab.kill().await;
    lab.start("add".parse().expect("rights")).await;
    let other = lab.host("drone2");
    other.wait_up().await;
    for taken in ["1-me/host1", "1-me", "1-me/host1/below"] {
        let error = other.add(taken, &manifest("b", Body::Dir)).await.expect_err("has no right");
        assert!(error.to_string().contains("`overlay`"), "{error}");
    }
    other.add("1-me/host2", &manifest("b", Body::Dir)).await.expect("its own unit");
    let old = RetireUnit { unit: request("1-me/host1", Hash::of(b"")).unit, seq: Seq(1) };
    let error = other.link.retire(vec![old.clone()]).await.expect_err("hides what others have");
    assert!(error.to_string().contains("`delete`"), "{error}");

    lab.kill().await;
    lab.start(Rights::NONE).await;
    let mut reader = lab.host("drone3");
    reader.up().await;
    let error = reader.link.commit(request("3-me/h", Hash::of(b"m"))).await.expect_err("has no right");
    assert!(error.to_string().contains("`add`"), "{error}");
    reader.link.send_block(block(ObjectKind::Chunk, b"x")).await.expect("is queued");
    assert_eq!(reader.down().await.1, Some(RefusalCode::Protocol));
    let mut reader = lab.host("drone4");
    reader.up().await;
    reader.link.returned().await.expect_err("has nothing to give");
    assert_eq!(reader.down().await.1, Some(RefusalCode::Protocol));

    lab.kill().await;
    lab.start("add,overlay,delete".parse().expect("rights")).await;
    let mut admin = lab.host("web");
    assert!(admin.up().await.may_delete);
    admin.add("1-me/host1", &whiteout).await.expect("has the right");
    let retired = admin.link.retire(vec![old.clone()]).await.expect("has the right");
    assert_eq!(retired.retired(), [old.unit]);
    // Nobody hides what is still to come.
    let entry = whiteout.get(&"gone".parse().expect("a path")).expect("is in it").clone();
    let later =
        Manifest::new(vec![crate::manifest::Entry { base: Seq(99), ..entry }], vec![], vec![], vec![]);
    let error = admin.add("4-me/h", &later.expect("a good manifest")).await.expect_err("beyond the head");
    assert!(error.to_string().contains("hasn't come so far"), "{error}");
}

/// What many hosts send at once waits with them and not in the store's memory; who only asks is answered meanwhile.
#[tokio::test]
async fn hosts_that_are_ahead_of_the_disk_wait_with_their_streams() {
    let lab = Lab::new().await;
    let hosts: Vec<_> = (0..4).map(|n| lab.host(&format!("drone{n}"))).collect();
    let asker = lab.host("asker");
    for host in hosts.iter().chain([&asker]) {
        host.wait_up().await;
    }
    lab.store.hold_blocks(true);
    let sending: Vec<_> = hosts
        .iter()
        .enumerate()
        .map(|(n, host)| {
            let link = host.link.clone();
            tokio::spawn(async move {
                for part in 0..14 {
                    let bytes = noise(n as u64 * 16 + part, 1 << 20);
                    link.send_block(block(ObjectKind::Chunk, &bytes)).await.expect("has credit");
                }
                let layer = manifest(&format!("of {n}"), Body::Dir);
                link.send_block(block(ObjectKind::Manifest, &layer.encode())).await.expect("has credit");
                link.commit(request(&format!("{n}-me/h"), Hash::of(&layer.encode()))).await
            })
        })
        .collect();
    timeout(PATIENCE, async {
        while lab.server.room.available_permits() > 1 << 20 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("56 MiB are more than the room");
    assert!(!asker.link.offer(Hash::of(b"anything")).await.expect("is answered"));
    lab.store.hold_blocks(false);
    for sent in sending {
        sent.await.expect("doesn't panic").expect("is committed");
    }
    assert_eq!(lab.server.room.available_permits(), limits::UPLOADS_WAITING_BYTES);
}

/// Of two hosts with the same object one is told to send it, and the other's commit comes after it.
#[tokio::test]
async fn what_one_host_is_about_to_send_another_need_not() {
    let lab = Lab::new().await;
    let (one, two) = (lab.host("drone1"), lab.host("drone2"));
    one.wait_up().await;
    two.wait_up().await;
    let ask = async |host: &Host, hash| host.link.missing(ObjectKind::Manifest, vec![hash]).await;
    let layer = manifest("shared", Body::Dir).encode();
    let name = Hash::of(&layer);
    assert_eq!(ask(&one, name).await, Ok(vec![true]));
    assert_eq!(ask(&two, name).await, Ok(vec![false]), "the other sends it");
    let committing = two.link.commit(request("2-me/h", name));
    tokio::pin!(committing);
    assert!(timeout(Duration::from_millis(200), committing.as_mut()).await.is_err(), "it waits");
    one.link.send_block(block(ObjectKind::Manifest, &layer)).await.expect("is queued");
    timeout(PATIENCE, committing).await.expect("in time").expect("is committed");

    // One that goes away before it has sent it keeps nobody waiting.
    let name = Hash::of(&manifest("never", Body::Dir).encode());
    assert_eq!(ask(&one, name).await, Ok(vec![true]));
    assert_eq!(ask(&two, name).await, Ok(vec![false]));
    let committing = two.link.commit(request("3-me/h", name));
    one.link.stop();
    let rejected = timeout(PATIENCE, committing).await.expect("in time");
    assert!(matches!(rejected, Err(LinkError::Rejected(_))), "{rejected:?}");
    assert_eq!(ask(&two, name).await, Ok(vec![true]));
}
