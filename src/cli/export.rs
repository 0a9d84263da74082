//! `export`: writes down what is committed, as plain files in a directory of their own. The mount's daemon gives it, or, where none runs, the store.
//!
//! Every file's content is hashed as it is written. Nothing is written over, and nothing outside of the directory: names are checked, files are made
//! anew, and what a link points to is never looked at. No setuid or setgid bit is set by what came from other machines.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use fs_err as fs;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use serde_json::Value;

use super::{
    args::{Cli, ExportArgs},
    bar::Bar,
    failure::{Failure, Outcome},
    load_config, print, remote,
    say::talk,
};
use crate::{
    client::{
        self, Client,
        export::{Exporter, Piece},
    },
    config::Config,
    control::{self, ControlError, RawPath, Request, Told},
    daemon,
    ids::{HostUuid, RelPath},
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
    let config = load_config(cli)?;
    let paths = remote::raws(&args.paths)?;
    let incarnation = args.incarnation.map(|number| number as usize);
    let mut sink = Sink::new(cli, args.to.clone());
    let request = Request::Export { paths: paths.clone(), incarnation };
    match control::hear(&config.control_socket(), &request, |told| _ = sink.told(told)) {
        Err(ControlError::NotRunning { .. } | ControlError::NotAllowed { .. }) => {
            alone(&config, &paths, incarnation, &mut sink)?
        }
        asked => _ = asked.map_err(Failure::from_control)?,
    }
    let (files, bytes) = sink.finish()?;
    if !cli.quiet {
        talk!("{files} files, {}, in {}", print::bytes(bytes), args.to.display());
    }
    Ok(0)
}

/// Without a mount: by a connection to the store of its own, and a replica that goes with the command.
fn alone(
    config: &Config,
    paths: &[RawPath],
    incarnation: Option<usize>,
    sink: &mut Sink,
) -> Result<(), Failure> {
    let target = client::target_of_command(config, remote::serve_words(config)?).ok_or_else(|| {
        Failure::new(
            "nothing is mounted here, results_host is localhost or blank, and there is no store here",
        )
        .hint("what is only on this host is in its spool, as plain files")
    })?;
    let paths = paths.iter().map(|path| from_the_top(config, path)).collect::<Result<Vec<_>, _>>()?;
    let scratch =
        Scratch::new().map_err(|e| Failure::new(format!("can't make a temporary directory: {e}")))?;
    let runtime =
        tokio::runtime::Runtime::new().map_err(|e| Failure::new(format!("can't start the runtime: {e}")))?;
    let entered = runtime.enter();
    let name = format!("{}+export-{}", config.host_name, std::process::id());
    let client = Client::start(&scratch.0, target, name, config.fingerprint()).map_err(Failure::new)?;
    let welcome = runtime.block_on(client.ready()).map_err(Failure::new)?;
    drop(entered);
    let exporter = Exporter {
        journal: client.journal.clone(),
        view: client.view.clone(),
        cache: client.cache.clone(),
        params: welcome.params,
    };
    let rules = daemon::layout_rules(config);
    let wanted: Vec<_> = paths.iter().map(|path| (path.clone(), exporter.unit_of(path, &rules))).collect();
    let told = exporter.run(&wanted, incarnation, &mut |piece| sink.piece(piece));
    drop(client);
    runtime.shutdown_background();
    told.map_err(|refused| {
        let failure = Failure::new(refused.message);
        match refused.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

/// Nothing is mounted: a path is one where the tree would be, or from its top.
fn from_the_top(config: &Config, raw: &RawPath) -> Result<RelPath, Failure> {
    let absolute = Path::new(OsStr::from_bytes(&raw.absolute));
    let places = [false, true].map(|on_results_host| config.mountpoint_default(on_results_host));
    let below = places.iter().find_map(|place| absolute.strip_prefix(place).ok());
    let given = match below {
        Some(below) => below,
        None => Path::new(OsStr::from_bytes(&raw.given)),
    };
    let given = given.strip_prefix(".").unwrap_or(given);
    let bytes = given.as_os_str().as_bytes();
    RelPath::parse(bytes.strip_suffix(b"/").unwrap_or(bytes)).map_err(|e| {
        Failure::usage(format!("{}: {e}", String::from_utf8_lossy(&raw.given)))
            .hint("no daemon is running: give a path from the top of the results tree; `.` is all of it")
    })
}

/// A directory of the command's own, for as long as it runs.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("resultsfs-export-{}", HostUuid::random()));
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Takes what is told, until something can't be written.
struct Sink {
    writing: Writing,
    failed: Option<io::Error>,
    bar: Bar,
    total_bytes: u64,
    taken_bytes: u64,
}

impl Sink {
    fn new(cli: &Cli, to: PathBuf) -> Self {
        let (failed, bar) = (None, Bar::new(cli));
        Self { writing: Writing::new(to), failed, bar, total_bytes: 0, taken_bytes: 0 }
    }

    /// A part of the daemon's answer.
    fn told(&mut self, told: Told) -> bool {
        self.piece(match told {
            Told::Bytes(bytes) => Piece::Bytes(bytes),
            Told::Item(item) => match item["total_bytes"].as_u64() {
                Some(bytes) => Piece::Total(bytes),
                None => Piece::Entry(item),
            },
        })
    }

    /// Whether to go on.
    fn piece(&mut self, piece: Piece) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let taken = match piece {
            Piece::Total(bytes) => {
                self.total_bytes = bytes;
                Ok(())
            }
            Piece::Entry(entry) => self.writing.entry(&entry),
            Piece::Bytes(bytes) => {
                self.taken_bytes += bytes.len() as u64;
                self.writing.bytes(&bytes)
            }
        };
        self.failed = taken.err();
        let (done, total) = (self.taken_bytes, self.total_bytes);
        self.bar.show_bytes(done, total, || format!("{} files", self.writing.files));
        self.failed.is_none()
    }

    /// How many files and bytes there are now.
    fn finish(mut self) -> Result<(u64, u64), Failure> {
        self.bar.clear();
        let finished = match self.failed.take() {
            Some(error) => Err(error),
            None => self.writing.finish(),
        };
        let Writing { to, files, taken, .. } = &self.writing;
        finished.map_err(|e| Failure::new(format!("{e}; what is in {} isn't whole", to.display())))?;
        Ok((*files, *taken))
    }
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
    /// Bytes in them.
    taken: u64,
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
        Self { to, open: None, written: HashMap::new(), dirs: Vec::new(), files: 0, taken: 0 }
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let open = self.open.as_mut().ok_or_else(|| wrong("bytes of no file"))?;
        open.hasher.update(bytes);
        open.bytes += bytes.len() as u64;
        open.file.write_all(bytes).map_err(|e| io::Error::other(format!("{}: {e}", open.place.display())))
    }

    fn entry(&mut self, entry: &Value) -> io::Result<()> {
        self.close()?;
        self.begin(entry)
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
        self.taken += open.bytes;
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
