//! Roots: the manifests from which everything that must be here is reached.
//!
//! What a root names, by the recipes of its cut files, down to the chunks, is never taken away. What isn't a root is nobody's word that anything is here.

use super::{Store, StoreError};
use crate::{
    catalog::Record,
    ids::{Hash, Seq},
};

/// Records read at a time.
const RECORDS: usize = 1024;

impl Store {
    /// The manifest that a record of the catalog keeps here: that of each commit which isn't given up, of whatever generation and life.
    pub(super) fn root(&self, record: &Record) -> Option<Hash> {
        let commit = record.commit()?;
        (!self.catalog.is_purged(record.seq, commit)).then_some(commit.manifest)
    }

    /// Roots of the records behind `seq`, and up to which record they are; `None`: there is none behind it.
    pub(super) fn roots_after(&self, seq: Seq) -> Result<Option<(Seq, Vec<Hash>)>, StoreError> {
        let records = self.records_after(seq, RECORDS)?;
        let roots = records.iter().filter_map(|record| self.root(record)).collect();
        Ok(records.last().map(|last| (last.seq, roots)))
    }
}
