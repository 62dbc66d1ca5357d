"""Pool gpu: what its runs need of a machine, and what a run is told before it pays the teacher for work that waits on it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[2]
LOADED = """
import sys, flows.train_student, flows.evaluate_student
print(*sorted(name for name in sys.modules if name.startswith(("potstill.ledger", "potstill.teacher", "sqlalchemy"))))
"""


def test_the_flows_of_pool_gpu_load_neither_the_ledger_nor_what_asks_a_teacher() -> None:
    """Its workers are given no ledger and no key: deployments/compose.yaml, docs/kubernetes.md, `make up`."""
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
