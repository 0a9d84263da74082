//! `export`: what is committed, entry by entry, for the command to write down as plain files.
//!
//! The layers of one life of each unit, merged as the tree merges them; what this host has changed and not committed isn't in it. Bytes come through the
//! cache, checked; the command checks each file's whole content once more.

use std::io;

use serde_json::{Value, json};

use super::{
    Host,
    answer::{CAT_BYTES, Ended, Output, Refusal},
};
use crate::{
    control,
    fs::view::Candidate,
    ids::{RelPath, UnitId},
    journal::{LayerHead, PastLife},
    manifest::Body,
};

type Heads = Vec<(UnitId, LayerHead)>;

pub(super) async fn export(
    host: &Host,
    paths: &[RelPath],
    incarnation: Option<usize>,
    output: &mut Output,
) -> io::Result<Ended> {
    let mut trees = Vec::new();
    for path in paths {
        let heads = match heads(host, path, incarnation) {
            Ok(heads) => heads,
            Err(refusal) => return Ok(Err(refusal)),
        };
        match tree(host, heads, path.clone()).await {
            Ok(tree) if tree.is_empty() => {
                return Ok(Err(Refusal::new(format!("{path}: nothing is committed there"))));
            }
            Ok(tree) => trees.push(tree),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    for (path, entry) in trees.into_iter().flatten() {
        output.item(entry_item(host, &path, &entry)).await?;
        if let Some(file) = entry.file
            && let Err(refusal) = contents(host, &path, file, output).await?
        {
            return Ok(Err(refusal));
        }
    }
    Ok(Ok(0))
}

async fn contents(
    host: &Host,
    path: &RelPath,
    file: (u64, crate::ids::Hash),
    output: &mut Output,
) -> io::Result<Result<(), Refusal>> {
    for offset in (0..file.0).step_by(CAT_BYTES) {
        let fs = host.fs.clone();
        match tokio::task::spawn_blocking(move || fs.read_committed(file, offset, CAT_BYTES)).await {
            Ok(Ok(bytes)) => output.item(control::bytes_item(&bytes)).await?,
            Ok(Err(e)) => return Ok(Err(Refusal::new(format!("{path}: {e}")))),
            Err(e) => return Ok(Err(Refusal::new(e))),
        }
    }
    Ok(Ok(()))
}

/// The layers of one life of each unit at and below a path, or of the one that it is in.
fn heads(host: &Host, path: &RelPath, incarnation: Option<usize>) -> Result<Heads, Refusal> {
    let journal = &host.journal;
    let mut units = journal.units_at(path);
    units.extend(journal.retired_below(path));
    units.extend(host.place(path).unit());
    units.sort();
    units.dedup();
    let mut found = Heads::new();
    let mut lives = 0;
    for unit in units {
        let past = journal.past_lives(&unit);
        lives = lives.max(past.len());
        let layers = match incarnation {
            Some(number) if number <= past.len() => left_of(&unit, number, &past[number.saturating_sub(1)])?,
            Some(number) if number > past.len() + 1 => Vec::new(),
            _ => journal.layers(&unit),
        };
        found.extend(layers.into_iter().map(|head| (unit.clone(), head)));
    }
    match (found.is_empty(), incarnation, lives) {
        (false, ..) => Ok(found),
        (_, None, 1..) => {
            Err(Refusal::new(format!("{path}: what was committed there was retired or pruned"))
                .hint(&format!("`--incarnation N`, from 1 to {lives}, gives it back")))
        }
        (_, Some(number), _) => Err(Refusal::new(format!("{path}: has no incarnation {number}"))),
        (_, None, _) => Err(Refusal::new(format!("{path}: nothing is committed there"))),
    }
}

/// What a life that has ended still has.
fn left_of(unit: &UnitId, number: usize, life: &PastLife) -> Result<Vec<LayerHead>, Refusal> {
    let left: Vec<LayerHead> = life.layers.iter().filter(|layer| !life.is_given_up(layer)).cloned().collect();
    match life.purged.filter(|_| left.is_empty()) {
        None => Ok(left),
        Some(seq) => Err(Refusal::new(format!("{unit}: incarnation {number} was purged as {seq}")).hint(
            "it was pruned, its time of grace is over, and nothing of it need be in the store any more",
        )),
    }
}

/// What these layers show. Waits for the network where manifests aren't here.
async fn tree(host: &Host, heads: Heads, path: RelPath) -> Result<Vec<(RelPath, Candidate)>, Refusal> {
    let view = host.view.clone();
    let work = move || match view.tree_of(&heads, &path) {
        Ok(tree) => Ok(tree),
        Err(need) => {
            view.fetch(&need).map_err(|e| Refusal::new(format!("{path}: {e}")))?;
            view.tree_of(&heads, &path)
                .map_err(|_| Refusal::new(format!("{path}: its manifests don't stay here; try again")))
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Refusal::new(e)))
}

fn entry_item(host: &Host, path: &RelPath, shown: &Candidate) -> Value {
    let attrs = &shown.entry.attrs;
    let manifest = host.journal.manifest(&shown.manifest).ok().flatten();
    let names =
        manifest.map(|m| (m.user(attrs.uid).map(str::to_owned), m.group(attrs.gid).map(str::to_owned)));
    let (user, group) = names.unwrap_or_default();
    let is = match &shown.entry.body {
        Body::Dir => "directory",
        Body::File { .. } | Body::Link { .. } => "file",
        Body::Symlink { .. } => "link",
        Body::Fifo => "pipe",
        Body::Whiteout => "nothing",
    };
    let target = match &shown.entry.body {
        Body::Symlink { target } => Some(target),
        _ => None,
    };
    // Another name of a file, from the top of the tree.
    let same_as = match &shown.entry.body {
        Body::Link { to } => shown.unit.root.append(to).ok(),
        _ => None,
    };
    json!({
        "entry": path.as_bytes(), "is": is, "target": target, "same_as": same_as.as_ref().map(RelPath::as_bytes),
        "size": shown.file.map(|(size, _)| size), "content": shown.file.map(|(_, hash)| hash.to_string()),
        "mode": attrs.mode, "uid": attrs.uid, "gid": attrs.gid, "user": user, "group": group,
        "secs": attrs.mtime.secs, "nanos": attrs.mtime.nanos,
    })
}
