//! What a run found out, for people and for programs.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Value, json};

use super::checker::Faults;
use super::error::BenchError;
use super::latency::Latency;
use super::order::{Digest, OrderFaults};
use super::plan::{Load, Plan, Protocol};
use super::shared::Shared;
use super::worker::Findings;

/// How many different reasons for early ends are told.
const MAX_REASONS: usize = 5;

/// What the leader of a run measured. Times are nanoseconds since the run's origin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) joined_in: u64,
    pub(super) settled_in: u64,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) deliveries: u64,
    pub(super) own_cpu: u64,
}

/// What the server's process used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Processor time, user and system, within the measured time.
    pub cpu_microseconds: u64,
    /// Processor time from before the first client connected until all had joined and it was quiet.
    pub joining_cpu_microseconds: u64,
    /// Resident memory before the first client connected.
    pub resident_before_kib: u64,
    /// Resident memory when all had joined and it was quiet.
    pub resident_idle_kib: u64,
    /// The most resident memory that was seen from then on.
    pub resident_peak_kib: u64,
}

/// What a run found out.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the server speaks.
    pub protocol: Protocol,
    /// Whether the clients only idled, but for one message.
    pub idle: bool,
    /// How many clients took part, publishers included.
    pub clients: u64,
    /// From the first connection until the last client's JOIN came back, in seconds.
    pub joined_in: f64,
    /// From the first connection until the last announcement of a JOIN had reached its last reader, in seconds, to about
    /// 20 ms.
    pub settled_in: f64,
    /// The measured time in seconds.
    pub seconds: f64,
    /// Messages that were sent in all.
    pub sent: u64,
    /// Messages that the clients received for the first time within the measured time.
    pub deliveries: u64,
    /// From the intended time of sending to the arrival, of messages that were to be sent in the measured time.
    pub latency: Latency,
    /// How late an open loop was in sending, because of the generator or because the server's flow control held it up.
    pub lag: Option<Latency>,
    /// Lost, duplicated, reordered: all deliveries of the run.
    pub faults: Faults,
    /// Sequence and Lamport time: all streams of the run.
    pub order: OrderFaults,
    /// Clients whose stream differs from the one that most clients of their room received.
    pub differing: u64,
    /// Messages that reached a client of another room.
    pub foreign: u64,
    /// Messages that the server refused, and what it said about one.
    pub refused: u64,
    /// What the server said about a refused message.
    pub refusal: Option<String>,
    /// Clients and publishing connections that ended before they left.
    pub cut: u64,
    /// Why they ended, the first few reasons.
    pub reasons: Vec<String>,
    /// What the server's process used.
    pub resources: Option<Resources>,
    /// Processor time of the generator in microseconds within the measured time.
    pub own_cpu_microseconds: u64,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        shared: &Shared,
        measured: Measured,
        resources: Option<Resources>,
        findings: Vec<Findings>,
    ) -> Result<Self, BenchError> {
        let (mut latency, mut lag) = (Latency::new()?, Latency::new()?);
        let (mut faults, mut order) = (Faults::default(), OrderFaults::default());
        let (mut foreign, mut refused, mut refusal) = (0, 0, None);
        let (mut cut, mut reasons) = (0, Vec::new());
        let mut rooms: HashMap<usize, HashMap<Digest, u64>> = HashMap::new();
        for found in findings {
            latency.merge(&found.latency)?;
            lag.merge(&found.lag)?;
            for client in found.clients {
                faults += client.faults;
                order += client.order;
                foreign += client.foreign;
                refused += client.refused;
                refusal = refusal.or(client.refusal);
                if let Some(reason) = client.cut {
                    cut += 1;
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
            lag: matches!(plan.load, Load::Rate(_)).then_some(lag),
            faults,
            order,
            differing: rooms.values().map(outnumbered).sum(),
            foreign,
            refused,
            refusal,
            cut,
            reasons,
            resources,
            own_cpu_microseconds: measured.own_cpu,
        })
    }

    /// Every promise that the server broke, in words; empty when it broke none.
    pub fn broken(&self) -> Vec<String> {
        let counts = [
            (self.faults.lost, "deliveries lost"),
            (self.faults.duplicated, "deliveries duplicated"),
            (self.faults.reordered, "deliveries out of order"),
            (self.order.not_dense, "holes or repeats in the sequence"),
            (self.order.not_later, "Lamport times that were not later"),
            (self.differing, "clients with a stream different from the others'"),
            (self.foreign, "deliveries to another room"),
            (self.refused, "messages refused"),
            (self.cut, "connections cut"),
        ];
        let told = counts.iter().filter(|(count, _)| *count > 0);
        told.map(|(count, what)| format!("{} {what}", grouped(*count)))
            .collect()
    }

    /// Messages per second that reached everybody, as deliveries per second divided by the clients of a room.
    fn messages_per_second(&self, rooms: f64) -> f64 {
        ratio(self.deliveries_per_second() * rooms, float(self.clients))
    }

    /// Deliveries per second within the measured time.
    pub fn deliveries_per_second(&self) -> f64 {
        ratio(float(self.deliveries), self.seconds)
    }

    /// The server's processor time per delivery in microseconds.
    pub fn cpu_per_delivery(&self) -> Option<f64> {
        self.resources
            .map(|used| ratio(float(used.cpu_microseconds), float(self.deliveries)))
    }

    /// The generator's processor time per delivery in microseconds.
    pub fn own_cpu_per_delivery(&self) -> f64 {
        ratio(float(self.own_cpu_microseconds), float(self.deliveries))
    }

    /// Resident memory per client in KiB: what the clients added while nothing was sent.
    pub fn kib_per_client(&self) -> Option<f64> {
        self.resources.map(|used| {
            ratio(
                float(used.resident_idle_kib.saturating_sub(used.resident_before_kib)),
                float(self.clients),
            )
        })
    }

    /// The report as one JSON object. Times are in the unit that a name ends in.
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
            "send_lag_ms": self.lag.as_ref().map(percentiles),
            "lost": self.faults.lost,
            "duplicated": self.faults.duplicated,
            "out_of_order": self.faults.reordered,
            "sequence_not_dense": self.order.not_dense,
            "lamport_not_later": self.order.not_later,
            "differing_streams": self.differing,
            "wrong_room": self.foreign,
            "refused": self.refused,
            "refusal": self.refusal,
            "cut": self.cut,
            "cut_reasons": self.reasons,
            "ok": self.broken().is_empty(),
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
                "cpu_us": self.own_cpu_microseconds,
                "cpu_us_per_delivery": self.own_cpu_per_delivery(),
            },
        })
    }

    /// The report as a table.
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
            Load::Rate(rate) => format!("{} messages/s on a timetable", grouped(rate)),
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
        if report.foreign > 0 {
            row("in the wrong room", grouped(report.foreign))?;
        }
        if report.refused > 0 {
            let said = report.refusal.as_deref().unwrap_or("");
            row(
                "refused",
                format!("{}, one of them: {said}", grouped(report.refused)),
            )?;
        }
        row("connections cut", grouped(report.cut))?;
        for reason in &report.reasons {
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
                format!("{:.3} us per delivery", report.own_cpu_per_delivery()),
            )?;
        }
        Ok(())
    }
}

