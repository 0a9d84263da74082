//! Least recently used: a map with a bound on the sum of its items' weights.
//!
//! Not a cache by itself: it says what must go, and the owner lets go of it (deletes a file, drops an index).

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

/// The map. Using or inserting an item makes it the youngest.
#[derive(Debug)]
pub struct Lru<K, V> {
    items: HashMap<K, Item<V>>,
    /// Keys by the moment of their last use.
    order: BTreeMap<u64, K>,
    moment: u64,
    weight: u64,
    max_weight: u64,
}

#[derive(Debug)]
struct Item<V> {
    value: V,
    weight: u64,
    used: u64,
}

impl<K: Hash + Eq + Clone, V> Lru<K, V> {
    /// An empty one that holds at most `max_weight`.
    pub fn new(max_weight: u64) -> Self {
        Self { items: HashMap::new(), order: BTreeMap::new(), moment: 0, weight: 0, max_weight }
    }

    /// The value of `key`, which thereby is the youngest.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        let item = self.items.get_mut(key)?;
        self.moment += 1;
        let key = self.order.remove(&item.used).expect("each item has its place in the order");
        item.used = self.moment;
        self.order.insert(self.moment, key);
        Some(&mut item.value)
    }

    /// Puts an item in place of any with the same key, and gives back what has to go for it: the oldest, or
    /// the item itself if it is heavier than the bound.
    pub fn insert(&mut self, key: K, value: V, weight: u64) -> Vec<(K, V)> {
        self.remove(&key);
        if weight > self.max_weight {
            return vec![(key, value)];
        }
        self.moment += 1;
        self.weight += weight;
        self.order.insert(self.moment, key.clone());
        self.items.insert(key, Item { value, weight, used: self.moment });
        let mut gone = Vec::new();
        while self.weight > self.max_weight {
            gone.extend(self.pop_oldest());
        }
        gone
    }

    /// Takes an item out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let item = self.items.remove(key)?;
        self.order.remove(&item.used);
        self.weight -= item.weight;
        Some(item.value)
    }

    /// Takes the item out that was not used for the longest time.
    pub fn pop_oldest(&mut self) -> Option<(K, V)> {
        let key = self.order.first_key_value()?.1.clone();
        let value = self.remove(&key).expect("the order names items that are there");
        Some((key, value))
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.items.clear();
        self.order.clear();
        self.weight = 0;
    }

    /// Sum of the weights.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.items.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let mut lru = Lru::new(3);
        for key in ["a", "b", "c"] {
            assert!(lru.insert(key, (), 1).is_empty());
        }
        lru.get(&"a");
        assert_eq!(lru.insert("d", (), 2), [("b", ()), ("c", ())]);
        assert_eq!((lru.weight(), lru.len()), (3, 2));
    }

    #[test]
    fn what_is_beyond_the_bound_is_not_kept() {
        let mut lru = Lru::new(3);
        lru.insert("a", 1, 3);
        assert_eq!(lru.insert("b", 2, 4), [("b", 2)]);
        assert_eq!(lru.get(&"a"), Some(&mut 1));
        lru.insert("a", 5, 1);
        assert_eq!((lru.weight(), lru.len()), (1, 1));
    }
}
