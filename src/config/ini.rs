//! One ini file, read as Python 2's ConfigParser reads it.
//!
//! rust-ini does the parsing, but its dialect is another one: it trims section names, keeps letters' case,
//! takes a line without `=` together with the next, lets `\` at the end of a line eat the line break, and
//! knows neither `rem` lines, nor Python's inline comments and continuations. So a pass before it sorts the
//! lines exactly as ConfigParser's `_read` does, notes what is wrong and where, and writes what remains in
//! rust-ini's dialect: names as `line|name|`, so that neither end is trimmed and the line number comes
//! through, values in quotes with escapes.
//!
//! Where ConfigParser would raise an exception, there is an error finding, and reading goes on as if the mend
//! had been made, so that one run tells everything.
//!
//! Bytes that aren't UTF-8 become U+FFFD: harmless in comments and in others' keys, refused where a value is
//! used.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use ini::{Ini as RustIni, ParseOption};

use super::{
    SECTIONS,
    finding::{Finding, Place},
    names::shown,
};

/// Largest file read: Autotest's own is 20 KB, and a configuration is held in memory several times over.
pub const FILE_BYTES: u64 = 1 << 20;
/// Longest value after interpolation: ten levels of references could otherwise make terabytes of a short
/// file.
pub const VALUE_BYTES: usize = 64 << 10;
/// Python's MAX_INTERPOLATION_DEPTH.
const DEPTH: usize = 10;
/// Name of the section that every other one inherits.
const DEFAULT: &str = "DEFAULT";
/// The key under which ConfigParser keeps a section's own name; `%(__name__)s` finds it.
pub const NAME: &str = "__name__";

/// A value as it stands in the file: not interpolated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawValue {
    /// Its text; the lines of a continued one are joined by a line break.
    pub text: String,
    /// Where its key stands.
    pub place: Place,
}

/// Keys in lower case, and their values.
pub type Section = BTreeMap<String, RawValue>;

/// What one file says.
#[derive(Clone, Debug)]
pub struct Ini {
    /// The file.
    pub file: Arc<Path>,
    /// Its sections but `[DEFAULT]`, by their exact names.
    pub sections: BTreeMap<String, Section>,
    /// `[DEFAULT]`.
    pub defaults: Section,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

impl Ini {
    /// Reads `bytes`, which are the content of `file`.
    pub fn parse(file: &Path, bytes: &[u8]) -> Self {
        let file: Arc<Path> = file.into();
        let mut scan = Scan::new(file.clone());
        scan.text(bytes);
        let mut ini =
            Self { file, sections: BTreeMap::new(), defaults: Section::new(), findings: scan.findings };
        let options = ParseOption { enabled_quote: true, enabled_escape: true, ..ParseOption::default() };
        match RustIni::load_from_str_opt(&dialect(&scan.headers, &scan.entries), options) {
            Ok(parsed) => ini.take(&parsed),
            Err(e) => ini.findings.push(Finding::error(
                "unreadable",
                None,
                format!("{} can't be parsed: {}", ini.file.display(), e.msg),
                "report this with the file",
            )),
        }
        ini
    }

    /// A section's value, or the one that it inherits, not interpolated.
    pub fn raw(&self, section: &str, key: &str) -> Option<&RawValue> {
        raw(&self.sections, &self.defaults, section, key)
    }

    fn take(&mut self, parsed: &RustIni) {
        for (section, properties) in parsed {
            let Some(section) = section.and_then(|s| s.strip_prefix('|')?.strip_suffix('|')) else {
                continue;
            };
            let into = match section {
                DEFAULT => &mut self.defaults,
                _ => self.sections.entry(section.to_owned()).or_default(),
            };
            for (name, text) in properties.iter() {
                let Some((line, name)) = name.split_once('|') else { continue };
                let place = Place { file: self.file.clone(), line: line.parse().unwrap_or(0) };
                let name = name.strip_suffix('|').unwrap_or(name);
                into.insert(name.to_owned(), RawValue { text: text.to_owned(), place });
            }
        }
    }
}

/// A value of `section`, or the one that it inherits. A section that isn't there inherits nothing.
pub fn raw<'a>(
    sections: &'a BTreeMap<String, Section>,
    defaults: &'a Section,
    section: &str,
    key: &str,
) -> Option<&'a RawValue> {
    sections.get(section)?.get(key).or_else(|| defaults.get(key))
}

