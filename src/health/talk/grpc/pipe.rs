//! What stands in for a connection, so that `h2` speaks without one.
#![forbid(unsafe_code)]

use bytes::{Buf, BytesMut};
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both ends of it: who holds a clone feeds what was received and takes what is to be sent. It
/// wakes nobody: who feeds it polls.
#[derive(Clone, Default)]
pub(super) struct Pipe(Rc<Bytes>);

#[derive(Default)]
struct Bytes {
    received: Cell<BytesMut>,
    sent: Cell<Vec<u8>>,
    /// Bytes that went through, in both directions.
    moved: Cell<usize>,
}

impl Pipe {
    /// Bytes came.
    pub fn feed(&self, bytes: &[u8]) {
        let mut received = self.0.received.take();
        received.extend_from_slice(bytes);
        self.0.received.set(received);
    }

    /// What is to be sent.
    pub fn take(&self) -> Vec<u8> {
        self.0.sent.take()
    }

    /// How many bytes have been read and written: the same number as before if nothing moved.
    pub fn moved(&self) -> usize {
        self.0.moved.get()
    }

    fn count(&self, bytes: usize) {
        self.0.moved.set(self.0.moved.get().wrapping_add(bytes));
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut received = self.0.received.take();
        let length = received.len().min(into.remaining());
        if let Some(bytes) = received.get(..length) {
            into.put_slice(bytes);
        }
        received.advance(length);
        self.0.received.set(received);
        self.count(length);
        if length == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut sent = self.0.sent.take();
        sent.extend_from_slice(bytes);
        self.0.sent.set(sent);
        self.count(bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
