//! Putting a host's parts together: a new mount, or one that is taken over.

use std::{path::Path, sync::Arc};

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    DaemonError, DaemonOptions, Host, adopt, check_spool, engine_settings,
    holder::{Holder, Left, Word},
    layout_rules,
    probe::Trouble,
    shown::Shown,
    source, start_link, tmp_dir,
};
use crate::{
    cache::Cache,
    clock::SystemClock,
    config::Config,
    fs::{
        Fs, FsParts,
        ledger::{Keep, Origin},
        view::View,
    },
    fuse::{self, MountOptions, Mounted, Notices},
    journal::Journal,
    offload::{CachedContents, Engine, EngineParts, OnEvicted, Uplink},
    spool::{Spool, activity::Activity},
    wire::link::LinkEvent,
};

/// A mount that answers, and what of it outlives this process.
struct Begun {
    fs: Arc<Fs>,
    mounted: Mounted,
    keep: Option<Keep>,
}

pub(super) fn start(
    options: DaemonOptions,
) -> Result<(Arc<Host>, Mounted, mpsc::UnboundedReceiver<LinkEvent>), DaemonError> {
    let DaemonOptions { config, mountpoint, read_only, passthrough, adopt, held_by } = options;
    let (holder, left) =
        Holder::open(held_by).map_err(|source| DaemonError::Io { what: "who keeps the mount", source })?;
    match check_spool(&config) {
        // Whoever has a mount keeps it.
        Err(error) if left.is_some() => tracing::error!("{error}: {}", error.hint().unwrap_or_default()),
        checked => checked?,
    }
    let clock = Arc::new(SystemClock);
    let journal = Journal::open(&config.state_dir, clock.clone())?;
    if adopt && left.is_none() {
        let adopted = adopt::adopt(&mountpoint, &config.spool_dir)?;
        info!("{adopted} entries of {} are now in the spool", mountpoint.display());
    }
    let spool = Spool::open(&config.spool_dir)?;
    let cache = open_cache(&config)?;
    let view = Arc::new(View::new(journal.clone(), cache.clone()));
    let (activity, touched) = Activity::new();
    let rules = layout_rules(&config);
    let (link, events) = start_link(&config, &journal, &cache);
    let parts = |keep: Option<Keep>| FsParts {
        spool: spool.clone(),
        activity: activity.clone(),
        journal: journal.clone(),
        view: view.clone(),
        cache: cache.clone(),
        rules: rules.clone(),
        tmp_dir: tmp_dir(&config),
        keep,
    };
    let mount_options = MountOptions {
        allow_other: rustix::process::geteuid().is_root(),
        read_only,
        fs_name: source(&config),
        passthrough,
        ..MountOptions::default()
    };
    let Begun { fs, mounted, keep } = begin(&holder, left, &parts, &mountpoint, &mount_options)?;
    let engine = Engine::start(EngineParts {
        journal: journal.clone(),
        activity: activity.clone(),
        touched,
        spool: spool.clone(),
        link: link.clone().map(|link| Arc::new(link) as Arc<dyn Uplink>),
        contents: Arc::new(CachedContents::new(cache.clone(), link.clone())),
        clock,
        on_evicted: tell_of_freed(fs.clone(), journal.clone(), mounted.notifier()),
        settings: engine_settings(&config, &rules),
    });
    let engine = engine.inspect_err(|_| drop(mounted.unmount(true)))?;
    let host = Host {
        config,
        mountpoint,
        journal,
        spool,
        activity,
        cache,
        view,
        fs,
        rules,
        link,
        engine,
        holder,
        keep,
        shown: Shown::default(),
        spool_trouble: Trouble::default(),
    };
    Ok((Arc::new(host), mounted, events))
}

fn open_cache(config: &Config) -> Result<Arc<Cache>, DaemonError> {
    let path = config.cache_dir();
    Cache::open(&path, config.cache_max_mib << 20).map_err(|source| DaemonError::Path {
        what: "can't open the cache",
        path,
        source,
    })
}

