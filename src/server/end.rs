//! How a session ends.

use super::places::Crowded;
use crate::wire::{RefusalCode, frame::StreamError};

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The host closed its end.
    Closed,
    /// The connection failed.
    Broken(String),
    /// The host was refused; it was told so.
    Refused(RefusalCode, String),
    /// The server is stopping.
    Stopped,
}

impl From<StreamError> for SessionEnd {
    fn from(error: StreamError) -> Self {
        match error {
            error @ (StreamError::Frame(_) | StreamError::Silent(_) | StreamError::Slow { .. }) => {
                protocol(error.to_string())
            }
            error @ (StreamError::Cut | StreamError::Io(_)) => Self::Broken(error.to_string()),
        }
    }
}

impl From<Crowded> for SessionEnd {
    fn from(crowded: Crowded) -> Self {
        Self::Refused(RefusalCode::Busy, crowded.to_string())
    }
}

pub(super) fn protocol(why: impl Into<String>) -> SessionEnd {
    SessionEnd::Refused(RefusalCode::Protocol, why.into())
}

pub(super) fn store_failed(why: String) -> SessionEnd {
    SessionEnd::Refused(RefusalCode::Store, why)
}
