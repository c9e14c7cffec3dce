"""Checks the stack that .ci/stack/test has started: python3 check.py ready | quiet MINUTES | containers < compose's list."""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

PROMETHEUS = "http://127.0.0.1:9090"
ALERTMANAGER = "http://127.0.0.1:9093"
JOBS = {"chitchat", "prometheus", "alertmanager", "otel-collector", "tempo", "loki", "grafana"}
TIMEOUT = 180

# Expressions that must be above zero, which shows that each pipeline carries data from end to end.
CARRIED = [
    "sum(rate(chitchat_events_broadcast_total[1m]))",
    "sum(otelcol_exporter_sent_spans)",
    "sum(otelcol_exporter_sent_log_records)",
    'sum(stand_in_received_total{job="tempo"})',
    'sum(stand_in_received_total{job="loki"})',
    "sum(prometheus_notifications_sent_total)",
    "count(alertmanager_notifications_failed_total)",
    "count(chitchat:slo_errors:ratio_rate5m)",
]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def ask(path, **parameters):
    return json.loads(get(f"{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))["data"]


def value(expression):
    result = ask("query", query=expression)["result"]
    return float(result[0]["value"][1]) if result else 0.0


def rules():
    """All rules, after checking that none has ever failed."""
    found = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    for rule in found:
        assert rule["health"] != "err" and not rule.get("lastError"), rule
    assert value("sum(prometheus_rule_evaluation_failures_total)") == 0
    return found


def missing():
    """What is not there yet."""
    targets = ask("targets")["activeTargets"]
    down = [target["labels"]["job"] for target in targets if target["health"] != "up"]
    absent = JOBS - {target["labels"]["job"] for target in targets}
    unknown = [rule["name"] for rule in rules() if rule["health"] != "ok"]
    empty = [expression for expression in CARRIED if value(expression) <= 0]
    return [*down, *absent, *unknown, *empty]


def ready():
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            still = missing()
        except (urllib.error.URLError, OSError) as error:
            still = [str(error)]
        if not still:
            break
        assert time.monotonic() < deadline, f"not in time: {still}"
        time.sleep(2)
    print(f"{len(JOBS)} targets up, {len(rules())} rules healthy")
    assert 'id="chitchatdown"' in get(f"{PROMETHEUS}/consoles/runbook.html")


def quiet(minutes):
    assert not missing(), missing()
    fired = ask("query", query=f'group by (alertname) (max_over_time(ALERTS{{alertstate="firing"}}[{minutes}m]))')
    names = {sample["metric"]["alertname"] for sample in fired["result"]}
    assert names == {"Watchdog"}, f"fired: {names}"
    pending = [alert["labels"]["alertname"] for alert in ask("alerts")["alerts"] if alert["state"] == "pending"]
    delivered = {alert["labels"]["alertname"] for alert in json.loads(get(f"{ALERTMANAGER}/api/v2/alerts"))}
    assert delivered == {"Watchdog"}, f"Alertmanager has {delivered}"
    print(f"only the watchdog has fired; pending: {pending or 'none'}")


def containers():
    found = [json.loads(line) for line in sys.stdin if line.strip()]
    assert len(found) == 9, [container["Service"] for container in found]
    for container in found:
        state = (container["State"], container["Health"])
        # The Collector's image has no program for a health check.
        healthy = "" if container["Service"] == "otel-collector" else "healthy"
        assert state == ("running", healthy), (container["Service"], state)
    print(f"{len(found)} containers run and are healthy")


{"ready": ready, "quiet": lambda: quiet(sys.argv[2]), "containers": containers}[sys.argv[1]]()
