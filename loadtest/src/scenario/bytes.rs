//! What does a byte cost? Raw bytes on kept connections to a peer that sends back what it gets.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use crate::drive::{Connector, Done, Failure, Negotiated, Operation, Plan, Reason, Stream};

/// Read and written at a time.
const CHUNK: usize = 64 * 1024;
/// What is exchanged where the plan does not say.
const SIZE: usize = 1024 * 1024;

static BYTES: [u8; CHUNK] = [b'x'; CHUNK];

pub(super) struct Bytes {
    connector: Connector,
    size: usize,
    negotiated: RefCell<Negotiated>,
}

impl Bytes {
    pub(super) fn new(plan: &Plan, connector: Connector) -> Self {
        let size = if plan.size == 0 { SIZE } else { plan.size };
        Self { connector, size, negotiated: RefCell::default() }
    }
}

impl Operation for Bytes {
    type Kept = Option<Stream>;

    async fn once(&self, _: usize, kept: &mut Self::Kept) -> Result<Done, Failure> {
        let mut done = Done::default();
        let stream = match kept {
            Some(stream) => stream,
            None => {
                let stream = self.connector.connect().await?;
                self.negotiated.replace(stream.negotiated());
                (done.handshakes, done.resumed) = stream.handshakes();
                kept.insert(stream)
            }
        };
        there_and_back(stream, self.size).await?;
        (done.sent, done.received) = (self.size as u64, self.size as u64);
        Ok(done)
    }

    fn negotiated(&self) -> Negotiated {
        self.negotiated.borrow().clone()
    }
}

/// Writes and reads at the same time: whoever first writes all may wait for ever for a peer that has no room.
pub(super) async fn there_and_back(stream: &mut Stream, size: usize) -> Result<(), Failure> {
    let (mut sent, mut flushed, mut received, mut buffer) = (0, false, 0, vec![0; CHUNK]);
    poll_fn(|cx| {
        while let Poll::Ready(step) = send(stream, cx, size, &mut sent, &mut flushed) {
            if !step? {
                break;
            }
        }
        while received < size {
            let mut room = ReadBuf::new(&mut buffer);
            let Poll::Ready(read) = Pin::new(&mut *stream).poll_read(cx, &mut room) else {
                return Poll::Pending;
            };
            read?;
            let got = room.filled();
            if got.is_empty() {
                return Poll::Ready(Err(Failure::new(
                    Reason::Closed,
                    format!("{received} of {size} bytes came back"),
                )));
            }
            if got.iter().any(|byte| *byte != BYTES[0]) {
                return Poll::Ready(Err(Failure::new(
                    Reason::BadAnswer,
                    "other bytes came back than were sent",
                )));
            }
            received += got.len();
            while let Poll::Ready(step) = send(stream, cx, size, &mut sent, &mut flushed) {
                if !step? {
                    break;
                }
            }
        }
        match received == size {
            true => Poll::Ready(Ok(())),
            false => Poll::Ready(Err(Failure::new(Reason::BadAnswer, "more came back than was sent"))),
        }
    })
    .await
}

/// One step of sending; false once there is nothing left to do.
fn send(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    size: usize,
    sent: &mut usize,
    flushed: &mut bool,
) -> Poll<io::Result<bool>> {
    let mut stream = Pin::new(stream);
    if *sent < size {
        let chunk = &BYTES[..CHUNK.min(size - *sent)];
        return stream.as_mut().poll_write(cx, chunk).map_ok(|n| {
            *sent += n;
            true
        });
    }
    if *flushed {
        return Poll::Ready(Ok(false));
    }
    stream.poll_flush(cx).map_ok(|()| {
        *flushed = true;
        false
    })
}
