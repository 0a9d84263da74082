//! The seam to what is committed: the journal's records, the view of all layers, the cache of their bytes.

use std::collections::BTreeMap;

use super::{FsResult, Need};
use crate::{
    ids::{Hash, HostUuid, RelPath, Seq, UnitId},
    layout::{self, LayoutRules},
    manifest::Entry,
};

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) host: HostUuid,
    pub(super) seq: Seq,
    pub(super) entry: Entry,
    pub(super) unit: UnitId,
    pub(super) manifest: Hash,
    pub(super) file: Option<(u64, Hash)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Resolved {
    pub(super) own: Option<Candidate>,
    pub(super) foreign: Option<Candidate>,
}

/// See the module's head.
pub(super) struct Committed {
    rules: LayoutRules,
}

impl Committed {
    pub(super) fn new(rules: LayoutRules) -> Self {
        Self { rules }
    }

    pub(super) fn unit_of(&self, path: &RelPath, is_dir: bool) -> Option<UnitId> {
        layout::unit_of(path, is_dir, &self.rules, &|_| false, &|_| false)
    }

    pub(super) fn touch(&self, _unit: &UnitId) -> FsResult<()> {
        Ok(())
    }
    pub(super) fn mark(&self, _path: &RelPath, _is_dir: bool) {}
    pub(super) fn is_marked(&self, _path: &RelPath) -> bool {
        false
    }
    pub(super) fn relevant(&self, _path: &RelPath) -> bool {
        false
    }
    /// `None` = what is committed can't be known now, and the spool's entry has to do.
    pub(super) fn resolve(&self, _path: &RelPath, _in_spool: bool) -> FsResult<Option<Resolved>> {
        Ok(None)
    }
    pub(super) fn list(&self, _dir: &RelPath) -> FsResult<BTreeMap<Vec<u8>, Resolved>> {
        Ok(BTreeMap::default())
    }
    pub(super) fn is_partial(&self, _unit: &UnitId) -> bool {
        false
    }
    pub(super) fn is_gone(&self, _unit: &UnitId, _path: &RelPath) -> bool {
        false
    }
    pub(super) fn set_gone(&self, _unit: &UnitId, _path: &RelPath, _gone: bool) -> FsResult<()> {
        Ok(())
    }
    pub(super) fn owner(&self, candidate: &Candidate) -> FsResult<(u32, u32)> {
        Ok((candidate.entry.attrs.uid, candidate.entry.attrs.gid))
    }
    pub(super) fn read_local(&self, _file: (u64, Hash), _offset: u64, _len: usize) -> Option<Vec<u8>> {
        None
    }
    pub(super) fn read(&self, _path: &RelPath, _file: (u64, Hash), _offset: u64, _len: usize) -> FsResult<Vec<u8>> {
        Ok(Vec::new())
    }
    pub(super) fn fulfil(&self, _need: &Need) -> FsResult<()> {
        Ok(())
    }
}
