//! `export`: writes down what the daemon gives of the store, as plain files in a directory of their own.
//!
//! Every file's content is hashed as it is written. Nothing is written over, and nothing outside of the directory: names are checked, files are made
//! anew, and what a link points to is never looked at. No setuid or setgid bit is set by what came from other machines.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use fs_err as fs;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use serde_json::Value;

use super::{
    args::{Cli, ExportArgs},
    failure::{Failure, Outcome},
    remote,
    say::talk,
};
use crate::{
    control::{self, Request},
    ids::RelPath,
    offload::{group_id, user_id},
};

/// `export PATH… --to DIR`.
pub fn export(cli: &Cli, args: &ExportArgs) -> Outcome {
    let to = |e: io::Error| Failure::new(format!("{}: {e}", args.to.display()));
    fs::create_dir_all(&args.to).map_err(to)?;
    if fs::read_dir(&args.to).map_err(to)?.next().is_some() {
        let message = format!("{} isn't empty, and nothing is written over", args.to.display());
        return Err(Failure::new(message).hint("name a new directory"));
    }
    let paths = remote::raws(&args.paths)?;
    let incarnation = args.incarnation.map(|number| number as usize);
    let mut writing = Writing::new(args.to.clone());
    let mut failed = None;
    let code = remote::ask(cli, &Request::Export { paths, incarnation }, |item| {
        if failed.is_none() {
            failed = writing.take(&item).err();
        }
    })?;
    let finished = match failed {
        Some(error) => Err(error),
        None => writing.finish(),
    };
    finished.map_err(|e| Failure::new(format!("{e}; what is in {} isn't whole", args.to.display())))?;
    let (files, bytes) = (writing.files, super::print::bytes(writing.bytes));
    if !cli.quiet {
        talk!("{files} files, {bytes}, in {}", args.to.display());
    }
    Ok(code)
}

/// Where it stands.
struct Writing {
    to: PathBuf,
    open: Option<Open>,
    /// Contents of files that are written, for other names of them.
    written: HashMap<Vec<u8>, String>,
    /// Directories get their times last, when nothing is made in them any more.
    dirs: Vec<(PathBuf, Value)>,
    files: u64,
    bytes: u64,
}

/// A file whose bytes are coming.
struct Open {
    place: PathBuf,
    file: std::fs::File,
    hasher: blake3::Hasher,
    bytes: u64,
    entry: Value,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn bytes_in(entry: &Value, key: &str) -> Option<Vec<u8>> {
    let byte = |value: &Value| u8::try_from(value.as_u64()?).ok();
    entry[key].as_array()?.iter().map(byte).collect()
}

impl Writing {
    fn new(to: PathBuf) -> Self {
        Self { to, open: None, written: HashMap::new(), dirs: Vec::new(), files: 0, bytes: 0 }
    }

    fn take(&mut self, item: &Value) -> io::Result<()> {
        if item.get("bytes").is_none() {
            self.close()?;
            return self.begin(item);
        }
        let bytes = control::bytes_of(item);
        let open = self.open.as_mut().ok_or_else(|| wrong("bytes of no file"))?;
        open.hasher.update(&bytes);
        open.bytes += bytes.len() as u64;
        open.file.write_all(&bytes).map_err(|e| io::Error::other(format!("{}: {e}", open.place.display())))
    }

    fn begin(&mut self, entry: &Value) -> io::Result<()> {
        let path = bytes_in(entry, "entry").ok_or_else(|| wrong("an entry without a path"))?;
        let path = RelPath::parse(path).map_err(|e| wrong(e.to_string()))?;
        let place = path.under(&self.to);
        if let Some(above) = place.parent() {
            fs::create_dir_all(above)?;
        }
        match entry["is"].as_str() {
            Some("directory") => {
                match fs::create_dir(&place) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists && place.is_dir() => {}
                    made => made?,
                }
                self.dirs.push((place, entry.clone()));
                Ok(())
            }
            Some("file") => self.begin_file(&path, place, entry),
            Some("link") => {
                let target = bytes_in(entry, "target").ok_or_else(|| wrong("a link without a target"))?;
                symlink(OsStr::from_bytes(&target), &place)?;
                dress(&place, entry, false)
            }
            Some("pipe") => {
                rustix::fs::mknodat(CWD, &place, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                dress(&place, entry, true)
            }
            _ => Ok(()),
        }
    }

    fn begin_file(&mut self, path: &RelPath, place: PathBuf, entry: &Value) -> io::Result<()> {
        let content = entry["content"].as_str().unwrap_or_default().to_owned();
        self.files += 1;
        let same = bytes_in(entry, "same_as").filter(|same| self.written.get(same) == Some(&content));
        let file = match same.and_then(|same| RelPath::parse(same).ok()) {
            // Its bytes come all the same, and are checked; they are where they belong.
            Some(same) => {
                fs::hard_link(same.under(&self.to), &place)?;
                std::fs::File::options().write(true).open("/dev/null")?
            }
            None => std::fs::File::options().write(true).create_new(true).mode(0o600).open(&place)?,
        };
        self.written.insert(path.as_bytes().to_vec(), content);
        let (hasher, bytes) = (blake3::Hasher::new(), 0);
        self.open = Some(Open { place, file, hasher, bytes, entry: entry.clone() });
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let content = open.hasher.finalize().to_string();
        if Some(open.bytes) != open.entry["size"].as_u64()
            || Some(&*content) != open.entry["content"].as_str()
        {
            return Err(wrong(format!("{}: isn't what was committed", open.place.display())));
        }
        self.bytes += open.bytes;
        dress(&open.place, &open.entry, true)
    }

    /// Times of directories, and everything on the disk.
    fn finish(&mut self) -> io::Result<()> {
        self.close()?;
        for (place, entry) in self.dirs.iter().rev() {
            dress(place, entry, true)?;
        }
        Ok(rustix::fs::syncfs(fs::File::open(&self.to)?)?)
    }
}

/// Owner, mode and time. Who isn't root keeps what is its own.
fn dress(place: &Path, entry: &Value, has_mode: bool) -> io::Result<()> {
    let number = |key: &str| u32::try_from(entry[key].as_u64().unwrap_or(0)).unwrap_or(0);
    if rustix::process::geteuid().is_root() {
        let user = entry["user"].as_str().and_then(user_id).unwrap_or_else(|| number("uid"));
        let group = entry["group"].as_str().and_then(group_id).unwrap_or_else(|| number("gid"));
        std::os::unix::fs::lchown(place, Some(user), Some(group))?;
    }
    if has_mode {
        fs::set_permissions(place, std::fs::Permissions::from_mode(number("mode") & 0o1777))?;
    }
    let time = Timespec {
        tv_sec: entry["secs"].as_i64().unwrap_or(0),
        tv_nsec: entry["nanos"].as_i64().unwrap_or(0),
    };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, place, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
