//! Leads a run through its phases: join, settle, send, drain, judge, leave.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::BenchError;
use super::pacer::pace;
use super::plan::{Load, Plan, Until};
use super::process::Process;
use super::progress::bar;
use super::report::{Measured, Report, Resources};
use super::schedule::Schedule;
use super::shared::{Phase, Shared, Tally};
use super::worker::{Findings, Worker, groups};
use chitchat::telemetry::ClientSpans;

/// How often the run is looked at.
const TICK: Duration = Duration::from_millis(20);
/// How often memory is looked at and progress is shown.
const SAMPLE: Duration = Duration::from_millis(250);
/// How long it has to be quiet after the last announcement before a run begins.
const QUIET: Duration = Duration::from_millis(300);
/// How long joining may make no progress.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);
/// Draining ends after this even when it makes progress.
const LONGEST_DRAIN: Duration = Duration::from_secs(300);
/// Between telling the clients to start and the first message of a timetable, so that no client begins late.
const LEAD: Duration = Duration::from_millis(50);

/// Carries a benchmark out and judges it.
///
/// # Errors
/// When the benchmark cannot be carried out. A server that broke a promise is no error: the report says so.
pub fn run(plan: Plan) -> Result<Report, BenchError> {
    run_traced(plan, &ClientSpans::default())
}

/// As [`run`], with spans for what the clients send to Chit Chat, each until it is handed to the transport.
///
/// # Errors
/// As there.
pub fn run_traced(plan: Plan, spans: &ClientSpans) -> Result<Report, BenchError> {
    if let Some(mistake) = plan.mistakes().into_iter().next() {
        return Err(BenchError::Plan(mistake));
    }
    plan.check_files()?;
    let address = resolve(&plan.server)?;
    let plan = Arc::new(plan);
    let mut leader = Leader::new(Arc::clone(&plan));
    let before = leader.watch()?;
    let workers = leader.hire(address, spans)?;
    let outcome = leader.lead(before);
    // Whatever happened, nobody is left behind.
    leader.shared.phase.send_replace(Phase::Leave);
    leader.clear_progress();
    let mut findings = Vec::new();
    for worker in workers {
        let found = worker
            .join()
            .map_err(|_panic| BenchError::Software("a thread panicked".to_owned()))?;
        findings.push(found?);
    }
    let failure = leader.shared.failure();
    let (measured, resources) = outcome.map_err(|error| failure.clone().unwrap_or(error))?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    Report::new(&plan, &leader.shared, measured, resources, findings)
}

fn resolve(server: &str) -> Result<SocketAddr, BenchError> {
    let wrong = |why: String| {
        BenchError::Plan(format!(
            "--server {server}: {why}; right would be, for instance, 127.0.0.1:50052"
        ))
    };
    let mut addresses = server
        .to_socket_addrs()
        .map_err(|error| wrong(error.to_string()))?;
    addresses.next().ok_or_else(|| wrong("no address".to_owned()))
}

#[derive(Debug)]
struct Leader {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    process: Option<Process>,
    alarms: Vec<Arc<tokio::sync::Notify>>,
    peak: u64,
    sampled: Instant,
    began: Instant,
}

/// The server's resources at one time.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    cpu: u64,
    own_cpu: u64,
    resident: u64,
}

type Workers = Vec<JoinHandle<Result<Findings, BenchError>>>;

impl Leader {
    fn new(plan: Arc<Plan>) -> Self {
        let shared = Arc::new(Shared::new(rand::random(), plan.publishers));
        let alarms = (0..plan.publishers).map(|_| Arc::default()).collect();
        let process = plan.pid.map(Process::new);
        let now = Instant::now();
        Self {
            plan,
            shared,
            process,
            alarms,
            peak: 0,
            sampled: now,
            began: now,
        }
    }

    fn hire(&self, address: SocketAddr, spans: &ClientSpans) -> Result<Workers, BenchError> {
        let threads = usize::try_from(self.plan.threads).unwrap_or(1);
        let all = groups(&self.plan);
        let mut workers = Vec::with_capacity(threads);
        for index in 0..threads {
            let worker = Worker {
                plan: Arc::clone(&self.plan),
                shared: Arc::clone(&self.shared),
                address,
                groups: all.iter().skip(index).step_by(threads).cloned().collect(),
                alarms: self.alarms.clone(),
                spans: spans.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("bench-{index}"))
                .spawn(move || {
                    let shared = Arc::clone(&worker.shared);
                    let found = worker.work();
                    if let Err(error) = &found {
                        shared.fail(error.clone());
                    }
                    found
                })
                .map_err(|error| BenchError::Io(format!("cannot start a thread: {error}")));
            match thread {
                Ok(thread) => workers.push(thread),
                Err(error) => {
                    self.shared.phase.send_replace(Phase::Leave);
                    return Err(error);
                }
            }
        }
        Ok(workers)
    }

