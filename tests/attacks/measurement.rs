//! How long messages take while a server is attacked, and beside threads that use as much CPU.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use chitchat::proto::SendMessageRequest;
use chitchat::proto::chat_service_client::ChatServiceClient;
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::Target;

/// The CPU time that a task has used, from its `schedstat`, which is exact, unlike `stat`; `None` if it has ended.
fn cpu_time(task: impl AsRef<Path>) -> Option<Duration> {
    let stat = fs::read_to_string(task.as_ref().join("schedstat")).ok()?;
    Some(Duration::from_nanos(stat.split(' ').next()?.parse().unwrap()))
}

/// The CPU time that a process has used.
fn cpu_used(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let times = tasks.filter_map(|task| cpu_time(task.unwrap().path()));
    times.sum()
}

/// How long messages took, and what was used meanwhile.
pub struct Measured {
    /// The times until the messages were acknowledged, in milliseconds.
    pub times: Vec<f64>,
    /// The CPU time that the server and this process had used after so much time, from the start to the end.
    cpu: Vec<(Duration, Duration)>,
}

impl Measured {
    /// The CPU that was used on average, in cores.
    pub fn cores(&self) -> f64 {
        let (time, used) = self.cpu.last().unwrap();
        used.as_secs_f64() / time.as_secs_f64()
    }

    /// The CPU time that was used in the first `time`.
    fn cpu_until(&self, time: Duration) -> Duration {
        let next = self.cpu.partition_point(|(at, _)| *at <= time);
        let ((from, used), Some((to, used_then))) = (self.cpu[next - 1], self.cpu.get(next)) else {
            return self.cpu.last().unwrap().1;
        };
        let part = (time - from).as_secs_f64() / (*to - from).as_secs_f64();
        used + (*used_then - used).mul_f64(part)
    }
}

/// Sends a message every 20 ms until `until`.
pub fn measure(target: &Target, until: Instant) -> Measured {
    let target = target.clone();
    // Not on the runtime of the attackers, which they keep busy.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let measuring = thread::spawn(move || runtime.unwrap().block_on(measure_posts(target, until)));
    block_in_place(|| measuring.join().unwrap())
}

async fn measure_posts(target: Target, until: Instant) -> Measured {
    let used = || cpu_used(target.process) + cpu_used(std::process::id());
    let mut client = ChatServiceClient::new(target.channel().await);
    let (started, before) = (Instant::now(), used());
    let mut cpu = vec![(Duration::ZERO, Duration::ZERO)];
    let mut times = Vec::new();
    while Instant::now() < until {
        let sent = Instant::now();
        let request = SendMessageRequest {
            room: "quiet".into(),
            client_name: "Ada".into(),
            msg: "Hello".into(),
            ..SendMessageRequest::default()
        };
        client.send_message(request).await.unwrap();
        times.push(sent.elapsed().as_secs_f64() * 1e3);
        sleep(Duration::from_millis(20)).await;
        // A thread that has ended takes its time with it.
        let newest = cpu[cpu.len() - 1].1;
        cpu.push((started.elapsed(), used().saturating_sub(before).max(newest)));
    }
    Measured { times, cpu }
}

/// The median and the 99th percentile.
pub fn percentiles(mut times: Vec<f64>) -> [f64; 2] {
    times.sort_by(f64::total_cmp);
    [50, 99].map(|percent| times[times.len() * percent / 100])
}

/// Uses as much CPU as `attack` at each time, without the `idle` cores that it takes to measure, until `until`.
pub fn burn(attack: &Arc<Measured>, idle: f64, until: Instant) -> Vec<thread::JoinHandle<()>> {
    let cpu = || cpu_time("/proc/thread-self").unwrap();
    let count = u32::try_from(thread::available_parallelism().unwrap().get()).unwrap();
    let burn = move |attack: Arc<Measured>| {
        let (started, used_before) = (Instant::now(), cpu());
        let share = |time: Duration| attack.cpu_until(time).saturating_sub(time.mul_f64(idle)) / count;
        while Instant::now() < until {
            while cpu() - used_before < share(started.elapsed()) && Instant::now() < until {
                std::hint::spin_loop();
            }
            thread::sleep(Duration::from_millis(2));
        }
    };
    let burners = (0..count).map(|_| Arc::clone(attack));
    burners
        .map(|attack| thread::spawn(move || burn(attack)))
        .collect()
}
