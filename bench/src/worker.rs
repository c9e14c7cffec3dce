//! A thread of the generator, which drives its share of the connections on its own runtime.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use super::client::{Client, ClientResult};
use super::codec::{Chitchat, ClientSlot, JetStream, Limit, Mqtt, Nats, Redis};
use super::connection::{Connection, WorkerContext};
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::latency::Latency;
use super::plan::{Plan, Protocol};
use super::publisher::Publisher;
use super::run_state::RunState;
use super::stream::Stream;
use chitchat::telemetry::ClientSpans;

/// How many connections of a thread may wait for the server's first byte at a time.
///
/// The kernel completes a handshake long before the server accepts the connection. Beyond the server's listen backlog a
/// SYN is dropped and retransmitted after a second, so this stays below the backlog of any server.
const MAX_CONNECTING: usize = 64;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What is driven by one task: the subscribers that share a connection, or one publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    /// Subscribers, by number.
    Subscribers(Vec<u32>),
    /// A publisher, by number.
    Publisher(u16),
}

/// Groups the clients of a run: subscribers by the connection they share, and each publisher by itself.
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

/// The index of the server that the client with this number connects to: round-robin, and the clients of a room, whose numbers are
/// `rooms` apart, are spread over all servers, too.
fn server_of(number: u32, rooms: u32, servers: usize) -> usize {
    let rooms = rooms.max(1);
    let turn = u64::from(number % rooms) + u64::from(number / rooms);
    usize::try_from(turn).unwrap_or(0) % servers.max(1)
}

/// The result of one thread.
#[derive(Debug)]
pub(super) struct WorkerResult {
    pub(super) clients: Vec<ClientResult>,
    pub(super) latency: Latency,
    pub(super) echo: Latency,
    pub(super) lag: Latency,
}

/// A thread of the generator.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) plan: Arc<Plan>,
    pub(super) shared: Arc<RunState>,
    pub(super) endpoints: Arc<[Endpoint]>,
    pub(super) groups: Vec<Group>,
    /// One per publisher of the run.
    pub(super) wakeups: Vec<Arc<Notify>>,
    pub(super) spans: ClientSpans,
}

