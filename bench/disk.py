"""How fast the disk itself is: what no durable server can undercut."""

import os
import time


def probe(directory, rate=50, seconds=3.0):
    """Appends 4 KiB and syncs, `rate` times a second; gives the median and the 99th percentile in milliseconds.

    The rate is that of the messages it is compared with: a disk that has been idle meanwhile takes longer than
    one that is given sync after sync, and so does the waking of whoever waits for it.
    """
    block = os.urandom(4096)
    times = []
    descriptor = os.open(directory / "probe", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(int(rate * seconds)):
            time.sleep(1 / rate)
            began = time.perf_counter()
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - began) * 1e3)
    finally:
        os.close(descriptor)
        os.unlink(directory / "probe")
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "syncs": len(times)}
