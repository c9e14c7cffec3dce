"""Draws the chart of the README: a few metrics, with their ratios to nats-server."""

from html import escape

import machine
import systems
import workloads
from results import BASE, amount, cpu, latency, memory, number, rate

PANELS = (
    ("Fan-out to 100 clients: deliveries a second", rate("w1")),
    ("Fan-out to 1,000 clients: deliveries a second", rate("w2")),
    ("Fan-out to 100 clients: server CPU per delivery", cpu("w1")),
    ("400,000 deliveries a second: latency, p99", latency("rate2000", "p99")),
    ("5,000 idle clients: server memory per client", memory("idle")),
    ("1,000 rooms of 10: latency, p99", latency("rooms", "p99")),
)
SYSTEMS = ("memory", "sync", "nats", "redis", "mosquitto", "limit")
COLUMNS, WIDTH, GAP = 2, 460, 20
TITLE, BAR, LABEL, VALUE = 44, 20, 140, 110

STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 13px }
  .soft { fill: #59636e }
  .ground { fill: #ffffff }
  .own { fill: #0969da }
  .peer { fill: #afb8c1 }
  .limit { fill: none; stroke: #afb8c1; stroke-dasharray: 3 2 }
  .cut { stroke: #ffffff; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .soft { fill: #9198a1 }
    .ground { fill: #0d1117 }
    .own { fill: #4493f8 }
    .peer { fill: #545d68 }
    .limit { stroke: #656c76 }
    .cut { stroke: #0d1117 }
  }
"""


def kind(name):
    return {"memory": "own", "sync": "own", "limit": "limit"}.get(name, "peer")


def scale_limit(values):
    """The value of a bar of full length. A bar that would dwarf all others is truncated."""
    largest, *rest = sorted(values, reverse=True)
    return 1.5 * rest[0] if rest and largest > 4 * rest[0] else largest


def bars(measured, metric):
    shown = []
    for name in SYSTEMS:
        value = measured.median(metric, name)
        if value is not None and name in workloads.ALL[metric.workload].systems:
            shown.append((name, value, measured.ratio(metric, name)))
    return shown


def panel(title, metric, shown, x, y):
    direction = "longer" if metric.longer_is_better else "shorter"
    parts = [
        f'<text class="title" x="{x}" y="{y + 16}">{escape(title)}</text>',
        f'<text class="soft" x="{x}" y="{y + 32}">{direction} is better</text>',
    ]
    limit = scale_limit([value for _, value, _ in shown])
    for index, (name, value, ratio) in enumerate(shown):
        top = y + TITLE + index * BAR
        length = max(1.0, (WIDTH - LABEL - VALUE) * min(1.0, value / limit))
        label = amount(metric, value) + (f" ({number(ratio)}×)" if ratio is not None else "")
        parts += [
            f'<text x="{x + LABEL - 8}" y="{top + 13}" text-anchor="end">{escape(systems.ALL[name].title)}</text>',
            f'<rect class="{kind(name)}" x="{x + LABEL}" y="{top + 2}" width="{length:.1f}" height="{BAR - 6}" rx="2"/>',
            f'<text class="soft" x="{x + LABEL + length + 6:.1f}" y="{top + 13}">{escape(label)}</text>',
        ]
        if value > limit:
            cut = x + LABEL + length - 24
            parts.append(f'<path class="cut" d="M{cut:.1f} {top + BAR - 2} l6 -{BAR} m4 0 l-6 {BAR}"/>')
    return parts


def svg(measured):
    panels = [(title, metric, shown) for title, metric in PANELS if (shown := bars(measured, metric))]
    y, body = GAP, []
    for row in range(0, len(panels), COLUMNS):
        cells = panels[row : row + COLUMNS]
        for column, (title, metric, shown) in enumerate(cells):
            body += panel(title, metric, shown, GAP + column * (WIDTH + GAP), y)
        y += TITLE + BAR * max(len(shown) for _, _, shown in cells) + GAP
    width = GAP + COLUMNS * (WIDTH + GAP)
    about = measured.about
    note = f"Medians, {about['machine']}, loopback. In parentheses: ratio to {systems.ALL[BASE].title}."
    note = machine.warning(about) or note
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 24}" role="img" '
            f'aria-label="Chit Chat compared with other servers, relative to {systems.ALL[BASE].title}">',
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{width}" height="{y + 24}" rx="6"/>',
            *body,
            f'<text class="soft" x="{GAP}" y="{y + 8}">{escape(note)}</text>',
            "</svg>",
            "",
        ]
    )
