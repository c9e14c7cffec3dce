"""The workloads, as arguments of `chitchat-bench`, and the servers that run each."""

from dataclasses import dataclass

ALL_SYSTEMS = ("memory", "sync", "nats", "redis", "mosquitto", "limit")
# Without mosquitto, which delivers about 100,000 messages a second and queues the rest.
FAST_SYSTEMS = ("memory", "sync", "nats", "redis", "limit")
# Three servers of each kind, and one server to compare with.
CLUSTER_SYSTEMS = ("memory", "sync", "replicas", "jetstream")


@dataclass(frozen=True)
class Workload:
    title: str
    load: tuple
    # The arguments with --quick, if they differ from `load`.
    small: tuple = ()
    systems: tuple = ALL_SYSTEMS
    # Idle clients and a single message, so there is no measured time.
    idle: bool = False
    # Whether the sync latency of the disk is measured right after each run.
    probes_disk: bool = False

    def arguments(self, quick):
        load = self.small if quick and self.small else self.load
        if self.idle:
            return load
        warmup, duration = ("300ms", "1s") if quick else ("500ms", "3s")
        return (*load, "--warmup", warmup, "--duration", duration)


def clients(subscribers, publishers, *more):
    return ("--subscribers", str(subscribers), "--publishers", str(publishers), *more)


ALL = {
    "w1": Workload(
        "100 subscribers, 4 publishers, 256 messages outstanding each",
        clients(100, 4, "--outstanding", "256"),
        systems=("memory", "os", "sync", "nats", "redis", "mosquitto", "limit"),
    ),
    "w2": Workload(
        "1,000 subscribers, 4 publishers, 256 messages outstanding each",
        clients(1_000, 4, "--outstanding", "256"),
        clients(200, 4, "--outstanding", "256"),
        systems=FAST_SYSTEMS,
    ),
    "flood": Workload(
        "100 subscribers, 4 publishers that send as fast as flow control permits",
        clients(100, 4, "--flood"),
        systems=("memory", "os", "sync", "nats", "redis", "limit"),
    ),
    "rate200": Workload(
        "200 clients, 200 messages a second (40,000 deliveries a second), open loop",
        clients(196, 4, "--rate", "200"),
    ),
    "rate2000": Workload(
        "200 clients, 2,000 messages a second (400,000 deliveries a second), open loop",
        clients(196, 4, "--rate", "2000"),
        systems=FAST_SYSTEMS,
    ),
    "idle": Workload(
        "5,000 idle clients in one room, each on a connection of its own, then one message",
        ("--idle", "--subscribers", "4999"),
        ("--idle", "--subscribers", "499"),
        systems=("memory", "nats", "redis", "mosquitto", "limit"),
        idle=True,
    ),
    "rooms": Workload(
        "1,000 rooms of 10 clients, 2 messages a second in each (20,000 deliveries a second), open loop",
        clients(9_000, 1_000, "--rooms", "1000", "--rate", "2000"),
        clients(900, 100, "--rooms", "100", "--rate", "200"),
        systems=("memory", "sync", "nats", "redis", "mosquitto"),
    ),
    "echo": Workload(
        "a quiet room: 2 clients, 50 messages a second, open loop",
        clients(1, 1, "--rate", "50"),
        systems=("memory", "os", "sync"),
        probes_disk=True,
    ),
}

# With `compare --cluster`. There are three publishers, one for each server of a cluster, and the subscribers are spread evenly.
CLUSTER = {
    "order": Workload(
        "3 publishers and nobody else, 256 messages outstanding each",
        clients(0, 3, "--outstanding", "256"),
        systems=CLUSTER_SYSTEMS,
    ),
    "fanout": Workload(
        "300 subscribers, 3 publishers, 256 messages outstanding each",
        clients(300, 3, "--outstanding", "256"),
        clients(30, 3, "--outstanding", "256"),
        systems=CLUSTER_SYSTEMS,
    ),
    "rate100": Workload(
        "300 subscribers, 3 publishers, 100 messages a second (30,300 deliveries a second), open loop",
        clients(300, 3, "--rate", "100"),
        clients(30, 3, "--rate", "100"),
        systems=CLUSTER_SYSTEMS,
    ),
    "quiet": Workload(
        "a quiet room: 3 clients, 50 messages a second, open loop",
        clients(0, 3, "--rate", "50"),
        systems=CLUSTER_SYSTEMS,
        probes_disk=True,
    ),
}