/// What becomes of the names of a unit whose files have left the spool.
fn tell_of_freed(fs: Arc<Fs>, journal: Arc<Journal>, notices: Notices) -> OnEvicted {
    Box::new(move |unit| {
        // Forgotten by the journal: it was of an earlier life.
        let is_retired = journal.get(unit).is_none();
        let known = if is_retired { fs.retired(unit) } else { fs.evicted(std::slice::from_ref(unit)) };
        notices.tell(known);
    })
}

/// Takes over what is left, or, where nothing is or that can't be, mounts.
fn begin(
    holder: &Holder,
    left: Option<Left>,
    parts: &dyn Fn(Option<Keep>) -> FsParts,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Begun, DaemonError> {
    if let Some(left) = left {
        if is_unmounted(&left, mountpoint) {
            // By somebody who didn't wait for the next daemon: there is to be none.
            holder.say(&Word::Ended);
            return Err(fuse::MountError::Over(mountpoint.to_owned()).into());
        }
        match inherit(left, parts, mountpoint) {
            Ok((fs, device, keep)) => {
                let mounted = fuse::take_over(fs.clone(), device, &keep.origin(), mountpoint, options)?;
                mounted.serve()?;
                let (times, open) = (keep.takeovers(), fs.counts().1);
                info!(
                    "took over the mount at {} with {open} open files (time {times})",
                    mountpoint.display()
                );
                return Ok(Begun { fs, mounted, keep: Some(keep) });
            }
            Err(why) => {
                warn!("the mount at {} can't be taken over: {why}; it is made anew", mountpoint.display());
                holder.drop_kept();
            }
        }
    }
    mount(holder, parts, mountpoint, options)
}

/// Whether the mount that was left is no more, though its session may still live for who has files open.
fn is_unmounted(left: &Left, mountpoint: &Path) -> bool {
    let origin = left.state.try_clone().ok().and_then(|state| Keep::inherit(state).ok()).map(|k| k.origin());
    origin.is_some_and(|origin| !fuse::is_mounted(mountpoint, origin.device))
}

type Inherited = (Arc<Fs>, std::os::fd::OwnedFd, Keep);

fn inherit(
    Left { device, state }: Left,
    parts: &dyn Fn(Option<Keep>) -> FsParts,
    mountpoint: &Path,
) -> Result<Inherited, String> {
    let keep = Keep::inherit(state).map_err(|e| e.to_string());
    let inherited = keep.and_then(|keep| {
        if !fuse::is_live(&device) {
            return Err("the kernel has given it up".to_owned());
        }
        let parts = parts(Some(keep.clone()));
        if !parts.spool.uses_handles() {
            return Err("the spool's files can't be opened by their handles any more".to_owned());
        }
        Ok((Fs::take_over(parts).map_err(|e| e.to_string())?, keep))
    });
    match inherited {
        Ok((fs, keep)) => Ok((fs, device, keep)),
        Err(why) => {
            // Who waits for an answer fails now; others hold descriptors, too.
            fuse::abort_at(mountpoint);
            Err(why)
        }
    }
}

fn mount(
    holder: &Holder,
    parts: &dyn Fn(Option<Keep>) -> FsParts,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Begun, DaemonError> {
    let fs_error = |e: String| DaemonError::Fs(e);
    let first = parts(None);
    // Without file handles the spool's inodes are descriptors, which die with the process.
    let can_be_kept = holder.by() != super::HeldBy::Nobody && first.spool.uses_handles();
    let keep = if can_be_kept { Some(Keep::new().map_err(|e| fs_error(e.to_string()))?) } else { None };
    let spool = first.spool.root_inode().map_err(|e| fs_error(e.to_string()))?.key();
    let fs = Fs::new(FsParts { keep: keep.clone(), ..first }).map_err(|e| fs_error(e.to_string()))?;
    let mounted = fuse::prepare(fs.clone(), mountpoint, options)?;
    if let Some(keep) = &keep
        && mounted.can_be_taken_over()
    {
        let (capabilities, device) = (mounted.capabilities(), mounted.device());
        keep.set_origin(&Origin { capabilities, device, spool });
        if let Err(e) = holder.keep(mounted.descriptor(), device, keep.descriptor()) {
            warn!("nobody keeps the mount: {e}");
        }
    }
    mounted.serve()?;
    Ok(Begun { fs, mounted, keep })
}
