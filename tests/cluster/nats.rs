//! Three NATS servers that keep a stream for replicas.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::NODES;
use crate::network::Network;
use crate::process::{
    self, CHITCHAT, Finished, Process, external_program, http_get, unused_address, wait_until,
};

/// Of the file system of a server that can be full. The stream fits into it.
const DISK_SIZE: &str = "size=400m";

/// The file that takes all space.
const FILLER: &str = "filler";

/// Three NATS servers with one directory. They reach one another through the network alone.
pub(crate) struct Nats {
    directory: TempDir,
    program: String,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) monitors: Vec<SocketAddr>,
    nodes: Vec<Option<Process>>,
    pub(crate) network: Network,
    /// Where the file systems of their own are.
    disks: Vec<PathBuf>,
}

impl Nats {
    /// `None` if there is no program.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(false)
    }

    /// With small disks each server has a file system of its own, which only the superuser can make.
    pub(crate) fn start_with(small_disks: bool) -> Option<Self> {
        let program = external_program("CHITCHAT_TEST_NATS_SERVER", "nats-server", &["--version"])?;
        let directory = TempDir::with_prefix("chitchat-nats-").unwrap();
        let addresses: Vec<_> = (0..NODES).map(|_| unused_address()).collect();
        let routes: Vec<_> = (0..NODES).map(|_| unused_address()).collect();
        let monitors: Vec<_> = (0..NODES).map(|_| unused_address()).collect();
        let mut network = Network::new();
        for node in 0..NODES {
            let path = |name: String| directory.path().join(name);
            let name = format!("n{node}");
            // Each connects to the next. If both of two did, which connection stays would be left to chance.
            let next = (node + 1) % NODES;
            let urls = [format!("nats://{}", network.link(&name, next, routes[next]))];
            // They must not tell others how to reach them past the network.
            let config = format!(
                "server_name: {name}\nlisten: {}\nhttp: {}\njetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 1GB }}\n\
                 cluster {{ name: c, listen: {}, routes: {urls:?}, advertise: \"127.0.0.1:9\", no_advertise: true }}\n",
                addresses[node],
                monitors[node],
                path(format!("data{node}")),
                routes[node],
            );
            std::fs::write(path(format!("n{node}.conf")), config).unwrap();
        }
        std::fs::write(
            directory.path().join("secret"),
            "of the tests, and longer than 32 bytes",
        )
        .unwrap();
        let mut nats = Self {
            directory,
            program,
            addresses,
            monitors,
            nodes: (0..NODES).map(|_| None).collect(),
            network,
            disks: Vec::new(),
        };
        if small_disks {
            (0..NODES).for_each(|node| nats.make_disk(node));
        }
        (0..NODES).for_each(|node| nats.start_node(node));
        wait_until("the NATS servers have a stream", || {
            let init = ["init", "--max-bytes", "256MiB"];
            (nats.chitchat(&init).code == Some(0)).then_some(())
        });
        Some(nats)
    }

    /// A path in the directory of the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file with the secret that replicas share.
    pub(crate) fn secret(&self) -> PathBuf {
        self.path("secret")
    }

    pub(crate) fn start_node(&mut self, node: usize) {
        let log = self.path(&format!("n{node}.log"));
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(self.path(&format!("n{node}.conf")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.nodes[node] = Some(child.unwrap().into());
    }

    /// Restarts a node with a changed configuration.
    pub(crate) fn reconfigure(&mut self, node: usize, change: impl FnOnce(&str) -> String) {
        let path = self.path(&format!("n{node}.conf"));
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, change(&config)).unwrap();
        self.kill_node(node);
        self.start_node(node);
        wait_until_listening(self.addresses[node]);
    }

    /// Starts a server beside the others, which listens on `address` according to its arguments.
    pub(crate) fn start_alone(&self, address: SocketAddr, arguments: &[&str]) -> Process {
        let child = Command::new(&self.program)
            .args(arguments)
            .stderr(Stdio::null())
            .spawn();
        wait_until_listening(address);
        child.unwrap().into()
    }

    pub(crate) fn kill_node(&mut self, node: usize) {
        self.nodes[node].take().unwrap().kill();
    }

    pub(crate) fn terminate_node(&mut self, node: usize) {
        let mut process = self.nodes[node].take().unwrap();
        process.signal(Signal::SIGTERM);
        process.wait();
    }

    pub(crate) fn signal(&self, node: usize, signal: Signal) {
        self.nodes[node].as_ref().unwrap().signal(signal);
    }

    fn make_disk(&mut self, node: usize) {
        let path = self.path(&format!("data{node}"));
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", DISK_SIZE, "tmpfs"]).arg(&path);
        process::succeed(&mut mount, "");
        self.disks.push(path);
    }

    /// Leaves no space on the file system of a server.
    pub(crate) fn fill_disk(&self, node: usize) {
        let mut file = File::create(self.disks[node].join(FILLER)).unwrap();
        let block = vec![0; 64 * 1024];
        while file.write(&block).is_ok_and(|written| written > 0) {}
    }

    /// Changes one bit of what a server that does not run has stored of the stream.
    pub(crate) fn flip_bit(&self, node: usize, random: usize) {
        let messages = self.path(&format!("data{node}/jetstream/$G/streams/CHAT-0/msgs"));
        let entries = fs::read_dir(messages).unwrap();
        let mut blocks: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "blk"))
            .filter(|path| path.metadata().unwrap().len() > 0)
            .collect();
        blocks.sort();
        let block = &blocks[random % blocks.len()];
        let file = File::options().read(true).write(true).open(block).unwrap();
        let offset = (random / 8) as u64 % file.metadata().unwrap().len();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        byte[0] ^= 1 << (random % 8);
        file.write_all_at(&byte, offset).unwrap();
    }

    /// Starts what does not run, continues what is paused, and restarts whatever had no space.
    pub(crate) fn repair(&mut self) {
        for (node, disk) in self.disks.iter().enumerate() {
            if fs::remove_file(disk.join(FILLER)).is_ok()
                && let Some(mut process) = self.nodes[node].take()
            {
                process.kill();
            }
        }
        for node in 0..NODES {
            match &self.nodes[node] {
                Some(process) => process.signal(Signal::SIGCONT),
                None => self.start_node(node),
            }
        }
    }

    /// The node that decides which streams there are.
    pub(crate) fn meta_leader(&self) -> usize {
        wait_until("the NATS servers have a leader", || {
            let answer = http_get(self.monitors[0], "/jsz")?;
            let (_, cluster) = answer.split_once("\"meta_cluster\"")?;
            let (_, leader) = cluster.split_once("\"leader\": \"n")?;
            leader.split('"').next()?.parse().ok()
        })
    }

    pub(crate) fn url(&self) -> String {
        let urls: Vec<_> = self
            .addresses
            .iter()
            .map(|address| format!("nats://{address}"))
            .collect();
        urls.join(",")
    }

    /// Runs `chitchat cluster`.
    pub(crate) fn chitchat(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(CHITCHAT);
        command
            .arg("cluster")
            .args(arguments)
            .env("CHITCHAT_CLUSTER", self.url());
        process::run(&mut command, "").into()
    }

    /// The node that leads the stream.
    pub(crate) fn leader(&self) -> usize {
        wait_until("the stream has a leader", || {
            let status = self.chitchat(&["status"]);
            let line = status.lines.iter().find(|line| line.ends_with("leader"))?.clone();
            line.strip_prefix('n')?.split(' ').next()?.parse().ok()
        })
    }

    /// The first message of the stream.
    pub(crate) fn first(&self) -> u64 {
        wait_until("the stream is shown", || {
            let status = self.chitchat(&["status"]);
            let line = status
                .lines
                .iter()
                .find_map(|line| line.strip_prefix("messages "))?
                .to_owned();
            line.split(' ').next()?.parse().ok()
        })
    }

    /// Waits until all nodes have everything.
    pub(crate) fn wait_until_current(&self) {
        wait_until("all NATS servers are current", || {
            let status = self.chitchat(&["status"]);
            let is_current = |line: &&String| line.starts_with('n') && !line.starts_with("nats:");
            let lines: Vec<_> = status.lines.iter().filter(is_current).collect();
            (lines.len() == NODES
                && lines
                    .iter()
                    .all(|line| !line.contains("current") && !line.contains("offline")))
            .then_some(())
        });
    }
}

fn wait_until_listening(address: SocketAddr) {
    wait_until("the NATS server accepts connections", || {
        TcpStream::connect(address).ok().map(drop)
    });
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.nodes.clear();
        if thread::panicking() {
            println!(
                "what they have printed and stored: {}",
                self.directory.path().display()
            );
            self.directory.disable_cleanup(true);
        }
        for disk in &self.disks {
            Command::new("umount").arg("--lazy").arg(disk).status().ok();
        }
    }
}
