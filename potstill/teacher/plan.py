"""Which requests a prompt set asks for, and the key of each answer."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

import orjson

from potstill.artifacts import StageKey
from potstill.fingerprint import fingerprint
from potstill.ledger import Ledger
from potstill.llm.messages import ChatRequest, schema_format, with_instructions
from potstill.llm.pricing import Rates, find_rates
from potstill.llm.providers import PROVIDERS
from potstill.recipe import Task, Teacher
from potstill.records import Prompt
from potstill.teacher import quality

STAGE = "teach"
VERSION = 1
BATCH_STAGE = "teach-batch"


class PlannedAnswer(NamedTuple):
    """One answer that is wanted: of which prompt, which sample, by which request."""

    prompt: Prompt
    sample_index: int
    request: ChatRequest
    key: str


class InputRow(NamedTuple):
    """One row of the input; two rows may hold the same prompt, which is asked once."""

    row_id: str
    prompt: Prompt


class TeachPlan(NamedTuple):
    """Everything that the teacher stage has to ask, in the order of the input."""

    teacher: Teacher
    task: Task | None
    rows: list[InputRow]
    answers: list[PlannedAnswer]
    """Each once, however many rows want it."""
    rates: Rates

    @property
    def key(self) -> StageKey:
        """What is asked, and how answers are judged; whose answers they are is added by `collect_key`."""
        content = {
            "rows": [(row.row_id, row.prompt.prompt_id) for row in self.rows],
            "answers": [answer.key for answer in self.answers],
            "task": self.task,
            "quality": quality.VERSION,
        }
        return StageKey(STAGE, VERSION, fingerprint(content))

    @property
    def run(self) -> str:
        """Names the run in the ledger: the same plan resumed is the same run, under the same cap."""
        return f"teach/{self.key.digest[:12]}"


def make_plan(rows: Sequence[InputRow], teacher: Teacher, task: Task | None) -> TeachPlan:
    """Plan the answers to these prompts. Errors: `UnknownPriceError` before anything is asked."""
    base_url = teacher.base_url or PROVIDERS[teacher.provider].default_base_url or ""
    rates = find_rates(teacher.provider, teacher.model, base_url, teacher.price)
    prompts: dict[str, Prompt] = {}
    for row in rows:
        prompts.setdefault(row.prompt.prompt_id, row.prompt)
    answers = [
        PlannedAnswer(prompt, index, request, request.answer_key(index))
        for prompt in prompts.values()
        for index in range(teacher.samples)
        for request in (_request(prompt, teacher, index),)
    ]
    return TeachPlan(teacher, task, list(rows), answers, rates)


def prompt_set_rows(prompts: Iterable[Prompt]) -> list[InputRow]:
    """The rows of a prompt set: one a prompt."""
    return [InputRow(prompt.row_id or prompt.prompt_id, prompt) for prompt in prompts]


def batch_key(answers: Sequence[PlannedAnswer], ledger_id: str) -> StageKey:
    """The key of a batch: done once every answer of it stands in that ledger."""
    content = {"answers": [answer.key for answer in answers], "ledger": ledger_id}
    return StageKey(BATCH_STAGE, VERSION, fingerprint(content))


def split_batches(plan: TeachPlan) -> list[list[PlannedAnswer]]:
    """The plan in batches of `teacher.batch_size` answers."""
    size = plan.teacher.batch_size
    return [plan.answers[start : start + size] for start in range(0, len(plan.answers), size)]


def open_batches(plan: TeachPlan, ledger: Ledger) -> list[int]:
    """The indexes of the batches of which the ledger lacks an answer."""
    missing = ledger.find_missing(answer.key for answer in plan.answers)
    batches = split_batches(plan)
    return [index for index, batch in enumerate(batches) if any(answer.key in missing for answer in batch)]


def upper_bound_usd(plan: TeachPlan) -> Decimal:
    """What asking everything once cannot exceed, in USD."""
    provider = PROVIDERS[plan.teacher.provider]
    sizes = (len(orjson.dumps(provider.body(answer.request))) for answer in plan.answers)
    return sum((plan.rates.upper_bound(size, plan.teacher.max_tokens) for size in sizes), Decimal(0))


def _request(prompt: Prompt, teacher: Teacher, sample_index: int) -> ChatRequest:
    return ChatRequest(
        model=teacher.model,
        messages=with_instructions(prompt.messages, teacher.instructions),
        tools=prompt.tools,
        max_tokens=teacher.max_tokens,
        temperature=teacher.temperature,
        seed=None if teacher.seed is None else teacher.seed + sample_index,
        response_format=schema_format(teacher.response_schema),
        stop=list(teacher.stop) or None,
        reasoning_effort=teacher.reasoning_effort,
        top_p=teacher.top_p,
    )
