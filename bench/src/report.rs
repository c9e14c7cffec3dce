//! The report of a run, as a table and as JSON.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Value, json};

use super::delivery_checker::DeliveryFaults;
use super::error::BenchError;
use super::latency::Latency;
use super::order_checker::{Digest, OrderFaults};
use super::plan::{Load, Plan, Protocol};
use super::run_state::RunState;
use super::worker::WorkerResult;

/// How many distinct disconnect reasons are reported.
const MAX_REASONS: usize = 5;

/// What the coordinator measured. Times are in nanoseconds since the run's origin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measurement {
    pub(super) joined_in: u64,
    pub(super) settled_in: u64,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) deliveries: u64,
    pub(super) generator_cpu: u64,
}

/// Resource usage of the servers' processes, in total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// User and system CPU time within the measured time.
    pub cpu_microseconds: u64,
    /// CPU time from before the first client connected until all had joined and nothing more arrived.
    pub joining_cpu_microseconds: u64,
    /// Resident memory before the first client connected.
    pub resident_before_kib: u64,
    /// Resident memory when all had joined and nothing more arrived.
    pub resident_idle_kib: u64,
    /// The maximum of the sampled resident memory after that.
    pub resident_peak_kib: u64,
}

/// The report of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The protocol of the server.
    pub protocol: Protocol,
    /// Whether the clients were idle except for one message.
    pub idle: bool,
    /// The number of clients, including publishers.
    pub clients: u64,
    /// Seconds from the first connection until the last client received its own JOIN.
    pub joined_in: f64,
    /// Seconds from the first connection until every JOIN had reached every client, accurate to about 20 ms.
    pub settled_in: f64,
    /// The length of the measured time in seconds.
    pub seconds: f64,
    /// The number of messages sent.
    pub sent: u64,
    /// First deliveries within the measured time.
    pub deliveries: u64,
    /// Latency from the intended sending time to the arrival, for messages that were due in the measured time.
    pub latency: Latency,
    /// The part of it that publishers themselves received of their messages: how long a sender waits for its own message.
    pub echo: Latency,
    /// How late an open loop sent, because of the generator or because of the server's flow control.
    pub lag: Option<Latency>,
    /// Delivery faults of the whole run.
    pub faults: DeliveryFaults,
    /// Ordering faults of the whole run.
    pub order: OrderFaults,
    /// Clients whose stream differs from that of the majority of their room.
    pub differing: u64,
    /// Deliveries to a client of another room.
    pub misrouted: u64,
    /// The number of messages that the server rejected.
    pub rejected: u64,
    /// The text of one rejection.
    pub first_rejection: Option<String>,
    /// Clients and publishing connections that were disconnected before they left.
    pub disconnects: u64,
    /// The first few distinct disconnect reasons.
    pub disconnect_reasons: Vec<String>,
    /// Resource usage of the servers' processes, if their process ids were given.
    pub resources: Option<Resources>,
    /// CPU time of the generator within the measured time, in microseconds.
    pub generator_cpu_microseconds: u64,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        shared: &RunState,
        measured: Measurement,
        resources: Option<Resources>,
        results: Vec<WorkerResult>,
    ) -> Result<Self, BenchError> {
        let (mut latency, mut echo, mut lag) = (Latency::new()?, Latency::new()?, Latency::new()?);
        let (mut faults, mut order) = (DeliveryFaults::default(), OrderFaults::default());
        let (mut misrouted, mut rejected, mut first_rejection) = (0, 0, None);
        let (mut disconnects, mut reasons) = (0, Vec::new());
        let mut rooms: HashMap<usize, HashMap<Digest, u64>> = HashMap::new();
        for result in results {
            latency.merge(&result.latency)?;
            echo.merge(&result.echo)?;
            lag.merge(&result.lag)?;
            for client in result.clients {
                faults += client.faults;
                order += client.order;
                misrouted += client.misrouted;
                rejected += client.rejected;
                first_rejection = first_rejection.or(client.first_rejection);
                if let Some(reason) = client.disconnect {
                    disconnects += 1;
                    if reasons.len() < MAX_REASONS && !reasons.contains(&reason) {
                        reasons.push(reason);
                    }
                } else {
                    *rooms
                        .entry(client.room)
                        .or_default()
                        .entry(client.digest)
                        .or_default() += 1;
                }
            }
        }
        Ok(Self {
            protocol: plan.protocol,
            idle: plan.idle,
            clients: u64::from(plan.clients()),
            joined_in: seconds(measured.joined_in),
            settled_in: seconds(measured.settled_in),
            seconds: seconds(measured.end.saturating_sub(measured.begin)),
            sent: (0..shared.sent.len())
                .map(|publisher| u64::from(shared.sent_by(publisher)))
                .sum(),
            deliveries: measured.deliveries,
            latency,
            echo,
            lag: matches!(plan.load, Load::Rate(_)).then_some(lag),
            faults,
            order,
            differing: rooms.values().map(minority).sum(),
            misrouted,
            rejected,
            first_rejection,
            disconnects,
            disconnect_reasons: reasons,
            resources,
            generator_cpu_microseconds: measured.generator_cpu,
        })
    }

    /// Describes every fault of the server; empty if there was none.
    pub fn violations(&self) -> Vec<String> {
        let counts = [
            (self.faults.lost, "deliveries lost"),
            (self.faults.duplicated, "deliveries duplicated"),
            (self.faults.reordered, "deliveries out of order"),
            (self.order.not_dense, "gaps or repeats in the sequence"),
            (self.order.not_later, "Lamport times that were not later"),
            (self.differing, "clients with a stream different from the others'"),
            (self.misrouted, "deliveries to another room"),
            (self.rejected, "messages rejected"),
            (self.disconnects, "connections cut"),
        ];
        let faults = counts.iter().filter(|(count, _)| *count > 0);
        faults
            .map(|(count, what)| format!("{} {what}", grouped(*count)))
            .collect()
    }

    /// Deliveries per second divided by the number of clients of a room.
    fn messages_per_second(&self, rooms: f64) -> f64 {
        ratio(self.deliveries_per_second() * rooms, float(self.clients))
    }

    /// Deliveries per second within the measured time.
    pub fn deliveries_per_second(&self) -> f64 {
        ratio(float(self.deliveries), self.seconds)
    }

    /// CPU time of the server per delivery, in microseconds.
    pub fn cpu_per_delivery(&self) -> Option<f64> {
        self.resources
            .map(|used| ratio(float(used.cpu_microseconds), float(self.deliveries)))
    }

    /// CPU time of the generator per delivery, in microseconds.
    pub fn generator_cpu_per_delivery(&self) -> f64 {
        ratio(float(self.generator_cpu_microseconds), float(self.deliveries))
    }

    /// Resident memory per idle client, in KiB.
    pub fn kib_per_client(&self) -> Option<f64> {
        self.resources.map(|used| {
            ratio(
                float(used.resident_idle_kib.saturating_sub(used.resident_before_kib)),
                float(self.clients),
            )
        })
    }

    /// Returns the report as a JSON object. The suffix of a name is its unit.
    pub fn to_json(&self, plan: &Plan) -> Value {
        let percentiles = |latency: &Latency| {
            json!({
                "count": latency.count(),
                "p50": latency.percentile(50.0),
                "p90": latency.percentile(90.0),
                "p99": latency.percentile(99.0),
                "p99_9": latency.percentile(99.9),
                "max": latency.max(),
            })
        };
        let load = match plan.load {
            Load::Window(size) => json!({ "outstanding": size }),
            Load::Flood => json!({ "flood": true }),
            Load::Rate(rate) => json!({ "rate": rate }),
        };
        json!({
            "protocol": self.protocol.to_string(),
            "subscribers": plan.subscribers,
            "publishers": plan.publishers,
            "connections": plan.connections.unwrap_or(plan.subscribers).saturating_add(plan.publishers),
            "rooms": plan.rooms,
            "payload_bytes": plan.payload,
            "load": load,
            "joined_in_s": self.joined_in,
            "settled_in_s": self.settled_in,
            "measured_s": self.seconds,
            "sent": self.sent,
            "deliveries": self.deliveries,
            "messages_per_s": self.messages_per_second(f64::from(plan.rooms)),
            "deliveries_per_s": self.deliveries_per_second(),
            "latency_ms": percentiles(&self.latency),
            "echo_ms": percentiles(&self.echo),
            "send_lag_ms": self.lag.as_ref().map(percentiles),
            "lost": self.faults.lost,
            "duplicated": self.faults.duplicated,
            "out_of_order": self.faults.reordered,
            "sequence_not_dense": self.order.not_dense,
            "lamport_not_later": self.order.not_later,
            "differing_streams": self.differing,
            "wrong_room": self.misrouted,
            "refused": self.rejected,
            "refusal": self.first_rejection,
            "cut": self.disconnects,
            "cut_reasons": self.disconnect_reasons,
            "ok": self.violations().is_empty(),
            "server": self.resources.map(|used| json!({
                "cpu_us": used.cpu_microseconds,
                "cpu_us_per_delivery": self.cpu_per_delivery(),
                "joining_cpu_us": used.joining_cpu_microseconds,
                "resident_before_kib": used.resident_before_kib,
                "resident_idle_kib": used.resident_idle_kib,
                "resident_peak_kib": used.resident_peak_kib,
                "kib_per_client": self.kib_per_client(),
            })),
            "generator": {
                "cpu_us": self.generator_cpu_microseconds,
                "cpu_us_per_delivery": self.generator_cpu_per_delivery(),
            },
        })
    }

    /// Returns the report as a table.
    pub fn table<'a>(&'a self, plan: &'a Plan) -> impl fmt::Display + 'a {
        Table { report: self, plan }
    }
}

