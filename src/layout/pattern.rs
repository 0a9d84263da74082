//! Patterns for names: `*` is any text, `?` any one byte.

/// Whether `text` holds `pattern`, or matches it where it has `*` or `?`.
pub fn matches(pattern: &str, text: &str) -> bool {
    if !pattern.contains(['*', '?']) {
        return text.contains(pattern);
    }
    glob(pattern.as_bytes(), text.as_bytes())
}

/// Whether all of `text` matches `pattern`.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last `*` was, and how much of the text it has taken so far.
    let (mut at, mut taken, mut star) = (0, 0, None);
    while taken < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, taken));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[taken] => (at, taken) = (at + 1, taken + 1),
            _ => match star {
                Some((last, from)) => {
                    star = Some((last, from + 1));
                    (at, taken) = (last + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_text_or_globs() {
        assert!(matches("12-me", "112-me/host1") && matches("", "x"));
        assert!(matches("12-*/host?", "12-me/host1") && !matches("12-*/host?", "12-me/host12"));
        assert!(matches("*", "anything") && !matches("?", ""));
    }

    #[test]
    fn a_star_gives_back_what_it_took_too_much_of() {
        let cases =
            [("a*b*c", "aXbXbXc", true), ("*aab", "aaaab", true), ("a*", "", false), ("**", "", true)];
        for (pattern, text, is_match) in cases {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), is_match, "{pattern} {text}");
        }
        let (long, no) = ("a*".repeat(30) + "b", "a".repeat(2000));
        assert!(!glob(long.as_bytes(), no.as_bytes()), "and is done before the test is");
    }
}
