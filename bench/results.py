"""Medians over the rounds, as Markdown."""

import json
import math
from dataclasses import dataclass
from statistics import median

import machine
import systems
import workloads

# Ratios are multiples of this one's figure: the best known of the peers.
BASE = "nats"


@dataclass(frozen=True)
class Metric:
    workload: str
    title: str
    # Where it is in a report.
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


def memory(workload):
    return Metric(workload, "server memory per client", ("server", "kib_per_client"), "KiB")


PEAK = Metric("flood", "server memory at most", ("server", "resident_peak_kib"), "MiB", scale=1 / 1024)
REACHED = Metric("idle", "the message reaches everybody in", ("latency_ms", "max"), "ms")
JOINED = Metric("idle", "all have joined and heard of all who did", ("settled_in_s",), "s")

ROWS = (
    rate("w1"), cpu("w1"), rate("w2"), cpu("w2"), rate("flood"), PEAK,
    *(row for load in ("rate200", "rate2000") for row in (*(latency(load, p) for p in ("p50", "p99", "p99_9")), cpu(load))),
    memory("idle"), REACHED, JOINED,
    latency("rooms", "p50"), latency("rooms", "p99"), cpu("rooms"), memory("rooms"),
)  # fmt: skip
STORE_ROWS = (rate("w1"), rate("flood"), latency("echo", "p50"), latency("echo", "p99"))
STORE_SYSTEMS = ("memory", "os", "sync")


class Measured:
    """All runs of a comparison."""

    def __init__(self, about, runs):
        self.about = about
        self.runs = runs

    def systems(self):
        return [name for name in systems.ALL if any(run["system"] == name for run in self.runs)]

    def of(self, workload, system):
        return [run for run in self.runs if run["workload"] == workload and run["system"] == system]

    def median(self, metric, system):
        found = [metric.of(run["report"]) for run in self.of(metric.workload, system) if "report" in run]
        found = [value for value in found if value is not None]
        return median(found) if found else None

    def ratio(self, metric, system):
        value, base = self.median(metric, system), self.median(metric, BASE)
        return value / base if value is not None and base else None


def read(path):
    with open(path) as raw:
        first, *runs = [json.loads(line) for line in raw if line.strip()]
    return Measured(first["about"], runs)


def number(value):
    """Three significant digits."""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= size * 10 or (letter == " M" and abs(value) >= size):
            return number(value / size) + letter
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits)}f}"


def amount(metric, value):
    return number(value) + ("" if metric.unit == "/s" else f" {metric.unit}")


def broken(report):
    """What the server did not keep."""
    names = ("lost", "duplicated", "out_of_order", "sequence_not_dense", "lamport_not_later", "differing_streams", "cut")
    return ", ".join(f"{name.replace('_', ' ')}: {report[name]:,}" for name in names if report[name])


def line(run):
    """A run in one line, while they go on."""
    told = f"{run['workload']:<9}{run['system']:<11}"
    if "failed" in run:
        return f"{told}failed: {run['failed']}"
    report = run["report"]
    told += f"{number(report['deliveries_per_s']):>8}/s"
    told += f"  cpu {report['server']['cpu_us_per_delivery'] or 0:7.3f} us"
    told += f"  p50 {report['latency_ms']['p50']:8.3f} ms  p99 {report['latency_ms']['p99']:8.3f} ms"
    told += f"  {report['server']['kib_per_client']:6.1f} KiB/client"
    return told if report["ok"] else f"{told}  {broken(report)}"


def cell(measured, metric, system, with_ratio=True):
    if system not in workloads.ALL[metric.workload].systems:
        return ""
    value = measured.median(metric, system)
    if value is None:
        return "failed" if measured.of(metric.workload, system) else ""
    faulty = any("failed" in run or not run["report"]["ok"] for run in measured.of(metric.workload, system))
    ratio = measured.ratio(metric, system) if with_ratio else None
    text = amount(metric, value) + (f" ({number(ratio)})" if ratio is not None else "")
    return text + (" †" if faulty else "")


def table(measured, rows, columns, with_ratio):
    text = ["| | " + " | ".join(systems.ALL[name].title for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    before = None
    for metric in rows:
        if not any(measured.of(metric.workload, name) for name in columns):
            continue
        if metric.workload != before:
            before = metric.workload
            text.append(f"| **{workloads.ALL[before].title}** |" + " |" * len(columns))
        cells = [cell(measured, metric, name, with_ratio) for name in columns]
        text.append(f"| {metric.title} | " + " | ".join(cells) + " |")
    return text


def faults(measured):
    for run in measured.runs:
        what = run.get("failed") or ("" if run["report"]["ok"] else broken(run["report"]) or "refused")
        if what:
            title = systems.ALL[run["system"]].title
            yield f"- † {title}, round {run['round']}, {workloads.ALL[run['workload']].title}: {what}"


def disk_row(measured):
    probes = [run["disk_sync_ms"] for run in measured.runs if "disk_sync_ms" in run]
    if not probes:
        return []
    p50, p99 = (median(probe[name] for probe in probes) for name in ("p50", "p99"))
    return ["", f"The disk itself, right after each of the last runs: 4 KiB appended and synced 50 times a second in {number(p50)} ms (p99 {number(p99)} ms)."]


def markdown(measured):
    about = measured.about
    rounds = max((run["round"] for run in measured.runs), default=0)
    text = [
        "# Chit Chat beside its peers",
        "",
        *([f"**{warning}**", ""] if (warning := machine.warning(about)) else []),
        f"Written by `bench/compare` on {about['date']}: {about['machine']}, loopback, texts of 100 bytes, the load generator on "
        f"the same machine, commit {about['commit']}. Medians of {rounds} round{'s' if rounds != 1 else ''}; "
        f"in brackets the multiple of {systems.ALL[BASE].title}'s figure. "
        "Only ratios carry over to another machine. How each server is driven is said in [README.md](README.md).",
        "",
        *(f"- {systems.ALL[name].title}: {version}" for name, version in about["versions"].items()),
        "",
        *table(measured, ROWS, [name for name in measured.systems() if name != "os"], with_ratio=True),
    ]
    told = list(faults(measured))
    if told:
        text += ["", "Runs in which something was lost, cut or failed:", "", *told]
    stores = [name for name in STORE_SYSTEMS if name in measured.systems()]
    if stores:
        text += ["", "## What durability costs", "", *table(measured, STORE_ROWS, stores, with_ratio=False), *disk_row(measured)]
    return "\n".join(text) + "\n"
