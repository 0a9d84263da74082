//! Networks that break: a link that is cut, a peer that falls silent, loss, a slow line, a long one, a byte that arrives as another.
//!
//! A drone's ssh runs in a network namespace of its own; everything else of the drone needs no network.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    harness::{Lab, Machine, noise, run, text, wait_for},
    witness::{Witness, unit_of},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A network of two: the results host and one drone's ssh.
struct Net {
    name: String,
    host_end: String,
    host_address: String,
}

impl Net {
    fn new(lab: &mut Lab) -> Self {
        let (port, name) = (lab.port(), format!("rfs{}", lab.port()));
        let (host_end, drone_end) = (format!("rfh{port}"), format!("rfd{port}"));
        let base = format!("10.{}.{}", port >> 8, port & 0xff);
        let net = Self { name, host_end, host_address: format!("{base}.1") };
        net.ip(&["netns", "add", &net.name]);
        net.ip(&[
            "link",
            "add",
            &net.host_end,
            "type",
            "veth",
            "peer",
            "name",
            &drone_end,
            "netns",
            &net.name,
        ]);
        net.ip(&["addr", "add", &format!("{base}.1/30"), "dev", &net.host_end]);
        net.ip(&["-n", &net.name, "addr", "add", &format!("{base}.2/30"), "dev", &drone_end]);
        net.ip(&["link", "set", &net.host_end, "up"]);
        net.ip(&["-n", &net.name, "link", "set", &drone_end, "up"]);
        lab.listen_on(&net.host_address);
        net
    }

    fn ip(&self, args: &[&str]) {
        run(Command::new("ip").args(args));
    }

    fn inside(&self, args: &[&str]) {
        run(Command::new("ip").args(["netns", "exec", &self.name]).args(args));
    }

    /// A drone that reaches the results host by this network.
    fn drone(&self, lab: &Lab, more: &str) -> Machine {
        let (name, address, port, dir) = (&self.name, &self.host_address, lab.port(), lab.path().display());
        let ssh = format!(
            "ssh_command: ip netns exec {name} ssh -F {dir}/ssh_config -o HostName={address} -o HostKeyAlias=[127.0.0.1]:{port}"
        );
        lab.machine_with("drone1", &format!("{ssh}\n{more}"))
    }

    fn cut(&self) {
        self.ip(&["link", "set", &self.host_end, "down"]);
    }

    fn mend(&self) {
        self.ip(&["link", "set", &self.host_end, "up"]);
    }

    /// What comes to the drone is dropped, if this expression of nft is so.
    fn drop_if(&self, expression: &str) {
        let chain = |hook: &str| {
            format!("chain {hook} {{ type filter hook {hook} priority 0; {expression} drop; }};")
        };
        let rules = format!("table inet faults {{ {} {} }}", chain("input"), chain("output"));
        self.inside(&["nft", &rules]);
    }

    fn drop_nothing(&self) {
        self.inside(&["nft", "delete table inet faults"]);
    }

