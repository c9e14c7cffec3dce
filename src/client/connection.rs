//! The transport to one server.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::address::ServerAddress;
use super::call::Call;
use super::conversation::Conversation;
use super::error::Error;
use super::join::Join;
use crate::proto::JoinMsgLeave;

/// How patient a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long to wait for the connection, and then for each answer that a call is to have at once.
    pub answer_within: Duration,
    /// How often the server is asked for a sign of life. Also what keeps routers on the way from forgetting a quiet
    /// connection.
    pub keepalive_interval: Duration,
    /// How long such a sign may take before the connection counts as lost.
    pub keepalive_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            answer_within: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// A connection to a server. Cheap to clone; clones share the transport, and any number of conversations fit on it.
#[derive(Debug, Clone)]
pub struct Connection {
    channel: Channel,
    address: ServerAddress,
    answer_within: Duration,
}

/// What a server's health service says of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Serving,
    /// It is known and does not serve: it is starting, draining, or broken.
    NotServing,
    /// The server does not know.
    Unknown,
    /// The server has no such service.
    ServiceUnknown,
}

impl Health {
    /// As the health protocol writes it: `SERVING` and so on.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::Unknown => "UNKNOWN",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

impl Connection {
    /// Connects to the server at `address`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when nothing is there, [`Error::NoAnswer`] when connecting takes longer than
    /// [`Settings::answer_within`].
    ///
    /// # Cancellation
    /// Dropping the future gives the attempt up.
    pub async fn open(address: &ServerAddress, settings: &Settings) -> Result<Self, Error> {
        let endpoint = Endpoint::from(address.uri())
            .http2_keep_alive_interval(settings.keepalive_interval)
            .keep_alive_timeout(settings.keepalive_timeout)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = within(settings.answer_within, address, endpoint.connect())
            .await?
            .map_err(|error| Error::Unreachable {
                address: address.clone(),
                source: Box::new(error),
            })?;
        Ok(Self {
            channel,
            address: address.clone(),
            answer_within: settings.answer_within,
        })
    }

    /// Joins a room.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let this participant in, [`Error::NoAnswer`] when it says nothing
    /// for [`Settings::answer_within`], and what else can happen to a call.
    ///
    /// # Cancellation
    /// Dropping the future closes the stream; if the server had let the participant in, it sees them leave.
    pub async fn join(&self, join: Join) -> Result<Conversation, Error> {
        let joining = Conversation::begin(self.channel.clone(), join);
        self.within(joining)
            .await?
            .map_err(|status| Error::before_any_answer(status, &self.address))
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) const fn address(&self) -> &ServerAddress {
        &self.address
    }

    pub(super) const fn answer_within(&self) -> Duration {
        self.answer_within
    }

    /// Waits for an answer as long as the settings say.
    pub(super) async fn within<F: Future>(&self, answer: F) -> Result<F::Output, Error> {
        within(self.answer_within, &self.address, answer).await
    }

    /// Opens a stream with `join` and waits for its answer, as [`join`](Self::join) does.
    pub(super) async fn call(&self, join: JoinMsgLeave) -> Result<Call, Error> {
        let calling = Call::begin(self.channel.clone(), join);
        self.within(calling)
            .await?
            .map_err(|status| Error::before_any_answer(status, &self.address))
    }

    /// Asks the server's health service for the state of `service`, or of the server as a whole when that is empty.
    ///
    /// # Errors
    /// Whatever can happen to a call. That the server has no such service is an answer, not an error.
    ///
    /// # Cancellation
    /// Loses the answer and nothing else.
    pub async fn health(&self, service: &str) -> Result<Health, Error> {
        let mut client = HealthClient::new(self.channel.clone());
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        match self.within(client.check(request)).await? {
            Ok(answer) => Ok(match answer.into_inner().status() {
                ServingStatus::Serving => Health::Serving,
                ServingStatus::NotServing => Health::NotServing,
                ServingStatus::Unknown => Health::Unknown,
                ServingStatus::ServiceUnknown => Health::ServiceUnknown,
            }),
            Err(status) if status.code() == Code::NotFound => Ok(Health::ServiceUnknown),
            Err(status) => Err(Error::before_any_answer(status, &self.address)),
        }
    }
}

async fn within<F: Future>(limit: Duration, address: &ServerAddress, answer: F) -> Result<F::Output, Error> {
    timeout(limit, answer).await.map_err(|_| Error::NoAnswer {
        address: address.clone(),
        waited: limit,
    })
}
