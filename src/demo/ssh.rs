//! The way from the drones to the results host: a real sshd on a loopback port with keys of its own, or a script that stands in for ssh.

use std::{
    io,
    net::TcpListener,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use fs_err as fs;

/// The name by which the drones know the results host.
pub const RESULTS_HOST: &str = "results";

/// Drops ssh's options and the host, and runs the rest as sshd would: by the shell.
const STAND_IN: &str = "#!/bin/sh
while [ $# -gt 0 ] && [ \"$1\" != -- ]; do shift; done
[ $# -gt 2 ] || { echo 'usage: [OPTIONS] -- HOST COMMAND' >&2; exit 255; }
shift 2
exec /bin/sh -c \"$*\"
";

/// sshd demands it when it is started as root.
const PRIVILEGE_SEPARATION_DIR: &str = "/run/sshd";

/// What stands between drones and results host.
#[derive(Debug)]
pub enum Way {
    /// sshd on a loopback port.
    Sshd(Sshd),
    /// A local process.
    StandIn {
        /// The script that is run instead of ssh.
        script: PathBuf,
    },
}

/// A private sshd.
#[derive(Debug)]
pub struct Sshd {
    program: PathBuf,
    dir: PathBuf,
    port: u16,
}

impl Way {
    /// Prepares it in the new directory `dir`.
    pub fn prepare(dir: &Path) -> io::Result<Self> {
        fs::create_dir(dir)?;
        match (find("sshd"), find("ssh"), find("ssh-keygen")) {
            (Some(sshd), Some(_), Some(keygen)) => Ok(Self::Sshd(Sshd::prepare(sshd, &keygen, dir)?)),
            _ => {
                let script = dir.join("ssh");
                fs::write(&script, STAND_IN)?;
                fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
                Ok(Self::StandIn { script })
            }
        }
    }

    /// For the configuration's `ssh_command`.
    pub fn ssh_command(&self) -> String {
        match self {
            Self::Sshd(sshd) => format!("ssh -F {}", sshd.dir.join("config").display()),
            Self::StandIn { script } => script.display().to_string(),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Sshd(sshd) => format!("ssh to a real sshd on 127.0.0.1:{}", sshd.port),
            Self::StandIn { .. } => "no sshd is installed here: a local process stands in for ssh".to_owned(),
        }
    }
}

impl Sshd {
    fn prepare(program: PathBuf, keygen: &Path, dir: &Path) -> io::Result<Self> {
        for key in ["host_key", "id"] {
            let args = ["-q", "-t", "ed25519", "-N", "", "-C", "resultsfs-demo", "-f"];
            let status = Command::new(keygen).args(args).arg(dir.join(key)).status()?;
            if !status.success() {
                return Err(io::Error::other(format!("ssh-keygen ended with {status}")));
            }
        }
        let sshd = Self { program, dir: dir.to_owned(), port: free_port()? };
        sshd.write_files()?;
        make_run_dir()?;
        Ok(sshd)
    }

    fn write_files(&self) -> io::Result<()> {
        let (dir, port) = (self.dir.display(), self.port);
        let host_key = fs::read_to_string(self.dir.join("host_key.pub"))?;
        fs::copy(self.dir.join("id.pub"), self.dir.join("authorized_keys"))?;
        fs::write(self.dir.join("known_hosts"), format!("{RESULTS_HOST} {host_key}"))?;
        let server = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {dir}/host_key\nAuthorizedKeysFile {dir}/authorized_keys\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\n\
             PermitRootLogin prohibit-password\n"
        );
        fs::write(self.dir.join("sshd_config"), server)?;
        let client = format!(
            "Host {RESULTS_HOST}\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias {RESULTS_HOST}\n  IdentityFile {dir}/id\n  \
             IdentitiesOnly yes\n  UserKnownHostsFile {dir}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking yes\n"
        );
        fs::write(self.dir.join("config"), client)
    }

    /// Runs it in the foreground. It wants to be called by its full path.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-D", "-f"]).arg(self.dir.join("sshd_config")).arg("-E").arg(self.log());
        command
    }

    /// Whether it takes connections.
    pub fn answers(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("sshd.log")
    }

    /// How many connections it has let in.
    pub fn authentications(&self) -> io::Result<usize> {
        Ok(fs::read_to_string(self.log())?.lines().filter(|line| line.contains("Accepted publickey")).count())
    }
}

/// It stays: sshd looks for it at every connection, and another sshd may have come to use it.
fn make_run_dir() -> io::Result<()> {
    if !rustix::process::geteuid().is_root() || Path::new(PRIVILEGE_SEPARATION_DIR).exists() {
        return Ok(());
    }
    std::fs::DirBuilder::new().mode(0o755).recursive(true).create(PRIVILEGE_SEPARATION_DIR)
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// sshd is often outside the PATH of people who aren't root.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()]);
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stand-in is called as ssh is: options, `--`, the host, and the words of a command for the far shell.
    #[test]
    fn the_stand_in_runs_what_ssh_would() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("ssh");
        fs::write(&script, STAND_IN).expect("written");
        let run = |args: &[&str]| Command::new("sh").arg(&script).args(args).output().expect("run");
        let good =
            run(&["-o", "BatchMode=yes", "-l", "me", "--", "results", "printf", "'%s|'", "'a b'", "c"]);
        assert_eq!(String::from_utf8_lossy(&good.stdout), "a b|c|");
        assert_eq!(run(&["results", "true"]).status.code(), Some(255));
    }
}
