"""Describes the machine, and whether other processes use it."""

import os
import platform
import time

# The share of CPU time used by other processes above which the figures are unreliable.
MAX_BUSY = 0.1


def describe():
    with open("/proc/cpuinfo") as info:
        models = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release().split('-')[0]}"


def busy(seconds=2.0):
    """The share of CPU time, from 0 to 1, that other processes use."""
    before = times()
    time.sleep(seconds)
    total, idle = (after - earlier for after, earlier in zip(times(), before))
    return 1 - idle / total if total else 0.0


def times():
    """The total CPU time so far, and the part of it spent idle or waiting for I/O."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def warning(about):
    """A warning to show with the figures. Empty after a complete comparison on an idle machine."""
    if about["quick"]:
        return "This was a quick run, with shorter runs and fewer clients than stated: the figures are meaningless."
    if about["busy"] > MAX_BUSY:
        return f"Other processes used {about['busy']:.0%} of the CPU at the start: the figures are unreliable."
    return ""