    fn lead(&mut self, before: Sample) -> Result<(Measured, Option<Resources>), BenchError> {
        let joining_cpu = before.cpu;
        self.join()?;
        let counters = &self.shared.counters;
        let joined_in = counters.joined_at.get();
        let settled_in = self.settle()?.max(joined_in);
        let idle = self.watch()?;
        let (begin, end, at_begin, at_end) = self.send()?;
        let measured = Measured {
            joined_in,
            settled_in,
            begin,
            end,
            deliveries: match self.plan.until {
                Until::Elapsed { .. } => self.shared.counters.measured.get(),
                Until::Count(_) => self.shared.counters.fresh.get(),
            },
            own_cpu: at_end.own_cpu.saturating_sub(at_begin.own_cpu),
        };
        let resources = self.process.is_some().then(|| Resources {
            cpu_microseconds: at_end.cpu.saturating_sub(at_begin.cpu),
            joining_cpu_microseconds: idle.cpu.saturating_sub(joining_cpu),
            resident_before_kib: before.resident,
            resident_idle_kib: idle.resident,
            resident_peak_kib: self.peak,
        });
        Ok((measured, resources))
    }

    /// Waits until every client takes part.
    fn join(&mut self) -> Result<(), BenchError> {
        let all = u64::from(self.plan.clients());
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let (joined, events) = (
                self.shared.counters.joined.get(),
                self.shared.counters.events.get(),
            );
            if joined >= all {
                return Ok(());
            }
            if joined + events > seen {
                (seen, since) = (joined + events, Instant::now());
            }
            let cut = self.shared.counters.cut.get();
            if cut > 0 || since.elapsed() > JOIN_PATIENCE {
                let why = if cut > 0 {
                    "a stream ended"
                } else {
                    "nothing happens any more"
                };
                return Err(BenchError::Refused(format!(
                    "{joined} of {all} clients have joined, then {why}{}",
                    self.first_end()
                )));
            }
            self.tick(|| format!("{}  joined {joined} of {all}", bar(joined, all)))?;
        }
    }

    /// Why the first stream ended, as far as a connection has told.
    fn first_end(&self) -> String {
        let told = self.shared.first_cut();
        told.map_or_else(String::new, |why| format!(": {why}"))
    }

    /// Waits until nothing arrives any more: everybody's JOIN has reached everybody. Gives when it was quiet, as exactly
    /// as a tick.
    fn settle(&mut self) -> Result<u64, BenchError> {
        let (mut seen, mut since, began) = (u64::MAX, Instant::now(), Instant::now());
        let mut quiet_from = 0;
        while since.elapsed() < QUIET {
            if began.elapsed() > LONGEST_DRAIN {
                return Err(BenchError::Unavailable(
                    "the room does not become quiet after everybody has joined".to_owned(),
                ));
            }
            let events = self.shared.counters.events.get();
            if events != seen {
                (seen, since) = (events, Instant::now());
                quiet_from = self.shared.now();
            }
            self.tick(|| format!("settling, {events} announcements"))?;
        }
        Ok(quiet_from)
    }

    /// Sends and drains. Gives what was measured from when to when, and the resources at both times.
    fn send(&mut self) -> Result<(u64, u64, Sample, Sample), BenchError> {
        let lead = if matches!(self.plan.load, Load::Rate(_)) {
            LEAD
        } else {
            Duration::ZERO
        };
        let start = self.shared.now() + nanoseconds(lead);
        let (begin, end) = match self.plan.until {
            Until::Elapsed { warmup, measured } => {
                let begin = start + nanoseconds(warmup);
                (begin, begin + nanoseconds(measured))
            }
            Until::Count(_) => (start, u64::MAX),
        };
        // All of a count is measured, also what a thread stamps with a time that it read just before.
        let counted_from = match self.plan.until {
            Until::Elapsed { .. } => begin,
            Until::Count(_) => 0,
        };
        self.shared.phase.send_replace(Phase::Run {
            start,
            begin: counted_from,
            end,
        });
        let pacer = self.pacer(start, end)?;
        self.wait_until(begin)?;
        let at_begin = self.watch()?;
        let mut at_end = None;
        if end != u64::MAX {
            self.wait_until(end)?;
            at_end = Some(self.watch()?);
            self.shared.phase.send_replace(Phase::Drain { start, begin, end });
        }
        self.drain()?;
        let finished = match at_end {
            Some(sample) => (begin, end, at_begin, sample),
            // A count: what was measured ends with the last delivery.
            None => (
                begin,
                self.shared.counters.fresh_at.get().max(begin + 1),
                at_begin,
                self.watch()?,
            ),
        };
        drop(pacer);
        Ok(finished)
    }

    fn pacer(&self, start: u64, end: u64) -> Result<Option<JoinHandle<()>>, BenchError> {
        let Load::Rate(rate) = self.plan.load else {
            return Ok(None);
        };
        let schedule = Schedule::new(rate, u64::from(self.plan.publishers), start);
        let end = match self.plan.until {
            Until::Elapsed { .. } => end,
            Until::Count(count) => schedule.due(count),
        };
        let (shared, alarms) = (Arc::clone(&self.shared), self.alarms.clone());
        thread::Builder::new()
            .name("bench-pacer".to_owned())
            .spawn(move || pace(&shared, schedule, end, &alarms))
            .map(Some)
            .map_err(|error| BenchError::Io(format!("cannot start a thread: {error}")))
    }

    /// Waits until everything that was sent has reached everybody, or until nothing moves any more.
    fn drain(&mut self) -> Result<(), BenchError> {
        let rooms = usize::try_from(self.plan.rooms).unwrap_or(1);
        let clients = self.clients_of_rooms(rooms);
        let publishers = u64::from(self.plan.publishers);
        let (mut seen, mut since, began) = (u64::MAX, Instant::now(), Instant::now());
        loop {
            let finished = self.shared.counters.finished.get() >= publishers;
            let expected = self
                .shared
                .expected(rooms, |room| clients.get(room).copied().unwrap_or(0));
            let fresh = self.shared.counters.fresh.get();
            if finished && fresh >= expected {
                return Ok(());
            }
            if fresh + expected != seen {
                (seen, since) = (fresh + expected, Instant::now());
            }
            // A slow timetable is no stall.
            let patience = match (self.plan.load, self.plan.until) {
                (Load::Rate(rate), Until::Count(_)) if !finished => {
                    self.plan.patience + Duration::from_secs(publishers / rate.max(1))
                }
                _ => self.plan.patience,
            };
            let endless = matches!(self.plan.until, Until::Count(_)) && !finished;
            if since.elapsed() > patience || (began.elapsed() > LONGEST_DRAIN && !endless) {
                return Ok(());
            }
            self.tick(|| format!("{}  received {fresh} of {expected}", bar(fresh, expected)))?;
        }
    }

    /// How many clients each room has.
    fn clients_of_rooms(&self, rooms: usize) -> Vec<u64> {
        let mut clients = vec![0; rooms];
        for count in [self.plan.subscribers, self.plan.publishers] {
            for number in 0..usize::try_from(count).unwrap_or(0) {
                if let Some(room) = clients.get_mut(number % rooms) {
                    *room += 1;
                }
            }
        }
        clients
    }

    fn wait_until(&mut self, time: u64) -> Result<(), BenchError> {
        let until = self.shared.instant(time);
        let began = Instant::now();
        let all = nanoseconds(until.saturating_duration_since(began));
        let mut last = (began, self.shared.counters.fresh.get());
        let mut shown = String::new();
        while Instant::now() < until {
            if last.0.elapsed() >= SAMPLE {
                let fresh = self.shared.counters.fresh.get();
                let more = fresh.saturating_sub(last.1);
                let rate = u128::from(more) * 1_000_000 / last.0.elapsed().as_micros().max(1);
                let bar = bar(nanoseconds(began.elapsed()), all);
                shown = format!("{bar}  {rate} deliveries/s, {fresh} so far");
                last = (Instant::now(), fresh);
            }
            let text = shown.clone();
            self.tick_until(until, || text)?;
        }
        Ok(())
    }

    fn tick(&mut self, progress: impl FnOnce() -> String) -> Result<(), BenchError> {
        self.tick_until(Instant::now() + TICK, progress)
    }

    /// Sleeps a little, not past `until`; shows progress and samples memory now and then.
    fn tick_until(&mut self, until: Instant, progress: impl FnOnce() -> String) -> Result<(), BenchError> {
        thread::sleep(until.saturating_duration_since(Instant::now()).min(TICK));
        if let Some(failure) = self.shared.failure() {
            return Err(failure);
        }
        if self.sampled.elapsed() >= SAMPLE {
            self.sampled = Instant::now();
            if let Some(process) = &self.process {
                self.peak = self.peak.max(process.resident()?);
            }
            if self.plan.progress {
                let mut stderr = std::io::stderr().lock();
                let seconds = self.began.elapsed().as_secs();
                // A progress line that cannot be shown is no reason to stop.
                drop(write!(stderr, "\r\x1b[K{seconds:>4} s  {}", progress()));
                drop(stderr.flush());
            }
        }
        Ok(())
    }

    fn clear_progress(&self) {
        if self.plan.progress {
            drop(write!(std::io::stderr().lock(), "\r\x1b[K"));
        }
    }

    fn watch(&mut self) -> Result<Sample, BenchError> {
        let own_cpu = Process::own().cpu()?;
        let Some(process) = &self.process else {
            return Ok(Sample {
                own_cpu,
                ..Sample::default()
            });
        };
        let sample = Sample {
            cpu: process.cpu()?,
            own_cpu,
            resident: process.resident()?,
        };
        self.peak = self.peak.max(sample.resident);
        Ok(sample)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
