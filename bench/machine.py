"""What the machine is, and whether it does something else beside the comparison."""

import os
import platform
import time

# More than this, and others share the processors: figures are worth little.
QUIET = 0.1


def describe():
    with open("/proc/cpuinfo") as info:
        models = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release().split('-')[0]}"


def busy(seconds=2.0):
    """How much of the processors is in use while the comparison itself does nothing, from 0 to 1."""
    before = times()
    time.sleep(seconds)
    total, idle = (after - earlier for after, earlier in zip(times(), before))
    return 1 - idle / total if total else 0.0


def times():
    """All processors' time so far, and how much of it they had nothing to do or waited for a disk."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def warning(about):
    """What is to be said above the figures; nothing after a whole comparison on a quiet machine."""
    if about["quick"]:
        return "A quick run, shorter and with fewer clients than it says: these figures mean nothing."
    if about["busy"] > QUIET:
        return f"When it began others used {about['busy']:.0%} of the machine: do not trust these figures."
    return ""
