//! Runs the phases of a run: join, settle, send, drain, leave.

use std::io::Write;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::error::BenchError;
use super::plan::{Load, Plan, Until};
use super::process::Process;
use super::report::{Measurement, Report, Resources};
use super::run_state::{Counter, Phase, RunState};
use super::schedule::{Schedule, pace};
use super::worker::{Worker, WorkerResult, groups};
use chitchat::telemetry::ClientSpans;

/// The polling interval of the coordinator.
const TICK: Duration = Duration::from_millis(20);
/// How often memory is sampled and progress is shown.
const SAMPLE: Duration = Duration::from_millis(250);
/// When nothing has arrived for this long, every JOIN counts as delivered and sending starts.
const QUIET: Duration = Duration::from_millis(300);
/// How long joining may make no progress before the run fails.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Upper bound for settling and for draining, even while they make progress. Does not apply while a run with a count
/// is still sending.
const LONGEST_DRAIN: Duration = Duration::from_secs(300);
/// The width of a progress bar in characters.
const BAR_WIDTH: u64 = 24;
/// Time between the start signal and the first scheduled message, so that no publisher starts late.
const LEAD: Duration = Duration::from_millis(50);

/// Carries out a run.
///
/// # Errors
///
/// When the run cannot be completed. Faults of the server are not errors; they are in the report.
pub fn run(plan: Plan) -> Result<Report, BenchError> {
    run_traced(plan, &ClientSpans::default())
}

/// Like [`run`], and records a span for each message sent to Chit Chat, which ends when the transport takes the
/// message.
///
/// # Errors
///
/// As [`run`].
pub fn run_traced(plan: Plan, spans: &ClientSpans) -> Result<Report, BenchError> {
    if let Some(error) = plan.validate().into_iter().next() {
        return Err(BenchError::Plan(error));
    }
    plan.check_files()?;
    let endpoints = Endpoint::resolve_all(&plan)?;
    let plan = Arc::new(plan);
    let mut coordinator = Coordinator::new(Arc::clone(&plan));
    let before = coordinator.sample_resources()?;
    let workers = coordinator.spawn_workers(&endpoints.into(), spans)?;
    let outcome = coordinator.run_phases(before);
    // The workers must end even if a phase failed.
    coordinator.shared.phase.send_replace(Phase::Leave);
    coordinator.clear_progress();
    let mut results = Vec::new();
    for worker in workers {
        let result = worker
            .join()
            .map_err(|_panic| BenchError::Software("a thread panicked".to_owned()))?;
        results.push(result?);
    }
    let failure = coordinator.shared.failure();
    let (measured, resources) = outcome.map_err(|error| failure.clone().unwrap_or(error))?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    Report::new(&plan, &coordinator.shared, measured, resources, results)
}

#[derive(Debug)]
struct Coordinator {
    plan: Arc<Plan>,
    shared: Arc<RunState>,
    /// Those of the servers.
    processes: Vec<Process>,
    wakeups: Vec<Arc<tokio::sync::Notify>>,
    peak: u64,
    sampled: Instant,
    began: Instant,
}

/// Resource usage at one point in time.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    cpu: u64,
    generator_cpu: u64,
    resident: u64,
}

type Workers = Vec<JoinHandle<Result<WorkerResult, BenchError>>>;

impl Coordinator {
    fn new(plan: Arc<Plan>) -> Self {
        let shared = Arc::new(RunState::new(rand::random(), plan.publishers));
        let wakeups = (0..plan.publishers).map(|_| Arc::default()).collect();
        let processes = plan.pids.iter().copied().map(Process::new).collect();
        let now = Instant::now();
        Self {
            plan,
            shared,
            processes,
            wakeups,
            peak: 0,
            sampled: now,
            began: now,
        }
    }

