"""What a peer says of itself when it is done: one line of JSON. Standard library only: peers have no other of ours."""

import json
import resource
import time


class Told:
    """The clock of one run; it starts when it is made, just before the first request."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.requests_per_second = 0.0

    def generated(self, count: int) -> None:
        self.requests_per_second = count / (time.perf_counter() - self.started)


def tell(told: Told) -> None:
    """CPU and memory are those of the process and its children since they started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    line = {
        "wall_seconds": time.perf_counter() - told.started,
        "requests_per_second": told.requests_per_second,
        "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in used),
        "rss_mib": max(one.ru_maxrss for one in used) / 1024,
    }
    print(json.dumps(line))
