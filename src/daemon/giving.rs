//! Gives back what the store has lost of what was committed: own layers that are still here are sent again, and of others' what the cache and the replica
//! still have.

use std::{collections::HashSet, sync::Arc};

use tracing::{info, warn};

use super::Host;
use crate::{
    chunk::{ObjectKind, block::BlockBuilder},
    ids::Hash,
    journal::State,
    limits::BLOCK_RAW_MAX_BYTES,
    wire::{
        Lost,
        link::{Link, LinkError},
    },
};

/// A larger manifest comes back with its layer, if that is here.
const OBJECT_BYTES: usize = BLOCK_RAW_MAX_BYTES / 2;

/// Begins to; the rest goes on beside everything else.
pub fn give_back(host: &Arc<Host>, lost: Lost) {
    let (manifests, objects) = (lost.manifests.len(), lost.objects.len());
    if manifests > 0 {
        warn!("the store has lost {objects} objects, which {manifests} committed layers need");
    }
    send_again(host, &lost.manifests.into_iter().collect());
    let Some(link) = host.link.clone() else { return };
    let host = host.clone();
    tokio::spawn(async move {
        match send(&host, &link, lost.objects).await {
            Ok(0) => {}
            Ok(count) => info!("gave {count} objects back that the store had lost"),
            Err(e) => warn!("what the store has lost can't be given back: {e}"),
        }
    });
}

/// Own layers that name something of it are uploaded once more, which sends what the store asks for.
fn send_again(host: &Host, manifests: &HashSet<Hash>) {
    let is_wanted = |manifest: &Hash| manifests.contains(manifest);
    let mut count = 0;
    for record in host.journal.units() {
        let committed =
            record.committed.filter(|c| record.state == State::Committed && is_wanted(&c.manifest));
        if committed.is_none() || record.partial {
            continue;
        }
        match host.journal.unsend(&record.unit) {
            Ok(()) => count += 1,
            Err(e) => warn!("{}: {e}", record.unit),
        }
    }
    if count > 0 {
        info!("{count} units that need it are sent again");
        host.engine.journal_changed();
    }
}

/// Sends those of these objects that are here.
async fn send(host: &Arc<Host>, link: &Link, objects: Vec<(ObjectKind, Hash)>) -> Result<u64, LinkError> {
    let mut rest = objects.into_iter();
    let mut count = 0;
    loop {
        let host = host.clone();
        let made = tokio::task::spawn_blocking(move || {
            let (block, objects) = next_block(&host, &mut rest);
            (block, objects, rest)
        });
        let Ok((block, objects, left)) = made.await else { return Ok(count) };
        rest = left;
        let Some(block) = block else { break };
        link.send_block(block).await?;
        count += objects;
    }
    if count > 0 {
        link.returned().await?;
    }
    Ok(count)
}

/// The next of these that are here, as many as make a block; how many.
fn next_block(host: &Host, objects: &mut impl Iterator<Item = (ObjectKind, Hash)>) -> (Option<Vec<u8>>, u64) {
    let (mut builder, mut count) = (BlockBuilder::default(), 0);
    for (kind, hash) in objects {
        let bytes = match kind {
            ObjectKind::Manifest => host.journal.manifest(&hash).ok().flatten().map(|m| m.encode()),
            ObjectKind::Chunk | ObjectKind::Recipe => {
                host.cache.get_local(kind, &hash).map(|object| object.to_vec())
            }
        };
        let Some(bytes) = bytes.filter(|bytes| bytes.len() <= OBJECT_BYTES) else { continue };
        builder.push(kind, hash, &bytes);
        count += 1;
        if builder.is_full() {
            break;
        }
    }
    let block = (!builder.is_empty()).then(|| builder.finish(host.config.compression_level));
    (block.and_then(Result::ok), count)
}