    fn spawn_workers(&self, endpoints: &Arc<[Endpoint]>, spans: &ClientSpans) -> Result<Workers, BenchError> {
        let threads = usize::try_from(self.plan.threads).unwrap_or(1);
        let all = groups(&self.plan);
        let mut workers = Vec::with_capacity(threads);
        for index in 0..threads {
            let worker = Worker {
                plan: Arc::clone(&self.plan),
                shared: Arc::clone(&self.shared),
                endpoints: Arc::clone(endpoints),
                groups: all.iter().skip(index).step_by(threads).cloned().collect(),
                wakeups: self.wakeups.clone(),
                spans: spans.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("bench-{index}"))
                .spawn(move || {
                    let shared = Arc::clone(&worker.shared);
                    let result = worker.work();
                    if let Err(error) = &result {
                        shared.fail(error.clone());
                    }
                    result
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

    fn run_phases(&mut self, before: Sample) -> Result<(Measurement, Option<Resources>), BenchError> {
        let joining_cpu = before.cpu;
        self.join()?;
        let counters = &self.shared.counters;
        let joined_in = counters.last_join_at.get();
        let settled_in = self.settle()?.max(joined_in);
        let idle = self.sample_resources()?;
        let (begin, end, at_begin, at_end) = self.send()?;
        let measured = Measurement {
            joined_in,
            settled_in,
            begin,
            end,
            deliveries: match self.plan.until {
                Until::Elapsed { .. } => self.shared.counters.measured.get(),
                Until::Count(_) => self.shared.counters.delivered.get(),
            },
            generator_cpu: at_end.generator_cpu.saturating_sub(at_begin.generator_cpu),
        };
        let resources = (!self.processes.is_empty()).then(|| Resources {
            cpu_microseconds: at_end.cpu.saturating_sub(at_begin.cpu),
            joining_cpu_microseconds: idle.cpu.saturating_sub(joining_cpu),
            resident_before_kib: before.resident,
            resident_idle_kib: idle.resident,
            resident_peak_kib: self.peak,
        });
        Ok((measured, resources))
    }

    /// Waits until every client has joined.
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
            let disconnects = self.shared.counters.disconnects.get();
            if disconnects > 0 || since.elapsed() > JOIN_TIMEOUT {
                let why = if disconnects > 0 {
                    "a stream ended"
                } else {
                    "no further client joined"
                };
                return Err(BenchError::Rejected(format!(
                    "{joined} of {all} clients have joined, then {why}{}",
                    self.first_disconnect()
                )));
            }
            self.tick(|| format!("{}  joined {joined} of {all}", bar(joined, all)))?;
        }
    }

    /// Why the first failed stream ended, as a suffix for an error message.
    fn first_disconnect(&self) -> String {
        self.shared
            .first_disconnect()
            .map_or_else(String::new, |why| format!(": {why}"))
    }

    /// Waits until nothing has arrived for [`QUIET`], which shows that every JOIN has reached every client. Returns the
    /// time of the last arrival, accurate to [`TICK`].
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

    /// Sends and drains. Returns the start and the end of the measured time, and the resource usage at both.
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
        // With a count, every message is measured, including one whose intended time was read just before the start.
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
        let at_begin = self.sample_resources()?;
        let mut at_end = None;
        if end != u64::MAX {
            self.wait_until(end)?;
            at_end = Some(self.sample_resources()?);
            self.shared.phase.send_replace(Phase::Drain { start, begin, end });
        }
        self.drain()?;
        let finished = match at_end {
            Some(sample) => (begin, end, at_begin, sample),
            // With a count, the measured time ends with the last delivery.
            None => (
                begin,
                self.shared.counters.last_delivery_at.get().max(begin + 1),
                at_begin,
                self.sample_resources()?,
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
        let (shared, wakeups) = (Arc::clone(&self.shared), self.wakeups.clone());
        thread::Builder::new()
            .name("bench-pacer".to_owned())
            .spawn(move || pace(&shared, schedule, end, &wakeups))
            .map(Some)
            .map_err(|error| BenchError::Io(format!("cannot start a thread: {error}")))
    }

    /// Waits until every message has reached every client, or until there is no further progress.
    fn drain(&mut self) -> Result<(), BenchError> {
        let rooms = usize::try_from(self.plan.rooms).unwrap_or(1);
        let clients = self.clients_by_room(rooms);
        let publishers = u64::from(self.plan.publishers);
        let (mut seen, mut since, began) = (u64::MAX, Instant::now(), Instant::now());
        loop {
            let finished = self.shared.counters.finished.get() >= publishers;
            let expected = self
                .shared
                .expected(rooms, |room| clients.get(room).copied().unwrap_or(0));
            let delivered = self.shared.counters.delivered.get();
            if finished && delivered >= expected {
                return Ok(());
            }
            if delivered + expected != seen {
                (seen, since) = (delivered + expected, Instant::now());
            }
            // A gap between two scheduled messages is not a stall.
            let timeout = match (self.plan.load, self.plan.until) {
                (Load::Rate(rate), Until::Count(_)) if !finished => {
                    self.plan.drain_timeout + Duration::from_secs(publishers / rate.max(1))
                }
                _ => self.plan.drain_timeout,
            };
            let is_unbounded = matches!(self.plan.until, Until::Count(_)) && !finished;
            if since.elapsed() > timeout || (began.elapsed() > LONGEST_DRAIN && !is_unbounded) {
                return Ok(());
            }
            self.tick(|| format!("{}  received {delivered} of {expected}", bar(delivered, expected)))?;
        }
    }

    /// The number of clients of each room.
    fn clients_by_room(&self, rooms: usize) -> Vec<u64> {
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
        let total = nanoseconds(until.saturating_duration_since(began));
        let mut last = (began, self.shared.counters.delivered.get());
        let mut line = String::new();
        while Instant::now() < until {
            if last.0.elapsed() >= SAMPLE {
                let delivered = self.shared.counters.delivered.get();
                let more = delivered.saturating_sub(last.1);
                let rate = u128::from(more) * 1_000_000 / last.0.elapsed().as_micros().max(1);
                let bar = bar(nanoseconds(began.elapsed()), total);
                line = format!("{bar}  {rate} deliveries/s, {delivered} so far");
                last = (Instant::now(), delivered);
            }
            let text = line.clone();
            self.tick_until(until, || text)?;
        }
        Ok(())
    }

    fn tick(&mut self, progress: impl FnOnce() -> String) -> Result<(), BenchError> {
        self.tick_until(Instant::now() + TICK, progress)
    }

    /// Sleeps for at most [`TICK`], not past `until`. Shows progress and samples memory every [`SAMPLE`].
    fn tick_until(&mut self, until: Instant, progress: impl FnOnce() -> String) -> Result<(), BenchError> {
        thread::sleep(until.saturating_duration_since(Instant::now()).min(TICK));
        if let Some(failure) = self.shared.failure() {
            return Err(failure);
        }
        if self.sampled.elapsed() >= SAMPLE {
            self.sampled = Instant::now();
            self.peak = self.peak.max(self.total(Process::resident)?);
            if self.plan.progress {
                let mut stderr = std::io::stderr().lock();
                let seconds = self.began.elapsed().as_secs();
                // A closed stderr must not stop the run.
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

    fn sample_resources(&mut self) -> Result<Sample, BenchError> {
        let sample = Sample {
            cpu: self.total(Process::cpu)?,
            generator_cpu: Process::current().cpu()?,
            resident: self.total(Process::resident)?,
        };
        self.peak = self.peak.max(sample.resident);
        Ok(sample)
    }

    /// The sum of a figure over the processes of the servers.
    fn total(&self, figure: impl Fn(&Process) -> Result<u64, BenchError>) -> Result<u64, BenchError> {
        self.processes.iter().map(figure).sum()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A progress bar with a percentage. `done` is capped at `all`.
fn bar(done: u64, all: u64) -> String {
    let (done, all) = (u128::from(done.min(all)), u128::from(all.max(1)));
    let full = usize::try_from(done * u128::from(BAR_WIDTH) / all).unwrap_or(0);
    let rest = usize::try_from(BAR_WIDTH).unwrap_or(0).saturating_sub(full);
    format!(
        "[{}{}] {:>3} %",
        "#".repeat(full),
        "-".repeat(rest),
        done * 100 / all
    )
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn the_bar_has_a_fixed_width_and_ends_full() {
        assert_eq!(bar(0, 10), "[------------------------]   0 %");
        assert_eq!(bar(5, 10), "[############------------]  50 %");
        assert_eq!(bar(10, 10), "[########################] 100 %");
        assert_eq!(bar(u64::MAX, 10), bar(10, 10));
        assert_eq!(bar(0, 0), bar(0, 10));
    }
}
