//! Formats that are CBOR and nothing around it.

use std::fmt::Debug;

use resultsfs::{
    chunk::Recipe,
    ids::{HostUuid, RelPath},
    journal::stored::{self, Hosts, Layer, Past},
    limits,
    manifest::{Body, Manifest},
};

use super::number;

/// Input: a manifest's bytes.
///
/// One that is accepted has the bytes that it was made of, keeps every rule of `docs/format.md`, and all that is asked of it agrees. What can be
/// read but isn't in canonical form is tried once more in that form.
pub fn manifest(data: &[u8]) {
    match Manifest::decode(data) {
        Ok(manifest) => a_manifest(data, &manifest),
        Err(_) => {
            _ = Manifest::contents_of(data);
            let Ok(unchecked) = minicbor::decode::<Manifest>(data) else { return };
            let bytes = unchecked.encode();
            if let Ok(manifest) = Manifest::decode(&bytes) {
                a_manifest(&bytes, &manifest);
            }
        }
    }
}

fn a_manifest(bytes: &[u8], manifest: &Manifest) {
    assert_eq!(manifest.encode(), bytes);
    assert!(manifest.entries().len() <= limits::MANIFEST_ENTRIES);
    assert!(manifest.entries().is_sorted_by(|a, b| a.path < b.path));
    assert!(manifest.omitted().is_sorted_by(|a, b| a.path < b.path));
    for entry in manifest.entries() {
        assert_eq!(manifest.get(&entry.path), Some(entry));
        a_path(&entry.path);
        assert!(entry.attrs.mode <= 0o7777 && entry.attrs.mtime.nanos < 1_000_000_000);
        let file = manifest.file_of(entry);
        match &entry.body {
            Body::File { size, content } => assert_eq!(file, Some((*size, *content))),
            Body::Link { to } => assert!(file.is_some() && to < &entry.path),
            Body::Symlink { target } => {
                assert!(
                    (1..=limits::PATH_BYTES).contains(&target.len())
                        && !target.contains(&0)
                        && file.is_none()
                );
            }
            Body::Dir | Body::Fifo | Body::Whiteout => assert_eq!(file, None),
        }
        for name in [manifest.user(entry.attrs.uid), manifest.group(entry.attrs.gid)].into_iter().flatten() {
            assert!((1..=limits::TEXT_BYTES).contains(&name.len()));
        }
    }
    let contents: Vec<_> = manifest.contents().collect();
    assert_eq!(Manifest::contents_of(bytes).as_ref(), Ok(&contents));
    let sum: u128 = contents.iter().map(|(_, size)| u128::from(*size)).sum();
    assert_eq!(u128::from(manifest.bytes()), sum.min(u64::MAX.into()));
}

/// A path that exists can't leave the directory that it is joined to.
fn a_path(path: &RelPath) {
    assert!(path.as_bytes().len() <= limits::PATH_BYTES && !path.as_bytes().contains(&0));
    assert!(path.as_path().is_relative());
    for name in path.components() {
        assert!(name != b"." && name != b".." && name.len() <= limits::NAME_BYTES);
    }
    assert_eq!(path.components().collect::<Vec<_>>().join(&b'/'), path.as_bytes());
}

/// Input: a recipe's bytes. What decodes has one encoding, which decodes to the same.
pub fn recipe(data: &[u8]) {
    let Ok(recipe) = Recipe::decode(data) else { return };
    let sum: u128 = recipe.chunks.iter().map(|chunk| u128::from(chunk.bytes)).sum();
    assert_eq!(u128::from(recipe.size()), sum);
    let bytes = recipe.encode();
    assert!(bytes.len() <= data.len());
    assert_eq!(Recipe::decode(&bytes).expect("decodes again"), recipe);
}

/// Input: length of the key, key, value: of a row of the journal's or the replica's database, whichever it may be.
///
/// A row that is one has the key that its content would have, and its value, encoded again, is read as the same. What counts layers without
/// making them counts the same.
pub fn journal(data: &[u8]) {
    let (length, rest) = number(data);
    let (key, value) = rest.split_at(rest.len().min(length.into()));
    if let Some(unit) = stored::unit(key) {
        assert_eq!(stored::unit_key(&unit), key);
        a_path(&unit.root);
    }
    if let Ok(record) = stored::record(key, value) {
        let again = minicbor::to_vec(&record).expect("encodes");
        assert_eq!(stored::record(&stored::unit_key(&record.unit), &again).as_ref(), Ok(&record));
    }
    if let Ok((unit, path, note)) = stored::note(key, value) {
        assert_eq!(stored::note_key(&unit, &path), key);
        assert_eq!(note.encode(), value);
        a_path(&path);
    }
    if let Ok(layers) = stored::layers(value) {
        let again = encoded(&layers);
        assert_eq!(stored::layers(&again).as_ref(), Ok(&layers));
        the_layers(&again, &layers);
    }
    if let Ok(life) = stored::life(value) {
        assert_eq!(stored::life(&encoded::<Past>(&life)).as_ref(), Ok(&life));
        _ = hosts().heads(life.layers);
    }
}

fn encoded<T: minicbor::Encode<()> + Debug>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("encodes")
}

fn the_layers(value: &[u8], layers: &[Layer]) {
    let hosts = hosts();
    let mut weights = Vec::new();
    let told = hosts.tell(value);
    match (&told, hosts.weigh(value, &mut weights)) {
        (Ok(heads), Ok(())) => {
            assert_eq!(heads.len(), layers.len());
            for ((head, weight), layer) in heads.iter().zip(&weights).zip(layers) {
                assert_eq!(
                    (head.host, head.bytes, head.entries),
                    (weight.host, weight.bytes, weight.entries)
                );
                assert_eq!(layer.commits.last(), Some(&(head.generation, head.seq())));
            }
        }
        (Err(_), Err(_)) => {}
        other => panic!("{other:?}"),
    }
}

/// Three hosts that rows may name.
fn hosts() -> Hosts {
    let mut hosts = Hosts::default();
    for host in 0..3 {
        hosts.number(HostUuid([host; 16]), format!("drone{host}"));
    }
    hosts
}