impl Worker {
    /// Drives the connections to their ends.
    pub(super) fn work(self) -> Result<WorkerResult, BenchError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| BenchError::Io(format!("cannot start the runtime: {error}")))?;
        let context = Rc::new(WorkerContext::new(
            Arc::clone(&self.shared),
            usize::try_from(self.plan.rooms).unwrap_or(1),
            self.plan.protocol == Protocol::Chitchat,
            self.plan.payload,
        )?);
        let clients = LocalSet::new().block_on(&runtime, self.drive_all(&context))?;
        let latency = context.latency.borrow().clone();
        let echo = context.echo.borrow().clone();
        let lag = context.lag.borrow().clone();
        Ok(WorkerResult {
            clients,
            latency,
            echo,
            lag,
        })
    }

    async fn drive_all(self, context: &Rc<WorkerContext>) -> Result<Vec<ClientResult>, BenchError> {
        let connect_permits = Arc::new(Semaphore::new(MAX_CONNECTING));
        let mut tasks = JoinSet::new();
        let mut groups = VecDeque::from(self.groups.clone());
        let worker = Rc::new(self);
        while let Some(group) = groups.pop_front() {
            let (worker, context, connect_permits) = (
                Rc::clone(&worker),
                Rc::clone(context),
                Arc::clone(&connect_permits),
            );
            tasks.spawn_local(async move { worker.drive(group, &context, &connect_permits).await });
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
        context: &Rc<WorkerContext>,
        connect_permits: &Arc<Semaphore>,
    ) -> Result<Vec<ClientResult>, BenchError> {
        match group {
            Group::Subscribers(numbers) => {
                let slots = numbers.iter().map(|number| self.slot("s", *number)).collect();
                let clients = numbers.iter().map(|number| self.client(*number, None)).collect();
                let endpoint = self.endpoint(numbers.first().copied().unwrap_or(0))?;
                self.run_connection(endpoint, context, connect_permits, slots, clients, None)
                    .await
            }
            Group::Publisher(id) => {
                let number = u32::from(id);
                let endpoint = self.endpoint(number)?;
                let wakeup = self
                    .wakeups
                    .get(usize::from(id))
                    .map(Arc::clone)
                    .unwrap_or_default();
                let slots = vec![self.slot("p", number)];
                let receives_on_sibling = self.plan.protocol == Protocol::Redis;
                let publisher = Rc::new(Publisher::new(id, &self.plan, receives_on_sibling, wakeup));
                let clients = vec![self.client(number, Some(Rc::clone(&publisher)))];
                if !receives_on_sibling {
                    return self
                        .run_connection(
                            endpoint,
                            context,
                            connect_permits,
                            slots,
                            clients,
                            Some(publisher),
                        )
                        .await;
                }
                // Release the permit at once: the server sends nothing on this connection before a message is
                // published.
                let (stream, _) = self.connect(endpoint, connect_permits).await?;
                let codec = Redis::publisher(self.slot("p", number));
                let sending =
                    Connection::new(Rc::clone(context), stream, codec, Vec::new(), Some(publisher)).drive();
                let reading = self.run_connection(endpoint, context, connect_permits, slots, clients, None);
                let (mut sent, read) = tokio::join!(sending, reading);
                sent.extend(read?);
                Ok(sent)
            }
        }
    }

    async fn run_connection(
        &self,
        endpoint: &Endpoint,
        context: &Rc<WorkerContext>,
        connect_permits: &Arc<Semaphore>,
        mut slots: Vec<ClientSlot>,
        clients: Vec<Client>,
        publisher: Option<Rc<Publisher>>,
    ) -> Result<Vec<ClientResult>, BenchError> {
        let (stream, permit) = self.connect(endpoint, connect_permits).await?;
        let context = Rc::clone(context);
        Ok(match self.plan.protocol {
            Protocol::Chitchat => {
                let cache = Rc::clone(&context.cache);
                let codec = Chitchat::new(
                    endpoint.authority.clone(),
                    self.plan.http2,
                    slots,
                    cache,
                    self.spans.clone(),
                );
                Connection::new(context, stream, codec, clients, publisher)
                    .with_connect_permit(permit)
                    .drive()
                    .await
            }
            Protocol::Nats => {
                Connection::new(context, stream, Nats::new(slots), clients, publisher)
                    .with_connect_permit(permit)
                    .drive()
                    .await
            }
            Protocol::JetStream => {
                Connection::new(context, stream, JetStream::new(slots), clients, publisher)
                    .with_connect_permit(permit)
                    .drive()
                    .await
            }
            Protocol::Redis => {
                let codec = Redis::subscriber(slots.swap_remove(0));
                Connection::new(context, stream, codec, clients, publisher)
                    .with_connect_permit(permit)
                    .drive()
                    .await
            }
            Protocol::Mqtt => {
                let codec = Mqtt::new(slots.swap_remove(0));
                Connection::new(context, stream, codec, clients, publisher)
                    .with_connect_permit(permit)
                    .drive()
                    .await
            }
            Protocol::Limit => {
                Connection::new(context, stream, Limit, clients, publisher)
                    .with_connect_permit(permit)
                    .drive()
                    .await
            }
        })
    }

    /// The server of the client with this number.
    fn endpoint(&self, number: u32) -> Result<&Endpoint, BenchError> {
        let index = server_of(number, self.plan.rooms, self.endpoints.len());
        let endpoint = self.endpoints.get(index);
        endpoint.ok_or_else(|| BenchError::Software("there is no server to connect to".to_owned()))
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        connect_permits: &Arc<Semaphore>,
    ) -> Result<(Stream, OwnedSemaphorePermit), BenchError> {
        let failed =
            |why: String| BenchError::Unavailable(format!("cannot connect to {}: {why}", endpoint.authority));
        let permit = Arc::clone(connect_permits).acquire_owned().await;
        let permit = permit.map_err(|error| failed(error.to_string()))?;
        let connecting = async {
            let stream = TcpStream::connect(endpoint.address).await?;
            stream.set_nodelay(true)?;
            match &endpoint.tls {
                Some(tls) => Stream::handshake(stream, tls).await,
                None => Ok(Stream::Plain(stream)),
            }
        };
        let stream = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_elapsed| failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        Ok((stream, permit))
    }

    /// A room has the run's id in its name, unless the plan names it, so that concurrent runs do not receive each other's
    /// messages and nobody else receives them.
    fn slot(&self, letter: &str, number: u32) -> ClientSlot {
        let name = format!("bench-{}-{letter}{number}", std::process::id());
        let room = number % self.plan.rooms.max(1);
        let room = match &self.plan.room {
            Some(room) => room.clone(),
            None => format!("bench-{}-{room}", self.shared.run_id),
        };
        ClientSlot { name, room }
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
    fn the_clients_of_every_room_are_spread_over_all_servers() {
        let servers = |rooms: u32, room: u32| -> Vec<usize> {
            let numbers = (room..).step_by(usize::try_from(rooms).unwrap());
            numbers
                .take(4)
                .map(|number| server_of(number, rooms, 3))
                .collect()
        };
        assert_eq!(servers(1, 0), [0, 1, 2, 0]);
        assert_eq!(servers(3, 0), [0, 1, 2, 0]);
        assert_eq!(servers(3, 2), [2, 0, 1, 2]);
        assert_eq!(server_of(7, 1, 1), 0);
    }

    #[test]
    fn surplus_connections_are_not_opened() {
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
