//! Names of things: hashes, UUIDs, sequence numbers, paths and units.
//!
//! Newtypes for everything that must not be mixed. All of them are plain values: no I/O here.
//! A [`RelPath`] that exists is safe: it has no empty component, no `.` or `..`, no NUL, and no leading slash,
//! so that joining it to a directory can't leave that directory.

use std::{
    ffi::OsStr,
    fmt,
    hash::{BuildHasher, Hasher},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use minicbor::{Decode, Encode};

use crate::limits;

/// A BLAKE3 hash, 32 bytes, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Hash(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

impl Hash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first eight hex digits: for people, never for comparison.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

/// For tables whose keys are hashes, or have one in them: that is as good as any hash of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByHash(u64);

impl BuildHasher for ByHash {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for ByHash {
    fn write(&mut self, bytes: &[u8]) {
        match bytes.first_chunk() {
            Some(eight) => self.0 ^= u64::from_le_bytes(*eight),
            None => bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte)),
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl From<blake3::Hash> for Hash {
    fn from(h: blake3::Hash) -> Self {
        Self(*h.as_bytes())
    }
}

/// A text that isn't the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
}

fn hex_parse<const N: usize>(text: &str, what: &'static str) -> Result<[u8; N], ParseIdError> {
    let fail = || ParseIdError { text: text.to_owned(), what };
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    if digits.len() != 2 * N {
        return Err(fail());
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| fail())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| fail())?;
    }
    Ok(out)
}

fn hex_write(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex_write(f, &self.0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.short())
    }
}

impl FromStr for Hash {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex_parse(text, "a hash of 64 hex digits").map(Self)
    }
}

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

        impl $name {
            /// A fresh random one (version 4), from the kernel's generator.
            pub fn random() -> Self {
                let mut bytes = [0; 16];
                rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
                    .expect("getrandom without flags on Linux neither blocks after boot nor fails");
                bytes[6] = bytes[6] & 0x0f | 0x40;
                bytes[8] = bytes[8] & 0x3f | 0x80;
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, part) in [&self.0[..4], &self.0[4..6], &self.0[6..8], &self.0[8..10], &self.0[10..]]
                    .into_iter()
                    .enumerate()
                {
                    if i > 0 {
                        f.write_str("-")?;
                    }
                    hex_write(f, part)?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                hex_parse(text, $what).map(Self)
            }
        }
    };
}

uuid_type!(
    /// The random identity of a host's state directory. A re-installed host gets a new one.
    HostUuid,
    "a host UUID"
);
uuid_type!(
    /// The random identity of a store.
    StoreUuid,
    "a store UUID"
);

/// Number of a record in the store's catalog, from 1. 0 = before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Seq(#[n(0)] pub u64);

impl Seq {
    /// From here on numbers are no catalog's: they stand for what a running unit has changed and nobody has committed.
    const LIVE_FROM: u64 = 1 << 62;

    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number of what is in a snapshot only: above every commit's, and among each other in the order of `begun_ms`.
    pub fn live(begun_ms: u64) -> Self {
        Self(Self::LIVE_FROM + begun_ms.min(Self::LIVE_FROM - 1))
    }

    /// Whether it is such a number.
    pub fn is_live(self) -> bool {
        self.0 >= Self::LIVE_FROM
    }

    /// As a base of a change, or for people: 0, not known, instead of a number that no catalog has.
    pub fn committed(self) -> Self {
        if self.is_live() { Self(0) } else { self }
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which life of a unit: the number of the catalog's record that retired the one before; 0 = the first. Job ids are reused, and what two jobs of one
/// name have committed must never mix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// A unit's first life.
    pub const FIRST: Self = Self(0);
}

/// A field of the first life is left out, as it was before there were others.
impl<C> Encode<C> for Incarnation {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u64(self.0)?.ok()
    }

    fn is_nil(&self) -> bool {
        *self == Self::FIRST
    }
}

impl<'b, C> Decode<'b, C> for Incarnation {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.u64().map(Self)
    }

    fn nil() -> Option<Self> {
        Some(Self::FIRST)
    }
}

/// Number of a layer's revision, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Generation(#[n(0)] pub u32);

