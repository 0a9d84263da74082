//! The index against the packs, both ways.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{Check, Found};
use crate::{
    chunk::ObjectKind,
    durable::Disk,
    ids::{Hash, StoreUuid},
    store::{
        StoreError,
        catalog::PackPoint,
        index::{Index, Key, Location},
        layout::Layout,
    },
    verify::Severity,
};

/// What mends an index.
pub(super) const REBUILD: &str = "`resultsfs verify --store --repair`, or delete `index.redb` while the store is closed: the index is made again when it is opened";

/// Objects looked up at a time.
const BATCH: usize = 4096;

/// The index of a closed store.
pub(super) enum Closed {
    Missing,
    /// Another store's or another version's.
    Foreign,
    There(Box<Index>),
}

/// Opens it without changing it.
pub(super) fn open_closed(
    disk: &Arc<dyn Disk>,
    layout: &Layout,
    store: StoreUuid,
) -> Result<Closed, StoreError> {
    let file = match disk.open_read(&layout.index()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Closed::Missing),
        file => file?,
    };
    if file.is_empty()? {
        return Ok(Closed::Missing);
    }
    Ok(Index::open_unchanged(file, disk, layout, store)?
        .map_or(Closed::Foreign, |index| Closed::There(Box::new(index))))
}

impl Check<'_> {
    /// `open`: up to where an open store's packs were looked at.
    pub(super) fn compare_index(&mut self, index: &Index, open: Option<PackPoint>) -> Result<(), StoreError> {
        self.missing_packs(index, open)?;
        let (dangling, example) = self.dangling(index, open)?;
        if dangling > 0 {
            let message = format!("{dangling} entries of the index lead nowhere, for one {example}");
            self.index_is_of_use = false;
            self.find("index-dangling", Severity::Error, message, REBUILD);
        }
        let lacking = self.lacking(index, open.is_some())?;
        if let Some((kind, hash)) = lacking.first() {
            let message = format!("the index lacks {} objects, for one {kind:?} {hash}", lacking.len());
            self.index_is_of_use = false;
            self.find("index-lacks", Severity::Error, message, REBUILD);
        }
        Ok(())
    }

    /// Packs that the index speaks of, and that aren't there.
    fn missing_packs(&mut self, index: &Index, open: Option<PackPoint>) -> Result<(), StoreError> {
        let is_gone = |pack: &u32| {
            !self.packs.contains(pack)
                && !self.reclaimed.contains(pack)
                && !self.bad_packs.contains(pack)
                && open.is_none_or(|end| *pack <= end.pack)
        };
        let gone: Vec<u32> = index.packs()?.into_keys().filter(is_gone).collect();
        gone.into_iter().for_each(|pack| self.missing_pack(pack, "which the index speaks of"));
        Ok(())
    }

    fn dangling(&self, index: &Index, open: Option<PackPoint>) -> Result<(u64, String), StoreError> {
        let (mut count, mut example) = (0, String::new());
        index.each(|key, place| {
            let later = open.is_some_and(|end| (place.pack, place.offset) >= (end.pack, end.offset));
            let known_bad = self.bad_packs.contains(&place.pack)
                && (self.bad_blocks.contains(&(place.pack, place.offset))
                    || !self.packs.contains(&place.pack));
            if later || known_bad || key.is_some_and(|key| self.is_at(&key, &place)) {
                return;
            }
            if count == 0 {
                example = match key {
                    Some((kind, hash)) => format!("{kind:?} {hash}"),
                    None => "one of an unknown kind".to_owned(),
                };
            }
            count += 1;
        })?;
        Ok((count, example))
    }

    fn is_at(&self, key: &Key, place: &Location) -> bool {
        match key.0 {
            ObjectKind::Recipe => {
                let known = self.recipes.get(&key.1).into_iter().flatten();
                known.clone().any(|l| l.same_place(place) && l.block_bytes == place.block_bytes)
            }
            _ if self.mark(key, place) => true,
            // An object may be in two blocks.
            _ => self.blocks.read(place).is_ok_and(|(_, table)| {
                let line = table.get(place.number as usize);
                line.is_some_and(|e| (e.kind, e.hash) == *key && u64::from(e.bytes) == place.bytes)
            }),
        }
    }

    /// Whether an object is at this place, which the index has said. It isn't looked up again.
    fn mark(&self, key: &Key, place: &Location) -> bool {
        let Some(found) = self.objects.get(key).filter(|found| found.place == *place) else { return false };
        found.is_indexed.store(true, Ordering::Relaxed);
        true
    }

    /// Objects that the index should know: of a closed store, those in the part of each pack that it says to have.
    fn lacking(&self, index: &Index, open: bool) -> Result<Vec<Key>, StoreError> {
        let reached = index.packs()?;
        let expected = |place: &Location| {
            open || reached.get(&place.pack).is_some_and(|reached| place.offset < *reached)
        };
        let is_sought = |found: &Found| !found.is_indexed.load(Ordering::Relaxed) && expected(&found.place);
        let keys: Vec<Key> =
            self.objects.iter().filter(|(_, found)| is_sought(found)).map(|(key, _)| *key).collect();
        let mut lacking = Vec::new();
        for keys in keys.chunks(BATCH) {
            let places = index.get_many(keys)?;
            lacking.extend(keys.iter().zip(places).filter(|(_, place)| place.is_none()).map(|(key, _)| *key));
        }
        for (hash, places) in &self.recipes {
            let key = (ObjectKind::Recipe, *hash);
            if places.iter().any(expected)
                && index.get(key.0, hash)?.is_none()
                && index.candidates(hash)?.is_empty()
                && self.recipe_matters(hash)
            {
                lacking.push(key);
            }
        }
        Ok(lacking)
    }

    /// A recipe that was found false is in the packs and rightly not in the index. One that is true must be there.
    fn recipe_matters(&self, hash: &Hash) -> bool {
        let places = self.recipes.get(hash).into_iter().flatten();
        places.clone().any(|place| self.read_recipe(hash, place, true).is_ok())
    }
}
