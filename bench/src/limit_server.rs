//! The limit: the least that a fan-out over TCP can cost. Every message goes once into one shared buffer, and each
//! connection writes everything it has not written yet in one call. Not a chat server; a measure for one.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use super::error::BenchError;
use super::wire::{MAX_MESSAGE, take_message};

/// Publishers are not read from while the slowest reader is this far behind: nothing is lost, and memory is bounded.
const MAX_BEHIND: usize = 64 << 20;
/// What everybody has written is forgotten when there is this much of it.
const FORGET_FROM: usize = 1 << 20;
/// How much is read at once.
const READ_BUFFER: usize = 65_536;

/// Serves the limit protocol on `listen` until the process ends; `bound` is told the address.
///
/// # Errors
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
            room.enter(stream);
        }
    })
}

/// Everything that was said and that somebody has not written yet.
#[derive(Debug, Default)]
struct Log {
    /// The position of the first byte.
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

    fn forget_to(&mut self, position: usize) {
        self.bytes
            .drain(..position.saturating_sub(self.start).min(self.bytes.len()));
        self.start = position.max(self.start);
    }
}

#[derive(Debug, Default)]
struct Room {
    log: RefCell<Log>,
    /// Where each connection is.
    cursors: RefCell<Vec<Rc<Cell<usize>>>>,
    said: Notify,
    forgotten: Notify,
}

impl Room {
    fn enter(self: &Rc<Self>, stream: TcpStream) {
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
            room.forget();
        });
    }

    /// Greets, then writes all that is pending, again and again.
    async fn write(&self, stream: &TcpStream, cursor: &Cell<usize>) {
        let mut greeting: &[u8] = &[0; 4];
        loop {
            let said = self.said.notified();
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
                None => said.await,
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

    /// Puts whole messages into the log.
    async fn read(&self, stream: &TcpStream) {
        let mut buffer = Vec::with_capacity(READ_BUFFER);
        loop {
            while self.is_full() {
                let forgotten = self.forgotten.notified();
                self.forget();
                if self.is_full() {
                    // Readers tell nobody how far they are, which keeps them cheap: look again a little later.
                    let pause = std::time::Duration::from_millis(1);
                    drop(tokio::time::timeout(pause, forgotten).await);
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
            let whole = buffer.len() - rest.len();
            self.log
                .borrow_mut()
                .bytes
                .extend_from_slice(buffer.get(..whole).unwrap_or_default());
            buffer.drain(..whole);
            if whole > 0 {
                self.forget();
                self.said.notify_waiters();
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    fn is_full(&self) -> bool {
        self.log.borrow().bytes.len() > MAX_BEHIND - MAX_MESSAGE - READ_BUFFER
    }

    /// Drops what everybody has written.
    fn forget(&self) {
        let mut log = self.log.borrow_mut();
        if log.bytes.len() < FORGET_FROM {
            return;
        }
        let slowest = self
            .cursors
            .borrow()
            .iter()
            .map(|cursor| cursor.get())
            .min()
            .unwrap_or(log.end());
        // Moving the rest to the front is worth it only when most of it goes.
        if slowest - log.start >= log.bytes.len() / 2 {
            log.forget_to(slowest);
            self.forgotten.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_positions_when_it_forgets() {
        let mut log = Log::default();
        log.bytes.extend_from_slice(b"abcdef");
        log.forget_to(4);
        assert_eq!((log.from(4), log.end()), (&b"ef"[..], 6));
        log.forget_to(6);
        log.bytes.extend_from_slice(b"gh");
        assert_eq!((log.from(7), log.end()), (&b"h"[..], 8));
    }
}
