"""What a command used and its last line of output, as one line of JSON. Standard library only, and small.

    python -m bench.measured COMMAND…

A child is born with its parent's memory and keeps the mark of it, so the parent that it is measured by must be small.
"""

import json
import resource
import subprocess
import sys
import time


def main() -> None:
    """CPU and memory are those of the command and all descendants that it waited for."""
    started_at, started = time.time(), time.perf_counter()
    done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=False)
    wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = {
        "code": done.returncode,
        "said": done.stdout.decode(errors="replace").rstrip().rpartition("\n")[2],
        "started_at": started_at,
        "wall_seconds": wall,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "rss_mib": used.ru_maxrss / 1024,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
