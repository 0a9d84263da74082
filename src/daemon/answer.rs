//! What a command answers: lines, and how it ended.

use std::io;

use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::unix::OwnedWriteHalf};

use crate::control::{PIECE_BYTES, Reply};

/// How a command ended: exit code, or what went wrong and what to do.
pub(super) type Ended = Result<u8, Refusal>;

/// What went wrong, and what to do.
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(message: impl ToString) -> Self {
        Self { message: message.to_string(), hint: None }
    }

    pub(super) fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }
}

/// The lines of an answer; a caller that went away is noticed at the end.
pub(super) struct Output {
    stream: OwnedWriteHalf,
}

impl Output {
    pub(super) fn new(stream: OwnedWriteHalf) -> Self {
        Self { stream }
    }

    pub(super) async fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.stream.write_all(&line).await
    }

    pub(super) async fn item(&mut self, item: Value) -> io::Result<()> {
        self.reply(&Reply::Item(item)).await
    }

    /// Of a file.
    pub(super) async fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.reply(&Reply::Bytes(piece.len())).await?;
            self.stream.write_all(piece).await?;
        }
        Ok(())
    }
}
