"""Installs and starts the servers to compare. README.md explains the settings of each.
"""

import getpass
import json
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NATS = "2.15.2"
CACHE = Path(
    os.environ.get("CHITCHAT_TOOLS")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chitchat" / "tools"
)
# How many servers a cluster has, of each kind.
SERVERS = 3
START_SECONDS = 20
END_SECONDS = 10


class ServerError(Exception):
    """A server cannot be installed or started. The message is one line."""


@dataclass(frozen=True)
class Server:
    # Where clients connect: they are spread over all addresses.
    addresses: tuple
    # All processes of the system.
    pids: tuple


class System:
    """A server to compare. `command` writes its configuration to a directory and returns the command that serves `port`."""

    title = ""
    protocol = "chitchat"

    def install(self):
        pass

    def environment(self):
        return {}

    def command(self, binary, directory, port):
        raise NotImplementedError

    def version(self, binary):
        return first_line([binary, "--version"])

    @contextmanager
    def start(self, binary, directory):
        port = free_port()
        command = self.command(binary, directory, port)
        with launch(self.title, command, directory / "log", port, self.environment()) as pid:
            yield Server((f"127.0.0.1:{port}",), (pid,))


@contextmanager
def launch(title, command, log, port, environment=None):
    """Runs a process that serves `port`, in the directory of its log."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, cwd=log.parent,
            env=clean_environment() | (environment or {}),
        )  # fmt: skip
    try:
        wait_for(process, port, title, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def generator(binary):
    """The load generator, which Cargo builds into the same directory as the server."""
    return binary.with_name("chitchat-bench")


class ChitChat(System):
    def __init__(self, title, *store):
        self.title = title
        self.store = store

    def command(self, binary, directory, port):
        serve = [binary, "serve", "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0"]
        if "--in-memory" in self.store:
            return [*serve, *self.store]
        return [*serve, "--data-dir", directory / "data", *self.store]


class Limit(System):
    title = "plain TCP (the limit)"
    protocol = "limit"

    def command(self, binary, directory, port):
        return [generator(binary), "limit-server", "--listen", f"127.0.0.1:{port}"]


class Nats(System):
    title = "nats-server"
    protocol = "nats"

    def install(self):
        self.folder = CACHE / f"nats-server-{NATS}"
        if not (self.folder / "nats-server").exists():
            environment = os.environ | {"GOBIN": str(self.folder), "GOFLAGS": "-mod=mod"}
            call(["go", "install", f"github.com/nats-io/nats-server/v2@v{NATS}"], environment)

    def command(self, binary, directory, port):
        config = directory / "nats.conf"
        config.write_text('max_pending: 1073741824\nwrite_deadline: "60s"\n')
        return [self.folder / "nats-server", "-c", config, "-a", "127.0.0.1", "-p", port]

    def version(self, binary):
        return first_line([self.folder / "nats-server", "--version"])


class NatsCluster(Nats):
    """Three nats-servers whose streams are replicated and synced."""

    @contextmanager
    def servers(self, directory):
        """Yields the ports for clients and the process ids."""
        ports, routes = free_ports(SERVERS), free_ports(SERVERS)
        urls = json.dumps([f"nats://127.0.0.1:{port}" for port in routes])
        with ExitStack() as stack:
            pids = []
            for number, (port, route) in enumerate(zip(ports, routes), 1):
                config = directory / f"n{number}.conf"
                config.write_text(
                    f"server_name: n{number}\nlisten: 127.0.0.1:{port}\n"
                    f"jetstream {{ store_dir: {json.dumps(str(directory / f'n{number}'))}, sync_interval: always }}\n"
                    f"cluster {{ name: compare, listen: 127.0.0.1:{route}, routes: {urls} }}\n"
                    'max_pending: 1073741824\nwrite_deadline: "60s"\n'
                )
                command = [self.folder / "nats-server", "-c", config]
                pids.append(stack.enter_context(launch(self.title, command, directory / f"n{number}.log", port)))
            yield ports, pids


class JetStream(NatsCluster):
    title = "three nats-servers, a JetStream consumer for each client"
    protocol = "jetstream"

    @contextmanager
    def start(self, binary, directory):
        with self.servers(directory) as (ports, pids):
            stream = {
                "name": "BENCH", "subjects": ["bench.>"], "num_replicas": SERVERS, "storage": "file", "retention": "limits",
                "discard": "new", "max_bytes": 1 << 30,
            }  # fmt: skip
            retry(lambda: request(ports[0], "$JS.API.STREAM.CREATE.BENCH", stream))
            retry(lambda: require_current(request(ports[0], "$JS.API.STREAM.INFO.BENCH", {})))
            yield Server(tuple(f"127.0.0.1:{port}" for port in ports), tuple(pids))


class Replicas(NatsCluster):
    title = "Chit Chat, three replicas on three nats-servers"
    protocol = "chitchat"

    def version(self, binary):
        return f"{first_line([binary, '--version'])}, {super().version(binary)}"

    @contextmanager
    def start(self, binary, directory):
        with self.servers(directory) as (nats, pids), ExitStack() as stack:
            cluster = ["--cluster", ",".join(f"nats://127.0.0.1:{port}" for port in nats)]
            secret = directory / "secret"
            secret.write_text("a secret for measurements on this machine\n")
            secret.chmod(0o600)
            retry(lambda: call([binary, "cluster", "init", *cluster], clean_environment()))
            ports, admins = free_ports(SERVERS), free_ports(SERVERS)
            for number, (port, admin) in enumerate(zip(ports, admins), 1):
                command = [
                    binary, "serve", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--data-dir",
                    directory / f"r{number}", "--replica-name", f"r{number}", "--cluster-secret", secret, *cluster,
                ]  # fmt: skip
                pids.append(stack.enter_context(launch(self.title, command, directory / f"r{number}.log", port)))
            for admin in admins:
                retry(lambda: urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=1).close())
            yield Server(tuple(f"127.0.0.1:{port}" for port in ports), tuple(pids))


class Debian(System):
    """A server from a Debian package: the installed one, otherwise the package, unpacked into the cache."""

    program = package = ""

    def install(self):
        installed = shutil.which(self.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        self.root = None
        if installed:
            self.path = installed
            return
        self.root = CACHE / f"debian-{self.package}"
        self.path = next((self.root / place / self.program for place in ("usr/bin", "usr/sbin")
                          if (self.root / place / self.program).exists()), None)
        if self.path is None:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(parents=True)
            self.unpack()
            self.install()

    def unpack(self):
        """Downloads and unpacks the packages that apt-get would install, which needs no privileges."""
        plan = call(["apt-get", "--simulate", "--no-install-recommends", "install", self.package])
        packages = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
        call(["apt-get", "download", *packages], cwd=self.root)
        for archive in self.root.glob("*.deb"):
            call(["dpkg", "-x", archive, self.root])
        if not any((self.root / place / self.program).exists() for place in ("usr/bin", "usr/sbin")):
            raise ServerError(f"{self.program} is not in the packages {', '.join(packages)}")

    def environment(self):
        libraries = [str(path) for path in self.root.glob("usr/lib/*-linux-gnu*")] if self.root else []
        return {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}


class Redis(Debian):
    title = "redis-server"
    protocol = "redis"
    program = package = "redis-server"

    def command(self, binary, directory, port):
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return [
            self.path, "--bind", "127.0.0.1", "--port", port, "--dir", directory, "--save", "", "--appendonly", "no",
            "--client-output-buffer-limit", "pubsub 0 0 0", "--maxclients", files - 64, "--tcp-backlog", 4096,
        ]  # fmt: skip

    def version(self, binary):
        return first_line([self.path, "--version"], self.environment()).split(" sha")[0]


class Mosquitto(Debian):
    title = "mosquitto (QoS 0)"
    protocol = "mqtt"
    program = package = "mosquitto"

    def command(self, binary, directory, port):
        config = directory / "mosquitto.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
            f"max_queued_messages 0\nmax_inflight_messages 0\nlog_type error\nuser {getpass.getuser()}\n"
        )
        return [self.path, "-c", config]

    def version(self, binary):
        return first_line([self.path, "-h"], self.environment())


ALL = {
    "memory": ChitChat("Chit Chat, in memory", "--in-memory"),
    "os": ChitChat("Chit Chat, durability os", "--durability", "os"),
    "sync": ChitChat("Chit Chat, durable", "--durability", "sync"),
    "replicas": Replicas(),
    "jetstream": JetStream(),
    "nats": Nats(),
    "redis": Redis(),
    "mosquitto": Mosquitto(),
    "limit": Limit(),
}


def prepare(names):
    """Installs the servers of these names and returns them. Reports those that cannot be installed on stderr."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    installed = {}
    for name in names:
        try:
            ALL[name].install()
            installed[name] = ALL[name]
        except (ServerError, OSError) as error:
            print(f"skipped: {ALL[name].title}: {error}", file=sys.stderr)
    return installed


