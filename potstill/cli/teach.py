"""`potstill teach`."""

from __future__ import annotations

import inspect
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from potstill.cli.console import AsJson
from potstill.errors import UsageError
from potstill.kinds import Choice, TaskKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from potstill.recipe import Task


def teach(
    prompts: Annotated[Path, Parameter(name="PROMPTS", negative="")],
    /,
    *,
    out: Path,
    model: str,
    provider: Literal["openai", "anthropic", "openai_compatible"] = "openai",
    base_url: str | None = None,
    api_key_env: str | None = None,
    mode: Literal["online", "batch"] = "online",
    batch_poll_seconds: float = 60.0,
    stragglers_online: Annotated[bool, Parameter(negative="")] = False,
    instructions: str | None = None,
    reasoning_effort: str | None = None,
    concurrency: int = 16,
    rpm: int | None = None,
    tpm: int | None = None,
    max_tokens: int = 1024,
    temperature: float | None = None,
    samples: int = 1,
    choose: Choice = "first",
    quality_retries: int = 0,
    seed: int | None = None,
    overrides: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    timeout: float = 120.0,
    price: str | None = None,
    budget_usd: Decimal | None = None,
    ledger: str | None = None,
    attest: str | None = None,
    kind: TaskKind | None = None,
    labels: str | None = None,
    redact: bool = True,
    yes: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Ask the teacher for each prompt once; what the ledger holds is not asked again.

    Args:
        prompts: A PromptSet directory, or chat JSONL.
        out: Directory to write completions.parquet and completions.jsonl to.
        model: The teacher's name at the provider.
        provider: The protocol of the endpoint.
        base_url: Address of the API; needed for openai_compatible.
        api_key_env: Environment variable that holds the key.
        mode: batch: half the price, and an answer within a day; the same command after an interrupt goes on waiting.
        batch_poll_seconds: How often a batch is looked at.
        stragglers_online: What a batch leaves without an answer is asked for online.
        instructions: Guidance that only the teacher sees.
        reasoning_effort: How long it thinks; what it thinks is billed as output.
        concurrency: Requests in flight at most.
        rpm: Requests a minute at most.
        tpm: Tokens a minute at most.
        max_tokens: Longest answer, in tokens.
        temperature: Left to the provider when not given.
        samples: Answers asked for each prompt.
        choose: Which usable sample is to be trained on: the first, one that most agree with, or the best by the scorer
            of --kind.
        quality_retries: Further samples asked for while all of a prompt must not be trained on.
        seed: Sent to the provider when given.
        overrides: FIELD=VALUE, for a field of a recipe's teacher that has no flag, such as top_p=0.5 or stop=[END].
        timeout: Seconds that one request may take.
        price: IN,OUT in USD for a million tokens, in place of the price list.
        budget_usd: Cap of this run and its resumptions.
        ledger: Database address; default $POTSTILL_LEDGER, else $POTSTILL_HOME/ledger.db.
        attest: Your statement that the teacher's terms allow training on its output.
        kind: Check the answers as those of such a task.
        labels: Classification: the allowed answers, separated by commas.
        redact: Redact personal data in chat JSONL before it leaves.
        yes: Do not ask before a bill that may exceed 10 USD; without it, that is asked on a terminal only.
    """
    from potstill.cli.flags import checked, parse_price
    from potstill.recipe import Budget, Teacher

    teacher = checked(
        Teacher,
        provider=provider,
        model=model,
        base_url=base_url,
        api_key_env=api_key_env,
        price=parse_price(price),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        samples=samples,
        choose=choose,
        quality_retries=quality_retries,
        mode=mode,
        batch_poll_seconds=batch_poll_seconds,
        stragglers_online=stragglers_online,
        instructions=instructions,
        reasoning_effort=reasoning_effort,
        concurrency=concurrency,
        rpm=rpm,
        tpm=tpm,
        timeout_seconds=timeout,
        attest=attest,
        **_more(overrides or ()),
    )
    budget = checked(Budget, run_usd=budget_usd)
    from potstill.cli.teaching import Request, run_teach

    return run_teach(
        Request(
            prompts=prompts,
            out=out,
            teacher=teacher,
            task=_task(kind, labels),
            budget_usd=budget.run_usd,
            ledger=ledger,
            redact=redact,
            assume_yes=yes,
            as_json=as_json,
        )
    )


def _more(overrides: Iterable[str]) -> dict[str, Any]:
    from potstill.cli.flags import SHORTER, WITHOUT_FLAG, flag_of
    from potstill.recipe_file import apply_override

    fields: dict[str, Any] = {}
    for override in overrides:
        name, *_ = map(str, apply_override(fields, override))
        if SHORTER.get(name, name) in inspect.signature(teach).parameters:
            raise UsageError(f"--set {override}: {name} has a flag of its own: {flag_of(name)}")
        if name not in WITHOUT_FLAG:
            near = get_close_matches(name.replace("-", "_"), WITHOUT_FLAG, n=1, cutoff=0.85)
            meant = f"did you mean {near[0]}? W" if near else "w"
            raise UsageError(f"--set {override}: {meant}hat has no flag of its own is {', '.join(WITHOUT_FLAG)}")
    return fields


def _task(kind: TaskKind | None, labels: str | None) -> Task | None:
    from potstill.cli.flags import checked
    from potstill.recipe import Task

    names = tuple(label.strip() for label in (labels or "").split(",") if label.strip())
    if kind is None and names:
        raise UsageError("--labels: give --kind classification with it, so that answers are checked against them")
    return None if kind is None else checked(Task, kind=kind, labels=names)