impl Generation {
    /// A layer's first revision.
    pub const FIRST: Self = Self(1);

    /// The revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Why bytes are not a path inside a results tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// An absolute path.
    #[error("path begins with `/`")]
    Absolute,
    /// Two slashes in a row, or one at the end.
    #[error("path has an empty component")]
    Empty,
    /// `.` or `..`.
    #[error("path has a `.` or `..` component")]
    Dots,
    /// A NUL byte.
    #[error("path has a NUL byte")]
    Nul,
    /// A component above 255 bytes, or the whole above [`limits::PATH_BYTES`].
    #[error("path or component is too long")]
    TooLong,
}

/// What a decoder says is wrong, with the rule that was broken: by itself it says "decode error" of that.
pub fn decoding_failed(error: &minicbor::decode::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A path below a results tree or a unit's root; any bytes but NUL, `/` between components. The empty path is the root.
/// Ordered by bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The root itself.
    pub const ROOT: Self = Self(Vec::new());

    /// Checks and takes `bytes`.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Ok(Self::ROOT);
        }
        if bytes[0] == b'/' {
            return Err(PathError::Absolute);
        }
        if bytes.len() > limits::PATH_BYTES {
            return Err(PathError::TooLong);
        }
        for component in bytes.split(|b| *b == b'/') {
            check_name(component)?;
        }
        Ok(Self(bytes))
    }

    /// This path with one more component.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        check_name(name)?;
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        if bytes.len() > limits::PATH_BYTES {
            return Err(PathError::TooLong);
        }
        Ok(Self(bytes))
    }

    /// This path with all of `below` after it.
    pub fn append(&self, below: &RelPath) -> Result<Self, PathError> {
        match (self.is_root(), below.is_root()) {
            (true, _) => Ok(below.clone()),
            (_, true) => Ok(self.clone()),
            _ => Self::parse([&self.0[..], b"/", &below.0[..]].concat()),
        }
    }

    /// The path's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Its components, from the top.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|c| !c.is_empty())
    }

    /// Number of components; the root has none.
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// The directory it is in; the root has none.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self(self.0[..end].to_vec()))
    }

    /// Its last component; the root has none.
    pub fn name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// Its first `count` components.
    pub fn first(&self, count: usize) -> Self {
        Self(self.components().take(count).collect::<Vec<_>>().join(&b'/'))
    }

    /// What remains of this path below `top`, if `top` is this path or above it.
    pub fn below(&self, top: &RelPath) -> Option<RelPath> {
        if top.is_root() {
            return Some(self.clone());
        }
        let rest = self.0.strip_prefix(&top.0[..])?;
        match rest.split_first() {
            None => Some(Self::ROOT),
            Some((b'/', rest)) => Some(Self(rest.to_vec())),
            Some(_) => None,
        }
    }

    /// Whether it is `top` or lies below it.
    pub fn is_below(&self, top: &RelPath) -> bool {
        top.is_root()
            || self.0.strip_prefix(&top.0[..]).is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
    }

    /// As a relative [`Path`]; the root is `.`, so that `openat` and `join` take it.
    pub fn as_path(&self) -> &Path {
        if self.is_root() { Path::new(".") } else { Path::new(OsStr::from_bytes(&self.0)) }
    }

    /// Its place in directory `dir`.
    pub fn under(&self, dir: &Path) -> PathBuf {
        if self.is_root() { dir.to_owned() } else { dir.join(self.as_path()) }
    }
}

fn check_name(name: &[u8]) -> Result<(), PathError> {
    match name {
        b"" => Err(PathError::Empty),
        b"." | b".." => Err(PathError::Dots),
        _ if name.len() > limits::NAME_BYTES => Err(PathError::TooLong),
        _ if name.contains(&0) => Err(PathError::Nul),
        _ if name.contains(&b'/') => Err(PathError::Empty),
        _ => Ok(()),
    }
}

/// As text: bytes that aren't printable UTF-8 as `\xNN` or `\n`, so that one path is one line.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || c == '\\' {
                    write!(f, "{}", c.escape_default())?
                } else {
                    write!(f, "{c}")?
                }
            }
            chunk.invalid().iter().try_for_each(|b| write!(f, "\\x{b:02x}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl FromStr for RelPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl<C> Encode<C> for RelPath {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for RelPath {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::parse(d.bytes()?).map_err(minicbor::decode::Error::custom)
    }
}

