"""The alerts file: who is told of what. Keys are named in it, never written into it."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from potstill.errors import DataError, UsageError
from potstill.recipe import Part


class Alert(StrEnum):
    """What can be told; each is an anchor of docs/operations.md."""

    FAILED = "failed"
    CRASHED = "crashed"
    UNDECIDED = "undecided"
    REJECTED = "rejected"
    RELEASED = "released"
    BUDGET = "budget"


Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The name of an environment variable of the command that applies the file."""


class Target(Part):
    """Fields that every kind of target has."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] = ""
    """Of its block and automations; left out, the kind. Two targets of one kind need names."""
    on: Annotated[list[Alert], Field(min_length=1, default_factory=lambda: list(Alert))]
    """Which alerts; left out, all."""
    recipes: Annotated[list[str], Field(min_length=1)] | None = None
    """Which recipes; left out, all. For run states it is the deployment's name that counts."""

    @property
    def label(self) -> str:
        return self.name or str(getattr(self, "to"))  # noqa: B009 - each kind has it


class Slack(Target):
    """Slack's incoming webhook. Others that take its JSON, such as Mattermost: `to: webhook`."""

    to: Literal["slack"]
    url_env: Variable
    """Holds https://hooks.slack.com/services/…"""


class Webhook(Target):
    """JSON by POST: text, subject, body and source."""

    to: Literal["webhook"]
    url_env: Variable
    token_env: Variable | None = None
    """Holds what is sent as `Authorization: Bearer …`."""


class Email(Target):
    """Mail by SMTP."""

    to: Literal["email"]
    smtp_env: Variable
    """Holds smtps://user:password@host:465 (TLS from the start) or smtp://user:password@host:587 (STARTTLS)."""
    sender: str
    recipients: Annotated[list[str], Field(min_length=1)]


class ExistingBlock(Target):
    """A notification block that somebody made in Prefect's UI; it is used and never changed."""

    to: Literal["block"]
    block: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]
    """type/name, such as microsoft-teams-webhook/on-call."""


AnyTarget = Annotated[Slack | Webhook | Email | ExistingBlock, Field(discriminator="to")]


class AlertsFile(Part):
    notify: list[AnyTarget]
    """An empty list removes every alert."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = [label for label, count in Counter(target.label for target in self.notify).items() if count > 1]
        if twice:
            raise ValueError(f"two targets are called {twice[0]!r}: give each a `name`")
        return self


def load_alerts(path: Path) -> AlertsFile:
    """Errors: `DataError` for what is no such file, with the place and what is wrong there."""
    try:
        # YAML 1.1 reads a bare `on` as true, and `on` is how the file is best read
        content = yaml.load(path.read_text(), Loader=_Loader)  # noqa: S506 - a safe loader with one rule less
        return TypeAdapter(AlertsFile).validate_python(content)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place or 'the file'}: {first['msg']}; docs/alerts.md has an example") from None


def require_http(variable: str, url: str) -> str:
    """Errors: `UsageError` for an address of another kind; it names the variable and never what it holds."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UsageError(f"{variable} holds no http(s) address: set it to the webhook's")
    return url


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the class it extends
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
