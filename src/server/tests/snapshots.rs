//! What runs elsewhere.

use super::{super::StoreApi, fixture::*};
use crate::{
    catalog::SnapshotChange,
    chunk::ObjectKind,
    ids::{Hash, Incarnation},
    manifest::Body,
    wire::{
        CommitRequest, PublishRequest,
        link::{LinkError, LinkEvent},
        rights::Rights,
    },
};

impl Host {
    async fn snapshots(&mut self) -> crate::catalog::SnapshotChanges {
        loop {
            if let LinkEvent::Snapshots(part) = self.event().await {
                return part;
            }
        }
    }

    async fn publish(&self, unit: &str, manifest: Option<Hash>) -> Result<(), LinkError> {
        let CommitRequest { unit, generation, .. } = request(unit, Hash::of(b""));
        self.link
            .publish(PublishRequest { unit, generation, manifest, incarnation: Incarnation::FIRST })
            .await
    }
}

/// A snapshot comes to whoever watches, at once; a commit empties its slot, and so does its host.
#[tokio::test]
async fn snapshots_are_told_until_they_are_committed_or_taken_back() {
    let lab = Lab::new().await;
    let (mut a, mut b) = (lab.host("drone1"), lab.host("drone2"));
    a.up().await;
    b.up().await;
    b.link.watch(0, None);
    let part = b.snapshots().await;
    assert_eq!((part.changes.len(), part.is_all, part.started), (0, true, Some(1)));
    b.link.watch(part.upto, None);
    let layer = manifest("a", Body::Dir);
    let hash = Hash::of(&layer.encode());
    let early = a.publish("1-me/host1", Some(hash)).await;
    assert!(matches!(early, Err(LinkError::Rejected(_))), "nothing is shown that isn't here: {early:?}");
    a.link.send_block(block(ObjectKind::Manifest, &layer.encode())).await.expect("sent");
    a.publish("1-me/host1", Some(hash)).await.expect("published");
    let part = b.snapshots().await;
    let [SnapshotChange::Set(snapshot)] = &part.changes[..] else { panic!("{part:?}") };
    assert_eq!((snapshot.manifest, snapshot.host), (hash, a.hello.host));
    assert_eq!(snapshot.host_name, "drone1");
    b.link.watch(part.upto, None);
    a.add("1-me/host1", &layer).await.expect("commits");
    let part = b.snapshots().await;
    assert!(matches!(&part.changes[..], [SnapshotChange::Gone(host, _)] if *host == a.hello.host));

    a.publish("2-me/host1", Some(hash)).await.expect("published");
    a.publish("2-me/host1", None).await.expect("taken back");
    assert!(lab.store.slots().all().is_empty());
}

/// P10: who may not commit may not publish.
#[tokio::test]
async fn a_snapshot_needs_the_rights_of_a_commit() {
    let mut lab = Lab::new().await;
    lab.kill().await;
    lab.start(Rights::NONE).await;
    let mut host = lab.host("drone1");
    host.up().await;
    let layer = manifest("a", Body::Dir);
    lab.store.put(&block(ObjectKind::Manifest, &layer.encode()));
    let published = host.publish("1-me/host1", Some(Hash::of(&layer.encode()))).await;
    assert!(matches!(published, Err(LinkError::Rejected(why)) if why.contains("`add`")));
    assert!(lab.store.slots().all().is_empty());
}
