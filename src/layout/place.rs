//! Where a path of the results tree belongs.
//!
//! | directory | units |
//! |---|---|
//! | `<digits>-<anything>/` with a pidfile directly in it when its first unit was journaled | one tree unit |
//! | `<digits>-<anything>/` otherwise | a tree unit for each directory in it; a loose unit for itself and its files |
//! | `hosts/`, `hosts/<host>/` | a loose unit each |
//! | `hosts/<host>/<digits>-<anything>/` | a tree unit |
//! | `drone_tmp/`, the names in `local_only` | local, never offloaded, never unified |
//! | anything else at the top or in `hosts/<host>/` | local, until `complete` is said of it: then a tree unit |
//!
//! What the name alone can't tell (is this job dir one unit as a whole? was `complete` said of that directory?) the
//! caller answers: it is fixed at the first journal record and must not depend on what stands in the tree just now.

use super::LayoutRules;
use crate::ids::{RelPath, UnitId};

/// Per-drone control files and command logs; removed and re-numbered at every start of the scheduler.
pub const DRONE_TMP: &str = "drone_tmp";
/// The directory of the special tasks' results.
pub const HOSTS: &str = "hosts";

/// Where a path belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The top of the results tree.
    Root,
    /// In a directory that stays on this host.
    LocalOnly,
    /// In something that isn't Autotest's; it stays on this host until `complete` is said of it.
    Unrecognised {
        /// What stays: a name at the top, or in `hosts/<host>/`.
        top: RelPath,
    },
    /// A directory that holds units, or what is directly in it and isn't a directory.
    Container {
        /// The directory's loose unit.
        unit: UnitId,
    },
    /// The root of a tree unit, or below it.
    Unit {
        /// The tree unit.
        unit: UnitId,
    },
}

impl Place {
    /// The unit that the path is an entry of, if there is one.
    pub fn unit(self) -> Option<UnitId> {
        match self {
            Self::Container { unit } | Self::Unit { unit } => Some(unit),
            Self::Root | Self::LocalOnly | Self::Unrecognised { .. } => None,
        }
    }
}

/// Where `path` belongs. `is_dir` is of the path itself, by lstat(2): a symbolic link isn't a directory.
///
/// `whole_job` says of a job dir whether it is one unit as a whole, `adopted` of an unrecognised directory whether
/// `complete` was said of it.
pub fn place(
    path: &RelPath,
    is_dir: bool,
    rules: &LayoutRules,
    whole_job: &dyn Fn(&RelPath) -> bool,
    adopted: &dyn Fn(&RelPath) -> bool,
) -> Place {
    let Some(name) = path.components().next() else {
        return Place::Root;
    };
    let top = path.first(1);
    if is_local_only(name, rules) {
        return Place::LocalOnly;
    }
    // A file at the top has no directory that could be its unit, whatever its name.
    if path == &top && !is_dir {
        return Place::Unrecognised { top };
    }
    if is_numbered(name) {
        return if whole_job(&top) { tree(top) } else { in_container(path, is_dir, top, &|_| true, adopted) };
    }
    if name == HOSTS.as_bytes() {
        return in_hosts(path, is_dir, top, adopted);
    }
    tree_or_unrecognised(top, adopted)
}

/// The unit that `path` is an entry of: [`place`], when nothing else is wanted.
pub fn unit_of(
    path: &RelPath,
    is_dir: bool,
    rules: &LayoutRules,
    whole_job: &dyn Fn(&RelPath) -> bool,
    adopted: &dyn Fn(&RelPath) -> bool,
) -> Option<UnitId> {
    place(path, is_dir, rules, whole_job, adopted).unit()
}

/// Whether `name` is `<digits>-<anything>`, as job dirs and task dirs are called. `anything` may be nothing:
/// so says ChromeOS's pattern `[0-9]*-*`, and what is taken for a job is never left behind.
pub fn is_numbered(name: &[u8]) -> bool {
    let digits = name.iter().take_while(|b| b.is_ascii_digit()).count();
    digits > 0 && name.get(digits) == Some(&b'-')
}

