//! Everything at once: jobs on many drones, and every few hundred milliseconds something is killed, stopped or cut, as the seed says.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rustix::process::{Signal, kill_process};

use crate::{
    harness::{Lab, Machine, Random, noise, processes_with, text, wait_for},
    witness::{Witness, rounds, unit_of},
};

const PATIENCE: Duration = Duration::from_secs(120);
/// `RESULTSFS_FAULTS=20` makes it 1,000 jobs on 20 drones.
const JOBS: u64 = 50;
const DRONES: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The daemon of a mount; its supervisor starts the next.
    Daemon,
    /// With its supervisor: the mount is dead, and made again.
    Mount,
    /// The store's daemon, and started again after a moment.
    Serve,
    /// A drone's ssh.
    Ssh,
    /// sshd's end of somebody's session.
    Session,
    /// The store's daemon stands still for a moment.
    Still,
    /// Store and a mount's daemon at once.
    Both,
    /// Garbage is collected meanwhile.
    Collect,
    /// A drone is told to free what is committed.
    Evict,
}

const FAULTS: [Fault; 9] = [
    Fault::Daemon,
    Fault::Mount,
    Fault::Serve,
    Fault::Ssh,
    Fault::Session,
    Fault::Still,
    Fault::Both,
    Fault::Collect,
    Fault::Evict,
];

fn kill(words: &[&str]) -> usize {
    let found = processes_with(words);
    found.iter().filter(|pid| kill_process(**pid, Signal::KILL).is_ok()).count()
}

/// A drone with its jobs, and whether its mount may be dead just now.
struct Drone {
    machine: Machine,
    jobs: Vec<u32>,
    is_dead: AtomicBool,
    deaths: AtomicUsize,
}

impl Drone {
    /// Plays all jobs, and now and then writes a late file into one that may be committed or evicted by then. What the mount's death cut off is done
    /// again, as a site would.
    fn work(&self, seed: u64) -> Witness {
        let (mut late, mut random) = (Witness::default(), Random(seed ^ u64::from(self.jobs[0])));
        for (number, job) in self.jobs.iter().enumerate() {
            self.persist(|| {
                let _ = fs::remove_dir_all(self.machine.mount.join(unit_of(*job)));
                Witness::default().job(&self.machine.mount, *job, seed)
            });
            thread::sleep(Duration::from_millis(random.below(300)));
            let earlier = self.jobs[random.below(number as u64 + 1) as usize];
            let (name, content) =
                (format!("{}/late {number}", unit_of(earlier)), noise(&format!("{seed} late {job}"), 3_000));
            if random.below(3) == 0 {
                self.persist(|| late.write_synced(&self.machine.mount, &name, &content));
            }
        }
        late
    }

    /// Until it is done. It may fail only where the mount was dead meanwhile.
    fn persist(&self, mut deed: impl FnMut() -> std::io::Result<()>) {
        loop {
            let deaths = self.deaths.load(Ordering::SeqCst);
            let Err(e) = deed() else { return };
            let was_dead = self.is_dead.load(Ordering::SeqCst) || self.deaths.load(Ordering::SeqCst) > deaths;
            assert!(was_dead, "on {}: {e}, and its mount was alive", self.machine.name);
            wait_for("the mount", PATIENCE, || !self.is_dead.load(Ordering::SeqCst));
        }
    }

    fn kill_daemon(&self) {
        kill(&[self.machine.mount.to_str().expect("a name in ASCII"), "--background-child"]);
    }
}

fn strike(lab: &mut Lab, drones: &[Drone], fault: Fault, random: &mut Random) {
    let drone = &drones[random.below(drones.len() as u64) as usize];
    let mount = drone.machine.mount.to_str().expect("a name in ASCII").to_owned();
    let name = format!("{}/", lab.path().display());
    match fault {
        Fault::Daemon => drone.kill_daemon(),
        Fault::Mount => {
            drone.is_dead.store(true, Ordering::SeqCst);
            drone.deaths.fetch_add(1, Ordering::SeqCst);
            kill(&[&mount]);
            wait_for("its processes to be gone", PATIENCE, || kill(&[&mount]) == 0);
            lab.mount(&drone.machine);
            drone.is_dead.store(false, Ordering::SeqCst);
        }
        Fault::Serve | Fault::Both => {
            lab.kill_serve();
            if fault == Fault::Both {
                drone.kill_daemon();
            }
            kill(&[&name, "serve", "--stdio"]);
            thread::sleep(Duration::from_millis(random.below(300)));
            // Sessions that came meanwhile have the store, and hand it over.
            lab.start_serve();
        }
        Fault::Ssh => _ = kill(&["ssh", "-F", &name]),
        Fault::Session => _ = kill(&[&name, "serve", "--stdio"]),
        Fault::Still => {
            let _ = kill_process(lab.serve_pid(), Signal::STOP);
            thread::sleep(Duration::from_millis(random.below(1500)));
            let _ = kill_process(lab.serve_pid(), Signal::CONT);
        }
        Fault::Collect => _ = lab.machine("results").run(["gc"]),
        Fault::Evict => {
            let jobs: Vec<String> = drone.jobs.iter().map(|job| unit_of(*job)).collect();
            drone.machine.run(["evict".to_owned()].into_iter().chain(jobs));
        }
    }
}

