//! The health service, with what tonic's lacks.

use std::future::ready;
use std::pin::Pin;

use futures_util::StreamExt as _;
use futures_util::stream::{once, pending};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

/// The health service. `Watch` of a service that does not exist says `SERVICE_UNKNOWN` and stays open, as the protocol asks for,
/// until the server drains.
pub struct HealthChecks {
    inner: HealthService,
    draining: CancellationToken,
}

impl HealthChecks {
    /// A service that answers with the states of `reporter`.
    #[must_use]
    pub fn new(reporter: HealthReporter, draining: CancellationToken) -> Self {
        Self {
            inner: HealthService::from_health_reporter(reporter),
            draining,
        }
    }
}

#[tonic::async_trait]
impl Health for HealthChecks {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.inner.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        match self.inner.watch(request).await {
            Ok(response) => Ok(response.map(|stream| Box::pin(stream) as _)),
            Err(status) if status.code() == Code::NotFound => {
                let unknown = HealthCheckResponse {
                    status: ServingStatus::ServiceUnknown.into(),
                };
                // Services are not added while the server runs.
                let stream = once(ready(Ok(unknown))).chain(pending());
                let drained = self.draining.clone().cancelled_owned();
                Ok(Response::new(Box::pin(stream.take_until(drained))))
            }
            Err(status) => Err(status),
        }
    }
}
