//! Limits how often clients may do something.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::address_budgets::{address_key, client_prefix};
use super::error::RpcError;
use super::room_quotas::RoomQuotas;
use crate::auth::Caller;
use crate::domain::RoomName;
use crate::domain::limits::MAX_MESSAGE_ID_LEN;
use crate::hub::Hub;
use crate::rate_limiter::{Rate, RateLimiter};
use crate::reason::Reason;

/// How many addresses are remembered at most. Beyond that new addresses are not limited: other limits hold for them, and a
/// client with many addresses must not lock out everybody else.
const MAX_ADDRESSES: usize = 65_536;

/// How often addresses are forgotten that have used up nothing any more: looking at all of them takes a millisecond, and a client with
/// many addresses could cause it with each request.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many seconds' worth of messages a participant may send at once.
const MESSAGE_BURST_SECONDS: u32 = 10;

/// How many seconds' worth of joins an address may make at once: when a server has restarted, everybody behind a proxy joins
/// again.
const JOIN_BURST_SECONDS: u32 = 20;

/// The rates that clients may not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Messages per second of one participant, or posted without a stream from one address. `None` for no limit.
    pub messages: Option<u32>,
    /// JOINs and subscriptions per second from one address.
    pub joins: u32,
    /// Rooms per minute that one address may create.
    pub new_rooms: u32,
    /// How many rooms may exist that one address has created since the start. It may create them at once.
    pub rooms_per_address: usize,
    /// Calls per second from one address whose token is not valid. Verifying one takes up to a tenth of a millisecond.
    pub authentication_failures: u32,
    /// What moderators do per second from one address. Storing it can take a snapshot of all participants of a room.
    pub moderations: u32,
    /// TLS handshakes per second from one address. Computing one takes up to a millisecond.
    pub handshakes: u32,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            messages: None,
            joins: 1_000,
            new_rooms: 60,
            rooms_per_address: 2_500,
            authentication_failures: 100,
            moderations: 10,
            handshakes: 200,
        }
    }
}

/// How long after its retry delay a rejected message may take to arrive again before others are accepted: a round trip.
const RESEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The shortest retry delay of a message that must not overtake another one.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The rate of one participant's messages.
#[derive(Debug)]
pub(super) struct MessageRate {
    rate: Option<Rate>,
    limiter: RateLimiter,
    /// The id of the message that was rejected first, and until when it is waited for.
    awaited: Option<(String, Instant)>,
}

impl MessageRate {
    /// Counts a message with the id `id`, which is empty if it has none.
    ///
    /// After one that was rejected, others with ids are rejected until it comes again, for a time: they were on their way already, and
    /// must not overtake it.
    ///
    /// # Errors
    ///
    /// The participant sends too fast.
    pub(super) fn try_acquire(&mut self, id: &str) -> Result<(), RpcError> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        let now = Instant::now();
        self.awaited.take_if(|(_, until)| *until <= now);
        let delay = match &self.awaited {
            Some((first, until)) if !id.is_empty() && id != first => {
                (*until - RESEND_TIMEOUT - now).max(MIN_RETRY_DELAY)
            }
            _ => match self.limiter.try_acquire(rate, now) {
                Ok(()) => {
                    self.awaited.take_if(|(first, _)| id == first);
                    return Ok(());
                }
                Err(delay) => {
                    if !id.is_empty() && id.len() <= MAX_MESSAGE_ID_LEN {
                        self.awaited = Some((id.to_owned(), now + delay + RESEND_TIMEOUT));
                    }
                    delay
                }
            },
        };
        let error = RpcError::new(
            Reason::TooFast,
            "too many messages in a short time; wait before the next one",
        );
        Err(error.with_retry_delay(delay))
    }
}

/// How many seconds' worth of tokens that are not valid an address may send at once.
const AUTHENTICATION_FAILURE_BURST_SECONDS: u32 = 10;

/// How many seconds' worth of decisions moderators at one address may make at once.
const MODERATION_BURST_SECONDS: u32 = 20;

/// A rate for each address.
#[derive(Debug)]
pub(super) struct AddressRate {
    rate: Rate,
    limiters: Mutex<Limiters>,
}

#[derive(Debug, Default)]
struct Limiters {
    by_address: HashMap<IpAddr, RateLimiter>,
    /// When addresses that have used up nothing any more were last forgotten.
    swept_at: Option<Instant>,
}

