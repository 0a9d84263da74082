//! How many sessions there may be, of one host and of all, and who gives way.
//!
//! Every connection is accepted, and either has a place here or hears at once that there is none: nobody waits behind somebody else's. A host
//! competes with itself first. Among its sessions a newer one takes the place of the oldest that has not greeted, or of one that has been silent
//! for so long that its connection must be broken: so a host that comes back is never locked out by what is left of its own broken connections,
//! and a session that works is never ended by others of its host. Where all places are taken, whoever has the most gives one up.
//!
//! Whose a session is, is known from its key before its first byte, or else when it has greeted.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::limits::{
    FETCHES_READ, FRAMES_LARGE, SESSIONS, SESSIONS_PER_HOST, SESSIONS_UNNAMED, SILENCE_TIMEOUT_MS,
};

/// A session that has said nothing for so long has missed a ping: where its host has too many, it gives way.
const SILENT: Duration = Duration::from_millis(SILENCE_TIMEOUT_MS / 2);
/// That a host has too many sessions is logged not more often than this.
const TOLD_PAUSE: Duration = Duration::from_secs(60);

/// All places of a server.
#[derive(Debug)]
pub(super) struct Places {
    table: Arc<Mutex<Table>>,
    began: Instant,
}

/// A session's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<Mutex<Table>>,
    began: Instant,
    number: u64,
    heard_ms: Arc<AtomicU64>,
    leave: CancellationToken,
}

/// Why there is no place, or none any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Crowded {
    #[error(
        "{SESSIONS_PER_HOST} sessions of the host `{0}` are open, as many as one host may have; is something there connecting \
         again and again?"
    )]
    Host(String),
    #[error("{SESSIONS} sessions are open, as many as this store serves at once")]
    All,
    #[error("a newer session has taken the place of this one: too many were open")]
    Overtaken,
}

/// What all sessions of one host have together.
#[derive(Debug)]
pub(super) struct Share {
    /// Large blocks that may be on their way.
    pub(super) large: Arc<Semaphore>,
    /// Blocks that are read ahead for the host.
    pub(super) fetching: Arc<Semaphore>,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            large: Arc::new(Semaphore::new(FRAMES_LARGE)),
            fetching: Arc::new(Semaphore::new(FETCHES_READ)),
        }
    }
}

/// `None`: nobody's yet.
type Whose = Option<String>;

#[derive(Debug, Default)]
struct Table {
    last: u64,
    seats: BTreeMap<u64, Seat>,
    told: HashMap<String, (Instant, u64)>,
}

#[derive(Debug)]
struct Seat {
    whose: Whose,
    has_greeted: bool,
    heard_ms: Arc<AtomicU64>,
    leave: CancellationToken,
    share: Arc<Share>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { table: Arc::default(), began: Instant::now() }
    }

    /// A place for a session that has not greeted; `pinned` is the host that its key is for.
    pub(super) fn enter(&self, pinned: Option<&str>) -> Result<Place, Crowded> {
        let whose = pinned.map(host_of);
        let mut table = lock(&self.table);
        table.make_room(&whose, false, self.now_ms())?;
        table.last += 1;
        let number = table.last;
        let (heard_ms, leave) = (Arc::new(AtomicU64::new(self.now_ms())), CancellationToken::new());
        let share = table.share(&whose);
        let seat =
            Seat { whose, has_greeted: false, heard_ms: Arc::clone(&heard_ms), leave: leave.clone(), share };
        table.seats.insert(number, seat);
        Ok(Place { table: Arc::clone(&self.table), began: self.began, number, heard_ms, leave })
    }

    /// Whether it is time to log that `whom` has too many sessions; and how many were refused since that was logged last.
    pub(super) fn may_tell(&self, whom: &str) -> Option<u64> {
        let mut table = lock(&self.table);
        let now = Instant::now();
        let more = match table.told.get_mut(whom) {
            Some((at, more)) if now - *at < TOLD_PAUSE => {
                *more += 1;
                return None;
            }
            Some((_, more)) => *more,
            None => 0,
        };
        table.told.retain(|_, (at, _)| now - *at < TOLD_PAUSE);
        table.told.insert(whom.to_owned(), (now, 0));
        Some(more)
    }

    fn now_ms(&self) -> u64 {
        since_ms(self.began)
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        lock(&self.table).seats.len()
    }
}

