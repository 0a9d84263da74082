//! What stays the same from job to job: the machines under test, their software, the builds they run.
//!
//! Pure functions of the seed and a number; this is where the repetition between jobs comes from that a store can use.

use std::fmt::Write;

use super::random::Random;

/// Machines under test.
const HOSTS: u64 = 12;
/// Distributions they run.
const IMAGES: u64 = 3;
/// Builds under test.
const BUILDS: u64 = 4;

const MODULES: &[&str] = &[
    "ext4",
    "jbd2",
    "xfs",
    "nvme",
    "ahci",
    "libata",
    "e1000e",
    "ixgbe",
    "mlx5_core",
    "kvm",
    "sunrpc",
    "nfsd",
    "lockd",
    "nf_conntrack",
    "bridge",
    "overlay",
    "loop",
    "dm_mod",
    "raid1",
    "md_mod",
];
const WORDS: &[&str] = &[
    "waiting",
    "for",
    "host",
    "to",
    "come",
    "up",
    "after",
    "reboot",
    "command",
    "returned",
    "exit",
    "status",
    "iteration",
    "finished",
    "in",
    "seconds",
    "allocating",
    "copying",
    "source",
    "tree",
    "mounting",
    "unmounting",
    "filesystem",
    "verify",
    "repair",
    "cleanup",
    "collected",
    "sysinfo",
    "profile",
    "latency",
    "clients",
    "child",
    "process",
    "killed",
    "timeout",
    "signal",
];
const PLACES: &[&str] = &[
    "base_job:0391",
    "base_sysinfo:0217",
    "abstract_ssh:0602",
    "subcommand:0188",
    "utils:0204",
    "test:0560",
    "server_job:0501",
    "remote:0166",
    "logging_manager:0096",
    "autotest_remote:1033",
];

/// The machines of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    /// Everything depends on it.
    pub seed: u64,
    /// Factor on the sizes of logs and binaries.
    pub scale: f64,
}

impl Fleet {
    /// A host for a job to run on.
    pub fn any_host(&self, random: &mut Random) -> u64 {
        random.below(HOSTS)
    }

    /// A build for a job to test.
    pub fn any_build(&self, random: &mut Random) -> u64 {
        random.below(BUILDS)
    }

    /// Its name.
    pub fn host_name(&self, host: u64) -> String {
        format!("dut-{}-{host:02}", ["x86", "arm"][host as usize % 2])
    }

    fn stream(&self, kind: &str, number: u64) -> Random {
        Random::named(self.seed, kind, number)
    }

    /// Files that describe the machine and never change.
    pub fn hardware(&self, host: u64) -> Vec<(&'static str, String)> {
        let random = &mut self.stream("hardware", host);
        let cpus = 8 << random.below(3);
        let cmdline = format!("BOOT_IMAGE=/vmlinuz root=/dev/vg/root ro console=ttyS0,115200 host={host}\n");
        vec![
            (
                "cpuinfo",
                lines(cpus, |out, i| {
                    write!(out, "processor\t: {i}\nmodel\t\t: {}\nflags\t\t: fpu vme\n", 85 + host % 4)
                }),
            ),
            ("lspci_-vvnn", lines(60 + host, |out, i| pci_device(random, out, i))),
            (
                "dmidecode",
                lines(90, |out, i| {
                    write!(out, "Handle 0x{i:04X}\n\tSerial Number: {:012X}\n", random.below(1 << 48))
                }),
            ),
            (
                "modules",
                lines(20, |out, i| {
                    write!(out, "{} {} - Live 0x{:016x}", MODULES[i as usize], i * 4096, random.next())
                }),
            ),
            (
                "partitions",
                lines(8, |out, i| write!(out, " 259 {i:8} {:10} nvme0n1p{i}", random.below(1 << 30))),
            ),
            ("hostname", self.host_name(host) + "\n"),
            ("gcc_--version", format!("gcc (GCC) {}.4.1\n", 8 + host % IMAGES)),
            ("mount", lines(4, |out, i| write!(out, "/dev/vg/{i} on /srv/{i} type ext4 (rw,relatime)"))),
            ("cmdline", cmdline),
        ]
    }

    /// The packages of the host's image, and on some hosts a few of its own.
    pub fn packages(&self, host: u64) -> String {
        let random = &mut self.stream("packages", host % IMAGES);
        let mut text = lines(1500, |out, _| {
            let (word, module) = (random.pick(WORDS), random.pick(MODULES));
            write!(
                out,
                "{word}-{module}-{}.{}-{}.x86_64",
                random.below(12),
                random.below(40),
                random.below(30)
            )
        });
        if host.is_multiple_of(3) {
            let own = &mut self.stream("own packages", host);
            text += &lines(6, |out, _| write!(out, "local-{}-{}.x86_64", own.pick(MODULES), own.below(99)));
        }
        text
    }

    /// What the kernel says at the host's boot.
    pub fn boot_messages(&self, host: u64) -> String {
        let random = &mut self.stream("dmesg", host);
        let mut at = 0.0;
        lines(1200, |out, _| {
            at += random.unit() / 40.0;
            let (module, word) = (random.pick(MODULES), random.pick(WORDS));
            write!(out, "[{at:12.6}] {module}: {word} 0x{:08x}", random.below(1 << 32))
        })
    }

