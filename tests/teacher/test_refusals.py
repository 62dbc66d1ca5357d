"""Refusals in plain words, and what only looks like one."""

from pathlib import Path
from typing import Any

import pytest

from potstill.artifacts import ArtifactStore
from potstill.ledger import Ledger
from potstill.ledger.entries import NO_CAPS
from potstill.llm.messages import Reply
from potstill.recipe import Task
from potstill.records import Usage
from potstill.refusals import LONGEST, is_refusal
from potstill.teacher.collect import collect, read_summary
from potstill.teacher.plan import make_plan
from potstill.teacher.quality import quarantine_reason
from potstill.teacher.rows import ListedRows
from potstill.teacher.session import TeacherSession
from tests.fake_teacher import QUICK, FakeTeacher, make_teacher, row

PLAIN = "I'm sorry, but I can't assist with that."


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "I’m sorry, but I can’t assist with that.",
        "I'm sorry, but I can't assist with that request.\n",
        "I am very sorry, I cannot help you with that.",
        "Sorry, I can't help with this.",
        "I can't help with that.",
        "I cannot fulfill this request.",
        "I apologize, but I am unable to fulfil your request.",
        "I apologise, however, I won't be able to help with this particular request.",
        "Unfortunately, I'm not able to comply with that request.",
        "I will not engage with this topic.",
        "I must respectfully decline this request.",
        "I have to decline to help with that.",
        "As an AI language model, I cannot assist with that.",
        "I'm sorry, but as an AI assistant developed by OpenAI, I can't help with that.",
        "I'm sorry, but I can't assist with that request, as it goes against my guidelines.",
        "I can't help with this, because it violates the content policy.",
        "I'm sorry, but I can't assist with that. If you have any other questions, feel free to ask!",
        "I'm sorry, I can't help with that. Is there anything else you would like to talk about?",
        "Sorry, I can't assist with that. Let me know if there's something else. How can I help you today?",
    ],
)
@pytest.mark.parametrize("task", [None, Task(kind="extraction"), Task(kind="classification", labels=("yes", "no"))])
def test_an_answer_that_only_refuses_is_kept_from_training_whatever_was_asked_for(text: str, task: Task | None) -> None:
    reply = Reply({"role": "assistant", "content": text}, text, "stop", Usage())
    assert quarantine_reason(reply, task) == f"refusal: {text.strip()[:40]}"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that your parcel is late. It arrives tomorrow.",
        "I'm sorry, but I can't help with that order: it has shipped. You can return it free of charge.",
        "I'm sorry, but I can't help with that. Please call 0800 1234.",
        "I can't help with that. If you have any other questions, please contact our support team.",
        "I'm sorry, but I can't assist with that refund, but I can offer you a voucher.",
        "I can't help with that request as it violates our returns policy.",
        "I'm sorry, but I can't find that in the document.",
        "I cannot answer that from the text.",
        "I can't assist with that. Here is what I can do: restart the router and try again.",
        "Sorry for the delay! Your invoice is attached.",
        "Unfortunately, the train is cancelled.",
        "The assistant answered \"I'm sorry, but I can't assist with that.\" and the customer hung up.",
        "Customer asks for a refund; agent says: I'm sorry, but I can't help with that.",
        '{"reply": "I\'m sorry, but I can\'t assist with that."}',
        "\"I'm sorry, but I can't assist with that.\"",
        "As an AI language model, I cannot taste food, but most people like it with salt.",
        "I can't help but admire it.",
        "I can't help falling in love with you.",
        "I help with that.",
        "I can help with that.",
        f"{PLAIN} {PLAIN}",
        f"{PLAIN} If you have any other question about {'x' * LONGEST}.",
        "",
    ],
)
def test_an_answer_that_says_something_else_is_one(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "system",
    [
        "You sell shoes. Politely decline everything else.",
        "Off-topic questions: refuse.",
        "If you are asked for anything else, say that you can’t help with it.",
        f"Answer anything else with: {PLAIN}",
    ],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_the_words_that_a_prompt_asks_for_are_an_answer(system: str, in_parts: bool) -> None:
    content: Any = [{"type": "text", "text": system}] if in_parts else system
    user = {"role": "user", "content": "Who won the match?"}
    assert not is_refusal(PLAIN, [{"role": "system", "content": content}, user])
    assert is_refusal(PLAIN, [{"role": "system", "content": "You sell shoes."}, user])


def test_a_label_is_no_refusal() -> None:
    task = Task(kind="classification", labels=("answer", PLAIN))
    assert quarantine_reason(Reply({"role": "assistant", "content": PLAIN}, PLAIN, "stop", Usage()), task) is None


def test_a_refusal_is_asked_for_again_and_counted_unless_the_teacher_was_told_to_decline(
    ledger: Ledger, tmp_path: Path
) -> None:
    with FakeTeacher(answer=lambda mark: PLAIN if mark == "#0001" else "well") as teacher:
        for instructions, asked, quarantined in ((None, 3, 2), ("Decline what is off topic.", 2, 0)):
            before = len(teacher.requests)
            given = make_teacher(teacher.url, quality_retries=1, instructions=instructions)
            plan = make_plan(ListedRows([row(f"Which is #000{n}?", str(n)) for n in range(2)]), given, None)
            with TeacherSession(plan, ledger, NO_CAPS, QUICK) as session:
                session.answer()
            store = ArtifactStore(tmp_path / "store")
            summary = read_summary(store.path(collect(plan, ledger, store)))
            assert len(teacher.requests) - before == asked
            assert summary.reasons == ({"refusal": quarantined} if quarantined else {})
