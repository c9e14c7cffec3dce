//! What can happen to the servers of a cluster.

use std::fmt;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::NODES;
use crate::cluster::Servers;
use crate::process::wait_until;
use crate::replica::Replica;

/// A fault. The number of the server that it concerns is drawn for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Replica(ReplicaFault),
    AllReplicasKilled,
    Nats(Role, NatsFault),
    AllNatsKilled,
}

/// Which NATS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Leader,
    Follower,
    /// The one that decides which streams there are.
    MetaLeader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReplicaFault {
    Killed,
    Terminated,
    /// For longer than its lease.
    Paused,
    /// From NATS.
    Cut,
    DirectoryLost,
    /// Its wall clock is an hour ahead, or behind.
    #[cfg(feature = "failpoints")]
    ClockWrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NatsFault {
    Killed,
    Terminated,
    Paused,
    /// From the other NATS servers, not from replicas.
    Cut,
    DiskFull,
    /// In the messages that it has stored. It is restarted with it.
    BitFlipped,
}

/// How long clients waited for acknowledgements, at most.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Stalls {
    /// While nobody got any.
    pub(crate) of_all: Duration,
    /// While one of them got none.
    pub(crate) of_one: Duration,
}

impl Fault {
    pub(crate) fn all() -> Vec<Self> {
        use NatsFault::{BitFlipped, Cut, DiskFull, Killed, Paused, Terminated};
        use Role::{Follower, Leader, MetaLeader};
        let replica = [
            ReplicaFault::Killed,
            ReplicaFault::Terminated,
            ReplicaFault::Paused,
            ReplicaFault::Cut,
            ReplicaFault::DirectoryLost,
            #[cfg(feature = "failpoints")]
            ReplicaFault::ClockWrong,
        ];
        let nats = [
            (Leader, Killed),
            (Leader, Terminated),
            (Leader, Paused),
            (Leader, Cut),
            (Leader, DiskFull),
            (Leader, BitFlipped),
            (Follower, Killed),
            (Follower, Terminated),
            (Follower, Paused),
            (Follower, Cut),
            (Follower, DiskFull),
            (Follower, BitFlipped),
            (MetaLeader, Killed),
        ];
        let replica = replica.map(Self::Replica).into_iter();
        let nats = nats.map(|(role, fault)| Self::Nats(role, fault));
        replica
            .chain(nats)
            .chain([Self::AllReplicasKilled, Self::AllNatsKilled])
            .collect()
    }

    /// Whether the directories of NATS must be small file systems of their own.
    pub(crate) const fn needs_small_disks(self) -> bool {
        matches!(self, Self::Nats(_, NatsFault::DiskFull))
    }

    /// How long it lasts.
    const fn duration(self) -> Duration {
        let seconds = match self {
            Self::Replica(ReplicaFault::Terminated)
            | Self::Nats(_, NatsFault::Terminated | NatsFault::BitFlipped)
            | Self::AllReplicasKilled
            | Self::AllNatsKilled => 0,
            Self::Replica(_) | Self::Nats(_, NatsFault::Killed | NatsFault::Paused) => 9,
            Self::Nats(_, NatsFault::Cut | NatsFault::DiskFull) => 15,
        };
        Duration::from_secs(seconds)
    }

    /// Injects the fault, repairs it after a while, and waits until the servers are whole again.
    pub(crate) fn endure(self, servers: &mut Servers, random: usize) {
        // Not while something is still behind.
        thread::sleep(Duration::from_millis(500));
        self.inject(servers, random);
        thread::sleep(self.duration());
        servers.repair();
        servers.wait_until_whole();
    }

    fn inject(self, servers: &mut Servers, random: usize) {
        let Servers { nats, replicas } = servers;
        match self {
            Self::Replica(fault) => {
                // Where something is at stake.
                let n = (0..NODES)
                    .max_by_key(|n| (replicas[*n].clients(), (n + random) % NODES))
                    .unwrap();
                let replica = &mut replicas[n];
                match fault {
                    ReplicaFault::Killed => replica.kill(),
                    ReplicaFault::Terminated => replica.terminate(),
                    ReplicaFault::Paused => replica.process.as_ref().unwrap().signal(Signal::SIGSTOP),
                    ReplicaFault::Cut => {
                        let name = format!("r{n}");
                        nats.network.cut(|from, _| from == name);
                    }
                    ReplicaFault::DirectoryLost => {
                        replica.kill();
                        replica.remove_directory();
                        replica.start();
                    }
                    #[cfg(feature = "failpoints")]
                    ReplicaFault::ClockWrong => {
                        replica.kill();
                        replica.failpoints = ["clock-ahead=on", "clock-behind=on"][random / NODES % 2];
                        replica.start();
                    }
                }
            }
            Self::AllReplicasKilled => replicas.iter_mut().for_each(Replica::kill),
            Self::Nats(role, fault) => {
                let node = match role {
                    Role::Leader => nats.leader(),
                    Role::Follower => (nats.leader() + 1 + random % (NODES - 1)) % NODES,
                    Role::MetaLeader => nats.meta_leader(),
                };
                match fault {
                    NatsFault::Killed => nats.kill_node(node),
                    NatsFault::Terminated => nats.terminate_node(node),
                    NatsFault::Paused => nats.signal(node, Signal::SIGSTOP),
                    NatsFault::Cut => {
                        let name = format!("n{node}");
                        let is_node = |from: &str| from.starts_with('n');
                        nats.network
                            .cut(|from, to| from == name || (to == node && is_node(from)));
                    }
                    NatsFault::DiskFull => nats.fill_disk(node),
                    NatsFault::BitFlipped => {
                        nats.kill_node(node);
                        nats.flip_bit(node, random);
                    }
                }
            }
            Self::AllNatsKilled => (0..NODES).for_each(|node| nats.kill_node(node)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(fault) => write!(f, "replica: {fault:?}"),
            Self::Nats(role, fault) => write!(f, "NATS, {role:?}: {fault:?}"),
            Self::AllReplicasKilled => f.write_str("all replicas: Killed"),
            Self::AllNatsKilled => f.write_str("all NATS servers: Killed"),
        }
    }
}

impl Servers {
    /// Ends every fault.
    fn repair(&mut self) {
        let Self { nats, replicas } = self;
        nats.network.mend();
        nats.repair();
        for replica in replicas {
            match &replica.process {
                Some(_) if !replica.failpoints.is_empty() => {
                    replica.failpoints = "";
                    replica.kill();
                    replica.start();
                }
                Some(process) => process.signal(Signal::SIGCONT),
                None => replica.start(),
            }
        }
    }

    /// Starts replicas that end by themselves again, as an orchestrator does: the stream may have been truncated while one was away.
    fn wait_until_whole(&mut self) {
        self.nats.wait_until_current();
        for replica in &mut self.replicas {
            wait_until("the replica is ready", || {
                replica.restart_if_ended();
                replica.is_ready().then_some(())
            });
        }
    }
}
