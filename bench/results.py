"""Formats the medians over all rounds as Markdown."""

import json
import math
from dataclasses import dataclass
from statistics import median

import machine
import systems
import workloads

# Ratios are relative to the figures of this system, the best known of the others.
BASE = "nats"


@dataclass(frozen=True)
class Metric:
    workload: str
    title: str
    # The path of the value in a report.
    path: tuple
    unit: str
    longer_is_better: bool = False
    scale: float = 1.0

    def of(self, report):
        for key in self.path:
            report = (report or {}).get(key)
        return None if report is None else report * self.scale


def rate(workload):
    return Metric(workload, "deliveries a second", ("deliveries_per_s",), "/s", longer_is_better=True)


def cpu(workload):
    return Metric(workload, "server CPU per delivery", ("server", "cpu_us_per_delivery"), "µs")


def latency(workload, percentile):
    return Metric(workload, f"latency {percentile.replace('_', '.')}", ("latency_ms", percentile), "ms")


def messages(workload):
    return Metric(workload, "messages a second", ("messages_per_s",), "/s", longer_is_better=True)


def echo(workload, percentile):
    return Metric(workload, f"echo {percentile}", ("echo_ms", percentile), "ms")


def client_cpu(workload):
    return Metric(workload, "client CPU per delivery", ("generator", "cpu_us_per_delivery"), "µs")


def memory(workload):
    return Metric(workload, "server memory per client", ("server", "kib_per_client"), "KiB")


PEAK = Metric("flood", "peak server memory", ("server", "resident_peak_kib"), "MiB", scale=1 / 1024)
REACHED = Metric("idle", "time until everybody has the message", ("latency_ms", "max"), "ms")
JOINED = Metric("idle", "time until all have joined and received every JOIN", ("settled_in_s",), "s")

ROWS = (
    rate("w1"), cpu("w1"), rate("w2"), cpu("w2"), rate("flood"), PEAK,
    *(row for load in ("rate200", "rate2000") for row in (*(latency(load, p) for p in ("p50", "p99", "p99_9")), cpu(load))),
    memory("idle"), REACHED, JOINED,
    latency("rooms", "p50"), latency("rooms", "p99"), cpu("rooms"), memory("rooms"),
)  # fmt: skip
STORE_ROWS = (rate("w1"), rate("flood"), latency("echo", "p50"), latency("echo", "p99"))
STORE_SYSTEMS = ("memory", "os", "sync")

CLUSTER_ROWS = (
    messages("order"), cpu("order"),
    messages("fanout"), rate("fanout"), cpu("fanout"), client_cpu("fanout"),
    *(echo("rate100", p) for p in ("p50", "p99")), *(latency("rate100", p) for p in ("p50", "p99")), cpu("rate100"), client_cpu("rate100"),
    *(echo("quiet", p) for p in ("p50", "p99")), cpu("quiet"),
)  # fmt: skip
# The heading of the section that `--cluster` writes.
CLUSTER_HEADING = "## Three replicas"
WORKLOADS = workloads.ALL | workloads.CLUSTER


class Measured:
    """All runs of a comparison."""

    def __init__(self, about, runs):
        self.about = about
        self.runs = runs

    def systems(self):
        return [name for name in systems.ALL if any(run["system"] == name for run in self.runs)]

    def runs_of(self, workload, system):
        return [run for run in self.runs if run["workload"] == workload and run["system"] == system]

    def values(self, metric, system):
        values = [metric.of(run["report"]) for run in self.runs_of(metric.workload, system) if "report" in run]
        return [value for value in values if value is not None]

    def median(self, metric, system):
        values = self.values(metric, system)
        return median(values) if values else None

    def ratio(self, metric, system):
        value, base = self.median(metric, system), self.median(metric, BASE)
        return value / base if value is not None and base else None


def read(path):
    with open(path) as raw:
        first, *runs = [json.loads(line) for line in raw if line.strip()]
    return Measured(first["about"], runs)


def number(value):
    """Formats a number with three significant digits."""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= size * 10 or (letter == " M" and abs(value) >= size):
            return number(value / size) + letter
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits)}f}"


def amount(metric, value):
    return number(value) + ("" if metric.unit == "/s" else f" {metric.unit}")


def violations(report):
    """The guarantees that the server broke, with counts."""
    names = ("lost", "duplicated", "out_of_order", "sequence_not_dense", "lamport_not_later", "differing_streams", "cut")
    return ", ".join(f"{name.replace('_', ' ')}: {report[name]:,}" for name in names if report[name])


def line(run):
    """Summarizes a run in one line, for progress output."""
    text = f"{run['workload']:<9}{run['system']:<11}"
    if "failed" in run:
        return f"{text}failed: {run['failed']}"
    report = run["report"]
    text += f"{number(report['deliveries_per_s']):>8}/s"
    text += f"  cpu {report['server']['cpu_us_per_delivery'] or 0:7.3f} us"
    text += f"  p50 {report['latency_ms']['p50']:8.3f} ms  p99 {report['latency_ms']['p99']:8.3f} ms"
    text += f"  {report['server']['kib_per_client']:6.1f} KiB/client"
    return text if report["ok"] else f"{text}  {violations(report)}"


