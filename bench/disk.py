"""How fast the disk itself is: what no durable server can undercut."""

import os
import time


def probe(directory, seconds=1.0):
    """Appends 4 KiB and syncs, again and again; gives the median and the 99th percentile in milliseconds."""
    block = os.urandom(4096)
    times = []
    descriptor = os.open(directory / "probe", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        until = time.monotonic() + seconds
        while not times or time.monotonic() < until:
            began = time.perf_counter()
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - began) * 1e3)
    finally:
        os.close(descriptor)
        os.unlink(directory / "probe")
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "syncs": len(times)}
