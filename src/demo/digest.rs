//! A digest of a tree: what two mounts must agree on to show the same one.
//!
//! Each entry counts with its path, kind, mode, owner, time to the nanosecond, link text and bytes. Entries are ordered by the bytes of
//! their paths, so that the order in which a directory is read doesn't matter. The top itself doesn't count: it is the mount point.
//! Sizes of directories and link counts don't either: they belong to a file system, not to a tree.

use std::{
    collections::BTreeMap,
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use fs_err as fs;

use crate::ids::RelPath;

/// A tree, entry by entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeDigest {
    entries: BTreeMap<Vec<u8>, blake3::Hash>,
    /// Bytes in regular files.
    pub bytes: u64,
}

/// The digest of what is below `top`.
pub fn of(top: &Path) -> io::Result<TreeDigest> {
    let mut digest = TreeDigest::default();
    digest.add_dir(top, &[])?;
    Ok(digest)
}

impl TreeDigest {
    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// One hash for all.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (path, entry) in &self.entries {
            hasher.update(&(path.len() as u64).to_le_bytes()).update(path).update(entry.as_bytes());
        }
        hasher.finalize()
    }

    /// The first path that is not the same in both, and how; None if they are equal.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let paths: std::collections::BTreeSet<_> = self.entries.keys().chain(other.entries.keys()).collect();
        paths.into_iter().find_map(|path| {
            let what = match (self.entries.get(path), other.entries.get(path)) {
                (Some(_), None) => "is missing in the second",
                (None, Some(_)) => "is missing in the first",
                (mine, theirs) if mine != theirs => "differs",
                _ => return None,
            };
            Some(format!(
                "{} {what}",
                RelPath::parse(&path[..]).map_or_else(|e| e.to_string(), |p| p.to_string())
            ))
        })
    }

    fn add_dir(&mut self, dir: &Path, prefix: &[u8]) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let mut path = prefix.to_vec();
            path.extend_from_slice(entry.file_name().as_bytes());
            let meta = fs::symlink_metadata(entry.path())?;
            let hash = self.entry(&entry.path(), &meta)?;
            self.entries.insert(path.clone(), hash);
            if meta.is_dir() {
                path.push(b'/');
                self.add_dir(&entry.path(), &path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, meta: &std::fs::Metadata) -> io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&meta.mode().to_le_bytes());
        hasher.update(&meta.uid().to_le_bytes()).update(&meta.gid().to_le_bytes());
        hasher.update(&meta.mtime().to_le_bytes()).update(&meta.mtime_nsec().to_le_bytes());
        let kind = meta.file_type();
        if kind.is_file() {
            self.bytes += meta.len();
            hasher.update_reader(fs::File::open(path)?)?;
        } else if kind.is_symlink() {
            hasher.update(fs::read_link(path)?.as_os_str().as_bytes());
        } else if kind.is_block_device() || kind.is_char_device() {
            hasher.update(&meta.rdev().to_le_bytes());
        }
        Ok(hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::{super::set_mtime, *};

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("d")).expect("a directory");
        fs::write(dir.path().join("d/f"), "text").expect("a file");
        symlink("nowhere", dir.path().join("l")).expect("a link");
        for name in ["d/f", "l", "d"] {
            set_mtime(&dir.path().join(name), 1_700_000_000_123_456_789).expect("a time");
        }
        dir
    }

    /// Everything that a mount must keep is in the digest: each change of it shows, and is named.
    #[test]
    fn every_kind_of_change_shows() {
        let same = of(tree().path()).expect("a digest");
        type Change = fn(&Path);
        let changes: &[(&str, Change)] = &[
            ("d/f differs", |top| set_mtime(&top.join("d/f"), 1_700_000_000_123_456_788).expect("a time")),
            ("d/f differs", |top| {
                fs::set_permissions(top.join("d/f"), PermissionsExt::from_mode(0o600)).expect("a mode");
            }),
            ("d/f differs", |top| {
                fs::write(top.join("d/f"), "Text").expect("written");
                set_mtime(&top.join("d/f"), 1_700_000_000_123_456_789).expect("a time");
            }),
            ("l differs", |top| {
                fs::remove_file(top.join("l")).expect("removed");
                symlink("elsewhere", top.join("l")).expect("a link");
                set_mtime(&top.join("l"), 1_700_000_000_123_456_789).expect("a time");
            }),
            ("new is missing in the first", |top| fs::write(top.join("new"), "").expect("written")),
            ("l is missing in the second", |top| fs::remove_file(top.join("l")).expect("removed")),
        ];
        assert_eq!(same.difference(&of(tree().path()).expect("a digest")), None);
        for (said, change) in changes {
            let dir = tree();
            change(dir.path());
            let other = of(dir.path()).expect("a digest");
            assert_eq!(same.difference(&other).as_deref(), Some(*said));
            assert_ne!(same.hash(), other.hash(), "{said}");
        }
    }
}