/// How much of the directory at its root a unit takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Scope {
    /// Everything below: an execution dir, a task dir, a job dir that is one unit.
    #[n(0)]
    Tree,
    /// The directory's own attributes and what is directly in it and isn't a directory:
    /// a job dir's loose files, and likewise those of `hosts/` and `hosts/<host>/`.
    #[n(1)]
    Loose,
}

/// What is journaled and offloaded as one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct UnitId {
    /// The directory, from the top of the results tree.
    #[n(0)]
    pub root: RelPath,
    /// How much of it.
    #[n(1)]
    pub scope: Scope,
}

impl UnitId {
    /// Everything below `root`.
    pub fn tree(root: RelPath) -> Self {
        Self { root, scope: Scope::Tree }
    }

    /// The loose files of `root`.
    pub fn loose(root: RelPath) -> Self {
        Self { root, scope: Scope::Loose }
    }

    /// Whether `path` (from the top of the tree) can be an entry of this unit, by its place alone.
    /// A directory directly in a loose unit's root isn't one; the caller knows which paths are directories.
    pub fn holds(&self, path: &RelPath) -> bool {
        match self.scope {
            Scope::Tree => path.is_below(&self.root),
            Scope::Loose => path == &self.root || path.parent().as_ref() == Some(&self.root),
        }
    }
}

/// `12-me/host1` for a tree, `12-me/.` for loose files.
impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scope {
            Scope::Tree => write!(f, "{}", self.root),
            Scope::Loose => write!(f, "{}/.", self.root),
        }
    }
}

impl fmt::Debug for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        text.parse().expect("a good path")
    }

    #[test]
    fn a_path_cannot_leave_its_directory() {
        for (bytes, error) in [
            (&b"/etc/passwd"[..], PathError::Absolute),
            (b"a//b", PathError::Empty),
            (b"a/", PathError::Empty),
            (b"..", PathError::Dots),
            (b"a/../b", PathError::Dots),
            (b"a/.", PathError::Dots),
            (b"a\0b", PathError::Nul),
        ] {
            assert_eq!(RelPath::parse(bytes), Err(error), "{bytes:?}");
        }
        assert_eq!(RelPath::parse(vec![b'x'; 256]), Err(PathError::TooLong));
        assert_eq!(path("a").join(b"b/c"), Err(PathError::Empty));
    }

    #[test]
    fn paths_come_apart_as_they_were_put_together() {
        let p = path("12-me/host1/debug");
        assert_eq!(p.parent(), Some(path("12-me/host1")));
        assert_eq!(p.name(), Some(&b"debug"[..]));
        assert_eq!(p.first(1), path("12-me"));
        assert_eq!(p.below(&path("12-me")), Some(path("host1/debug")));
        assert_eq!(p.below(&path("12-m")), None);
        assert_eq!(path("12-me").below(&path("12-me")), Some(RelPath::ROOT));
        assert_eq!(path("a").parent(), Some(RelPath::ROOT));
        assert_eq!(RelPath::ROOT.parent(), None);
        assert_eq!(path("12-me").append(&path("host1/debug")), Ok(p));
    }

    #[test]
    fn a_path_is_one_line_of_text() {
        let p = RelPath::parse(&b"a\nb/\xff\\"[..]).expect("legal bytes");
        assert_eq!(p.to_string(), "a\\nb/\\xff\\\\");
    }

    #[test]
    fn a_loose_unit_holds_its_directory_and_what_is_directly_in_it() {
        let unit = UnitId::loose(path("12-me"));
        assert!(unit.holds(&path("12-me")) && unit.holds(&path("12-me/keyval")));
        assert!(!unit.holds(&path("12-me/host1/keyval")) && !unit.holds(&path("12-m")));
    }

    #[test]
    fn ids_survive_their_text() {
        let uuid = HostUuid::random();
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        let hash = Hash::of(b"x");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert!("12".parse::<Hash>().is_err());
    }
}
