"""What runs on the box and on which ports: `deployments/box.yaml`."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from potstill.errors import UsageError
from potstill.recipe import Part

ROOT = Path(__file__).parents[2]
"""The checkout that runs."""
ANY_CARD = "any"
HOST = "127.0.0.1"

Port = Annotated[int, Field(ge=1, le=65535)]


class Server(Part):
    """Prefect's API and UI."""

    port: Port = 4200


class Workers(Part):
    """What picks up runs."""

    cpu: int = Field(default=1, ge=1, le=64)
    cpu_runs: int = Field(default=4, ge=1, le=1024)
    gpu_cards: tuple[str, ...] = (ANY_CARD,)
    """One worker for each, and one run at a time on it."""

    @model_validator(mode="after")
    def _cards_are_different(self) -> Self:
        if len(set(self.gpu_cards)) != len(self.gpu_cards):
            raise ValueError("a card is named twice in gpu_cards: two trainings would share its memory")
        return self


class Gateway(Part):
    """`potstill serve`."""

    port: Port = 8000


class Webhook(Part):
    """`potstill webhook`."""

    port: Port = 8380
    config: Path = Path("deployments/webhook.yaml")


class Reports(Part):
    """The folder of reports as a web page."""

    port: Port = 8390


class Box(Part):
    """One machine."""

    server: Server = Server()
    workers: Workers = Workers()
    gateway: Gateway | None = Gateway()
    webhook: Webhook | None = Webhook()
    reports: Reports | None = Reports()
    schedules: tuple[str, ...] = ()
    """Deployments, as flow/name, whose schedules are turned on."""
    data_roots: tuple[str, ...] = ("examples", "logs")
    """Directories, from this checkout on, and s3://BUCKET/PREFIX."""
    stop_seconds: float = Field(default=30, gt=0, le=3600)

    @property
    def ports(self) -> dict[str, int]:
        """Each port by the name of its section."""
        sections = {name: getattr(self, name) for name in ("server", "gateway", "webhook", "reports")}
        return {name: section.port for name, section in sections.items() if section is not None}

    @model_validator(mode="after")
    def _ports_are_different(self) -> Self:
        if len(set(self.ports.values())) != len(self.ports):
            said = ", ".join(f"{name}.port {port}" for name, port in self.ports.items())
            raise ValueError(f"two of {said} are the same: choose another")
        return self


def load_box(path: Path) -> Box:
    """Read the file. Errors: `UsageError`, every fault of it in one message."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}): name another with --config") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return Box.model_validate({} if data is None else data)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(path, dict(detail)) for detail in error.errors())) from None


def _explain(path: Path, detail: dict[str, object]) -> str:
    place = detail["loc"]
    assert isinstance(place, tuple)
    field = ".".join(map(str, place)) or "the file"
    said = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        said = "unknown field: deployments/box.yaml lists those there are"
    elif detail["type"] != "value_error":
        said = f"{detail['input']!r}: {said[:1].lower()}{said[1:]}"
    return f"{path}: {field}: {said}"
