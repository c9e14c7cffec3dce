//! Finds out who makes a call to the chat service, before anything else reads it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use super::CHAT_SERVICE;
use super::connection_budgets::Peer;
use super::error::RpcError;
use super::observer::Observer;
use super::rates::Rates;
use crate::auth::{Authenticator, CachedToken, Caller, TokenError};

/// Passes a call to `S` with its [`Caller`] as an extension, and without its token. Rejects a call of the chat service whose caller
/// is not known.
#[derive(Clone)]
pub struct AuthenticationService<S> {
    inner: S,
    /// `None` if the server has no keys.
    authenticator: Option<Arc<Authenticator>>,
    rates: Arc<Rates>,
    observer: Arc<dyn Observer>,
}

impl<S> AuthenticationService<S> {
    /// Wraps `inner`. Without an `authenticator`, all may call.
    pub fn new(
        inner: S,
        authenticator: Option<Arc<Authenticator>>,
        rates: Arc<Rates>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            inner,
            authenticator,
            rates,
            observer,
        }
    }

    fn caller(&self, request: &Request<Body>, address: Option<IpAddr>) -> Result<Caller, TokenError> {
        let Some(authenticator) = &self.authenticator else {
            return Ok(Caller::Unrestricted);
        };
        let mut headers = request.headers().get_all(AUTHORIZATION).iter();
        let authorization = headers.next().map(|value| value.as_bytes());
        if headers.next().is_some() {
            return Err(TokenError::Malformed("there is more than one"));
        }
        let none = Arc::default();
        let cached = request.extensions().get::<Arc<CachedToken>>().unwrap_or(&none);
        let result = authenticator.authenticate(authorization, cached, || {
            self.rates.check_authentication_failures(address)
        });
        if let Err(error) = &result
            && !matches!(error, TokenError::Missing | TokenError::TooManyInvalid(_))
        {
            self.rates.record_authentication_failure(address);
        }
        result
    }
}

/// Whether a path is one of the chat service, or could be taken for one.
fn is_chat(path: &str) -> bool {
    path.contains(CHAT_SERVICE)
}

impl<S> Service<Request<Body>> for AuthenticationService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if is_chat(request.uri().path()) {
            let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
            match self.caller(&request, peer.map(|peer| peer.ip())) {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                }
                Err(error) => {
                    let error = RpcError::from(error);
                    let status = error.to_status();
                    self.observer
                        .authentication_failed(peer, error.reason(), status.message());
                    return Either::Left(ready(Ok(status.into_http())));
                }
            }
        }
        request.headers_mut().remove(AUTHORIZATION);
        Either::Right(self.inner.call(request))
    }
}
