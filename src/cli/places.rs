//! Paths as the user gives them, and as the kernel's list of mounts has them: absolute, without symbolic links.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A mount point. One that is dead can't be asked what it is; its directory can.
pub fn mountpoint(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    Ok(absolute.canonicalize().unwrap_or_else(|_| entry_of(absolute)))
}

/// A path that may itself be a symbolic link, or not be there at all.
pub fn entry(path: &Path) -> io::Result<PathBuf> {
    Ok(entry_of(std::path::absolute(path)?))
}

fn entry_of(absolute: PathBuf) -> PathBuf {
    match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => absolute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_followed_in_a_mount_point_and_kept_at_the_end_of_an_entry() {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path().canonicalize().expect("there");
        std::fs::create_dir(top.join("real")).expect("made");
        std::os::unix::fs::symlink("real", top.join("link")).expect("made");
        assert_eq!(mountpoint(&top.join("link")).expect("absolute"), top.join("real"));
        assert_eq!(entry(&top.join("link")).expect("absolute"), top.join("link"));
        assert_eq!(entry(&top.join("link/x")).expect("absolute"), top.join("real/x"));
        assert_eq!(entry(&top.join("none/x")).expect("absolute"), top.join("none/x"));
    }
}
