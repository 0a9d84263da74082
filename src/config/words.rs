//! Words: a command's, cut as a shell would cut them; and the known one nearest to one that isn't known.

/// Why text is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A quote without its end.
    #[error("a quote is not closed")]
    Open,
    /// A backslash at the end.
    #[error("it ends in a backslash")]
    Backslash,
    /// Something that only a shell understands.
    #[error("`{0}` means something to a shell only, and no shell runs this")]
    Shell(char),
    /// No word at all, or an empty one first.
    #[error("it names no program")]
    Empty,
}

/// Cuts a command into its arguments: blanks separate, `'…'` and `"…"` keep together, `\` takes the next
/// character as it is (inside `"…"` only `\`, `"`, `$` and `` ` ``). What would make a shell do more than
/// that is refused rather than passed on as text.
pub fn split_command(text: &str) -> Result<Vec<String>, CommandError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => quoted(c, &mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next().ok_or(CommandError::Backslash)?),
            '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' => {
                return Err(CommandError::Shell(c));
            }
            '~' if word.is_none() => return Err(CommandError::Shell(c)),
            _ if c.is_ascii_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) { Err(CommandError::Empty) } else { Ok(words) }
}

fn quoted(quote: char, chars: &mut std::str::Chars, word: &mut String) -> Result<(), CommandError> {
    loop {
        match chars.next().ok_or(CommandError::Open)? {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next().ok_or(CommandError::Open)? {
                c @ ('\\' | '"' | '$' | '`') => word.push(c),
                c => word.extend(['\\', c]),
            },
            c @ ('$' | '`') if quote == '"' => return Err(CommandError::Shell(c)),
            c => word.push(c),
        }
    }
}

/// The known word that `word` is probably meant to be: at most a third of it different.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let chars: Vec<char> = word.chars().collect();
    let limit = (chars.len() / 3).clamp(1, 3);
    known.filter_map(|k| Some((distance(&chars, k, limit)?, k))).min().map(|(_, k)| k)
}

/// Levenshtein's, if it is no more than `limit`; of words that are further apart most isn't looked at, a key being as long as its file may be.
fn distance(a: &[char], b: &str, limit: usize) -> Option<usize> {
    let b: Vec<char> = b.chars().collect();
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
        if row.iter().all(|distance| *distance > limit) {
            return None;
        }
    }
    Some(row[b.len()]).filter(|distance| *distance <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_cut_as_a_shell_cuts_it() {
        for (text, words) in [
            ("ssh", &["ssh"][..]),
            ("ssh -p 22\t-o  X=y", &["ssh", "-p", "22", "-o", "X=y"]),
            ("ssh -i '/a b/c'", &["ssh", "-i", "/a b/c"]),
            (r#"ssh -o "A=b \"c\" \d""#, &["ssh", "-o", r#"A=b "c" \d"#]),
            (r"/opt/a\ b/resultsfs ''", &["/opt/a b/resultsfs", ""]),
            ("a'b'\"c\"d~", &["abcd~"]),
            ("ssh\n-4", &["ssh", "-4"]),
            ("ssh '$HOME;|'", &["ssh", "$HOME;|"]),
        ] {
            assert_eq!(
                split_command(text).as_deref(),
                Ok(words.iter().map(|w| w.to_string()).collect::<Vec<_>>()).as_deref(),
                "{text}"
            );
        }
    }

    #[test]
    fn what_needs_a_shell_is_refused() {
        for (text, error) in [
            ("ssh 'x", CommandError::Open),
            ("ssh \"x\\", CommandError::Open),
            ("ssh \\", CommandError::Backslash),
            ("ssh; rm", CommandError::Shell(';')),
            ("~/bin/resultsfs", CommandError::Shell('~')),
            ("ssh \"$HOME\"", CommandError::Shell('$')),
            ("''", CommandError::Empty),
            ("  ", CommandError::Empty),
        ] {
            assert_eq!(split_command(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let known = ["results_host", "retention_days", "retention_days_failed", "state_dir"];
        assert_eq!(nearest("result_host", known.into_iter()), Some("results_host"));
        assert_eq!(nearest("retention_day", known.into_iter()), Some("retention_days"));
        assert_eq!(nearest("colour", known.into_iter()), None);
        let far = |a: &str, b: &str, limit| distance(&a.chars().collect::<Vec<_>>(), b, limit);
        assert_eq!((far("kitten", "sitting", 3), far("", "abc", 3)), (Some(3), Some(3)));
        assert_eq!((far("kitten", "sitting", 2), far("", "abc", 2)), (None, None));
    }
}
