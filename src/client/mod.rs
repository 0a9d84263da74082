//! A host without a mount: a connection to the store, a replica of its catalog and a view of what is committed. `import` and `export` work with one.
//!
//! It has a directory of its own, with an identity and the replica, and keeps no records. Invariant: once [`Client::ready`] has returned, the replica
//! has all that was in the catalog when the session began.

pub mod export;
mod seams;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::timeout,
};

pub use self::seams::{LinkSource, hello};
use crate::{
    cache::Cache,
    catalog::Head,
    clock::SystemClock,
    config::{Config, ResultsHost},
    durable::{Disk, LockMode, RealDisk},
    fs::view::View,
    ids::{Seq, StoreUuid},
    journal::{Journal, JournalError},
    transport::Target,
    wire::{
        RefusalCode, Welcome,
        link::{Link, LinkError, LinkEvent},
    },
};

/// Blocks kept on disk: manifests that are looked into, and files on their way.
const CACHE_BYTES: u64 = 256 << 20;
/// How long the store may take to answer, from the first attempt on.
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);
/// How long the catalog may stand still while it is followed.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(120);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("can't open the cache {}: {source}", path.display())]
    Cache { path: PathBuf, source: io::Error },
    #[error("the store can't be reached: {0}")]
    Unreachable(String),
    /// It can be reached, and said no.
    #[error("the store refused the connection: {0}")]
    Refused(String),
    #[error("the catalog doesn't come: {0}")]
    NotFollowed(String),
}

/// See the module.
pub struct Client {
    pub journal: Arc<Journal>,
    pub cache: Arc<Cache>,
    pub view: Arc<View>,
    pub link: Link,
    state: watch::Receiver<State>,
}

/// Where following stands.
#[derive(Clone, Debug, Default)]
struct State {
    /// Up to where the catalog went when the session began.
    goal: Option<Seq>,
    at: Seq,
    refused: Option<String>,
}

impl State {
    fn is_followed(&self) -> bool {
        self.goal.is_some_and(|goal| self.at >= goal)
    }
}

impl Client {
    /// Opens the directory, under its lock, and begins to connect as `name`. On a runtime.
    pub fn start(
        dir: &Path,
        target: Target,
        name: String,
        settings: Vec<String>,
    ) -> Result<Self, ClientError> {
        let journal = Journal::open_bare(dir, Arc::new(SystemClock))?;
        let path = dir.join("cache");
        let cache = Cache::open(&path, CACHE_BYTES).map_err(|source| ClientError::Cache { path, source })?;
        let (sender, events) = mpsc::unbounded_channel();
        let link = Link::start(target, hello(journal.clone(), name, settings), sender);
        cache.set_source(Arc::new(LinkSource::new(link.clone(), Handle::current())));
        let view = Arc::new(View::new(journal.clone(), cache.clone()));
        let (told, state) = watch::channel(State::default());
        let follower = Follower { journal: journal.clone(), link: link.clone(), store: None, told };
        tokio::spawn(follower.run(events));
        Ok(Self { journal, cache, view, link, state })
    }

    /// Waits until the store has answered and the replica has come up to its catalog.
    pub async fn ready(&self) -> Result<Welcome, ClientError> {
        let mut state = self.state.clone();
        let answered = state.wait_for(|s| s.goal.is_some() || s.refused.is_some());
        match timeout(ANSWERS_WITHIN, answered).await.ok().and_then(Result::ok).map(|s| s.refused.clone()) {
            Some(None) => {}
            Some(Some(why)) => return Err(ClientError::Refused(why)),
            None => return Err(ClientError::Unreachable(self.why_not())),
        }
        while !state.borrow_and_update().is_followed() {
            if timeout(FOLLOWS_WITHIN, state.changed()).await.is_err() {
                return Err(ClientError::NotFollowed(self.why_not()));
            }
        }
        self.welcome().await
    }

    /// Waits for a session, if there is none now.
    pub async fn welcome(&self) -> Result<Welcome, ClientError> {
        self.link.wait_up(ANSWERS_WITHIN).await.map_err(|e| match e {
            LinkError::NotConnected(why) => ClientError::Unreachable(why),
            other => ClientError::Unreachable(other.to_string()),
        })
    }

    fn why_not(&self) -> String {
        self.link.status().last_error.unwrap_or_else(|| "it doesn't answer".to_owned())
    }
}

impl Drop for Client {
    /// The follower has a clone of the link, which would keep it up.
    fn drop(&mut self) {
        self.link.stop();
    }
}

