//! A row of the replica: one unit with its layers, as it is stored and as it is told.

use std::collections::HashMap;

use minicbor::{Decode, Decoder, Encode};

use crate::ids::{Generation, Hash, HostUuid, Seq};

/// One host's layer of a unit, as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerHead {
    pub host: HostUuid,
    /// The host's name when it committed last.
    pub host_name: String,
    /// Every commit of this layer, in ascending order of both.
    pub commits: Vec<(Generation, Seq)>,
    /// Of the newest commit, and likewise below.
    pub manifest: Hash,
    pub generation: Generation,
    /// The store's time, ms since the epoch.
    pub time_ms: u64,
    /// Sum of its regular files' sizes.
    pub bytes: u64,
    /// Entries in its manifest.
    pub entries: u64,
    pub lost: bool,
    /// Who made a dead host's last snapshot this commit; nobody if the host committed it itself.
    pub adopted_by: Option<String>,
}

impl LayerHead {
    /// The sequence number of what has been as it is since generation `since`: that of the layer's first commit with this
    /// generation or a later one.
    pub fn seq_of(&self, since: Generation) -> Option<Seq> {
        let at = self.commits.partition_point(|(generation, _)| *generation < since);
        self.commits.get(at).map(|(_, seq)| *seq)
    }

    /// The newest commit's sequence number.
    pub fn seq(&self) -> Seq {
        self.commits.last().expect("a layer is in the catalog by a commit").1
    }

    /// Whether its newest revision is a snapshot of what still runs.
    pub fn is_live(&self) -> bool {
        self.seq().is_live()
    }

    /// The newest commit's sequence number; of a layer that only runs none.
    pub fn committed_seq(&self) -> Option<Seq> {
        self.commits.iter().map(|(_, seq)| *seq).rfind(|seq| !seq.is_live())
    }
}

/// A layer as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Layer {
    #[n(0)]
    pub host: u32,
    #[n(1)]
    pub manifest: Hash,
    #[n(2)]
    pub time_ms: u64,
    #[n(3)]
    pub bytes: u64,
    #[n(4)]
    pub entries: u64,
    #[n(5)]
    pub lost: bool,
    #[n(6)]
    pub commits: Vec<(Generation, Seq)>,
    #[n(7)]
    pub adopted_by: Option<String>,
}

/// The stored layers of a row, or what is wrong with it.
pub fn parse(value: &[u8]) -> Result<Vec<Layer>, String> {
    let layers: Vec<Layer> = minicbor::decode(value).map_err(|e| e.to_string())?;
    match layers.iter().any(|layer| layer.commits.is_empty()) {
        true => Err("a layer without a commit".to_owned()),
        false => Ok(layers),
    }
}

/// How much a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    pub host: HostUuid,
    /// Sum of its regular files' sizes.
    pub bytes: u64,
    /// Entries in its manifest.
    pub entries: u64,
}

/// Hosts by number: the UUID would be in each layer otherwise.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    pub known: Vec<(HostUuid, String)>,
    numbers: HashMap<HostUuid, u32>,
}

impl Hosts {
    /// The number of a host, which from now on has this name.
    pub fn number(&mut self, host: HostUuid, name: String) -> u32 {
        let next = u32::try_from(self.known.len()).expect("hosts are not in the billions");
        let number = *self.numbers.entry(host).or_insert(next);
        if number == next {
            self.known.push((host, name));
        } else {
            self.known[number as usize].1 = name;
        }
        number
    }

    /// The layers of a row as they are told, or what is wrong with it.
    pub fn tell(&self, value: &[u8]) -> Result<Vec<LayerHead>, String> {
        self.heads(parse(value)?)
    }

    /// Stored layers as they are told.
    pub fn heads(&self, layers: Vec<Layer>) -> Result<Vec<LayerHead>, String> {
        layers.into_iter().map(|layer| self.head(layer).ok_or("a layer without a host".into())).collect()
    }

    /// The same, no more than how much each layer has: for who looks at very many rows.
    pub fn weigh(&self, value: &[u8], weights: &mut Vec<Weight>) -> Result<(), String> {
        let mut row = Decoder::new(value);
        let wrong = |e: minicbor::decode::Error| e.to_string();
        let layers = row.array().map_err(wrong)?.ok_or("a row without a length")?;
        weights.clear();
        for _ in 0..layers {
            // As `Layer` says.
            let fields = row.array().map_err(wrong)?.ok_or("a layer without a length")?;
            let host = row.u32().map_err(wrong)?;
            row.skip().and_then(|()| row.skip()).map_err(wrong)?;
            let (bytes, entries) = (row.u64().map_err(wrong)?, row.u64().map_err(wrong)?);
            (5..fields).try_for_each(|_| row.skip()).map_err(wrong)?;
            let (host, _) = self.known.get(host as usize).ok_or("a layer without a host")?;
            weights.push(Weight { host: *host, bytes, entries });
        }
        Ok(())
    }

    fn head(&self, layer: Layer) -> Option<LayerHead> {
        let (host, host_name) = self.known.get(layer.host as usize)?.clone();
        let generation = layer.commits.last()?.0;
        let Layer { manifest, time_ms, bytes, entries, lost, commits, adopted_by, .. } = layer;
        Some(LayerHead {
            host,
            host_name,
            commits,
            manifest,
            generation,
            time_ms,
            bytes,
            entries,
            lost,
            adopted_by,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_weights_are_those_of_its_layers() {
        let mut hosts = Hosts::default();
        let layer = |host: u32, bytes: u64| Layer {
            host,
            manifest: Hash::of(b"m"),
            time_ms: 1 << 40,
            bytes,
            entries: 300,
            lost: host == 1,
            commits: vec![(Generation(1), Seq(7)), (Generation(3), Seq(1 << 33))],
            adopted_by: Some("root".to_owned()).filter(|_| host == 0),
        };
        let names = [HostUuid::random(), HostUuid::random()];
        names.iter().for_each(|host| _ = hosts.number(*host, "drone".to_owned()));
        let row = minicbor::to_vec([layer(1, 0), layer(0, 1 << 40)]).expect("encodes");
        let mut weights = Vec::new();
        hosts.weigh(&row, &mut weights).expect("a good row");
        let told = hosts.tell(&row).expect("a good row");
        let of = |head: &LayerHead| Weight { host: head.host, bytes: head.bytes, entries: head.entries };
        assert_eq!(weights, told.iter().map(of).collect::<Vec<_>>());
        for cut in 1..row.len() {
            assert!(hosts.weigh(&row[..cut], &mut weights).is_err(), "cut at {cut}");
        }
    }
}
