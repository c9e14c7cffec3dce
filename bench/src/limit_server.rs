//! The limit server: a lower bound for the cost of a fan-out over TCP.
//!
//! Every message is appended once to one shared buffer, and each connection writes all pending bytes in one call. It is
//! not a chat server, but a baseline to compare chat servers with.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use super::codec::{MAX_MESSAGE, take_message};
use super::error::BenchError;

/// Publishers are not read while the slowest reader lags by more bytes than this, which bounds the memory.
const MAX_LAG: usize = 64 << 20;
/// The buffer is trimmed once it holds this many bytes.
const TRIM_THRESHOLD: usize = 1 << 20;
/// How many bytes of buffer space are reserved for each read.
const READ_BUFFER: usize = 65_536;

/// Serves the limit protocol on `listen` until the process ends. Calls `bound` with the bound address.
///
/// # Errors
///
/// When the address cannot be bound or connections cannot be accepted.
pub fn serve_limit(listen: &str, bound: impl FnOnce(SocketAddr)) -> Result<(), BenchError> {
    let failed = |error: std::io::Error| BenchError::Io(format!("limit server on {listen}: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        bound(listener.local_addr().map_err(failed)?);
        let room = Rc::new(Room::default());
        loop {
            let (stream, _) = listener.accept().await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            room.accept(stream);
        }
    })
}

/// The messages that at least one connection has not written yet.
#[derive(Debug, Default)]
struct Log {
    /// The position of the first byte in `bytes`.
    start: usize,
    bytes: Vec<u8>,
}

impl Log {
    fn end(&self) -> usize {
        self.start + self.bytes.len()
    }

    fn from(&self, position: usize) -> &[u8] {
        self.bytes
            .get(position.saturating_sub(self.start)..)
            .unwrap_or_default()
    }

    fn trim_to(&mut self, position: usize) {
        self.bytes
            .drain(..position.saturating_sub(self.start).min(self.bytes.len()));
        self.start = position.max(self.start);
    }
}

#[derive(Debug, Default)]
struct Room {
    log: RefCell<Log>,
    /// The position of each connection in the log.
    cursors: RefCell<Vec<Rc<Cell<usize>>>>,
    appended: Notify,
    trimmed: Notify,
}

impl Room {
    fn accept(self: &Rc<Self>, stream: TcpStream) {
        let stream = Rc::new(stream);
        let cursor = Rc::new(Cell::new(self.log.borrow().end()));
        self.cursors.borrow_mut().push(Rc::clone(&cursor));
        let (room, reader) = (Rc::clone(self), Rc::clone(&stream));
        let writer = spawn_local({
            let (room, cursor) = (Rc::clone(self), Rc::clone(&cursor));
            async move { room.write(&stream, &cursor).await }
        });
        spawn_local(async move {
            room.read(&reader).await;
            writer.abort();
            room.cursors
                .borrow_mut()
                .retain(|other| !Rc::ptr_eq(other, &cursor));
            room.trim();
        });
    }

    /// Writes an empty text, which confirms the join, and then the log from the cursor on as it grows.
    async fn write(&self, stream: &TcpStream, cursor: &Cell<usize>) {
        let mut greeting: &[u8] = &[0; 4];
        loop {
            let appended = self.appended.notified();
            let written = {
                let log = self.log.borrow();
                let pending = if greeting.is_empty() {
                    log.from(cursor.get())
                } else {
                    greeting
                };
                if pending.is_empty() {
                    None
                } else {
                    Some(stream.try_write(pending))
                }
            };
            match written {
                None => appended.await,
                Some(Ok(count)) if greeting.is_empty() => cursor.set(cursor.get() + count),
                Some(Ok(count)) => greeting = greeting.get(count..).unwrap_or_default(),
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {
                    if stream.writable().await.is_err() {
                        return;
                    }
                }
                Some(Err(_)) => return,
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Appends complete messages to the log.
    async fn read(&self, stream: &TcpStream) {
        let mut buffer = Vec::with_capacity(READ_BUFFER);
        loop {
            while self.is_full() {
                let trimmed = self.trimmed.notified();
                self.trim();
                if self.is_full() {
                    // Poll: to stay cheap, the writers send no notification when their cursors advance.
                    let pause = std::time::Duration::from_millis(1);
                    drop(tokio::time::timeout(pause, trimmed).await);
                }
            }
            if stream.readable().await.is_err() {
                return;
            }
            buffer.reserve(READ_BUFFER);
            match stream.try_read_buf(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => return,
            }
            let mut rest = buffer.as_slice();
            loop {
                match take_message(rest) {
                    Ok(Some((_, after))) => rest = after,
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            let complete = buffer.len() - rest.len();
            self.log
                .borrow_mut()
                .bytes
                .extend_from_slice(buffer.get(..complete).unwrap_or_default());
            buffer.drain(..complete);
            if complete > 0 {
                self.trim();
                self.appended.notify_waiters();
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    fn is_full(&self) -> bool {
        self.log.borrow().bytes.len() > MAX_LAG - MAX_MESSAGE - READ_BUFFER
    }

    /// Removes the bytes that every connection has written.
    fn trim(&self) {
        let mut log = self.log.borrow_mut();
        if log.bytes.len() < TRIM_THRESHOLD {
            return;
        }
        let slowest = self
            .cursors
            .borrow()
            .iter()
            .map(|cursor| cursor.get())
            .min()
            .unwrap_or(log.end());
        // Removing them moves the rest to the front, which pays off only if they are at least half of the buffer.
        if slowest - log.start >= log.bytes.len() / 2 {
            log.trim_to(slowest);
            self.trimmed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_stay_valid_when_the_log_is_trimmed() {
        let mut log = Log::default();
        log.bytes.extend_from_slice(b"abcdef");
        log.trim_to(4);
        assert_eq!((log.from(4), log.end()), (&b"ef"[..], 6));
        log.trim_to(6);
        log.bytes.extend_from_slice(b"gh");
        assert_eq!((log.from(7), log.end()), (&b"h"[..], 8));
    }
}