/// The text for rust-ini: every header first, so that empty sections are there too. It is no more than a few times as long as the file: a section that goes on isn't named again.
fn dialect(headers: &[Arc<str>], entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut named: Option<&str> = None;
    for header in headers {
        text.push_str(&format!("[|{}|]\n", escape(header)));
    }
    for entry in entries {
        if named != Some(&entry.section) {
            text.push_str(&format!("[|{}|]\n", escape(&entry.section)));
            named = Some(&entry.section);
        }
        let (name, value) = (escape(&entry.name), escape(&entry.parts.join("\n")));
        text.push_str(&format!("{}|{name}|=\"{value}\"\n", entry.line));
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What Python 2 takes for white space in a byte string.
pub fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// An option and the line it stands on.
struct Entry {
    line: u32,
    section: Arc<str>,
    name: String,
    parts: Vec<String>,
}

/// ConfigParser's `_read`: its state between lines.
struct Scan {
    file: Arc<Path>,
    headers: Vec<Arc<str>>,
    entries: Vec<Entry>,
    findings: Vec<Finding>,
    section: Option<Arc<str>>,
    /// Where the keys of sections that we read stand.
    lines: HashMap<(Arc<str>, String), u32>,
    /// Whether an indented line continues the last entry.
    open: bool,
    /// Lines of the current run of indented keys: first and last.
    indented: Option<(u32, u32)>,
}

impl Scan {
    fn new(file: Arc<Path>) -> Self {
        let (headers, entries, findings) = (Vec::new(), Vec::new(), Vec::new());
        let lines = HashMap::new();
        Self { file, headers, entries, findings, section: None, lines, open: false, indented: None }
    }

    fn text(&mut self, bytes: &[u8]) {
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return self.error("utf-16", 1, "the file is UTF-16 text", "save it as plain ASCII or as UTF-8");
        }
        let bytes = match bytes.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) => {
                let message =
                    "a byte order mark (U+FEFF) stands before the first character, and Autotest stops there";
                let mend = format!(
                    r"save it as UTF-8 without a mark: sed -i '1s/^\xef\xbb\xbf//' {}",
                    self.file.display()
                );
                self.error("byte-order-mark", 1, message, mend);
                rest
            }
            None => bytes,
        };
        for (line, text) in (1..).zip(String::from_utf8_lossy(bytes).split('\n')) {
            self.line(line, text);
        }
        self.end_of_indented();
        self.findings.sort_by_key(|f| f.place.as_ref().map(|p| p.line));
    }

    /// Sorts a line in ConfigParser's order.
    fn line(&mut self, line: u32, text: &str) {
        let trimmed = text.trim_matches(is_space);
        if trimmed.is_empty() || text.starts_with(['#', ';']) || is_remark(text) {
            return;
        }
        if text.starts_with(is_space) && self.section.is_some() && self.open {
            return self.continuation(line, trimmed);
        }
        if let Some(name) = header(text) {
            return self.header(name);
        }
        if let Some(name) = header(trimmed) {
            let message = format!("the header [{name}] is indented, and Autotest stops there");
            self.error("indented-section", line, message, "begin it in the first column");
            return self.header(name);
        }
        if self.section.is_none() {
            return self.before_any_section(line, trimmed);
        }
        match option(text) {
            Some((name, value)) => {
                self.end_of_indented();
                self.open = true;
                self.option(line, name, value);
            }
            None => self.not_an_option(line, text, trimmed),
        }
    }

    fn header(&mut self, name: &str) {
        self.end_of_indented();
        let name: Arc<str> = name.into();
        self.headers.push(name.clone());
        self.section = Some(name);
        self.open = false;
    }

    fn continuation(&mut self, line: u32, trimmed: &str) {
        let what = if header(trimmed).is_some() {
            Some("a section header")
        } else if trimmed.starts_with(['#', ';']) {
            Some("a comment")
        } else {
            option(trimmed).filter(|(name, _)| is_plain_name(name)).map(|_| "a key")
        };
        let Some(entry) = self.entries.last_mut() else { return };
        entry.parts.push(trimmed.to_owned());
        if let Some(what) = what
            && (SECTIONS.contains(&&*entry.section) || what == "a section header")
        {
            let message = format!(
                "the line looks like {what}, but it is indented, so Autotest takes it for more of the value of {}",
                shown(&entry.name)
            );
            self.warning("swallowed-line", line, message, "begin it in the first column");
        }
    }

    fn option(&mut self, line: u32, name: &str, value: &str) {
        let section = self.section.clone().unwrap_or_default();
        let name = name.to_ascii_lowercase();
        if let Some(c) = name.chars().find(|c| !c.is_ascii() && (c.is_whitespace() || is_invisible(*c))) {
            let message = format!(
                "the key has a character U+{:04X} in it that looks like a blank or like nothing, so Autotest doesn't know it",
                u32::from(c)
            );
            self.warning("strange-space", line, message, "type the line again instead of pasting it");
        }
        if SECTIONS.contains(&&*section)
            && let Some(before) = self.lines.insert((section.clone(), name.clone()), line)
        {
            let message = format!("{} is set on line {before} already; the last one counts", shown(&name));
            self.warning("set-twice", line, message, format!("remove one of the lines {before} and {line}"));
        }
        self.entries.push(Entry { line, section, name, parts: vec![value.to_owned()] });
    }

    fn before_any_section(&mut self, line: u32, trimmed: &str) {
        if self.findings.iter().any(|f| f.code == "no-section") {
            return;
        }
        let message = "this line stands before any [SECTION], and Autotest stops there";
        let mend = match trimmed.chars().next() {
            Some('#' | ';') => "begin the comment in the first column",
            Some('[') => "it looks like a header without its `]`: close the bracket",
            _ => "put the section's header, such as [SCHEDULER], above it",
        };
        self.error("no-section", line, message, mend);
    }

    /// Lines on which ConfigParser raises its ParsingError at the end of the file.
    fn not_an_option(&mut self, line: u32, text: &str, trimmed: &str) {
        let indented = text.starts_with(is_space);
        if indented
            && !trimmed.starts_with(['#', ';'])
            && let Some((name, value)) = option(trimmed)
        {
            self.indented = Some((self.indented.map_or(line, |(first, _)| first), line));
            return self.option(line, name, value);
        }
        let (message, mend) = match trimmed.chars().next() {
            Some('#' | ';') if indented => {
                ("an indented comment, which Autotest can't read here", "begin it in the first column")
            }
            Some('[') => ("a section header without its `]`, on which Autotest stops", "close the bracket"),
            Some(':' | '=') => {
                ("a value without a key, on which Autotest stops", "write the key's name before it, or `#`")
            }
            _ => (
                "the line has neither `:` nor `=`, and Autotest stops on it",
                "write it as `key: value`, or begin it with `#` if it is a comment, \
                 or with a blank if it belongs to the value above",
            ),
        };
        self.error("not-an-option", line, message, mend);
    }

    /// One finding for a run of indented keys: the manual prints its sample so.
    fn end_of_indented(&mut self) {
        let Some((first, last)) = self.indented.take() else { return };
        let section = brief(self.section.as_deref().unwrap_or_default());
        let (which, lines) = match last - first {
            0 => ("the key below".to_owned(), format!("{first}")),
            _ => (format!("the keys (lines {first} to {last}) below"), format!("{first},{last}")),
        };
        let message = format!(
            "{which} [{section}] begin with a blank, as the manual prints them; Autotest takes such a line for more of the value \
             above, finds none, and stops"
        );
        let mend = format!(
            "begin each key in the first column: sed -i '{lines}s/^[[:blank:]]*//' {}",
            self.file.display()
        );
        self.error("indented-key", first, message, mend);
    }

    fn error(&mut self, code: &'static str, line: u32, message: impl Into<String>, mend: impl Into<String>) {
        let place = Place { file: self.file.clone(), line };
        self.findings.push(Finding::error(code, Some(place), message, mend));
    }

    fn warning(
        &mut self,
        code: &'static str,
        line: u32,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let place = Place { file: self.file.clone(), line };
        self.findings.push(Finding::warning(code, Some(place), message, mend));
    }
}

