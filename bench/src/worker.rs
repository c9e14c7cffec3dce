//! One thread of the generator: connects its share of the clients and drives them on a runtime of its own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use super::audience::{Client, ClientResult};
use super::connection::{Connection, Desk};
use super::error::BenchError;
use super::latency::Latency;
use super::plan::{Plan, Protocol};
use super::publisher::Publisher;
use super::shared::Shared;
use super::wire::{Chitchat, Limit, Mqtt, Nats, Redis, Seat};
use chitchat::telemetry::ClientSpans;

/// How many connections of a thread are on their way in at a time, until the server says something: enough to be fast, few
/// enough for anybody's backlog. The system opens connections long before the server accepts them, and one for which the
/// backlog has no place comes a second later.
const CONNECTING: usize = 64;
/// How long opening one connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// The clients that share a connection, or a publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    /// Subscribers, by number.
    Subscribers(Vec<u32>),
    /// A publisher, by number.
    Publisher(u16),
}

/// Who is to be driven: subscribers on the connections they share, and each publisher on its own.
pub(super) fn groups(plan: &Plan) -> Vec<Group> {
    let connections = plan
        .connections
        .unwrap_or(plan.subscribers)
        .clamp(1, plan.subscribers.max(1));
    let subscribers = (0..connections)
        .map(|first| {
            (first..plan.subscribers)
                .step_by(usize::try_from(connections).unwrap_or(1))
                .collect()
        })
        .filter(|clients: &Vec<u32>| !clients.is_empty())
        .map(Group::Subscribers);
    let publishers = (0..plan.publishers)
        .filter_map(|id| u16::try_from(id).ok())
        .map(Group::Publisher);
    subscribers.chain(publishers).collect()
}

/// What one thread found out.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) clients: Vec<ClientResult>,
    pub(super) latency: Latency,
    pub(super) lag: Latency,
}

/// What a thread needs to know.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) plan: Arc<Plan>,
    pub(super) shared: Arc<Shared>,
    pub(super) address: SocketAddr,
    pub(super) groups: Vec<Group>,
    /// One for each publisher of the run.
    pub(super) alarms: Vec<Arc<Notify>>,
    pub(super) spans: ClientSpans,
}

