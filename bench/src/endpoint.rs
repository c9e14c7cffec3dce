//! A server of a run.

use std::net::{SocketAddr, ToSocketAddrs};

use super::error::BenchError;
use super::plan::Plan;
use super::stream::Tls;

/// A server of a run, ready to connect to.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// `host:port`, as the plan has it.
    pub(super) authority: String,
    pub(super) address: SocketAddr,
    /// `None` for plain text.
    pub(super) tls: Option<Tls>,
}

impl Endpoint {
    /// Resolves the servers of a plan.
    pub(super) fn resolve_all(plan: &Plan) -> Result<Vec<Self>, BenchError> {
        plan.servers
            .iter()
            .map(|server| {
                let ca = plan.ca.as_deref();
                Ok(Self {
                    authority: server.clone(),
                    address: resolve(server)?,
                    tls: ca.map(|ca| Tls::new(ca, server)).transpose()?,
                })
            })
            .collect()
    }
}

fn resolve(server: &str) -> Result<SocketAddr, BenchError> {
    let wrong = |why: String| {
        BenchError::Plan(format!(
            "--server {server}: {why}; expected an address like 127.0.0.1:50052"
        ))
    };
    let mut addresses = server
        .to_socket_addrs()
        .map_err(|error| wrong(error.to_string()))?;
    addresses.next().ok_or_else(|| wrong("no address".to_owned()))
}
