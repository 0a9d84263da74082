//! What a session says to its host: two bounded queues, and the writer that empties them, messages before blocks and records.

use tokio::{
    io::AsyncWrite,
    sync::{OwnedSemaphorePermit, mpsc},
};

use crate::{
    catalog::{Record, SnapshotChanges},
    limits,
    wire::{
        FromStore, RefusalCode, RequestId,
        frame::{Frame, FrameWriter, StreamError},
        message_frame,
    },
};

enum Urgent {
    Message(FromStore),
    Last(FromStore),
}

/// A frame, and what is given back when it was written.
type Bulk = (Frame, Option<OwnedSemaphorePermit>);

/// Where answers are put. Each call waits for room; a session that has ended takes everything and forgets it.
#[derive(Clone)]
pub(super) struct Outbox {
    urgent: mpsc::Sender<Urgent>,
    bulk: mpsc::Sender<Bulk>,
}

/// The other end.
pub(super) struct Outlet {
    urgent: mpsc::Receiver<Urgent>,
    bulk: mpsc::Receiver<Bulk>,
}

pub(super) fn new() -> (Outbox, Outlet) {
    let (urgent, urgent_queue) = mpsc::channel(limits::OUTBOX_MESSAGES);
    let (bulk, bulk_queue) = mpsc::channel(limits::OUTBOX_LARGE);
    (Outbox { urgent, bulk }, Outlet { urgent: urgent_queue, bulk: bulk_queue })
}

impl Outbox {
    pub(super) async fn message(&self, message: FromStore) {
        let _ = self.urgent.send(Urgent::Message(message)).await;
    }

    /// Without waiting; `false` = no room.
    pub(super) fn try_message(&self, message: FromStore) -> bool {
        self.urgent.try_send(Urgent::Message(message)).is_ok()
    }

    /// The session's last message: what else is queued after it isn't sent. Where there is no room, the host reads nothing anyway.
    pub(super) fn last(&self, code: RefusalCode, why: String) {
        let _ = self.urgent.try_send(Urgent::Last(FromStore::Refused(code, why)));
    }

    pub(super) async fn block(&self, id: RequestId, block: Vec<u8>, slot: OwnedSemaphorePermit) {
        let _ = self.bulk.send((Frame::Reply(id, block), Some(slot))).await;
    }

    pub(super) async fn snapshots(&self, changes: SnapshotChanges) {
        let _ = self.bulk.send((message_frame(&FromStore::Snapshots(changes)), None)).await;
    }

    pub(super) async fn records(&self, records: Vec<Record>) {
        let _ = self.bulk.send((message_frame(&FromStore::Records(records)), None)).await;
    }
}

impl Outlet {
    /// Writes until the last message or an error.
    pub(super) async fn run<W: AsyncWrite + Unpin>(mut self, writer: &mut FrameWriter<W>) -> StreamError {
        loop {
            match self.step(writer).await {
                Ok(true) => {}
                Ok(false) => return StreamError::Cut,
                Err(error) => return error,
            }
        }
    }

    /// Writes one frame, flushing before it waits for one. `false` = that was the last.
    async fn step<W: AsyncWrite + Unpin>(
        &mut self,
        writer: &mut FrameWriter<W>,
    ) -> Result<bool, StreamError> {
        if self.urgent.is_empty() && self.bulk.is_empty() {
            writer.flush().await?;
        }
        tokio::select! {
            biased;
            Some(urgent) = self.urgent.recv() => match urgent {
                Urgent::Message(message) => writer.write(&message_frame(&message)).await?,
                Urgent::Last(message) => {
                    writer.write(&message_frame(&message)).await?;
                    writer.close().await?;
                    return Ok(false);
                }
            },
            Some((frame, _slot)) = self.bulk.recv() => {
                writer.write(&frame).await?;
                frame.recycle();
            }
            else => return Ok(false),
        }
        Ok(true)
    }
}