/// `rem` as the first word, in any case, in the first column.
fn is_remark(text: &str) -> bool {
    text.starts_with(['r', 'R'])
        && text.split(is_space).next().is_some_and(|word| word.eq_ignore_ascii_case("rem"))
}

/// ConfigParser's SECTCRE: what follows the bracket is of no account.
fn header(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('[')?.split_once(']')?;
    (!name.is_empty()).then_some(name)
}

/// ConfigParser's OPTCRE, its inline comment, and its `""`.
fn option(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(|c| is_space(c) || c == ':' || c == '=') {
        return None;
    }
    let at = text.find([':', '='])?;
    let name = text[..at].trim_end_matches(is_space);
    Some((name, value_in_line(&text[at + 1..])))
}

/// The value that stands behind a key's separator.
pub fn value_in_line(text: &str) -> &str {
    let mut value = text.trim_start_matches(is_space);
    if let Some(at) = value.find(';') {
        // Only the first `;` is looked at. If nothing stands before it, Python's `optval[-1]` is the value's last
        // character.
        let before = if at == 0 { value.chars().last() } else { value[..at].chars().last() };
        if before.is_some_and(is_space) {
            value = &value[..at];
        }
    }
    let value = value.trim_matches(is_space);
    if value == "\"\"" { "" } else { value }
}

