//! `export` through the mount: what [`Exporter`] tells, as lines.

use std::io;

use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Host,
    answer::{Ended, Output, Refusal},
};
use crate::{
    client::export::{Exporter, Piece},
    ids::RelPath,
};

/// Pieces on the way to who has asked.
const PIECES_AHEAD: usize = 4;

pub(super) async fn export(
    host: &Host,
    paths: &[RelPath],
    incarnation: Option<usize>,
    output: &mut Output,
) -> io::Result<Ended> {
    let store = host.link.as_ref().and_then(|link| link.status().store);
    let exporter = Exporter {
        journal: host.journal.clone(),
        view: host.view.clone(),
        cache: host.cache.clone(),
        params: store.map(|welcome| welcome.params).unwrap_or_default(),
    };
    let wanted: Vec<_> = paths.iter().map(|path| (path.clone(), host.place(path).unit())).collect();
    let (sender, mut pieces) = mpsc::channel(PIECES_AHEAD);
    let telling = tokio::task::spawn_blocking(move || {
        exporter.run(&wanted, incarnation, &mut |piece| sender.blocking_send(piece).is_ok())
    });
    while let Some(piece) = pieces.recv().await {
        tell(output, piece).await?;
    }
    Ok(match telling.await {
        Ok(Ok(())) => Ok(0),
        Ok(Err(refused)) => Err(Refusal { message: refused.message, hint: refused.hint }),
        Err(e) => Err(Refusal::new(e)),
    })
}

async fn tell(output: &mut Output, piece: Piece) -> io::Result<()> {
    match piece {
        Piece::Total(bytes) => output.item(json!({"total_bytes": bytes})).await,
        Piece::Entry(entry) => output.item(entry).await,
        Piece::Bytes(bytes) => output.bytes(&bytes).await,
    }
}
