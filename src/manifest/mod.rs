//! A manifest: the full description of one layer. Every path with type, mode, owner, times and link target or content hash.
//!
//! Canonical: entries in byte order of their paths, one encoding for one value, named by the BLAKE3 hash of that encoding. It
//! says nothing of the host, the unit or the time of commit, so the same content under another job id is the same manifest.
//! Contents are named by the hash of the whole file; how a large file is cut into chunks is the recipe's business
//! ([`crate::chunk`]). Sequence numbers aren't in it either, since nobody knows them before the commit: an entry says
//! since which *generation* of its layer it has been as it is, and the catalog knows when that generation was committed.
//!
//! What comes from outside goes through [`Manifest::decode`], which checks every rule; a `Manifest` that exists obeys them.

use minicbor::{Decode, Encode, decode};

use crate::{
    cbor,
    ids::{Generation, Hash, RelPath, Seq, decoding_failed},
    limits,
};

/// Version of the encoding that this program writes.
pub const VERSION: u32 = 1;

/// The description of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Manifest {
    #[n(0)]
    version: u32,
    /// In strictly ascending order of path.
    #[cbor(n(1), decode_with = "cbor::at_most::<{ limits::MANIFEST_ENTRIES }, _, _>")]
    entries: Vec<Entry>,
    /// What was there and can't be carried, in ascending order of path.
    #[cbor(n(2), decode_with = "cbor::at_most::<{ limits::MANIFEST_ENTRIES }, _, _>")]
    omitted: Vec<Omitted>,
    /// Names of the owners' numbers, ascending by number.
    #[cbor(n(3), decode_with = "cbor::at_most::<{ limits::MANIFEST_NAMES }, _, _>")]
    users: Vec<Name>,
    /// Names of the groups' numbers, ascending by number.
    #[cbor(n(4), decode_with = "cbor::at_most::<{ limits::MANIFEST_NAMES }, _, _>")]
    groups: Vec<Name>,
}

/// One path of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Below the unit's root, which is the empty path.
    #[n(0)]
    pub path: RelPath,
    #[n(1)]
    pub attrs: Attrs,
    #[n(2)]
    pub body: Body,
    /// The layer's generation in which this path last changed.
    #[n(3)]
    pub since: Generation,
    /// The sequence number of what this path showed when it was changed; 0 = nothing was there.
    #[n(4)]
    pub base: Seq,
}

/// Of a [`Manifest`] what its contents are in.
#[derive(Decode)]
#[cbor(map)]
struct Files {
    #[n(1)]
    entries: Vec<FileBody>,
}

/// Likewise of an [`Entry`].
#[derive(Decode)]
struct FileBody {
    #[n(2)]
    body: Body,
}

/// Mode, owner and time of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attrs {
    /// Permission bits with setuid, setgid and sticky: `st_mode & 0o7777`.
    #[n(0)]
    pub mode: u32,
    #[n(1)]
    pub uid: u32,
    #[n(2)]
    pub gid: u32,
    #[n(3)]
    pub mtime: Timestamp,
}

/// A time of a file: seconds since the epoch, which may be before it, and nanoseconds forward from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Timestamp {
    #[n(0)]
    pub secs: i64,
    /// 0..1_000_000_000.
    #[n(1)]
    pub nanos: u32,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Body {
    /// A directory.
    #[n(0)]
    Dir,
    /// A regular file.
    #[n(1)]
    File {
        /// Bytes, holes included.
        #[n(0)]
        size: u64,
        /// BLAKE3 of all of them.
        #[n(1)]
        content: Hash,
    },
    /// A symbolic link.
    #[n(2)]
    Symlink {
        /// Any bytes, as readlink(2) gave them.
        #[cbor(n(0), with = "minicbor::bytes")]
        target: Vec<u8>,
    },
    /// A named pipe.
    #[n(3)]
    Fifo,
    /// Another name of the regular file at `to`, an earlier path of the same manifest that is a [`Body::File`].
    #[n(4)]
    Link {
        #[n(0)]
        to: RelPath,
    },
    /// The path was deleted here; hides what was there before.
    #[n(5)]
    Whiteout,
}

/// Something that can't be carried.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Omitted {
    #[n(0)]
    pub path: RelPath,
    #[n(1)]
    pub kind: OmittedKind,
}

/// Why it can't be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum OmittedKind {
    /// A socket: it has no meaning on another host.
    #[n(0)]
    Socket,
    /// A device node: no host makes one from another's word.
    #[n(1)]
    Device,
}

/// A user's or group's number with its name on the host that made the layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Name {
    #[n(0)]
    pub id: u32,
    #[n(1)]
    pub name: String,
}

/// Why bytes aren't a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than the limit, or with more entries.
    #[error("manifest of {0} exceeds the limit")]
    TooLarge(usize),
    /// Not this encoding.
    #[error("manifest doesn't decode: {0}")]
    Encoding(String),
    /// A version that this program doesn't know.
    #[error("manifest of version {0}; this program knows {VERSION}")]
    Version(u32),
    /// The bytes aren't the one encoding of what they say.
    #[error("manifest is not in canonical form")]
    NotCanonical,
    /// An entry breaks a rule.
    #[error("manifest entry {path}: {rule}")]
    Entry { path: RelPath, rule: &'static str },
}

