//! `generate-docs`: man pages and shell completions, made from the same words as `--help`.

use std::{io, path::Path};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};

use super::{
    args::Cli,
    failure::{Failure, Outcome},
};

/// What the first page has behind the options, by section: terms and what they mean. The contract itself is docs/cli.md.
const SECTIONS: [(&str, &[(&str, &str)]); 3] = [
    (
        "FILES",
        &[
            (
                "/etc/autotest/global_config.ini",
                "the configuration, with shadow_config.ini beside it; section [RESULTSFS]",
            ),
            ("/usr/local/autotest/results", "the mount"),
            (
                "/var/lib/resultsfs",
                "journal, spool and cache of this host; daemon.log, where no service keeps the log",
            ),
            ("/var/lib/resultsfs/store", "the store, on the results host"),
            ("/run/resultsfs/serve.sock", "where the store's daemon listens"),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            ("AUTOTEST_TOP_PATH", "where the configuration is looked for first"),
            ("RESULTSFS_LOG", "filter of the log: info, resultsfs=debug"),
            ("NO_COLOR", "if set, progress is shown without colours"),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "done"),
            ("1", "failed; the reason and what to do are on standard error"),
            ("2", "wrong usage"),
            ("3", "done, with findings"),
            ("75", "of a daemon: trying again helps, and the service does"),
        ],
    ),
];

/// fsck(8)'s, of `verify`.
const FSCK: (&str, &[(&str, &str)]) = (
    "EXIT STATUS",
    &[
        ("0", "clean"),
        ("1", "everything that was found has been corrected"),
        ("4", "damage or losses are left"),
        ("8", "could not check"),
        ("16", "wrong usage"),
    ],
);

/// By which names else a command is called.
const HELPERS: [(&str, &str); 2] = [("mount.fuse.resultsfs", "mount"), ("fsck.resultsfs", "verify")];

/// `generate-docs DIR`.
pub fn generate_docs(dir: &Path) -> Outcome {
    write_all(dir).map_err(|e| Failure::new(format!("{}: {e}", dir.display())))?;
    Ok(0)
}

fn write_all(dir: &Path) -> io::Result<()> {
    let top = Cli::command();
    let (man, completions) = (dir.join("man8"), dir.join("completions"));
    fs_err::create_dir_all(&man)?;
    fs_err::create_dir_all(&completions)?;
    write_page(&man, "resultsfs", &first_page(&top)?)?;
    for command in shown(&top) {
        write_page(&man, &page_name(command.get_name()), &page(&top, command)?)?;
    }
    for (helper, command) in HELPERS {
        write_page(&man, helper, format!(".so man8/{}.8\n", page_name(command)).as_bytes())?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut without_hidden(Cli::command()), "resultsfs", &completions)?;
    }
    Ok(())
}

fn write_page(dir: &Path, name: &str, page: &[u8]) -> io::Result<()> {
    fs_err::write(dir.join(format!("{name}.8")), page)
}

fn page_name(command: &str) -> String {
    format!("resultsfs-{command}")
}

/// Commands that people use.
fn shown(top: &Command) -> impl Iterator<Item = &Command> {
    top.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

/// clap completes hidden commands, too.
fn without_hidden(top: Command) -> Command {
    let bare = Command::new("resultsfs").version(env!("CARGO_PKG_VERSION"));
    let bare = top.get_about().cloned().into_iter().fold(bare, Command::about);
    let bare = top.get_arguments().cloned().fold(bare, Command::arg);
    shown(&top).cloned().fold(bare, Command::subcommand)
}

fn first_page(top: &Command) -> io::Result<Vec<u8>> {
    let mut page = from_words(without_hidden(top.clone()), "resultsfs")?;
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for command in shown(top) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        roff.control("TP", []);
        roff.text([bold(page_name(command.get_name())), roman("(8)")]);
        roff.text([roman(about)]);
    }
    for (title, terms) in SECTIONS {
        section(&mut roff, title, terms);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("mount"), roman("(8), "), bold("fsck"), roman("(8), "), bold("systemctl"), roman("(1)")]);
    roff.text([roman("Further pages are in "), italic("/usr/share/doc/resultsfs"), roman(".")]);
    roff.to_writer(&mut page)?;
    Ok(page)
}

fn page(top: &Command, command: &Command) -> io::Result<Vec<u8>> {
    let name = page_name(command.get_name());
    let bin_name = format!("resultsfs {}", command.get_name());
    let everywhere = top.get_arguments().filter(|argument| argument.is_global_set()).cloned();
    let command = command.clone().args(everywhere);
    let mut page = from_words(command.clone().display_name(name.clone()).bin_name(bin_name), &name)?;
    let mut roff = Roff::new();
    if command.get_name() == "verify" {
        section(&mut roff, FSCK.0, FSCK.1);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("resultsfs"), roman("(8)")]);
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// What the command line's own words tell.
fn from_words(command: Command, title: &str) -> io::Result<Vec<u8>> {
    let version = format!("resultsfs {}", env!("CARGO_PKG_VERSION"));
    // No date: the same program gives the same pages.
    let man = Man::new(command)
        .title(title.to_uppercase())
        .section("8")
        .date("")
        .source(version)
        .manual("resultsfs");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    Ok(page)
}

fn section(roff: &mut Roff, title: &str, terms: &[(&str, &str)]) {
    roff.control("SH", [title]);
    for (term, meaning) in terms {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*meaning)]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(dir: &Path) -> BTreeSet<String> {
        let entries = fs_err::read_dir(dir).expect("a directory").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn every_command_that_is_shown_has_a_page_and_is_completed() {
        let dir = tempfile::tempdir().expect("a directory");
        generate_docs(dir.path()).expect("written");
        let pages = names(&dir.path().join("man8"));
        let top = Cli::command();
        let bash = fs_err::read_to_string(dir.path().join("completions/resultsfs.bash")).expect("there");
        for command in top.get_subcommands() {
            let name = command.get_name();
            let is_shown = !command.is_hide_set();
            assert_eq!(pages.contains(&format!("{}.8", page_name(name))), is_shown, "{name}");
            assert_eq!(
                bash.contains(&format!("resultsfs__subcmd__{name})"))
                    || bash.contains(&format!("resultsfs__{name})")),
                is_shown,
                "{name}"
            );
        }
        assert!(pages.contains("resultsfs.8") && pages.contains("fsck.resultsfs.8"));
        let first = fs_err::read_to_string(dir.path().join("man8/resultsfs.8")).expect("there");
        assert!(
            first.contains("EXIT STATUS")
                && first.contains("resultsfs\\-verify")
                && !first.contains("notifier")
        );
        let verify = fs_err::read_to_string(dir.path().join("man8/resultsfs-verify.8")).expect("there");
        assert!(verify.contains("\\-\\-read\\-data") && verify.contains("could not check"), "{verify}");
    }
}