struct Table<'a> {
    report: &'a Report,
    plan: &'a Plan,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { report, plan } = *self;
        let mut row = |name: &str, value: String| writeln!(f, "{name:<22} {value}");
        let load = match plan.load {
            _ if report.idle => "idle, then one message".to_owned(),
            Load::Window(size) => format!("{} outstanding per publisher", grouped(u64::from(size))),
            Load::Flood => "flood".to_owned(),
            Load::Rate(rate) => format!("{} messages/s on a schedule", grouped(rate)),
        };
        row(
            "workload",
            format!(
                "{}: {} subscribers, {} publishers, {} bytes, {load}",
                report.protocol,
                grouped(u64::from(plan.subscribers)),
                grouped(u64::from(plan.publishers)),
                grouped(plan.payload as u64),
            ),
        )?;
        row(
            "joined",
            format!(
                "{} clients in {:.3} s, all announced in {:.3} s",
                grouped(report.clients),
                report.joined_in,
                report.settled_in
            ),
        )?;
        let latency = &report.latency;
        if report.idle {
            row("reached everybody in", format!("{:.3} ms", latency.max()))?;
        } else {
            row("measured", format!("{:.3} s", report.seconds))?;
            row(
                "messages/s",
                rounded(report.messages_per_second(f64::from(plan.rooms))),
            )?;
            row("deliveries/s", rounded(report.deliveries_per_second()))?;
        }
        row("latency ms", percentiles(latency))?;
        row("own echo ms", percentiles(&report.echo))?;
        if let Some(lag) = &report.lag {
            row("send lag ms", percentiles(lag))?;
        }
        row("lost", grouped(report.faults.lost))?;
        row("duplicated", grouped(report.faults.duplicated))?;
        row("out of order", grouped(report.faults.reordered))?;
        if report.protocol == Protocol::Chitchat {
            row("sequence not dense", grouped(report.order.not_dense))?;
            row("Lamport not later", grouped(report.order.not_later))?;
            row("differing streams", grouped(report.differing))?;
        }
        if report.misrouted > 0 {
            row("in the wrong room", grouped(report.misrouted))?;
        }
        if report.rejected > 0 {
            let text = report.first_rejection.as_deref().unwrap_or("");
            row(
                "rejected",
                format!("{}, one of them: {text}", grouped(report.rejected)),
            )?;
        }
        row("connections cut", grouped(report.disconnects))?;
        for reason in &report.disconnect_reasons {
            row("", reason.clone())?;
        }
        if let (Some(used), Some(cpu), Some(memory)) = (
            report.resources,
            report.cpu_per_delivery(),
            report.kib_per_client(),
        ) {
            if !report.idle {
                row("server CPU", format!("{cpu:.3} us per delivery"))?;
            }
            let joining = float(used.joining_cpu_microseconds) / 1e6;
            row("server CPU to join", format!("{joining:.2} s"))?;
            row(
                "server memory",
                format!(
                    "{} KiB before, {} KiB with idle clients, {} KiB at peak",
                    grouped(used.resident_before_kib),
                    grouped(used.resident_idle_kib),
                    grouped(used.resident_peak_kib)
                ),
            )?;
            row("memory per client", format!("{memory:.1} KiB"))?;
        }
        if !report.idle {
            row(
                "generator CPU",
                format!("{:.3} us per delivery", report.generator_cpu_per_delivery()),
            )?;
        }
        Ok(())
    }
}

