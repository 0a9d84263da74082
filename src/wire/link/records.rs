//! A batch of catalog records on its way to the replica.

use std::{ops::Deref, sync::Weak};

use super::live::Live;
use crate::{catalog::Record, ids::Seq};

/// Records in order, at most [`crate::limits::RECORDS_PER_PUSH`]. While a batch lives it takes up a part of the window; dropping it
/// lets the store send more, so that a long catalog is never in memory as a whole.
#[derive(Debug)]
pub struct RecordBatch {
    records: Vec<Record>,
    from: Weak<Live>,
}

impl RecordBatch {
    pub(super) fn new(records: Vec<Record>, from: Weak<Live>) -> Self {
        Self { records, from }
    }
}

impl Deref for RecordBatch {
    type Target = [Record];

    fn deref(&self) -> &[Record] {
        &self.records
    }
}

/// A batch that came over no link: for tests.
impl From<Vec<Record>> for RecordBatch {
    fn from(records: Vec<Record>) -> Self {
        Self { records, from: Weak::new() }
    }
}

impl Drop for RecordBatch {
    fn drop(&mut self) {
        let last: Option<Seq> = self.records.last().map(|r| r.seq);
        if let (Some(live), Some(last)) = (self.from.upgrade(), last) {
            live.taken(last);
        }
    }
}