fn is_local_only(name: &[u8], rules: &LayoutRules) -> bool {
    name == DRONE_TMP.as_bytes() || rules.local_only.iter().any(|local| local.as_bytes() == name)
}

/// `hosts/`, each host's directory in it, and the task dirs in these.
fn in_hosts(path: &RelPath, is_dir: bool, hosts: RelPath, adopted: &dyn Fn(&RelPath) -> bool) -> Place {
    let host = path.first(2);
    if path == &hosts || (path == &host && !is_dir) {
        return Place::Container { unit: UnitId::loose(hosts) };
    }
    in_container(path, is_dir, host, &is_numbered, adopted)
}

/// `container` itself and what isn't a directory in it are loose; of the directories in it, `is_unit` says by name
/// which are units of their own.
fn in_container(
    path: &RelPath,
    is_dir: bool,
    container: RelPath,
    is_unit: &dyn Fn(&[u8]) -> bool,
    adopted: &dyn Fn(&RelPath) -> bool,
) -> Place {
    let depth = container.depth() + 1;
    let child = path.first(depth);
    match child.name() {
        _ if path == &container || (path == &child && !is_dir) => {
            Place::Container { unit: UnitId::loose(container) }
        }
        Some(name) if is_unit(name) => tree(child),
        _ => tree_or_unrecognised(child, adopted),
    }
}

fn tree(root: RelPath) -> Place {
    Place::Unit { unit: UnitId::tree(root) }
}

