//! What one record of the catalog can say of many units.

use crate::{
    ids::UnitId,
    limits::{RETIRED_PATHS_BYTES, RETIRED_UNITS},
};

/// Cuts what is said of units, which are in the order of the tree, into what one record can say. A job is in one part unless it is larger than that.
pub fn parts<T: AsRef<UnitId> + Clone>(units: &[T]) -> Vec<Vec<T>> {
    let path_bytes = |of: &T| of.as_ref().root.as_bytes().len();
    let fits = |part: &[T], more: &[T]| {
        part.len() + more.len() <= RETIRED_UNITS
            && part.iter().chain(more).map(path_bytes).sum::<usize>() <= RETIRED_PATHS_BYTES
    };
    let job = |of: &T| of.as_ref().root.first(1);
    let mut parts: Vec<Vec<T>> = Vec::new();
    for job in units.chunk_by(|a, b| job(a) == job(b)) {
        let pieces = if fits(&[], job) { job.len() } else { 1 };
        for piece in job.chunks(pieces) {
            match parts.last_mut() {
                Some(part) if fits(part, piece) => part.extend_from_slice(piece),
                _ => parts.push(piece.to_vec()),
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, RelPath};

    #[test]
    fn a_record_takes_whole_jobs_up_to_its_bounds() {
        let unit = |job: usize, host: usize| super::super::UnitLife {
            unit: UnitId::tree(RelPath::parse(format!("{job}-me/host{host}")).expect("a path")),
            incarnation: Incarnation::FIRST,
        };
        let jobs = |sizes: &[usize]| -> Vec<usize> {
            let all =
                sizes.iter().enumerate().flat_map(|(job, size)| (0..*size).map(move |host| unit(job, host)));
            parts(&all.collect::<Vec<_>>()).iter().map(Vec::len).collect()
        };
        assert_eq!(jobs(&[3, 4]), [7]);
        assert_eq!(jobs(&[100, 100, 20]), [100, 120]);
        assert_eq!(jobs(&[300]), [128, 128, 44]);
        assert_eq!(jobs(&[]), [0; 0]);
    }
}