    /// Both directions, bits per second.
    fn rate(&self, rate: &str) {
        let device = self.host_end.replace("rfh", "rfd");
        let args = ["root", "tbf", "rate", rate, "burst", "32kb", "latency", "300ms"];
        run(Command::new("tc").args(["qdisc", "add", "dev", &self.host_end]).args(args));
        let inside = [&["tc", "qdisc", "add", "dev", &device][..], &args].concat();
        self.inside(&inside);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.host_end]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A job with a large file of noise, of which every byte must go over the network.
fn large_job(machine: &Machine, kept: &mut Witness, job: u32, bytes: usize) {
    kept.job(&machine.mount, job, 5).expect("played");
    let (path, content) = (format!("{}/large", unit_of(job)), noise(&format!("large {job}"), bytes));
    fs::write(machine.mount.join(&path), &content).expect("written");
    kept.promise(&path, &content);
    kept.promise_job(job, 5);
}

fn sent(machine: &Machine) -> u64 {
    machine.status()["connection"]["bytes_sent"].as_u64().unwrap_or(0)
}

/// Everything has arrived, once, and is what it was.
fn arrived(lab: &mut Lab, drone: &Machine, kept: &Witness) {
    drone.offload();
    let (reader, results) = (lab.machine("drone2"), lab.machine("results"));
    lab.mount(&reader);
    reader.catch_up(drone);
    kept.is_kept("elsewhere", &reader);
    kept.is_kept("at home", drone);
    for machine in [drone, &results] {
        machine.verifies("in the end");
    }
}

const SIZE: usize = 24 << 20;

/// The link is cut amid an upload, for longer than TCP waits at first, and again: the drone's jobs go on, and of the bytes only those that were under way
/// go once more.
#[test]
fn a_cut_link_is_waited_for() {
    let mut lab = Lab::bare(Duration::from_secs(300));
    let net = Net::new(&mut lab);
    lab.start_sshd();
    lab.start_serve();
    let drone = net.drone(&lab, "bandwidth_mib_per_s: 6");
    lab.mount(&drone);
    let mut kept = Witness::default();
    large_job(&drone, &mut kept, 1, SIZE);
    for round in 1..=2 {
        wait_for("some of it to be sent", PATIENCE, || sent(&drone) > round * (6 << 20));
        net.cut();
        large_job(&drone, &mut kept, 10 + u32::try_from(round).expect("small"), 10_000);
        let at = sent(&drone);
        thread::sleep(Duration::from_secs(2));
        assert!(sent(&drone) < at + (4 << 20), "what is sent now stays in buffers");
        net.mend();
    }
    arrived(&mut lab, &drone, &kept);
    let sent = sent(&drone);
    assert!(sent < (SIZE + (SIZE / 2)) as u64, "{sent} bytes sent for {SIZE}");
    drop((lab, net));
}

/// The peer falls silent without a word (its power failed, a firewall forgot the connection): that is noticed within about a minute, and with the network
/// back the drone goes on by itself.
#[test]
fn a_silent_peer_is_given_up() {
    let mut lab = Lab::bare(Duration::from_secs(300));
    let net = Net::new(&mut lab);
    lab.start_sshd();
    lab.start_serve();
    let drone = net.drone(&lab, "");
    lab.mount(&drone);
    let mut kept = Witness::default();
    large_job(&drone, &mut kept, 1, 10_000);
    drone.offload();
    net.drop_if("");
    large_job(&drone, &mut kept, 2, 10_000);
    wait_for("the silence to be noticed", Duration::from_secs(100), || {
        drone.status()["connection"]["state"] == "down"
    });
    let why = text(&drone.run(["explain", &unit_of(2)]).stdout);
    assert!(why.contains("state: sealed") || why.contains("state: complete"), "{why}");
    net.drop_nothing();
    arrived(&mut lab, &drone, &kept);
    drop((lab, net));
}

/// A line of 1 MB/s that loses one packet in a hundred.
#[test]
fn a_slow_line_that_loses_packets_is_enough() {
    let mut lab = Lab::bare(Duration::from_secs(300));
    let net = Net::new(&mut lab);
    lab.start_sshd();
    lab.start_serve();
    let drone = net.drone(&lab, "");
    net.rate("8mbit");
    net.drop_if("numgen random mod 100 < 1");
    lab.mount(&drone);
    let mut kept = Witness::default();
    (1..=4).for_each(|job| large_job(&drone, &mut kept, job, 2 << 20));
    arrived(&mut lab, &drone, &kept);
    assert_eq!(lab.logins(), 2, "one connection of each of the two drones");
    drop((lab, net));
}

/// A TCP connection that takes `delay` each way, and turns one bit of what the drone sends, once, at this place.
fn relay(to: u16, delay: Duration, flip_at: Option<i64>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let flip_in = Arc::new(AtomicI64::new(flip_at.unwrap_or(i64::MAX)));
    // The test program's end ends it.
    thread::spawn(move || {
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(("127.0.0.1", to))) else { continue };
            let (near_2, far_2) = (near.try_clone().expect("a copy"), far.try_clone().expect("a copy"));
            let flip_in = flip_in.clone();
            thread::spawn(move || pass(near, far, delay, &flip_in));
            thread::spawn(move || pass(far_2, near_2, delay, &AtomicI64::new(i64::MAX)));
        }
    });
    port
}

fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration, flip_in: &AtomicI64) {
    let (sender, receiver) = std::sync::mpsc::channel::<(std::time::Instant, Vec<u8>)>();
    let (to_end, writer) = (
        to.try_clone(),
        thread::spawn(move || {
            for (due, bytes) in receiver {
                thread::sleep(due.saturating_duration_since(std::time::Instant::now()));
                if to.write_all(&bytes).is_err() {
                    break;
                }
            }
        }),
    );
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        let left = flip_in.fetch_sub(count as i64, Ordering::Relaxed);
        if (0..count as i64).contains(&left) {
            buffer[left as usize] ^= 0x10;
        }
        if sender.send((std::time::Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = writer.join();
    if let Ok(to) = to_end {
        let _ = to.shutdown(Shutdown::Both);
    }
    let _ = from.shutdown(Shutdown::Both);
}

fn by_relay(lab: &Lab, relay: u16, more: &str) -> Machine {
    let (dir, port) = (lab.path().display(), lab.port());
    let ssh = format!("ssh_command: ssh -F {dir}/ssh_config -p {relay} -o HostKeyAlias=[127.0.0.1]:{port}");
    lab.machine_with("drone1", &format!("{ssh}\n{more}"))
}

/// 200 ms each way: jobs that end together share the round trips.
#[test]
fn a_long_line_is_enough() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let drone = by_relay(&lab, relay(lab.port(), Duration::from_millis(200), None), "");
    lab.mount(&drone);
    let mut kept = Witness::default();
    (1..=20).for_each(|job| large_job(&drone, &mut kept, job, 100_000));
    arrived(&mut lab, &drone, &kept);
}

/// A byte is turned on the network: ssh notices, the connection is another one, and nothing wrong is committed.
#[test]
fn a_flipped_byte_on_the_network_costs_a_connection() {
    let mut lab = Lab::new(Duration::from_secs(300));
    let drone = by_relay(&lab, relay(lab.port(), Duration::ZERO, Some(3 << 20)), "");
    lab.mount(&drone);
    let mut kept = Witness::default();
    large_job(&drone, &mut kept, 1, 8 << 20);
    arrived(&mut lab, &drone, &kept);
    assert_eq!(lab.logins(), 3, "one more for the broken one, and the reader's");
}

/// Bytes are turned where no ssh notices, as bad memory does it, on the way there and back: the hashes do.
#[test]
fn a_flipped_byte_within_a_session_costs_a_session() {
    for (direction, place) in [("there", 2 << 20), ("there", 4_500_000), ("back", 3_000)] {
        let mut lab = Lab::new(Duration::from_secs(200));
        let script = flipping_ssh(&lab, direction, place);
        let drone = lab.machine_with("drone1", &format!("ssh_command: {}", script.display()));
        lab.mount(&drone);
        let mut kept = Witness::default();
        large_job(&drone, &mut kept, 1, 6 << 20);
        arrived(&mut lab, &drone, &kept);
        if direction == "back" {
            // What comes back is looked at, too: with nothing cached, and the byte turned.
            assert!(drone.run(["evict", &unit_of(1)]).status.success());
            kept.is_kept("read back", &drone);
        }
        assert!(script.with_extension("done").exists(), "{direction} {place}: nothing was turned");
    }
}

/// ssh, but that one byte arrives as another, once.
fn flipping_ssh(lab: &Lab, direction: &str, place: usize) -> PathBuf {
    let script = lab.path().join("flipping-ssh");
    let done = script.with_extension("done");
    let text = format!(
        r#"#!/usr/bin/env python3
import os, subprocess, sys, threading
child = subprocess.Popen(["ssh", "-F", "{config}"] + sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def copy(source, target, turns):
    at = 0
    while piece := os.read(source, 65536):
        if turns and at <= {place} < at + len(piece) and not os.path.exists("{done}"):
            open("{done}", "w").close()
            piece = bytearray(piece)
            piece[{place} - at] ^= 4
        at += len(piece)
        while piece:
            piece = piece[os.write(target, piece):]
    os.close(target)
def there():
    copy(0, child.stdin.fileno(), "{direction}" == "there")
threading.Thread(target=there, daemon=True).start()
copy(child.stdout.fileno(), 1, "{direction}" == "back")
os._exit(child.wait())
"#,
        config = lab.path().join("ssh_config").display(),
        done = done.display(),
    );
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("may be run");
    script
}