/// Jobs on several drones, and faults at random for the whole time: everything arrives, once, as it was.
#[test]
fn everything_arrives_once_whatever_happens() {
    let seed = std::env::var("RESULTSFS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(11);
    let (jobs, count) = (rounds(JOBS), rounds(DRONES).min(20));
    let mut lab = Lab::with_store(Duration::from_secs(rounds(240)), "pack_bytes=4000000,lease_ms=2000");
    let drones: Vec<Drone> = (0..count)
        .map(|number| Drone {
            machine: lab.machine(&format!("drone{number}")),
            jobs: (1..=jobs as u32).filter(|job| u64::from(*job) % count == number).collect(),
            is_dead: AtomicBool::default(),
            deaths: AtomicUsize::default(),
        })
        .collect();
    drones.iter().for_each(|drone| lab.mount(&drone.machine));
    let mut random = Random(seed);
    let mut struck = Vec::new();
    let late: Vec<Witness> = thread::scope(|scope| {
        let workers: Vec<_> = drones.iter().map(|drone| scope.spawn(|| drone.work(seed))).collect();
        // A round over all faults, and then as long as anybody works or nothing much has been committed.
        while struck.len() < FAULTS.len() * 2 + jobs as usize / 10
            || workers.iter().any(|worker| !worker.is_finished())
        {
            let fault = match struck.len() {
                few if few < FAULTS.len() => FAULTS[few],
                _ => FAULTS[random.below(FAULTS.len() as u64) as usize],
            };
            struck.push(fault);
            strike(&mut lab, &drones, fault, &mut random);
            thread::sleep(Duration::from_millis(random.below(400)));
        }
        workers.into_iter().map(|worker| worker.join().expect("a drone's work")).collect()
    });
    eprintln!("seed {seed}: {} faults", struck.len());

    let mut all = Witness::default();
    (1..=jobs as u32).for_each(|job| all.promise_job(job, seed));
    late.into_iter().for_each(|promised| all.add(promised));
    for drone in &drones {
        let machine = &drone.machine;
        wait_for("the daemon to answer", PATIENCE, || machine.status()["host"].is_string());
        let out = machine.run(["offload", "--wait", "--timeout", "200"]);
        assert!(out.status.success(), "seed {seed}: offload on {}: {}", machine.name, text(&out.stderr));
    }
    let (reader, results) = (lab.machine("reader"), lab.machine("results"));
    lab.mount(&reader);
    for drone in &drones {
        reader.catch_up(&drone.machine);
    }
    all.is_kept(&format!("seed {seed}: with nothing cached"), &reader);
    let rows = reader.json(["jobs"]);
    for job in 1..=jobs as u32 {
        let of_it: Vec<_> = rows.iter().filter(|row| row["unit"] == unit_of(job).as_str()).collect();
        assert!(of_it.len() == 1, "seed {seed}: job {job}: {of_it:?}");
    }
    let out = results.run(["verify", "--store", "--read-data", "--unpack"]);
    assert_eq!(out.status.code(), Some(0), "seed {seed}: {}", text(&out.stdout));
    for drone in &drones {
        // One that was struck last may be waiting before it connects again.
        drone.machine.catch_up(&reader);
        drone.machine.run(["evict", "1-me"]);
        all.is_kept(&format!("seed {seed}: in the end"), &drone.machine);
        let out = drone.machine.run(["verify", "--local", "--read-data"]);
        assert_eq!(out.status.code(), Some(0), "seed {seed}: {}: {}", drone.machine.name, text(&out.stdout));
    }
    // The sum of what was stored: what several have is there once, and so is what was sent again after a fault (but for what was under way).
    let stored: u64 = fs::read_dir(lab.store().join("packs"))
        .expect("packs")
        .flatten()
        .map(|pack| pack.metadata().expect("a pack").len())
        .sum();
    let own: u64 = (1..=jobs).map(|job| 2_000 + 37_000 * (job % 5)).sum();
    eprintln!("seed {seed}: {stored} bytes stored for {own} of the jobs' own");
    assert!(stored < own * 3 / 2 + 6_000_000, "seed {seed}: {stored} bytes stored for {own}");
}
