//! How a job ended, from the small files that its layers hold: pidfiles and status logs.
//!
//! What can't be read counts as failed: it stays longer.

use crate::{
    catalog::Commit,
    chunk::ObjectKind,
    control::Outcome,
    ids::{Hash, RelPath},
    layout::{self, Label, Pidfile},
    manifest::Manifest,
    store::{Store, StoreError, decode_recipe},
};

/// Bytes of a status log that are looked at.
const STATUS_BYTES: usize = 64 << 10;
/// Directories above a file that is looked at, below the unit's root: jobs of several hosts have a status log for each.
const DEPTH: usize = 2;
/// Words of a status log that say that something failed.
const FAILURES: [&[u8]; 3] = [b"FAIL", b"ERROR", b"ABORT"];

/// How a layer ended. Reads its manifest and some of its files.
pub(super) fn of(store: &Store, commit: &Commit) -> Outcome {
    // It never reached its end.
    if commit.lost {
        return Outcome::Failed;
    }
    match has_failed(store, &commit.manifest) {
        Ok(false) => Outcome::Passed,
        Ok(true) => Outcome::Failed,
        Err(error) => {
            tracing::warn!(unit = %commit.unit, %error, "can't tell how it ended; it counts as failed");
            Outcome::Failed
        }
    }
}

fn has_failed(store: &Store, manifest: &Hash) -> Result<bool, StoreError> {
    let missing = |kind, hash: &Hash| StoreError::Missing { kind, hash: *hash };
    let kind = ObjectKind::Manifest;
    let bytes = store.read_object(kind, manifest)?.ok_or_else(|| missing(kind, manifest))?;
    let manifest =
        Manifest::decode(&bytes).map_err(|error| StoreError::Manifest { hash: *manifest, error })?;
    for entry in manifest.entries().iter().filter(|entry| (1..=DEPTH).contains(&entry.path.depth())) {
        let Some(says) = says(&entry.path) else { continue };
        let Some((size, content)) = manifest.file_of(entry) else { continue };
        let top = top_of(store, &content, size)?;
        if says(&top) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What says of a file whether its job failed, if it is one that does.
fn says(path: &RelPath) -> Option<fn(&[u8]) -> bool> {
    match path.components().last()? {
        b"status.log" => Some(status_failed),
        name => match Label::of(name)? {
            Label::Autoserv => Some(autoserv_failed),
            _ => Some(tests_failed),
        },
    }
}

/// Of the job's own process its exit counts, too.
fn autoserv_failed(bytes: &[u8]) -> bool {
    match layout::parse(bytes) {
        Pidfile::Done { exit_status, failed, .. } => exit_status != 0 || failed > 0,
        _ => false,
    }
}

fn tests_failed(bytes: &[u8]) -> bool {
    matches!(layout::parse(bytes), Pidfile::Done { failed: 1.., .. })
}

/// Whether an entry begins with such a word: after the tabs that nest it, and after `END` where it ends a group.
fn status_failed(bytes: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'\n').any(|line| {
        let tabs = line.iter().take_while(|byte| **byte == b'\t').count();
        let word = line[tabs..].split(|byte| *byte == b'\t').next().unwrap_or_default();
        FAILURES.contains(&word.strip_prefix(b"END ").unwrap_or(word))
    })
}

/// A file's first bytes.
fn top_of(store: &Store, content: &Hash, size: u64) -> Result<Vec<u8>, StoreError> {
    let read =
        |kind, hash: &Hash| store.read_object(kind, hash)?.ok_or(StoreError::Missing { kind, hash: *hash });
    if size == 0 {
        return Ok(Vec::new());
    }
    if store.params().content_kind(size) == ObjectKind::Chunk {
        let mut bytes = read(ObjectKind::Chunk, content)?;
        bytes.truncate(STATUS_BYTES);
        return Ok(bytes);
    }
    let recipe = decode_recipe(content, &read(ObjectKind::Recipe, content)?)?;
    let mut bytes = Vec::new();
    for chunk in &recipe.chunks {
        if bytes.len() >= STATUS_BYTES {
            break;
        }
        bytes.extend(read(ObjectKind::Chunk, &chunk.hash)?);
    }
    bytes.truncate(STATUS_BYTES);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_log_tells_by_its_words_and_not_by_its_messages() {
        let good = "START\t----\t----\ttimestamp=1\n\tSTART\tsleep\tsleep\n\t\tGOOD\tsleep\tsleep\tcompleted FAIL ERROR\n\tEND GOOD\tsleep\nINFO\t----\tFAIL\n";
        assert!(!status_failed(good.as_bytes()) && !status_failed(b""));
        for bad in [
            "\t\tFAIL\tsleep\tsleep\n",
            "END FAIL\t----\n",
            "\tABORT\t----",
            "START\tx\nERROR\tx\ty\n",
            "END ABORT\n",
        ] {
            assert!(status_failed(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_pidfile_tells_by_its_failed_tests_and_the_jobs_own_by_its_exit() {
        assert!(
            !autoserv_failed(b"12\n0\n0\n")
                && autoserv_failed(b"12\n0\n3\n")
                && autoserv_failed(b"12\n256\n0\n")
        );
        assert!(!autoserv_failed(b"12\n") && !autoserv_failed(b"not one"));
        assert!(tests_failed(b"12\n0\n3\n") && !tests_failed(b"12\n256\n0\n"));
        let at = |path: &str| says(&path.parse().expect("a path")).is_some();
        assert!(at("status.log") && at("host1/status.log") && at(".parser_execute") && !at("status"));
    }
}