struct Follower {
    journal: Arc<Journal>,
    link: Link,
    store: Option<StoreUuid>,
    told: watch::Sender<State>,
}

impl Follower {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<LinkEvent>) {
        while let Some(event) = events.recv().await {
            if let Err(error) = self.take(event) {
                tracing::warn!("the catalog can't be followed: {error}");
            }
            let at = self.journal.head().filter(|(store, _)| Some(*store) == self.store);
            self.told.send_modify(|state| state.at = at.map_or(Seq::default(), |(_, head)| head.seq));
        }
    }

    fn take(&mut self, event: LinkEvent) -> Result<(), JournalError> {
        match event {
            LinkEvent::Up(welcome) => {
                self.store = Some(welcome.store);
                match self.journal.head() {
                    Some((store, head)) if store == welcome.store => self.link.follow(head),
                    _ => self.begin_anew(welcome.store)?,
                }
                self.told.send_modify(|state| state.goal = Some(welcome.head.seq));
            }
            LinkEvent::Records(records) => {
                let Some(store) = self.store else { return Ok(()) };
                if let Err(error) = self.journal.follow(store, &records) {
                    tracing::warn!("records don't follow the replica ({error}); it begins anew");
                    self.begin_anew(store)?;
                }
            }
            LinkEvent::Resync(_) => {
                if let Some(store) = self.store {
                    self.begin_anew(store)?;
                }
            }
            LinkEvent::Down { reason, refused: Some(RefusalCode::Identity | RefusalCode::Version) } => {
                self.told.send_modify(|state| state.refused = Some(reason));
            }
            LinkEvent::Snapshots(_) | LinkEvent::Lost(_) | LinkEvent::Down { .. } => {}
        }
        Ok(())
    }

    fn begin_anew(&self, store: StoreUuid) -> Result<(), JournalError> {
        self.journal.reset_replica(store)?;
        self.link.follow(Head::genesis(store));
        Ok(())
    }
}

/// Where a host's layers go: nowhere, or to the results host: without ssh whenever its store is served on this machine.
pub fn target(config: &Config) -> Option<Target> {
    let ResultsHost::Host { host, user } = &config.results_host else { return None };
    let by_ssh = Target::Ssh {
        command: config.ssh_command.clone(),
        user: user.clone(),
        host: host.clone(),
        remote_command: config.remote_command.clone(),
    };
    Some(Target::UnixOr(config.serve_socket.clone(), Box::new(by_ssh)))
}

/// The same for a command, which may run on a results host where nobody has the store open: then `serve`, the words of a command, opens it.
pub fn target_of_command(config: &Config, serve: Vec<String>) -> Option<Target> {
    let is_idle = is_idle(&config.store_dir);
    match target(config) {
        Some(Target::UnixOr(socket, _)) if is_idle => {
            Some(Target::UnixOr(socket, Box::new(Target::Command(serve))))
        }
        None if config.store_dir.join("catalog").exists() => {
            Some(Target::UnixOr(config.serve_socket.clone(), Box::new(Target::Command(serve))))
        }
        other => other,
    }
}

/// Whether there is a store that nobody has open.
fn is_idle(store: &Path) -> bool {
    store.join("catalog").exists()
        && RealDisk.lock(&store.join("lock"), LockMode::Shared).is_ok_and(|lock| lock.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(store: &Path, host: &str) -> Config {
        let text = format!("[RESULTSFS]\nresults_host: {host}\nstore_dir: {}\n", store.display());
        Config::from_text(&text, "drone1").expect("a good configuration")
    }

    fn told(store: &Path, host: &str) -> String {
        let target = target_of_command(&config(store, host), vec!["serve".into(), "--stdio".into()]);
        target.map_or_else(|| "none".to_owned(), |target| target.to_string())
    }

    /// Only a store that lies here and that nobody has open is opened by the command itself.
    #[test]
    fn a_command_opens_the_store_where_nobody_else_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = dir.path().join("store");
        assert_eq!((told(&store, "dumpster"), told(&store, "")), ("dumpster".into(), "none".into()));
        fs_err::create_dir(&store).expect("made");
        fs_err::write(store.join("catalog"), "").expect("written");
        fs_err::write(store.join("lock"), "").expect("written");
        assert_eq!(told(&store, "dumpster"), "serve --stdio");
        assert_eq!(told(&store, "localhost"), "serve --stdio");
        let held = RealDisk.lock(&store.join("lock"), LockMode::Exclusive).expect("locks");
        assert!(held.is_some());
        assert_eq!(told(&store, "dumpster"), "dumpster");
    }
}
