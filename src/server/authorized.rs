//! The line for `authorized_keys` that pins a drone's key to its name: `serve --print-authorized-key`.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::wire::rights::Rights;

/// A public key's file is some hundred bytes; something larger is something else.
const KEY_FILE_BYTES: usize = 16 << 10;

/// Why no line can be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizedKeyError {
    /// The file can't be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// It isn't one public key.
    #[error("{}: {why}; give the public half of one ssh key, such as ~/.ssh/id_ed25519.pub", path.display())]
    Key { path: PathBuf, why: &'static str },
    /// The name is no host's.
    #[error(
        "`{0}` can't be a drone's name: only letters, digits, `.`, `_` and `-`, and no `-` to begin with"
    )]
    Drone(String),
    /// The program's own words can't be put into the line.
    #[error("`{0}` can't be put into authorized_keys")]
    Command(String),
}

/// One line for `authorized_keys`: whoever logs in with the key in `keyfile` gets `command` (the program and perhaps `--config FILE`) with
/// `serve --stdio --drone DRONE`, and nothing else of ssh.
pub fn print_authorized_key(
    keyfile: &Path,
    drone: &str,
    rights: Rights,
    command: &[String],
) -> Result<String, AuthorizedKeyError> {
    check_drone(drone)?;
    let text = fs::read_to_string(keyfile)?;
    let key = parse_key(&text).map_err(|why| AuthorizedKeyError::Key { path: keyfile.to_owned(), why })?;
    let mut words = command.iter().map(|word| quote(word)).collect::<Result<Vec<_>, _>>()?;
    words.push(format!("serve --stdio --drone {drone} --allow {}", quote(&rights.to_string())?));
    let command = words.join(" ").replace('"', "\\\"");
    Ok(format!("restrict,command=\"{command}\" {key}"))
}

fn check_drone(drone: &str) -> Result<(), AuthorizedKeyError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = !drone.is_empty() && drone.len() <= 255 && !drone.starts_with('-') && drone.chars().all(plain);
    good.then_some(()).ok_or_else(|| AuthorizedKeyError::Drone(drone.to_owned()))
}

/// The file's only line that isn't a comment. Options before the key would override ours, so there may be none.
fn parse_key(text: &str) -> Result<&str, &'static str> {
    if text.len() > KEY_FILE_BYTES {
        return Err("too long for a public key");
    }
    if text.contains("PRIVATE KEY") {
        return Err("this is a private key");
    }
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let (Some(line), None) = (lines.next(), lines.next()) else { return Err("not exactly one key") };
    let mut words = line.split_ascii_whitespace();
    let (Some(kind), Some(data)) = (words.next(), words.next()) else { return Err("not a public key") };
    let known = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"].iter().any(|p| kind.starts_with(p));
    let plain = kind.chars().all(|c| c.is_ascii_alphanumeric() || "-.@".contains(c));
    let base64 = data.chars().all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c));
    match known && plain && base64 && !line.chars().any(char::is_control) {
        true => Ok(line),
        false => Err("not a public key"),
    }
}

/// One word for the login shell, which is what sshd hands the command to.
fn quote(word: &str) -> Result<String, AuthorizedKeyError> {
    if word.is_empty() {
        return Ok("''".to_owned());
    }
    if word.chars().any(char::is_control) {
        return Err(AuthorizedKeyError::Command(word.escape_debug().to_string()));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,=:@%".contains(c);
    Ok(if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE root@drone1\n";

    fn line(key: &str, drone: &str, command: &[&str]) -> Result<String, AuthorizedKeyError> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("key.pub");
        fs::write(&file, key).expect("writes");
        let command: Vec<_> = command.iter().map(|w| (*w).to_owned()).collect();
        print_authorized_key(&file, drone, Rights::default(), &command)
    }

    #[test]
    fn the_line_pins_the_key_and_forbids_the_rest() {
        assert_eq!(
            line(KEY, "drone1", &["/usr/bin/resultsfs"]).expect("good"),
            "restrict,command=\"/usr/bin/resultsfs serve --stdio --drone drone1 --allow add,overlay\" \
             ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE root@drone1"
        );
    }

    #[test]
    fn words_with_spaces_and_quotes_reach_the_program_as_they_are() {
        let made = line(KEY, "drone1", &["/opt/my \"fs\"/it's"]).expect("good");
        assert!(made.starts_with("restrict,command=\"'/opt/my \\\"fs\\\"/it'\\''s' serve --stdio"), "{made}");
    }

    #[test]
    fn what_is_not_one_plain_public_key_is_refused() {
        for bad in [
            "",
            "command=\"reboot\" ssh-ed25519 AAAA x",
            "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "ssh-ed25519",
        ] {
            assert!(matches!(line(bad, "drone1", &["x"]), Err(AuthorizedKeyError::Key { .. })), "{bad:?}");
        }
        for drone in ["", "-x", "a b", "a;b", "a\"b"] {
            assert!(matches!(line(KEY, drone, &["x"]), Err(AuthorizedKeyError::Drone(_))), "{drone:?}");
        }
        assert!(line(KEY, "d", &["a\nb"]).is_err());
    }
}