impl Place {
    /// It has greeted as this host.
    pub(super) fn greeted(&self, name: &str) -> Result<Arc<Share>, Crowded> {
        let mut table = lock(&self.table);
        let whose = Some(host_of(name));
        let Some(seat) = table.seats.get(&self.number) else { return Err(Crowded::Overtaken) };
        if seat.whose != whose {
            table.make_room(&whose, true, since_ms(self.began))?;
        }
        let share = table.share(&whose);
        let Some(seat) = table.seats.get_mut(&self.number) else { return Err(Crowded::Overtaken) };
        (seat.whose, seat.has_greeted, seat.share) = (whose, true, Arc::clone(&share));
        Ok(share)
    }

    /// Something has come from it.
    pub(super) fn heard(&self) {
        self.heard_ms.store(since_ms(self.began), Ordering::Relaxed);
    }

    /// Waits until another session has this place.
    pub(super) async fn overtaken(&self) -> Crowded {
        self.leave.cancelled().await;
        Crowded::Overtaken
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.table).seats.remove(&self.number);
    }
}

impl Table {
    /// Makes sure that one more is in bounds; `is_in`: it has a place already and only becomes this host's.
    fn make_room(&mut self, whose: &Whose, is_in: bool, now_ms: u64) -> Result<(), Crowded> {
        if let Some(number) = self.must_go(whose, is_in, now_ms)? {
            self.end(number);
        }
        Ok(())
    }

    fn must_go(&self, whose: &Whose, is_in: bool, now_ms: u64) -> Result<Option<u64>, Crowded> {
        let own = self.count(whose);
        let bound = if whose.is_some() { SESSIONS_PER_HOST } else { SESSIONS_UNNAMED };
        if own >= bound {
            let crowded = || whose.clone().map_or(Crowded::All, Crowded::Host);
            return self.gives_way(whose, now_ms).ok_or_else(crowded).map(Some);
        }
        if is_in || self.seats.len() < SESSIONS {
            return Ok(None);
        }
        let (most, count) = self.most();
        if count <= own + 1 {
            return Err(Crowded::All);
        }
        let gives_way = self.gives_way(&most, now_ms).or_else(|| self.newest(&most));
        gives_way.ok_or(Crowded::All).map(Some)
    }

    fn count(&self, whose: &Whose) -> usize {
        self.of(whose).count()
    }

    fn of<'t>(&'t self, whose: &'t Whose) -> impl DoubleEndedIterator<Item = (u64, &'t Seat)> {
        self.seats.iter().filter(move |(_, seat)| seat.whose == *whose).map(|(number, seat)| (*number, seat))
    }

    /// Of somebody's sessions the oldest that has not greeted, else the one that has been silent longest, if that is too long.
    fn gives_way(&self, whose: &Whose, now_ms: u64) -> Option<u64> {
        let ungreeted = self.of(whose).find(|(_, seat)| !seat.has_greeted);
        ungreeted.map(|(number, _)| number).or_else(|| {
            let heard = |seat: &Seat| seat.heard_ms.load(Ordering::Relaxed);
            let (number, seat) = self.of(whose).min_by_key(|(_, seat)| heard(seat))?;
            (now_ms.saturating_sub(heard(seat)) >= SILENT.as_millis() as u64).then_some(number)
        })
    }

    fn newest(&self, whose: &Whose) -> Option<u64> {
        self.of(whose).next_back().map(|(number, _)| number)
    }

    /// Who has the most sessions, and how many.
    fn most(&self) -> (Whose, usize) {
        let mut counts: HashMap<&Whose, usize> = HashMap::new();
        self.seats.values().for_each(|seat| *counts.entry(&seat.whose).or_default() += 1);
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.map_or((None, 0), |(whose, count)| (whose.clone(), count))
    }

    fn end(&mut self, number: u64) {
        if let Some(seat) = self.seats.remove(&number) {
            seat.leave.cancel();
        }
    }

    fn share(&self, whose: &Whose) -> Arc<Share> {
        let found = whose.as_ref().and_then(|_| self.of(whose).next());
        found.map_or_else(Arc::default, |(_, seat)| Arc::clone(&seat.share))
    }
}

/// `drone1+import` is what is done on drone1 beside its mount.
fn host_of(name: &str) -> String {
    name.split('+').next().unwrap_or_default().to_owned()
}

