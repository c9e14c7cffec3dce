//! Attacks with what TLS does before HTTP/2 sees it.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::frame_attack::Attacker;
use crate::frames::{data, preface};
use crate::{MAX_FILES, connect};

/// How often a client may change its key between two records with data, with the TLS library of the server.
const MAX_KEY_UPDATES: usize = 31;

/// What the attackers of one kind do.
#[derive(Debug, Clone, Copy)]
pub enum TlsAttack {
    /// They complete handshakes and disconnect.
    Handshakes,
    /// They send dozens of certificates, of which each may have signed each other.
    LongChains,
    /// They begin handshakes and do not go on.
    BegunHandshakes,
    /// They begin handshakes byte by byte.
    SlowHandshakes,
    /// They send messages in records with one byte.
    ShortRecords,
    /// They send messages in records that are long enough for the header of a frame.
    SmallRecords,
    /// They change their keys before each byte of a message.
    KeyUpdates,
}

impl TlsAttack {
    pub const ALL: [Self; 7] = [
        Self::Handshakes,
        Self::LongChains,
        Self::BegunHandshakes,
        Self::SlowHandshakes,
        Self::ShortRecords,
        Self::SmallRecords,
        Self::KeyUpdates,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Handshakes => "TLS handshakes",
            Self::LongChains => "TLS handshakes with many certificates",
            Self::BegunHandshakes => "TLS handshakes that are begun",
            Self::SlowHandshakes => "TLS handshakes byte by byte",
            Self::ShortRecords => "TLS records with one byte",
            Self::SmallRecords => "TLS records with nine bytes",
            Self::KeyUpdates => "TLS key updates",
        }
    }

    /// How many connections at a time.
    pub fn connections(self) -> usize {
        let max = match self {
            Self::BegunHandshakes | Self::SlowHandshakes => 1_000,
            Self::Handshakes
            | Self::LongChains
            | Self::ShortRecords
            | Self::SmallRecords
            | Self::KeyUpdates => 64,
        };
        max.min(*MAX_FILES / 4)
    }

    /// Repeats the attack on one connection after the other.
    pub async fn run(self, server: SocketAddr, config: Arc<ClientConfig>, seed: u64, until: Instant) {
        let mut random = StdRng::seed_from_u64(seed);
        while Instant::now() < until {
            let from = random.random_range(2..6);
            if let Some(socket) = connect(server, from).await {
                let attacker = Attacker::new(random.random());
                let attack = self.run_once(socket, Arc::clone(&config), attacker);
                // It ends with an error if the server defends itself.
                timeout(until - Instant::now(), attack).await.ok();
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs the attack on one connection.
    async fn run_once(
        self,
        mut socket: TcpStream,
        config: Arc<ClientConfig>,
        attacker: Attacker,
    ) -> io::Result<()> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut hello = Vec::new();
        let mut begin = || {
            let mut client = ClientConnection::new(Arc::clone(&config), name.clone()).unwrap();
            client.write_tls(&mut hello)
        };
        match self {
            Self::Handshakes => {
                TlsConnector::from(config).connect(name, socket).await?;
            }
            Self::LongChains => {
                let mut stream = TlsConnector::from(config).connect(name, socket).await?;
                // With TLS 1.3 the server verifies them now.
                stream.read_u8().await?;
            }
            Self::BegunHandshakes => {
                begin()?;
                socket.write_all(&hello).await?;
                sleep(Duration::from_millis(200)).await;
            }
            Self::SlowHandshakes => {
                begin()?;
                for byte in hello {
                    socket.write_all(&[byte]).await?;
                    sleep(Duration::from_millis(20)).await;
                }
            }
            Self::ShortRecords => send_messages(socket, config, attacker, 1, 0).await?,
            Self::SmallRecords => send_messages(socket, config, attacker, 9, 0).await?,
            Self::KeyUpdates => send_messages(socket, config, attacker, 1, MAX_KEY_UPDATES).await?,
        }
        Ok(())
    }
}

/// Sends messages to a room, so many bytes in each record after as many changes of the keys.
async fn send_messages(
    socket: TcpStream,
    config: Arc<ClientConfig>,
    mut attacker: Attacker,
    record: usize,
    key_updates: usize,
) -> io::Result<()> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(config).connect(name, socket).await?;
    let room = attacker.text(12);
    let join = [preface(65_535), attacker.join(room)].concat();
    stream.write_all(&join).await?;
    stream.flush().await?;
    let mut read = vec![0; 1 << 16];
    loop {
        let message = data(attacker.stream, &attacker.message());
        let (socket, tls) = stream.get_mut();
        let mut records = Vec::new();
        for part in message.chunks(record) {
            for _ in 0..key_updates {
                tls.refresh_traffic_keys().map_err(io::Error::other)?;
            }
            tls.writer().write_all(part)?;
            while tls.wants_write() {
                tls.write_tls(&mut records)?;
            }
        }
        socket.write_all(&records).await?;
        while let Ok(answer) = timeout(Duration::ZERO, socket.read(&mut read)).await {
            if answer? == 0 {
                return Ok(());
            }
        }
    }
}