impl Manifest {
    /// Sorts and checks what a walk has found.
    pub fn new(
        mut entries: Vec<Entry>,
        mut omitted: Vec<Omitted>,
        mut users: Vec<Name>,
        mut groups: Vec<Name>,
    ) -> Result<Self, ManifestError> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        omitted.sort_by(|a, b| a.path.cmp(&b.path));
        users.sort();
        groups.sort();
        let manifest = Self { version: VERSION, entries, omitted, users, groups };
        manifest.check()?;
        Ok(manifest)
    }

    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into a Vec can't fail")
    }

    /// Checks and takes an encoding from outside.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > limits::MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let manifest: Self = minicbor::decode(bytes).map_err(encoding)?;
        if manifest.version != VERSION {
            return Err(ManifestError::Version(manifest.version));
        }
        manifest.check()?;
        if manifest.encode() != bytes {
            return Err(ManifestError::NotCanonical);
        }
        Ok(manifest)
    }

    /// [`Manifest::contents`] of an encoding that was checked when it was taken in: nothing else of it is looked at.
    pub fn contents_of(bytes: &[u8]) -> Result<Vec<(Hash, u64)>, ManifestError> {
        let files: Files = minicbor::decode(bytes).map_err(encoding)?;
        let content = |file: FileBody| match file.body {
            Body::File { size, content } => Some((content, size)),
            _ => None,
        };
        Ok(files.entries.into_iter().filter_map(content).collect())
    }

    /// All entries, in ascending order of path.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What was there and isn't carried.
    pub fn omitted(&self) -> &[Omitted] {
        &self.omitted
    }

    /// The entry at `path` below the unit's root.
    pub fn get(&self, path: &RelPath) -> Option<&Entry> {
        self.entries.binary_search_by(|e| e.path.cmp(path)).ok().map(|i| &self.entries[i])
    }

    /// The regular file that `entry` is, itself or as another name of one: size and content.
    pub fn file_of<'a>(&'a self, entry: &'a Entry) -> Option<(u64, Hash)> {
        match &entry.body {
            Body::File { size, content } => Some((*size, *content)),
            Body::Link { to } => self.get(to).and_then(|e| self.file_of(e)),
            _ => None,
        }
    }

    /// Contents of all regular files, each once a file: `(content, size)`.
    pub fn contents(&self) -> impl Iterator<Item = (Hash, u64)> + '_ {
        self.entries.iter().filter_map(|e| match e.body {
            Body::File { size, content } => Some((content, size)),
            _ => None,
        })
    }

    /// Sum of the regular files' sizes, bytes. Sparse files can have more together than a number holds, of which no store takes a commit.
    pub fn bytes(&self) -> u64 {
        self.contents().fold(0, |sum: u64, (_, size)| sum.saturating_add(size))
    }

    /// The name that goes with a user number.
    pub fn user(&self, uid: u32) -> Option<&str> {
        find_name(&self.users, uid)
    }

    /// The name that goes with a group number.
    pub fn group(&self, gid: u32) -> Option<&str> {
        find_name(&self.groups, gid)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let paths = [self.entries.len(), self.omitted.len()].map(|len| (len, limits::MANIFEST_ENTRIES));
        let names = [self.users.len(), self.groups.len()].map(|len| (len, limits::MANIFEST_NAMES));
        if let Some((len, _)) = paths.into_iter().chain(names).find(|(len, most)| len > most) {
            return Err(ManifestError::TooLarge(len));
        }
        let mut last: Option<&RelPath> = None;
        for entry in &self.entries {
            let fail = |rule| ManifestError::Entry { path: entry.path.clone(), rule };
            if last.is_some_and(|last| *last >= entry.path) {
                return Err(fail("paths must ascend and differ"));
            }
            last = Some(&entry.path);
            self.check_entry(entry).map_err(fail)?;
        }
        if self.omitted.windows(2).any(|w| w[0].path >= w[1].path) {
            return Err(ManifestError::NotCanonical);
        }
        check_names(&self.users)?;
        check_names(&self.groups)
    }

    fn check_entry(&self, entry: &Entry) -> Result<(), &'static str> {
        if entry.attrs.mode & !0o7777 != 0 {
            return Err("mode has bits beyond 07777");
        }
        if entry.attrs.mtime.nanos >= 1_000_000_000 {
            return Err("nanoseconds beyond a second");
        }
        match &entry.body {
            Body::Symlink { target } if target.is_empty() || target.len() > limits::PATH_BYTES => {
                Err("link text is empty or too long")
            }
            Body::Symlink { target } if target.contains(&0) => Err("link text has a NUL byte"),
            Body::Link { to } if *to >= entry.path => Err("hard link to a later path"),
            Body::Link { to } if !matches!(self.get(to).map(|e| &e.body), Some(Body::File { .. })) => {
                Err("hard link to what isn't a regular file here")
            }
            _ => Ok(()),
        }
    }
}

fn encoding(error: decode::Error) -> ManifestError {
    ManifestError::Encoding(decoding_failed(&error))
}

fn find_name(names: &[Name], id: u32) -> Option<&str> {
    names.binary_search_by_key(&id, |n| n.id).ok().map(|i| names[i].name.as_str())
}

fn check_names(names: &[Name]) -> Result<(), ManifestError> {
    let ascending = names.windows(2).all(|w| w[0].id < w[1].id);
    let short = names.iter().all(|n| !n.name.is_empty() && n.name.len() <= limits::TEXT_BYTES);
    if ascending && short { Ok(()) } else { Err(ManifestError::NotCanonical) }
}

#[cfg(test)]
mod tests;