def cell(measured, metric, system, with_ratio=True, with_spread=False):
    if system not in WORKLOADS[metric.workload].systems:
        return ""
    value = measured.median(metric, system)
    if value is None:
        return "failed" if measured.runs_of(metric.workload, system) else ""
    faulty = any("failed" in run or not run["report"]["ok"] for run in measured.runs_of(metric.workload, system))
    ratio = measured.ratio(metric, system) if with_ratio else None
    text = amount(metric, value) + (f" ({number(ratio)})" if ratio is not None else "")
    if with_spread:
        values = measured.values(metric, system)
        text += f" ({number(min(values))} to {number(max(values))})"
    return text + (" †" if faulty else "")


def table(measured, rows, columns, with_ratio, with_spread=False):
    text = ["| | " + " | ".join(systems.ALL[name].title for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    workload = None
    for metric in rows:
        if not any(measured.runs_of(metric.workload, name) for name in columns):
            continue
        if metric.workload != workload:
            workload = metric.workload
            text.append(f"| **{WORKLOADS[workload].title}** |" + " |" * len(columns))
        cells = [cell(measured, metric, name, with_ratio, with_spread) for name in columns]
        text.append(f"| {metric.title} | " + " | ".join(cells) + " |")
    return text


def faults(measured):
    for run in measured.runs:
        failure = run.get("failed") or ("" if run["report"]["ok"] else violations(run["report"]) or "rejected messages")
        if failure:
            title = systems.ALL[run["system"]].title
            yield f"- † {title}, round {run['round']}, {WORKLOADS[run['workload']].title}: {failure}"


def disk_row(measured):
    probes = [run["disk_sync_ms"] for run in measured.runs if "disk_sync_ms" in run]
    if not probes:
        return []
    p50, p99 = (median(probe[name] for probe in probes) for name in ("p50", "p99"))
    return ["", f"The disk alone, right after each run with an echo: 4 KiB appended and synced 50 times a second in {number(p50)} ms (p99 {number(p99)} ms)."]


def split(text):
    """Splits the results before the section about clusters, which is measured separately."""
    before, heading, section = text.partition(f"\n{CLUSTER_HEADING}\n")
    return before, heading + section


def rounds_of(measured):
    rounds = max((run["round"] for run in measured.runs), default=0)
    return f"{rounds} round{'s' if rounds != 1 else ''}"


def cluster_markdown(measured):
    about = measured.about
    text = [
        "",
        CLUSTER_HEADING,
        "",
        *([f"**{warning}**", ""] if (warning := machine.warning(about)) else []),
        f"Written by `bench/compare --cluster` on {about['date']}: {about['machine']}, loopback, texts of 100 bytes, all servers and the load "
        f"generator on the same machine, commit {about['commit']}. Medians of {rounds_of(measured)}, in parentheses the lowest and the "
        "highest; CPU is that of all servers together, including nats-servers. [README.md](README.md#a-cluster) explains the configuration."
        + (f" {note}" if (note := about.get("note")) else ""),
        "",
        *(f"- {systems.ALL[name].title}: {version}" for name, version in about["versions"].items()),
        "",
        *table(measured, CLUSTER_ROWS, measured.systems(), with_ratio=False, with_spread=True),
    ]
    failed = list(faults(measured))
    if failed:
        text += ["", "Runs that failed, or that lost messages or connections:", "", *failed]
    return "\n".join([*text, *disk_row(measured)]) + "\n"


def markdown(measured):
    about = measured.about
    text = [
        "# Chit Chat compared with other servers",
        "",
        *([f"**{warning}**", ""] if (warning := machine.warning(about)) else []),
        f"Written by `bench/compare` on {about['date']}: {about['machine']}, loopback, texts of 100 bytes, the load generator on "
        f"the same machine, commit {about['commit']}. Medians of {rounds_of(measured)}; "
        f"in parentheses the ratio to {systems.ALL[BASE].title}. "
        "Only the ratios are comparable between machines. [README.md](README.md) explains how each server is configured.",
        "",
        *(f"- {systems.ALL[name].title}: {version}" for name, version in about["versions"].items()),
        "",
        *table(measured, ROWS, [name for name in measured.systems() if name != "os"], with_ratio=True),
    ]
    failed = list(faults(measured))
    if failed:
        text += ["", "Runs that failed, or that lost messages or connections:", "", *failed]
    stores = [name for name in STORE_SYSTEMS if name in measured.systems()]
    if stores:
        text += ["", "## What durability costs", "", *table(measured, STORE_ROWS, stores, with_ratio=False), *disk_row(measured)]
    return "\n".join(text) + "\n"