impl Worker {
    /// Connects, takes part and leaves; returns when every connection is closed.
    pub(super) fn work(self) -> Result<Findings, BenchError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| BenchError::Io(format!("cannot start the runtime: {error}")))?;
        let desk = Rc::new(Desk::new(
            Arc::clone(&self.shared),
            usize::try_from(self.plan.rooms).unwrap_or(1),
            self.plan.protocol == Protocol::Chitchat,
            self.plan.payload,
            Latency::new()?,
            Latency::new()?,
        ));
        let clients = LocalSet::new().block_on(&runtime, self.drive_all(&desk))?;
        let latency = desk.latency.borrow().clone();
        let lag = desk.lag.borrow().clone();
        Ok(Findings {
            clients,
            latency,
            lag,
        })
    }

    async fn drive_all(self, desk: &Rc<Desk>) -> Result<Vec<ClientResult>, BenchError> {
        let gate = Arc::new(Semaphore::new(CONNECTING));
        let mut tasks = JoinSet::new();
        let mut groups = VecDeque::from(self.groups.clone());
        let worker = Rc::new(self);
        while let Some(group) = groups.pop_front() {
            let (worker, desk, gate) = (Rc::clone(&worker), Rc::clone(desk), Arc::clone(&gate));
            tasks.spawn_local(async move { worker.drive(group, &desk, &gate).await });
        }
        let mut results = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            let ended =
                ended.map_err(|error| BenchError::Software(format!("a connection's task: {error}")))?;
            match ended {
                Ok(clients) => results.extend(clients),
                Err(error) => worker.shared.fail(error),
            }
        }
        Ok(results)
    }

    async fn drive(
        &self,
        group: Group,
        desk: &Rc<Desk>,
        gate: &Arc<Semaphore>,
    ) -> Result<Vec<ClientResult>, BenchError> {
        match group {
            Group::Subscribers(numbers) => {
                let seats = numbers.iter().map(|number| self.seat("s", *number)).collect();
                let clients = numbers.iter().map(|number| self.client(*number, None)).collect();
                self.take_part(desk, gate, seats, clients, None).await
            }
            Group::Publisher(id) => {
                let number = u32::from(id);
                let alarm = self
                    .alarms
                    .get(usize::from(id))
                    .map(Arc::clone)
                    .unwrap_or_default();
                let seats = vec![self.seat("p", number)];
                let on_sibling = self.plan.protocol == Protocol::Redis;
                let publisher = Rc::new(Publisher::new(id, &self.plan, on_sibling, alarm));
                let clients = vec![self.client(number, Some(Rc::clone(&publisher)))];
                if !on_sibling {
                    return self.take_part(desk, gate, seats, clients, Some(publisher)).await;
                }
                // The server says nothing on it before a message is published.
                let (stream, _) = self.connect(gate).await?;
                let wire = Redis::publisher(self.seat("p", number));
                let sending =
                    Connection::new(Rc::clone(desk), stream, wire, Vec::new(), Some(publisher)).drive();
                let reading = self.take_part(desk, gate, seats, clients, None);
                let (mut sent, read) = tokio::join!(sending, reading);
                sent.extend(read?);
                Ok(sent)
            }
        }
    }

    async fn take_part(
        &self,
        desk: &Rc<Desk>,
        gate: &Arc<Semaphore>,
        mut seats: Vec<Seat>,
        clients: Vec<Client>,
        publisher: Option<Rc<Publisher>>,
    ) -> Result<Vec<ClientResult>, BenchError> {
        let (stream, entering) = self.connect(gate).await?;
        let desk = Rc::clone(desk);
        Ok(match self.plan.protocol {
            Protocol::Chitchat => {
                let memo = Rc::clone(&desk.memo);
                let wire = Chitchat::new(
                    self.plan.server.clone(),
                    self.plan.http2,
                    seats,
                    memo,
                    self.spans.clone(),
                );
                Connection::new(desk, stream, wire, clients, publisher)
                    .enter(entering)
                    .drive()
                    .await
            }
            Protocol::Nats => {
                Connection::new(desk, stream, Nats::new(seats), clients, publisher)
                    .enter(entering)
                    .drive()
                    .await
            }
            Protocol::Redis => {
                let wire = Redis::subscriber(seats.swap_remove(0));
                Connection::new(desk, stream, wire, clients, publisher)
                    .enter(entering)
                    .drive()
                    .await
            }
            Protocol::Mqtt => {
                let wire = Mqtt::new(seats.swap_remove(0));
                Connection::new(desk, stream, wire, clients, publisher)
                    .enter(entering)
                    .drive()
                    .await
            }
            Protocol::Limit => {
                Connection::new(desk, stream, Limit, clients, publisher)
                    .enter(entering)
                    .drive()
                    .await
            }
        })
    }

    async fn connect(&self, gate: &Arc<Semaphore>) -> Result<(TcpStream, OwnedSemaphorePermit), BenchError> {
        let failed =
            |why: String| BenchError::Unavailable(format!("cannot connect to {}: {why}", self.plan.server));
        let permit = Arc::clone(gate).acquire_owned().await;
        let permit = permit.map_err(|error| failed(error.to_string()))?;
        let stream = timeout(CONNECT_PATIENCE, TcpStream::connect(self.address))
            .await
            .map_err(|_elapsed| failed(format!("no answer within {} s", CONNECT_PATIENCE.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        stream
            .set_nodelay(true)
            .map_err(|error| failed(error.to_string()))?;
        Ok((stream, permit))
    }

    /// Chit Chat's single room is the lobby, as it is for people. The other servers' rooms carry the run's number, so
    /// that two runs do not hear each other.
    fn seat(&self, letter: &str, number: u32) -> Seat {
        let name = format!("bench-{}-{letter}{number}", std::process::id());
        let room = number % self.plan.rooms.max(1);
        let room = match self.plan.protocol {
            Protocol::Chitchat if self.plan.rooms == 1 => String::new(),
            _ => format!("bench-{}-{room}", self.shared.run),
        };
        Seat { name, room }
    }

    fn client(&self, number: u32, publisher: Option<Rc<Publisher>>) -> Client {
        let rooms = usize::try_from(self.plan.rooms.max(1)).unwrap_or(1);
        let number = usize::try_from(number).unwrap_or(0);
        Client::new(number % rooms, rooms, self.shared.sent.len(), publisher)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;

    #[test]
    fn subscribers_share_connections_evenly_and_publishers_do_not() {
        let plan = Plan {
            subscribers: 5,
            connections: Some(2),
            ..plan()
        };
        let expected = [
            Group::Subscribers(vec![0, 2, 4]),
            Group::Subscribers(vec![1, 3]),
            Group::Publisher(0),
            Group::Publisher(1),
        ];
        assert_eq!(groups(&plan), expected);
    }

    #[test]
    fn more_connections_than_subscribers_stay_unused() {
        assert_eq!(
            groups(&Plan {
                connections: Some(9),
                ..plan()
            })
            .len(),
            5
        );
        assert_eq!(
            groups(&Plan {
                subscribers: 0,
                ..plan()
            })
            .len(),
            2
        );
    }
}