/// How many clients of a room did not receive what most of them received.
fn outnumbered(streams: &HashMap<Digest, u64>) -> u64 {
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

/// 0 where there is nothing to divide by.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn rounded(value: f64) -> String {
    let digits = format!("{value:.0}");
    digits.parse().map_or(digits, grouped)
}

/// Digits in groups of three.
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
    use super::super::audience::ClientResult;
    use super::super::plan::tests::plan;
    use super::*;

    fn report(clients: Vec<ClientResult>) -> Report {
        let measured = Measured {
            joined_in: 1_000_000,
            settled_in: 2_000_000,
            begin: 0,
            end: 2_000_000_000,
            deliveries: 5_000,
            own_cpu: 100,
        };
        let resources = Resources {
            cpu_microseconds: 10_000,
            joining_cpu_microseconds: 1,
            resident_before_kib: 100,
            resident_idle_kib: 200,
            resident_peak_kib: 300,
        };
        let found = Findings {
            clients,
            latency: Latency::new().unwrap(),
            lag: Latency::new().unwrap(),
        };
        Report::new(
            &plan(),
            &Shared::new(1, 2),
            measured,
            Some(resources),
            vec![found],
        )
        .unwrap()
    }

    #[test]
    fn a_flawless_run_broke_nothing() {
        let report = report(vec![ClientResult::default(), ClientResult::default()]);
        assert_eq!(report.broken(), Vec::<String>::new());
        assert_eq!(report.to_json(&plan())["ok"], true);
        assert_eq!(report.to_json(&plan())["deliveries_per_s"], 2_500.0);
        assert_eq!(report.cpu_per_delivery(), Some(2.0));
        assert_eq!(report.kib_per_client(), Some(20.0));
    }

    #[test]
    fn every_fault_is_told() {
        let mut order = super::super::order::Order::default();
        order.digest(1);
        let different = ClientResult {
            digest: order.seen(),
            ..ClientResult::default()
        };
        let faults = Faults {
            lost: 1_000,
            duplicated: 1,
            reordered: 1,
        };
        let faulty = ClientResult {
            faults,
            cut: Some("GOAWAY".into()),
            ..ClientResult::default()
        };
        let report = report(vec![ClientResult::default(), different, faulty]);
        let told = report.broken();
        assert_eq!(told.len(), 5, "{told:?}");
        assert_eq!(told.first().map(String::as_str), Some("1,000 deliveries lost"));
        assert_eq!(report.to_json(&plan())["ok"], false);
        assert!(report.table(&plan()).to_string().contains("GOAWAY"));
    }

    #[test]
    fn rooms_are_compared_each_for_itself() {
        let mut order = super::super::order::Order::default();
        order.digest(1);
        let elsewhere = ClientResult {
            room: 1,
            digest: order.seen(),
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