impl AddressRate {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            limiters: Mutex::default(),
        }
    }

    /// As [`AddressRate::try_acquire`], but counts nothing.
    pub(super) fn check(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        let limiters = self.limiters.lock();
        let limiter = limiters.by_address.get(&address_key(address));
        let mut copy = limiter.copied().unwrap_or_default();
        copy.try_acquire(self.rate, Instant::now())
    }

    /// Counts an event from `address`.
    ///
    /// # Errors
    ///
    /// The rate is exceeded; it is not after this time.
    pub(super) fn try_acquire(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        let acquired = self.with_limiter(address_key(address), RateLimiter::try_acquire);
        acquired.unwrap_or(Ok(()))
    }

    /// Counts `count` events from `address`, allowed or not. Returns how long there must be none until the rate is kept, at most
    /// `max`.
    pub(super) fn record(&self, address: IpAddr, count: u32, max: Duration) -> Duration {
        let delay = self.with_limiter(client_prefix(address), |limiter, rate, now| {
            limiter.record(count, rate, max, now)
        });
        delay.unwrap_or_default()
    }

    /// Calls `count` with what is remembered of an address; `None` if there are too many addresses.
    fn with_limiter<T>(
        &self,
        address: IpAddr,
        count: impl FnOnce(&mut RateLimiter, Rate, Instant) -> T,
    ) -> Option<T> {
        let now = Instant::now();
        let limiters = &mut *self.limiters.lock();
        let by_address = &mut limiters.by_address;
        if by_address.len() >= MAX_ADDRESSES && !by_address.contains_key(&address) {
            if limiters
                .swept_at
                .is_none_or(|swept_at| now - swept_at >= SWEEP_INTERVAL)
            {
                by_address.retain(|_, limiter| !limiter.is_unused(now));
                limiters.swept_at = Some(now);
            }
            if by_address.len() >= MAX_ADDRESSES {
                return None;
            }
        }
        Some(count(by_address.entry(address).or_default(), self.rate, now))
    }
}

/// The rates of all clients of a server.
#[derive(Debug)]
pub struct Rates {
    messages: Option<Rate>,
    posts: Option<AddressRate>,
    joins: AddressRate,
    new_rooms: AddressRate,
    authentication_failures: AddressRate,
    moderations: AddressRate,
    room_quotas: RoomQuotas,
}

impl Rates {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(limits: RateLimits) -> Self {
        let second = Duration::from_secs(1);
        let messages = limits
            .messages
            .map(|count| Rate::new(count, second, count.saturating_mul(MESSAGE_BURST_SECONDS)));
        Self {
            messages,
            posts: messages.map(AddressRate::new),
            joins: AddressRate::new(Rate::new(
                limits.joins,
                second,
                limits.joins.saturating_mul(JOIN_BURST_SECONDS),
            )),
            new_rooms: AddressRate::new(Rate::new(
                limits.new_rooms,
                Duration::from_secs(60),
                u32::try_from(limits.rooms_per_address).unwrap_or(u32::MAX),
            )),
            authentication_failures: AddressRate::new(Rate::new(
                limits.authentication_failures,
                second,
                limits
                    .authentication_failures
                    .saturating_mul(AUTHENTICATION_FAILURE_BURST_SECONDS),
            )),
            moderations: AddressRate::new(Rate::new(
                limits.moderations,
                second,
                limits.moderations.saturating_mul(MODERATION_BURST_SECONDS),
            )),
            room_quotas: RoomQuotas::new(limits.rooms_per_address),
        }
    }

    /// The rate of a new participant.
    pub(super) fn messages(&self) -> MessageRate {
        MessageRate {
            rate: self.messages,
            limiter: RateLimiter::default(),
            awaited: None,
        }
    }