fn is_plain_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// The beginning of a name, for a message: a name can be as long as the file, and be in a message for each of its lines.
pub fn brief(name: &str) -> String {
    const CHARS: usize = 80;
    let mut brief: String = name.chars().take(CHARS).collect();
    if name.chars().nth(CHARS).is_some() {
        brief.push('…');
    }
    brief
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}')
}

/// Why a value with `%(name)s` has none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interpolation {
    /// InterpolationMissingOptionError.
    #[error("`%({0})s` names a key that isn't there")]
    Missing(String),
    /// InterpolationDepthError.
    #[error("the `%(…)s` go round in a circle, or more than 10 deep")]
    Depth,
    /// ValueError or TypeError from Python's `%`. (`%(name)5s` and the like, which Python takes, are refused
    /// with it.)
    #[error("it has a `%` that is neither `%(name)s` nor `%%`")]
    Percent,
    /// A bound of ours.
    #[error("it grows beyond {VALUE_BYTES} bytes")]
    TooLong,
}

/// `ConfigParser._interpolate`. `lookup` is given names in lower case.
pub fn interpolate<'a>(
    value: &str,
    lookup: &dyn Fn(&str) -> Option<&'a str>,
) -> Result<String, Interpolation> {
    let mut value = value.to_owned();
    for _ in 0..DEPTH {
        if !value.contains("%(") {
            break;
        }
        value = format_once(&lower_names(&value), lookup)?;
    }
    if value.contains("%(") { Err(Interpolation::Depth) } else { Ok(value) }
}

/// `_KEYCRE.sub(_interpolation_replace, value)`.
fn lower_names(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find("%(") {
        let (before, reference) = rest.split_at(at);
        out.push_str(before);
        match reference.find(')') {
            Some(end) if reference[end + 1..].starts_with('s') => {
                out.push_str(&reference[..end].to_ascii_lowercase());
                rest = &reference[end..];
            }
            _ => {
                out.push('%');
                rest = &reference[1..];
            }
        }
    }
    out + rest
}

/// `value % vars`.
fn format_once<'a>(value: &str, lookup: &dyn Fn(&str) -> Option<&'a str>) -> Result<String, Interpolation> {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let (name, after) =
            rest.strip_prefix('(').and_then(|r| r.split_once(')')).ok_or(Interpolation::Percent)?;
        if name.contains('(') {
            return Err(Interpolation::Percent);
        }
        out.push_str(lookup(name).ok_or_else(|| Interpolation::Missing(brief(name)))?);
        rest = after.strip_prefix('s').ok_or(Interpolation::Percent)?;
        if out.len() > VALUE_BYTES {
            return Err(Interpolation::TooLong);
        }
    }
    Ok(out + rest)
}

/// What `%(name)s` stands for in `section`.
pub fn reference<'a>(
    sections: &'a BTreeMap<String, Section>,
    defaults: &'a Section,
    section: &'a str,
    key: &str,
) -> Option<&'a str> {
    match raw(sections, defaults, section, key) {
        Some(value) => Some(&value.text),
        None => (key == NAME).then_some(section),
    }
}