/// The number of clients whose stream is not that of the majority.
fn minority(streams: &HashMap<Digest, u64>) -> u64 {
    let most = streams.values().max().copied().unwrap_or(0);
    streams.values().sum::<u64>() - most
}

fn percentiles(latency: &Latency) -> String {
    format!(
        "p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}",
        latency.percentile(50.0),
        latency.percentile(90.0),
        latency.percentile(99.0),
        latency.percentile(99.9),
        latency.max()
    )
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

fn seconds(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1e9
}

/// `part / whole`, or 0 if `whole` is 0.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn rounded(value: f64) -> String {
    let digits = format!("{value:.0}");
    digits.parse().map_or(digits, grouped)
}

/// Formats a number with a comma after every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::client::ClientResult;
    use super::super::plan::tests::plan;
    use super::*;

    fn report(clients: Vec<ClientResult>) -> Report {
        let measured = Measurement {
            joined_in: 1_000_000,
            settled_in: 2_000_000,
            begin: 0,
            end: 2_000_000_000,
            deliveries: 5_000,
            generator_cpu: 100,
        };
        let resources = Resources {
            cpu_microseconds: 10_000,
            joining_cpu_microseconds: 1,
            resident_before_kib: 100,
            resident_idle_kib: 200,
            resident_peak_kib: 300,
        };
        let result = WorkerResult {
            clients,
            latency: Latency::new().unwrap(),
            echo: Latency::new().unwrap(),
            lag: Latency::new().unwrap(),
        };
        Report::new(
            &plan(),
            &RunState::new(1, 2),
            measured,
            Some(resources),
            vec![result],
        )
        .unwrap()
    }

    #[test]
    fn a_run_without_faults_is_ok() {
        let report = report(vec![ClientResult::default(), ClientResult::default()]);
        assert_eq!(report.violations(), Vec::<String>::new());
        assert_eq!(report.to_json(&plan())["ok"], true);
        assert_eq!(report.to_json(&plan())["deliveries_per_s"], 2_500.0);
        assert_eq!(report.cpu_per_delivery(), Some(2.0));
        assert_eq!(report.kib_per_client(), Some(20.0));
    }

    #[test]
    fn every_fault_is_reported() {
        let mut order = super::super::order_checker::OrderChecker::default();
        order.update_digest(1);
        let different = ClientResult {
            digest: order.digest(),
            ..ClientResult::default()
        };
        let faults = DeliveryFaults {
            lost: 1_000,
            duplicated: 1,
            reordered: 1,
        };
        let faulty = ClientResult {
            faults,
            disconnect: Some("GOAWAY".into()),
            ..ClientResult::default()
        };
        let report = report(vec![ClientResult::default(), different, faulty]);
        let faults = report.violations();
        assert_eq!(faults.len(), 5, "{faults:?}");
        assert_eq!(faults.first().map(String::as_str), Some("1,000 deliveries lost"));
        assert_eq!(report.to_json(&plan())["ok"], false);
        assert!(report.table(&plan()).to_string().contains("GOAWAY"));
    }

    #[test]
    fn streams_are_compared_within_a_room() {
        let mut order = super::super::order_checker::OrderChecker::default();
        order.update_digest(1);
        let elsewhere = ClientResult {
            room: 1,
            digest: order.digest(),
            ..ClientResult::default()
        };
        assert_eq!(report(vec![ClientResult::default(), elsewhere]).differing, 0);
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
