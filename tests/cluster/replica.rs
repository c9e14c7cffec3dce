//! A replica that can be restarted.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::NODES;
use crate::nats::Nats;
use crate::process::{CHITCHAT, Process, http_get, unused_address, wait_until};

/// A replica, which reaches NATS through the network alone.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) command: Vec<String>,
    pub(crate) failpoints: &'static str,
    pub(crate) process: Option<Process>,
    /// What it has printed.
    log: PathBuf,
    /// The length of that when it was last started, in bytes.
    printed_before: usize,
    /// For its checkpoints.
    directory: Option<PathBuf>,
}

impl Replica {
    /// Starts it. With a directory it writes checkpoints.
    pub(crate) fn new(nats: &mut Nats, name: &str, directory: Option<PathBuf>) -> Self {
        let (address, admin) = (unused_address(), unused_address());
        let secret = nats.secret();
        let secret = secret.display();
        let urls: Vec<_> = (0..NODES)
            .map(|node| format!("nats://{}", nats.network.link(name, node, nats.addresses[node])))
            .collect();
        let urls = urls.join(",");
        let store = directory.as_ref().map_or_else(
            || "--in-memory".into(),
            |directory| format!("--data-dir {}", directory.display()),
        );
        let command = format!(
            "serve {store} --checkpoint-interval 1s --cluster-keep 0s --log warn --resume-grace 60s --listen {address} --admin {admin} --cluster {urls} --cluster-secret {secret} \
             --replica-name {name}"
        );
        let mut replica = Self {
            address,
            admin,
            command: command.split(' ').map(str::to_owned).collect(),
            failpoints: "",
            process: None,
            log: nats.path(&format!("{name}.log")),
            printed_before: 0,
            directory,
        };
        replica.start();
        replica
    }

    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        self.printed_before = usize::try_from(log.metadata().unwrap().len()).unwrap();
        let child = Command::new(CHITCHAT)
            .args(&self.command)
            .env("CHITCHAT_FAILPOINTS", self.failpoints)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = Some(child.unwrap().into());
    }

    /// The NATS servers that it connects to from its next start on.
    pub(crate) fn set_nats(&mut self, urls: &str) {
        let flag = self.command.iter().position(|argument| argument == "--cluster");
        urls.clone_into(&mut self.command[flag.unwrap() + 1]);
    }

    pub(crate) fn is_ready(&self) -> bool {
        http_get(self.admin, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    pub(crate) fn wait_until_ready(&self) {
        wait_until("the replica is ready", || self.is_ready().then_some(()));
    }

    /// Starts it again if it has ended for a reason that a restart mends.
    pub(crate) fn restart_if_ended(&mut self) {
        if let Some(mut process) = self.process.take_if(Process::has_exited) {
            let code = process.wait().code();
            println!("  a replica has ended: {code:?}");
            assert_eq!(code, Some(69));
            self.start();
        }
    }

    /// Waits until it has printed a line with `part` since it was started.
    pub(crate) fn wait_until_printed(&self, part: &str) {
        wait_until(part, || {
            let printed = fs::read_to_string(&self.log).unwrap();
            printed[self.printed_before..].contains(part).then_some(())
        });
    }

    /// How many clients are connected to it.
    pub(crate) fn clients(&self) -> u32 {
        let metrics = http_get(self.admin, "/metrics").unwrap();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("chitchat_connected_clients "));
        value.unwrap().parse().unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// As if its disk were replaced.
    pub(crate) fn remove_directory(&self) {
        fs::remove_dir_all(self.directory.as_ref().unwrap()).unwrap();
    }

    pub(crate) fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(Signal::SIGTERM);
        assert!(process.wait().success());
    }

    /// The place of its newest checkpoint.
    pub(crate) fn newest_checkpoint(&self) -> Option<u64> {
        let entries = fs::read_dir(self.directory.as_ref()?).ok()?;
        let places = entries.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_prefix("checkpoint-")?.parse().ok()
        });
        places.max()
    }
}
