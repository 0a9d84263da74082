//! What a session may do in the store, as `--allow add,overlay,delete` says it.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};

/// A set of rights. What isn't named isn't allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Rights {
    /// Send blocks and commit own layers.
    #[n(0)]
    pub add: bool,
    /// Commit to units in which other hosts have layers.
    #[n(1)]
    pub overlay: bool,
    /// Delete or replace other hosts' entries: whiteouts.
    #[n(2)]
    pub delete: bool,
}

impl Rights {
    /// Reads only.
    pub const NONE: Self = Self { add: false, overlay: false, delete: false };
}

/// `add,overlay`.
impl Default for Rights {
    fn default() -> Self {
        Self { add: true, overlay: true, delete: false }
    }
}

/// A word that isn't a right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a right; rights are add, overlay and delete, with commas between them")]
pub struct ParseRightsError(String);

impl FromStr for Rights {
    type Err = ParseRightsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rights = Self::NONE;
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "add" => rights.add = true,
                "overlay" => rights.overlay = true,
                "delete" => rights.delete = true,
                other => return Err(ParseRightsError(other.to_owned())),
            }
        }
        Ok(rights)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [(self.add, "add"), (self.overlay, "overlay"), (self.delete, "delete")];
        let words: Vec<_> = words.into_iter().filter(|(given, _)| *given).map(|(_, word)| word).collect();
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_survive_their_text_and_unknown_means_no() {
        for text in ["", "add", "add,overlay", "add,overlay,delete", "delete"] {
            assert_eq!(text.parse::<Rights>().expect("good").to_string(), text);
        }
        assert_eq!(Rights::default().to_string(), "add,overlay");
        assert!("add,everything".parse::<Rights>().is_err());
    }
}