fn tree_or_unrecognised(top: RelPath, adopted: &dyn Fn(&RelPath) -> bool) -> Place {
    if adopted(&top) { tree(top) } else { Place::Unrecognised { top } }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the tables below say instead of a `Place`: `tree X`, `loose X`, `unrecognised X`, `local` or `root`.
    fn told(path: &str, is_dir: bool) -> String {
        let rules =
            LayoutRules { local_only: vec!["scratch".into(), "99-local".into()], ..Default::default() };
        let whole_job = |job: &RelPath| job.as_bytes() == b"7-whole";
        let adopted = |top: &RelPath| {
            [&b"results.2026"[..], b"hosts/h/manual", b"drone_tmp", b"some-file"].contains(&top.as_bytes())
        };
        let path = path.parse().expect("a path of the table");
        let place = place(&path, is_dir, &rules, &whole_job, &adopted);
        assert_eq!(unit_of(&path, is_dir, &rules, &whole_job, &adopted), place.clone().unit());
        match place {
            Place::Root => "root".into(),
            Place::LocalOnly => "local".into(),
            Place::Unrecognised { top } => format!("unrecognised {top}"),
            Place::Container { unit } => {
                assert!(unit.holds(&path), "{unit} must hold {path}");
                format!("loose {}", unit.root)
            }
            Place::Unit { unit } => {
                assert!(unit.holds(&path), "{unit} must hold {path}");
                format!("tree {}", unit.root)
            }
        }
    }

    const DIR: bool = true;
    const FILE: bool = false;

    #[test]
    fn every_path_has_its_place() {
        for (path, is_dir, expected) in [
            ("", DIR, "root"),
            // A job dir holds execution dirs, whatever they are called, and loose files.
            ("12-me", DIR, "loose 12-me"),
            ("12-me/.machines", FILE, "loose 12-me"),
            ("12-me/queue.log.3", FILE, "loose 12-me"),
            ("12-me/link-to-dir", FILE, "loose 12-me"),
            ("12-me/host1", DIR, "tree 12-me/host1"),
            ("12-me/host1/.autoserv_execute", FILE, "tree 12-me/host1"),
            ("12-me/host1/debug", DIR, "tree 12-me/host1"),
            ("12-me/host1/debug/autoserv.DEBUG", FILE, "tree 12-me/host1"),
            ("12-me/host1/12-me/x", FILE, "tree 12-me/host1"),
            ("12-me/host1:22#profile", DIR, "tree 12-me/host1:22#profile"),
            ("12-me/group0", DIR, "tree 12-me/group0"),
            ("12-me/group0/host2/status.log", FILE, "tree 12-me/group0"),
            ("12-me/_atomic_rack.group1/keyval", FILE, "tree 12-me/_atomic_rack.group1"),
            ("12-me/hostless/keyval", FILE, "tree 12-me/hostless"),
            // A job dir that is one unit as a whole.
            ("7-whole", DIR, "tree 7-whole"),
            ("7-whole/.autoserv_execute", FILE, "tree 7-whole"),
            ("7-whole/host1/debug/x", FILE, "tree 7-whole"),
            // Names of job dirs.
            ("0-a", DIR, "loose 0-a"),
            ("12-", DIR, "loose 12-"),
            ("12--", DIR, "loose 12--"),
            ("12-a b-c", DIR, "loose 12-a b-c"),
            ("123456789012345678901234567890-x/h", DIR, "tree 123456789012345678901234567890-x/h"),
            ("12", DIR, "unrecognised 12"),
            ("12/host1/x", FILE, "unrecognised 12"),
            ("-12", DIR, "unrecognised -12"),
            ("-", DIR, "unrecognised -"),
            ("x12-me", DIR, "unrecognised x12-me"),
            ("12x-me", DIR, "unrecognised 12x-me"),
            ("١٢-me", DIR, "unrecognised ١٢-me"),
            ("12-me", FILE, "unrecognised 12-me"),
            // Task dirs.
            ("hosts", DIR, "loose hosts"),
            ("hosts/note", FILE, "loose hosts"),
            ("hosts/h", DIR, "loose hosts/h"),
            ("hosts/12-h", DIR, "loose hosts/12-h"),
            ("hosts/h/note", FILE, "loose hosts/h"),
            ("hosts/h/12-verify", DIR, "tree hosts/h/12-verify"),
            ("hosts/h/12-verify/.autoserv_execute", FILE, "tree hosts/h/12-verify"),
            ("hosts/h/12-verify/debug/x", FILE, "tree hosts/h/12-verify"),
            ("hosts/h/13-cleanup", DIR, "tree hosts/h/13-cleanup"),
            ("hosts/h/14-repair", DIR, "tree hosts/h/14-repair"),
            ("hosts/h/12-verify", FILE, "loose hosts/h"),
            ("hosts/h/verify", DIR, "unrecognised hosts/h/verify"),
            ("hosts/h/12", DIR, "unrecognised hosts/h/12"),
            ("hosts/h/verify/x", FILE, "unrecognised hosts/h/verify"),
            ("hosts/h/manual", DIR, "tree hosts/h/manual"),
            ("hosts/h/manual/x/y", FILE, "tree hosts/h/manual"),
            ("hosts", FILE, "unrecognised hosts"),
            // What stays local, even if `complete` were said of it.
            ("drone_tmp", DIR, "local"),
            ("drone_tmp/attach.1", FILE, "local"),
            ("scratch/12-me/host1/x", FILE, "local"),
            ("99-local/host1", DIR, "local"),
            ("drone_tmp2", DIR, "unrecognised drone_tmp2"),
            // Anything else.
            ("default", DIR, "unrecognised default"),
            ("default/debug/x", FILE, "unrecognised default"),
            ("README", FILE, "unrecognised README"),
            ("results.2025", DIR, "unrecognised results.2025"),
            ("results.2026", DIR, "tree results.2026"),
            ("results.2026/debug/x", FILE, "tree results.2026"),
            ("some-file", FILE, "unrecognised some-file"),
        ] {
            assert_eq!(told(path, is_dir), expected, "{path} ({})", if is_dir { "dir" } else { "file" });
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_names_like_any_other() {
        let rules = LayoutRules::default();
        let path = RelPath::parse(&b"12-\xff/h\xfe/x"[..]).expect("legal bytes");
        let unit = unit_of(&path, FILE, &rules, &|_| false, &|_| false);
        assert_eq!(unit, Some(UnitId::tree(path.first(2))));
    }
}