fn since_ms(began: Instant) -> u64 {
    began.elapsed().as_millis() as u64
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(places: &Places, host: &str) -> Result<Place, Crowded> {
        let place = places.enter(Some(host))?;
        place.greeted(host)?;
        Ok(place)
    }

    fn is_over(place: &Place) -> bool {
        place.leave.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn a_hosts_sessions_are_bounded_and_others_are_let_in() {
        let places = Places::new();
        let mut own: Vec<_> =
            (0..SESSIONS_PER_HOST).map(|_| enter(&places, "drone1").expect("a place")).collect();
        for name in ["drone1", "drone1+import"] {
            assert_eq!(enter(&places, name).err(), Some(Crowded::Host("drone1".to_owned())), "{name}");
        }
        let other = enter(&places, "drone10").expect("another host");
        own.pop();
        own.push(enter(&places, "drone1").expect("there is one again"));
        assert!(own.iter().chain([&other]).all(|place| !is_over(place)));
        drop((own, other));
        assert_eq!(places.taken(), 0);
    }

    /// A host whose connections broke without a word comes back at once, whatever is left of them; what works stays.
    #[tokio::test(start_paused = true)]
    async fn a_host_is_not_locked_out_by_its_broken_connections() {
        let places = Places::new();
        let works = enter(&places, "drone1").expect("a place");
        let broken: Vec<_> =
            (1..SESSIONS_PER_HOST).map(|_| enter(&places, "drone1").expect("a place")).collect();
        tokio::time::advance(SILENT).await;
        works.heard();
        let back: Vec<_> = broken.iter().map(|_| enter(&places, "drone1").expect("comes back")).collect();
        assert!(broken.iter().all(is_over));
        assert!(!is_over(&works) && !back.iter().any(is_over));
        assert!(enter(&places, "drone1").is_err(), "all of them are alive");
        assert_eq!(places.taken(), SESSIONS_PER_HOST);
    }

    /// Who connects and says nothing ends its own kind only.
    #[tokio::test(start_paused = true)]
    async fn sessions_that_have_not_greeted_give_way_first() {
        let places = Places::new();
        let works = enter(&places, "drone1").expect("a place");
        let flood: Vec<_> =
            (0..10 * SESSIONS_PER_HOST).map(|_| places.enter(Some("drone1")).expect("a place")).collect();
        let unnamed: Vec<_> =
            (0..2 * SESSIONS_UNNAMED).map(|_| places.enter(None).expect("a place")).collect();
        assert!(!is_over(&works));
        assert_eq!(flood.iter().filter(|place| !is_over(place)).count(), SESSIONS_PER_HOST - 1);
        assert_eq!(unnamed.iter().filter(|place| !is_over(place)).count(), SESSIONS_UNNAMED);
        let lost = flood[0].greeted("drone1");
        assert_eq!(lost.err(), Some(Crowded::Overtaken));
        enter(&places, "drone2").expect("another host");
    }

    /// When all places are taken, who has the most makes room; where all have as few as the one who comes, it is told to come again.
    #[tokio::test(start_paused = true)]
    async fn whoever_has_the_most_makes_room_for_the_rest() {
        let places = Places::new();
        let greedy = SESSIONS / SESSIONS_PER_HOST;
        let hostile: Vec<_> = (0..greedy)
            .flat_map(|n| (0..SESSIONS_PER_HOST).map(move |_| format!("hostile{n}")))
            .filter_map(|name| enter(&places, &name).ok())
            .collect();
        let honest: Vec<_> =
            (0..SESSIONS / 2).map(|n| enter(&places, &format!("drone{n}")).expect("a place")).collect();
        assert_eq!(places.taken(), SESSIONS);
        assert!(!honest.iter().any(is_over));
        assert!(hostile.iter().filter(|place| !is_over(place)).count() >= SESSIONS / 2);
        drop((hostile, honest));
        let _all: Vec<_> =
            (0..SESSIONS).map(|n| enter(&places, &format!("drone{n}")).expect("a place")).collect();
        assert_eq!(enter(&places, "one more").err(), Some(Crowded::All));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_logged_once_a_minute() {
        let places = Places::new();
        let told = (0..1000).filter(|_| places.may_tell("drone1").is_some()).count();
        assert_eq!((told, places.may_tell("drone2")), (1, Some(0)));
        tokio::time::advance(TOLD_PAUSE).await;
        assert_eq!(places.may_tell("drone1"), Some(999));
    }
}
