//! The network between the processes of a cluster, which a test can cut.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;

/// The connections of processes to NATS servers, each through a proxy of its own.
///
/// What is sent through a link that is cut arrives once it is mended, as with TCP, and neither end is told.
pub(crate) struct Network {
    /// Not that of the test, so that a client under load does not delay the servers.
    runtime: Option<Runtime>,
    links: Vec<Link>,
}

struct Link {
    from: String,
    to: usize,
    is_cut: watch::Sender<bool>,
}

impl Network {
    pub(crate) fn new() -> Self {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Self {
            runtime: Some(runtime.unwrap()),
            links: Vec::new(),
        }
    }

    /// Returns the address at which `from` reaches the NATS server `to`, which listens on `server`.
    pub(crate) fn link(&mut self, from: &str, to: usize, server: SocketAddr) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (is_cut, whole) = watch::channel(false);
        self.links.push(Link {
            from: from.to_owned(),
            to,
            is_cut,
        });
        let runtime = self.runtime.as_ref().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connect(client, server, whole.clone()));
            }
        });
        address
    }

    /// Cuts the links for which `is_concerned` returns true, called with where they begin and the NATS server at which they end.
    pub(crate) fn cut(&self, is_concerned: impl Fn(&str, usize) -> bool) {
        let links = self.links.iter();
        for link in links.filter(|link| is_concerned(&link.from, link.to)) {
            link.is_cut.send_replace(true);
        }
    }

    pub(crate) fn mend(&self) {
        for link in &self.links {
            link.is_cut.send_replace(false);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A runtime must not be dropped within another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Forwards a connection in both directions until one end closes it. The other end learns of that once the link is whole.
async fn connect(client: TcpStream, server: SocketAddr, mut is_cut: watch::Receiver<bool>) -> Option<()> {
    is_cut.wait_for(|is_cut| !is_cut).await.ok()?;
    let server = TcpStream::connect(server).await.ok()?;
    client.set_nodelay(true).ok()?;
    server.set_nodelay(true).ok()?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::select! {
        _ = forward(&mut from_client, &mut to_server, is_cut.clone()) => {}
        _ = forward(&mut from_server, &mut to_client, is_cut.clone()) => {}
    }
    is_cut.wait_for(|is_cut| !is_cut).await.ok()?;
    Some(())
}

async fn forward(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut is_cut: watch::Receiver<bool>,
) -> Option<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await.ok().filter(|length| *length > 0)?;
        is_cut.wait_for(|is_cut| !is_cut).await.ok()?;
        to.write_all(&buffer[..length]).await.ok()?;
    }
}
