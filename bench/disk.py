"""Measures the sync latency of the disk, the lower bound for the latency of a durable server."""

import os
import time


def probe(directory, rate=50, seconds=3.0):
    """Appends 4 KiB and syncs, `rate` times a second. Returns the median and the 99th percentile in milliseconds.

    Use the rate of the messages to compare with: after a pause, both the sync and the wake-up of the process take longer.
    """
    block = os.urandom(4096)
    times = []
    descriptor = os.open(directory / "probe", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(int(rate * seconds)):
            time.sleep(1 / rate)
            started = time.perf_counter()
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - started) * 1e3)
    finally:
        os.close(descriptor)
        os.unlink(directory / "probe")
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "syncs": len(times)}
