//! Who uses the mount just now, from /proc: for the message of an unmount that can't be.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Open files and working directories at or below `mountpoint`, as `path (pid 1234, name)`; at most `bound` of them. Of other users'
/// processes only root sees them.
pub fn users(mountpoint: &Path, bound: usize) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter(|p| p.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    processes.flat_map(|process| of_process(&process.path(), mountpoint)).take(bound).collect()
}

fn of_process(process: &Path, mountpoint: &Path) -> Vec<String> {
    let fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
    let links = [process.join("cwd"), process.join("root")].into_iter().chain(fds);
    let mut used: Vec<PathBuf> = links.filter_map(|link| fs::read_link(link).ok()).collect();
    used.retain(|path| path.starts_with(mountpoint));
    used.sort();
    used.dedup();
    let pid = process.file_name().unwrap_or_default().to_string_lossy();
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    used.iter().map(|path| format!("{} (pid {pid}, {})", path.display(), name.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_named_with_its_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path().canonicalize().expect("there");
        assert!(users(&top, 5).is_empty());
        let _open = fs::File::create(top.join("log")).expect("made");
        let found = users(&top, 5);
        let expected = format!("{} (pid {}, ", top.join("log").display(), std::process::id());
        assert!(matches!(&found[..], [one] if one.starts_with(&expected)), "{found:?}");
    }
}
