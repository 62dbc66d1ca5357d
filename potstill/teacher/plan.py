"""Which requests a prompt set asks for, and the key of each answer. Nothing is planned before it is needed."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from potstill.artifacts import StageKey
from potstill.fingerprint import fingerprint
from potstill.ledger.entries import AttemptPlan, Purpose
from potstill.llm.messages import ChatRequest, hidden_tokens, schema_format, with_instructions
from potstill.llm.pricing import Processing, Rates, find_rates
from potstill.llm.providers import base_url_of
from potstill.recipe import Task, Teacher
from potstill.records import Message, Prompt
from potstill.scorers import scorer_identity
from potstill.teacher import quality
from potstill.teacher.choosing import check_choice
from potstill.teacher.rows import Rows

STAGE = "teach"
VERSION = 3
BATCH_STAGE = "teach-batch"
MONTH = "month/"
CHUNK_ROWS = 512
"""So many rows are in memory at once, however many there are."""


class PlannedAnswer(NamedTuple):
    """One answer that is wanted: of which prompt, which sample, by which request."""

    row_id: str
    prompt: Prompt
    sample_index: int
    request: ChatRequest
    key: str


class TeachPlan(NamedTuple):
    """Everything that the teacher stage has to ask, in the order of the input."""

    teacher: Teacher
    task: Task | None
    rows: Rows
    rates: Rates
    recipe: str | None = None
    """The recipe's name, whose month the spending counts in; None where no recipe asks."""

    @property
    def key(self) -> StageKey:
        """What is asked, and how answers are judged; whose answers they are is added by `collect_key`."""
        content = {
            "rows": self.rows.digest,
            "request": request_for([], None, self.teacher, 0),
            "samples": self.teacher.samples,
            "retries": self.teacher.quality_retries,
            "choose": self.teacher.choose,
            "task": self.task,
            "quality": quality.VERSION,
        }
        if self.teacher.choose == "scorer" and self.task is not None:
            content["scorer"] = scorer_identity(self.task)
        return StageKey(STAGE, VERSION, fingerprint(content))

    @property
    def run(self) -> str:
        """Names the run's account in the ledger: who asks for the same again goes on with it, under the same cap.

        How answers are judged is no part of it: a stricter release of this code begins no new account.
        """
        asked = [self.rows.digest, request_for([], None, self.teacher, 0), self.teacher.samples]
        return f"teach/{fingerprint(asked)[:12]}"

    @property
    def num_answers(self) -> int:
        """How many answers are wanted; a prompt that stands in two rows counts twice, and is asked once."""
        return len(self.rows) * self.teacher.samples

    def month(self, at: datetime | None = None) -> str | None:
        """Names the account of the recipe's UTC month; now where no time is given."""
        return None if self.recipe is None else f"{MONTH}{self.recipe}/{at or datetime.now(UTC):%Y-%m}"

    def answers(self, start: int = 0, stop: int | None = None) -> Iterator[PlannedAnswer]:
        """What the rows from `start` to before `stop` ask for."""
        for row in self.rows.read(start, len(self.rows) if stop is None else stop):
            for index in range(self.teacher.samples):
                yield self.sample(row.row_id, row.prompt, index)

    def sample(self, row_id: str, prompt: Prompt, index: int, *, times_truncated: int = 0) -> PlannedAnswer:
        """One sample of a prompt; where earlier ones were cut off, with twice the room for each of them."""
        request = request_for(prompt.messages, prompt.tools, self.teacher, index)
        if times_truncated:
            request = request.model_copy(update={"max_tokens": request.max_tokens * 2**times_truncated})
        return PlannedAnswer(row_id, prompt, index, request, request.answer_key(index))

    def attempt(self, answer: PlannedAnswer, num_bytes: int, rates: Rates, purpose: Purpose = "teach") -> AttemptPlan:
        """What the ledger keeps of one request for an answer, whose body takes so many bytes at most."""
        request = answer.request
        return AttemptPlan(
            answer_key=answer.key,
            prompt_id=answer.prompt.prompt_id,
            run=self.run,
            purpose=purpose,
            provider=self.teacher.provider,
            model=request.model,
            bound_usd=rates.upper_bound(num_bytes, request.max_tokens, hidden_tokens(request)),
            rates=rates,
            month=self.month(),
        )

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[list[PlannedAnswer]]:
        """The same in lists of `CHUNK_ROWS` rows."""
        end = len(self.rows) if stop is None else stop
        for begin in range(start, end, CHUNK_ROWS):
            yield list(self.answers(begin, min(begin + CHUNK_ROWS, end)))


def recipe_of(month: str | None) -> str | None:
    """The name of the recipe that a month's account belongs to."""
    return None if month is None else month.removeprefix(MONTH).rpartition("/")[0]


def make_plan(rows: Rows, teacher: Teacher, task: Task | None, recipe: str | None = None) -> TeachPlan:
    """Plan the answers to these prompts.

    Errors, before anything is asked: `UnknownPriceError`; `UsageError` for a choice among samples that nothing can make.
    """
    check_choice(teacher, task)
    return TeachPlan(teacher, task, rows, rates_of(teacher), recipe)


def rates_of(teacher: Teacher, processing: Processing = "online") -> Rates:
    """What a teacher takes for single requests, or for those of a batch. Errors: as `find_rates`."""
    return find_rates(teacher.provider, teacher.model, base_url_of(teacher), teacher.price, processing)


def split_batches(plan: TeachPlan) -> list[range]:
    """The rows of the plan in batches of `teacher.batch_size`."""
    size, total = plan.teacher.batch_size, len(plan.rows)
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def batch_key(plan: TeachPlan, batch: range, ledger_id: str) -> StageKey:
    """The key of a batch: done once every answer of it stands in that ledger."""
    content = {"plan": plan.key.digest, "rows": [batch.start, batch.stop], "ledger": ledger_id}
    return StageKey(BATCH_STAGE, VERSION, fingerprint(content))


def request_for(
    messages: list[Message], tools: list[dict[str, Any]] | None, teacher: Teacher, sample_index: int
) -> ChatRequest:
    """The request that a teacher gets for one sample of a prompt."""
    return ChatRequest(
        model=teacher.model,
        messages=with_instructions(messages, teacher.instructions),
        tools=tools,
        max_tokens=teacher.max_tokens,
        temperature=teacher.temperature,
        seed=None if teacher.seed is None else teacher.seed + sample_index,
        response_format=schema_format(teacher.response_schema),
        stop=list(teacher.stop) or None,
        reasoning_effort=teacher.reasoning_effort,
        top_p=teacher.top_p,
    )