    /// Counts a decision of a moderator at `address`.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub(super) fn check_moderation(&self, address: Option<IpAddr>) -> Result<(), RpcError> {
        self.moderations.try_acquire(address).map_err(|delay| {
            RpcError::new(
                Reason::TooFast,
                "too many decisions of moderators at your address; wait before the next one",
            )
            .with_retry_delay(delay)
        })
    }

    /// Checks that an address has not sent too many tokens that are not valid.
    ///
    /// # Errors
    ///
    /// It has, and must wait for this time.
    pub(super) fn check_authentication_failures(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        self.authentication_failures.check(address)
    }

    /// Counts a token from `address` that is not valid.
    pub(super) fn record_authentication_failure(&self, address: Option<IpAddr>) {
        // Whoever has too many is not asked for further ones.
        self.authentication_failures.try_acquire(address).ok();
    }

    /// Counts a JOIN or a subscription from `address`.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub(super) fn check_join(&self, address: Option<IpAddr>) -> Result<(), RpcError> {
        self.joins.try_acquire(address).map_err(|delay| {
            RpcError::new(
                Reason::JoinsTooFast,
                "too many JOINs and subscriptions from your address; wait before the next one",
            )
            .with_retry_delay(delay)
        })
    }

    /// Counts a message that is posted without a stream from `address`.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub(super) fn check_post(&self, address: Option<IpAddr>) -> Result<(), RpcError> {
        let acquired = self
            .posts
            .as_ref()
            .map_or(Ok(()), |posts| posts.try_acquire(address));
        acquired.map_err(|delay| {
            RpcError::new(
                Reason::TooFast,
                "too many messages from your address; wait before the next one",
            )
            .with_retry_delay(delay)
        })
    }

    /// Checks again that a request of `caller` from `address` may enter `room`: the room that it meant has ended on its way there, so
    /// that it begins another one. `was_new` tells whether [`Rates::check_room`] has counted it as a new room before.
    ///
    /// # Errors
    ///
    /// The caller may not create the room, or the address has created too many.
    pub(super) fn check_room_again(
        &self,
        caller: &Caller,
        address: Option<IpAddr>,
        room: &RoomName,
        hub: &Hub,
        was_new: bool,
    ) -> Result<(), RpcError> {
        caller.check_write(room, !hub.has_room(room))?;
        if was_new {
            return Ok(());
        }
        self.check_room(address, room, hub)
    }

    /// Counts `room` if a request from `address` creates it. The lobby does not count.
    ///
    /// # Errors
    ///
    /// The address has created too many.
    pub(super) fn check_room(
        &self,
        address: Option<IpAddr>,
        room: &RoomName,
        hub: &Hub,
    ) -> Result<(), RpcError> {
        if hub.has_room(room) || *room == RoomName::default() {
            return Ok(());
        }
        if !self
            .room_quotas
            .try_create(address_key(address), room, |room| hub.has_room(room))
        {
            return Err(RpcError::new(
                Reason::TooManyRoomsPerAddress,
                "too many rooms that were created from your address exist; use an existing room",
            ));
        }
        self.new_rooms.try_acquire(address).map_err(|delay| {
            RpcError::new(
                Reason::NewRoomsTooFast,
                "too many new rooms from your address; use an existing room, or wait",
            )
            .with_retry_delay(delay)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn messages_do_not_overtake_one_that_is_to_be_sent_again() {
        let rates = Rates::new(RateLimits {
            messages: Some(10),
            ..RateLimits::default()
        });
        let mut rate = rates.messages();
        let accepted = |rate: &mut MessageRate, id: &str| rate.try_acquire(id).is_ok();
        let burst = (0..).take_while(|n| accepted(&mut rate, &n.to_string())).count();
        assert_eq!(burst, 100);
        // There is room for others that were on their way, but they came after it.
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!(!accepted(&mut rate, "101") && !accepted(&mut rate, "102"));
        let delay = rate.try_acquire("103").err().unwrap().retry_delay();
        assert_eq!(delay, Some(MIN_RETRY_DELAY));
        // Whoever has no ids cannot send anything again.
        assert!(accepted(&mut rate, ""));
        assert!(accepted(&mut rate, "100") && accepted(&mut rate, "101") && accepted(&mut rate, "102"));
        while accepted(&mut rate, "103") {}
        // It was given up.
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(accepted(&mut rate, "104"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_then_the_rate() {
        let rates = Rates::new(RateLimits {
            joins: 10,
            ..RateLimits::default()
        });
        let one = Some("192.0.2.1".parse().unwrap());
        let other = Some("192.0.2.2".parse().unwrap());
        let count = |address| (0..1_000).filter(|_| rates.check_join(address).is_ok()).count();
        assert_eq!(count(one), 200);
        assert_eq!(count(other), 200);
        let error = rates.check_join(one).unwrap_err();
        assert_eq!(error.retry_delay(), Some(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(count(one), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_beyond_the_limit_are_not_remembered() {
        let rate = AddressRate::new(Rate::new(1, Duration::from_secs(1), 1));
        let address = |n: u32| Some(IpAddr::from(Ipv4Addr::from_bits(n)));
        for n in 0..u32::try_from(MAX_ADDRESSES).unwrap() + 10 {
            assert!(rate.try_acquire(address(n)).is_ok());
        }
        assert_eq!(rate.limiters.lock().by_address.len(), MAX_ADDRESSES);
        assert!(rate.try_acquire(address(7)).is_err());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(rate.try_acquire(address(u32::MAX)).is_ok());
        assert_eq!(rate.limiters.lock().by_address.len(), 1);
    }
}