    /// The host's syslog as it stands when job `number` ends: it grows from job to job, and is begun anew every 40 jobs.
    pub fn syslog(&self, host: u64, number: u64) -> String {
        let (rotation, age) = (number / 40, number % 40 + 1);
        let random = &mut self.stream("syslog", host << 32 | rotation);
        let name = self.host_name(host);
        let count = (age as f64 * 1200.0 * self.scale).max(20.0) as u64;
        lines(count, |out, i| {
            let (module, word) = (random.pick(MODULES), random.pick(WORDS));
            write!(
                out,
                "{} {name} {module}: {word} {word} {}",
                stamp(rotation * 4000 + i * 20),
                random.below(1 << 30)
            )
        })
    }

    /// The kernel and initrd of a build; builds share three quarters of the initrd.
    pub fn build(&self, build: u64) -> Vec<(&'static str, Vec<u8>)> {
        let piece = (1024.0 * 1024.0 * self.scale).max(4096.0) as usize;
        let random = &mut self.stream("build", build);
        let common = &mut self.stream("initrd", 0);
        let mut initrd = Vec::new();
        for _ in 0..4 {
            initrd.extend(common.bytes(piece * 3));
            initrd.extend(random.bytes(piece));
        }
        vec![("vmlinuz", random.bytes(piece * 9)), ("initrd.img", initrd)]
    }

    /// A core dump of about `len` bytes: empty pages, pages of the image's libraries, and noise.
    pub fn core(&self, host: u64, len: usize, random: &mut Random) -> Vec<u8> {
        const PAGE: usize = 4096;
        let library = self.stream("library", host % IMAGES).bytes(256 * PAGE);
        let mut core = Vec::with_capacity(len);
        while core.len() < len {
            let pages = 1 + random.below(64) as usize;
            match random.below(10) {
                0..2 => core.resize(core.len() + pages * PAGE, 0),
                2..4 => core.extend_from_slice(&library[random.below(192) as usize * PAGE..][..pages * PAGE]),
                _ => core.extend(random.bytes(pages * PAGE)),
            }
        }
        core
    }
}

fn pci_device(random: &mut Random, out: &mut String, i: u64) -> std::fmt::Result {
    let (word, module) = (random.pick(WORDS), random.pick(MODULES));
    write!(
        out,
        "{:02x}:{:02x} {word} [{:04x}]\n\tKernel driver in use: {module}\n",
        i / 8,
        i % 32,
        random.below(1 << 16)
    )
}

/// `count` lines, each written by `line`.
pub fn lines(count: u64, mut line: impl FnMut(&mut String, u64) -> std::fmt::Result) -> String {
    let mut out = String::new();
    for i in 0..count {
        line(&mut out, i).expect("writing to a String doesn't fail");
        out.push('\n');
    }
    out
}

/// `MM/DD HH:MM:SS`, as Autotest's logs have it.
pub fn stamp(seconds: u64) -> String {
    let (day, rest) = (seconds / 86_400 % 360, seconds % 86_400);
    format!(
        "{:02}/{:02} {:02}:{:02}:{:02}",
        day / 30 + 1,
        day % 30 + 1,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// A log of about `len` bytes as autoserv writes it, and those of its lines that are INFO.
pub fn log(random: &mut Random, host_name: &str, start: u64, len: usize) -> (String, String) {
    // Lines are drawn from phrases, as real ones come from format strings in code.
    let phrases: Vec<String> = (0..120).map(|_| phrase(random)).collect();
    let (mut debug, mut info, mut at) = (String::new(), String::new(), start as f64);
    while debug.len() < len {
        at += random.unit() * 2.0;
        let head = format!("{} {{}}|{}| ", stamp(at as u64), random.pick(PLACES));
        let phrase = &phrases[random.below(120) as usize];
        let line = match random.below(100) {
            0..12 => format!("{}{phrase}\n", head.replace("{}", "INFO ")),
            12..60 => format!("{}{phrase} {}\n", head.replace("{}", "DEBUG"), random.below(1_000_000)),
            60..92 => format!("{}{phrase} 0x{:012x}\n", head.replace("{}", "DEBUG"), random.below(1 << 48)),
            _ => format!("{}Running (ssh) '{phrase}' on {host_name}\n", head.replace("{}", "DEBUG")),
        };
        if line.contains(" INFO |") {
            info += &line;
        }
        debug += &line;
    }
    (debug, info)
}

fn phrase(random: &mut Random) -> String {
    let words = 3 + random.below(8);
    (0..words).map(|_| random.pick(WORDS)).collect::<Vec<_>>().join(" ")
}

/// A snapshot of a file under /proc: the same shape each time, some numbers move.
pub fn proc_file(random: &mut Random, name: &str) -> String {
    match name {
        "meminfo" => lines(48, |out, i| {
            let moves = if i % 3 == 0 { i << 12 } else { random.below(1 << 26) };
            write!(out, "Field{i:02}: {moves:10} kB")
        }),
        "interrupts" => lines(48, |out, i| {
            let moves = if i % 4 == 0 { random.below(1 << 20) } else { 0 };
            write!(out, "{i:4}: {moves:10} {:10} PCI-MSI {i}-edge {}", 0, MODULES[i as usize % MODULES.len()])
        }),
        _ => lines(120, |out, i| {
            let used = random.below(90_000);
            write!(
                out,
                "{:<20} {used:7} {:6} : tunables 0 0 0",
                MODULES[i as usize % MODULES.len()],
                64 << (i % 6)
            )
        }),
    }
}
