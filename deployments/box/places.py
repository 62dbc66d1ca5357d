"""Where the box keeps what it must find again: `$POTSTILL_HOME/box/`."""

from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from potstill.artifacts import write_atomically
from potstill.owner import Owner
from potstill.records import Row

Condition = Literal["waiting", "off", "starting", "up", "restarting", "failing", "done", "stopped"]
"""`waiting`: for another process; `off`: for what the user has not made or set yet; `failing`: dies again and again."""


class Kept(Row):
    """One process that is kept alive."""

    name: str
    condition: Condition
    pid: int | None = None
    started_at: float | None = None
    """As `process_started_at` has it; with the pid it names one process of its boot."""
    address: str | None = None
    num_restarts: int = 0
    remark: str = ""
    """What it needs, or how it ended last."""


class State(Row):
    """What runs; written at every change."""

    supervisor: Owner
    mark: str
    """What every process of this box has in its environment."""
    config: str
    """The file that it was started with."""
    ports: dict[str, int]
    processes: list[Kept]
    is_stopping: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether all is up that can be."""
        return bool(self.processes) and all(kept.condition in {"up", "done", "off"} for kept in self.processes)

    @property
    def is_failing(self) -> bool:
        """Whether something dies again and again."""
        return any(kept.condition == "failing" for kept in self.processes)


class Places:
    """The files, by their names."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.box = home / "box"
        self.logs = self.box / "logs"
        self.auth = self.box / "auth"
        self.env = self.box / "env"
        self.supervisor_log = self.logs / "supervisor.log"
        self.database = self.box / "prefect.db"
        self._state = self.box / "state.json"
        self._lock = self.box / "supervisor.lock"

    def make(self) -> None:
        """The directories, which nobody else may read."""
        for path in (self.box, self.logs):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lock(self) -> FileLock:
        """Held by the supervisor as long as it lives."""
        return FileLock(self._lock)

    def is_locked(self) -> bool:
        """Whether a supervisor lives. A file that names one proves nothing after a reboot."""
        if not self.box.is_dir():
            return False
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Timeout:
            return True

    def read_state(self) -> State | None:
        """What the last supervisor wrote; None where there was none, or where it cannot be read."""
        try:
            return State.model_validate_json(self._state.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write_state(self, state: State) -> None:
        write_atomically(self._state, state.model_dump_json(indent=2))

    def forget_state(self) -> None:
        self._state.unlink(missing_ok=True)