def clean_environment():
    """The environment without the variables that configure Chit Chat."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CHITCHAT_")}


def free_port():
    """A free port below the ephemeral range, so that none of the thousands of clients is assigned it."""
    for _ in range(100):
        port = random.randint(12_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free port between 12000 and 30000")


def free_ports(count):
    ports = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)


def retry(action):
    """Repeats an action until it succeeds."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return action()
        except (ServerError, OSError):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def request(port, subject, body):
    """Asks JetStream's API."""
    body = json.dumps(body)
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection, connection.makefile("rb") as answers:
        connection.sendall(
            b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _INBOX.compare 1\r\n'
            + f"PUB {subject} _INBOX.compare {len(body)}\r\n{body}\r\n".encode()
        )
        for line in answers:
            if line.startswith((b"HMSG", b"-ERR")):
                raise ServerError(f"{subject}: {line.decode(errors='replace').strip()}")
            if line.startswith(b"MSG"):
                answer = json.loads(answers.read(int(line.split()[-1])))
                if "error" in answer:
                    raise ServerError(f"{subject}: {answer['error'].get('description')}")
                return answer
    raise ServerError(f"{subject}: no answer")


def require_current(stream):
    cluster = stream["cluster"]
    if not cluster.get("leader") or not all(replica.get("current") for replica in cluster.get("replicas", [])):
        raise ServerError("the replicas of the stream are not current")


def wait_for(process, port, title, log):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            # If it has exited, another process listens on the port.
            if process.poll() is None:
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            output = log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
            raise ServerError(f"{title} does not start: {output[-1]}")
        time.sleep(0.02)


def call(command, environment=None, cwd=None):
    command = [str(part) for part in command]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    except FileNotFoundError as error:
        raise ServerError(f"{command[0]} is not installed") from error
    if finished.returncode != 0:
        output = (finished.stderr or finished.stdout).strip().splitlines() or [f"exit code {finished.returncode}"]
        raise ServerError(f"{' '.join(command[:3])}: {output[-1]}")
    return finished.stdout


def first_line(command, environment=None):
    finished = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=os.environ | (environment or {}), check=False
    )
    return ((finished.stdout or finished.stderr).strip().splitlines() or ["unknown"])[0]
