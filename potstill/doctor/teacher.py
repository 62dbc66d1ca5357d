"""The recipe that is asked about, and its teacher: keys are looked for and never shown; a call is made on request only."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from potstill.doctor.finding import Check, Finding, fail, ok, warn
from potstill.errors import DataError, NotAuthorisedError, PotstillError
from potstill.recipe import Recipe

CALL_SECONDS = 60.0
HUB_SECONDS = 5.0
LONGEST_CALL_TOKENS = 1


class Call(NamedTuple):
    """What one call of one token came to."""

    is_answered: bool
    said: str
    cost_usd: Decimal
    """What was booked in the ledger: what the reply says, or the upper bound where nobody can tell."""
    seconds: float


def find_recipes(folder: Path) -> list[Path]:
    """The recipes of a checkout."""
    return sorted(folder.glob("*.yaml")) if folder.is_dir() else []


def checks_of(recipe: Recipe) -> list[Check]:
    """What the flow would look at before it begins, each for itself."""
    return [
        Check("inputs", lambda: check_inputs(recipe)),
        Check("base", lambda: check_base(recipe)),
        Check("teacher", lambda: check_teacher(recipe)),
        Check("key", lambda: check_key(recipe)),
    ]


def check_known_keys() -> Finding:
    """Which providers' variables are set; what they hold is not looked at."""
    from potstill.llm.keys import OWN_HOSTS

    found = [name for name in OWN_HOSTS if os.environ.get(name, "").strip()]
    if found:
        return ok("keys", f"set: {', '.join(found)}")
    return warn("keys", "no known provider's variable is set", "export one, such as OPENAI_API_KEY, for such a teacher")


def check_inputs(recipe: Recipe) -> Finding:
    """The files that are named; what lies in the inbox is taken in by the run, not here."""
    from potstill.curation.inputs import find_inputs
    from potstill.recipe import INBOX

    named = tuple(name for name in recipe.curation.inputs if name != INBOX)
    if not named:
        return ok("inputs", "the inbox")
    found = find_inputs(named)
    more = ", and the inbox" if len(named) < len(recipe.curation.inputs) else ""
    return ok("inputs", f"{len(found)} files, {sum(file.num_bytes for file in found) / 2**20:.1f} MiB{more}")


def check_base(recipe: Recipe) -> Finding:
    """The base is installed, is a directory, or is known to the hub."""
    from potstill.student.base import find_base

    found = find_base(recipe.student)
    return ok("base", recipe.student.base if found is None else str(found))


def check_teacher(recipe: Recipe) -> Iterator[Finding]:
    """Its terms, its price, and who judges its answers."""
    from potstill.llm.pricing import find_rates
    from potstill.llm.providers import base_url_of
    from potstill.llm.terms import check_terms
    from potstill.scorers import scorer_identity

    teacher = recipe.teacher
    problems: list[tuple[str, Callable[[], object]]] = [
        ("terms", lambda: check_terms(teacher)),
        ("price", lambda: find_rates(teacher.provider, teacher.model, base_url_of(teacher), teacher.price)),
        ("scorer", lambda: scorer_identity(recipe.task)),
    ]
    for name, look in problems:
        try:
            look()
        except PotstillError as error:
            yield fail(name, str(error), "")
        else:
            yield ok(name, "known" if name != "scorer" else recipe.task.scorer or recipe.task.kind)


def check_key(recipe: Recipe) -> Finding:
    """The key is there and may go where the teacher is; the block of a flow is looked for at the server."""
    from potstill.llm.endpoint import endpoint_of
    from potstill.llm.keys import check_block_host
    from potstill.llm.providers import base_url_of

    teacher = recipe.teacher
    if teacher.api_key_block is not None:
        check_block_host(teacher.api_key_block, base_url_of(teacher))
        return ok("key", f"block {teacher.api_key_block} may go to {base_url_of(teacher)}")
    endpoint = endpoint_of(teacher)
    if endpoint.key_name is None:
        return ok("key", f"none is named for {endpoint.base_url}")
    return ok("key", f"{endpoint.key_name} is set, and may go to {endpoint.host}")


def check_call(recipe: Recipe) -> Iterator[Finding]:
    """One call of one token, booked in the ledger as a smoke of this recipe, and the teacher's clock."""
    if recipe.teacher.api_key_block is not None:
        remedy = "--set in place of it: name a variable in api_key_env"
        yield warn("call", "the key is in a block, which only a flow reads: nothing was asked", remedy)
        return
    try:
        call = ask(recipe)
    except NotAuthorisedError as error:
        yield fail("call", str(error), "")
    except (PotstillError, DataError) as error:
        yield fail("call", str(error), "look at the teacher's address, model and limits")
    else:
        said = f"{recipe.teacher.model}: {call.said} in {call.seconds:.1f} s, {call.cost_usd:f} USD"
        if call.is_answered:
            yield ok("call", said)
        else:
            yield fail("call", said, "look at what the model admits: its name, its parameters")
    yield _teacher_clock(recipe)


def ask(recipe: Recipe) -> Call:
    """Ask the recipe's teacher for one token, under the recipe's caps. Errors: as when it teaches."""
    from potstill.ledger import open_ledger
    from potstill.llm.retrying import RetryPolicy
    from potstill.records import Prompt
    from potstill.teacher.collect import survey
    from potstill.teacher.plan import make_plan
    from potstill.teacher.quality import TRUNCATED
    from potstill.teacher.rows import InputRow, ListedRows
    from potstill.teacher.sharing import caps_of
    from potstill.teacher.smoke import ask_smoke

    identity = f"doctor-{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    prompt = Prompt(
        prompt_id=identity,
        messages=[{"role": "user", "content": f"Say OK. ({identity})"}],  # a new one each time: the ledger repeats none
        task_kind=recipe.task.kind,
        workload="doctor",
        group_id=identity,
        split="test",
        source="potstill doctor",
    )
    short = {"max_tokens": LONGEST_CALL_TOKENS, "samples": 1, "choose": "first", "quality_retries": 0}
    teacher = recipe.teacher.model_copy(
        update={**short, "response_schema": None, "mode": "online", "instructions": None}
    )
    plan = make_plan(ListedRows([InputRow(identity, prompt)]), teacher, None, recipe.name)
    ledger = open_ledger()
    began = time.monotonic()
    ask_smoke(plan, ledger, caps_of(recipe), [0], lambda _: None, RetryPolicy(attempts=1, refusals=0))
    seconds = time.monotonic() - began
    found = survey(plan, ledger)
    is_answered = bool(found.answered) or TRUNCATED in found.reasons
    said = "answers" if is_answered else f"answers nothing usable ({', '.join(found.reasons) or 'no answer'})"
    return Call(is_answered, said, found.cost_usd + found.unknown_usd, seconds)


def _teacher_clock(recipe: Recipe) -> Finding:
    """By the Date header of a request without the key."""
    import httpx

    from potstill.doctor.orchestrator import clock_finding
    from potstill.llm.providers import base_url_of

    url = f"{base_url_of(recipe.teacher)}/models"
    began = time.time()
    try:
        reply = httpx.get(url, timeout=HUB_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        return warn("clock", f"{url} does not answer ({type(error).__name__})", "compare the clocks by hand")
    return clock_finding("the teacher", reply.headers.get("date"), (began + time.time()) / 2)
