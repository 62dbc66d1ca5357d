"""Builds the demo's request log and recorded answers from the docroute set; the same input gives the same bytes.

    python examples/demo/build.py DOCROUTE_JSONL [--out examples/demo]

DOCROUTE_JSONL holds docstrings of five libraries, one a line: `{"id", "messages": [system, user], "reference"}`, where
the reference is a subpackage such as `sympy.stats`. README.md beside this file says where they come from.
"""

import argparse
import hashlib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from potstill.redact import Redactor
from potstill.teacher.replay import KEY_LETTERS, answer_key, prompt_letters

LABELS = ("django", "networkx", "pandas", "sklearn", "sympy")
SYSTEM = "Which library does this documentation describe: django, networkx, pandas, sklearn or sympy? Reply with its name only."
WORKLOAD = "doc-router"
LEGACY_MODEL = "legacy-router-2"
NUM_PROMPTS = 830
DOC_CHARACTERS = 280
LEGACY_ERROR_RATE = 0.17
SHARE_WITHOUT_RESPONSE = 0.45
FIRST_SECOND = int(datetime(2026, 11, 16, tzinfo=UTC).timestamp())
WEEK_SECONDS = 7 * 24 * 3600
CLIENTS = ("docs-portal", "ide-plugin", "support-bot", "ci-nightly")

NAMES = ("jane.doe", "t.okafor", "mira_lind", "sam+docs", "ravi.n", "ew")
PHONES = ("+44 20 7946 0958", "+44 20 7946 0312", "+44 161 496 0721", "+44 131 496 0154")
KEYS = ("sk-proj-demo4Not7A2Real9Key1Zq8Lm3Xw", "sk-proj-demo8Not3A6Real2Key5Rt1Vb7Kc", "AKIAIOSFODNN7EXAMPLE")
PLANTED = (
    *(f"Reported by {name}@acme-mail.com" for name in NAMES),
    *(f"Call {number} for details" for number in PHONES),
    *(f"Key used: {key}" for key in KEYS),
)
"""Invented values: telephone numbers of the ranges kept for fiction, and AWS's own example key."""

NUM_FAILED, NUM_RETRIED, NUM_REPEATED_BYTES, NUM_CUT, NUM_LATIN1, NUM_OTHER_WORKLOAD = 12, 18, 6, 10, 3, 40
STRAY_LINES = (
    "2026-11-17T02:00:01Z INFO logrotate: rotating requests.jsonl",
    "Traceback (most recent call last):",
    "2026-11-19T02:00:01Z INFO logrotate: rotating requests.jsonl",
    "[warn] worker 3 restarted",
    "null",
)
ERRORS = {
    429: {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"},
    500: {"message": "The server had an error", "type": "server_error", "param": None, "code": None},
}


class Document(NamedTuple):
    text: str
    label: str


class LogLine(NamedTuple):
    written_at: float
    """Orders the file. It is not the timestamp: workers write late."""
    raw: bytes


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the demo's log and answers from the docroute set.")
    parser.add_argument("docroute", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    rng = random.Random("potstill demo")  # noqa: S311  # reproducible noise, no secret depends on it
    documents = read_documents(arguments.docroute)
    chosen, rest = documents[:NUM_PROMPTS], documents[NUM_PROMPTS:]
    notes = plan_notes(chosen)
    prompts = [document.text + notes.get(index, "") for index, document in enumerate(chosen)]
    labels = [document.label for document in chosen]

    lines = list(log_lines(prompts, labels, rest, rng))
    lines.sort(key=lambda line: line.written_at)
    write_lines(arguments.out / "requests.jsonl", (line.raw for line in lines))
    write_lines(arguments.out / "answers.jsonl", (answer_line(*pair) for pair in zip(prompts, labels, strict=True)))
    counts = {"lines": len(lines), "prompts": len(prompts), "planted": len(notes), "labels": Counter(labels)}
    sys.stdout.write(orjson.dumps(counts).decode() + "\n")


def read_documents(path: Path) -> list[Document]:
    """The documents in hash order, each cut; none that repeats another's key, none with a number that looks like a phone's."""
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    rows.sort(key=lambda row: hashlib.sha256(f"demo/{row['id']}".encode()).digest())
    documents: dict[str, Document] = {}
    for row in rows:
        text = row["messages"][-1]["content"][:DOC_CHARACTERS].rstrip()
        if not re.search(r"\d{6}|\d[\d() -]{6,}\d|\w@\w", text):
            documents.setdefault(answer_key(messages(text)), Document(text, row["reference"].split(".")[0]))
    return list(documents.values())


def plan_notes(documents: list[Document]) -> dict[int, str]:
    """Which prompts end in which planted note: long ones only, so that the key of their answer ends before the note."""
    long = [index for index, document in enumerate(documents) if len(prompt_letters(document.text)) == KEY_LETTERS]
    places = long[:: len(long) // len(PLANTED)]
    return {index: f"\n\n{note}" for index, note in zip(places, PLANTED, strict=False)}


def log_lines(prompts: list[str], labels: list[str], rest: list[Document], rng: random.Random) -> Iterable[LogLine]:
    failed, retried, repeated, cut, latin1 = draw(
        rng, len(prompts), NUM_FAILED, NUM_RETRIED, NUM_REPEATED_BYTES, NUM_CUT, NUM_LATIN1
    )
    for index, (text, label) in enumerate(zip(prompts, labels, strict=True)):
        second = FIRST_SECOND + rng.randrange(WEEK_SECONDS)
        client = rng.choice(CLIENTS)
        written_at = second + rng.uniform(0, 1800)
        call = request_line(second, client, text)
        if index in failed:
            status = rng.choice((429, 429, 500))
            yield LogLine(written_at - 1, dump(call | {"response": {"status": status, "error": ERRORS[status]}}))
        answered = (
            call if rng.random() < SHARE_WITHOUT_RESPONSE else call | {"response": response(second, text, label, rng)}
        )
        raw = dump(answered)
        yield LogLine(written_at, raw)
        if index in retried:
            yield LogLine(
                written_at + rng.uniform(1, 90), dump(answered | {"timestamp": second + rng.randrange(1, 60)})
            )
        if index in repeated:
            yield LogLine(written_at + rng.uniform(1, 90), raw)
        if index in cut:
            yield LogLine(written_at - 1, raw.decode()[: int(len(raw) * rng.uniform(0.3, 0.8))].encode())
        if index in latin1:
            yield LogLine(
                written_at + 1, dump(call | {"client_id": "cafe-docs"}).replace(b"cafe", "café".encode("latin-1"))
            )
    for document in rest[:NUM_OTHER_WORKLOAD]:
        second = FIRST_SECOND + rng.randrange(WEEK_SECONDS)
        yield LogLine(second, search_line(second, document))
    for index, text in enumerate(STRAY_LINES):
        yield LogLine(FIRST_SECOND + (index + 1) * WEEK_SECONDS / (len(STRAY_LINES) + 1), text.encode())


def draw(rng: random.Random, population: int, *sizes: int) -> list[set[int]]:
    """Disjoint random sets of indices, one a size."""
    pool = iter(rng.sample(range(population), sum(sizes)))
    return [{next(pool) for _ in range(size)} for size in sizes]


def messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def request_line(second: int, client: str, text: str) -> dict[str, Any]:
    request = {"model": LEGACY_MODEL, "messages": messages(text), "temperature": 0, "max_tokens": 8}
    return {"timestamp": second, "workload_id": WORKLOAD, "client_id": client, "request": request}


def search_line(second: int, document: Document) -> bytes:
    question = "How do I get this? " + document.text.split("\n")[0]
    system = "Turn the question into at most five search keywords."
    request = {
        "model": LEGACY_MODEL,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
        "max_tokens": 32,
    }
    return dump({"timestamp": second, "workload_id": "doc-search", "client_id": "docs-portal", "request": request})


def response(second: int, text: str, label: str, rng: random.Random) -> dict[str, Any]:
    """The production model's answer, wrong in `LEGACY_ERROR_RATE` of the cases."""
    wrong = rng.random() < LEGACY_ERROR_RATE
    answer = rng.choice([other for other in LABELS if other != label]) if wrong else label
    prompt_tokens = (len(SYSTEM) + len(text.encode())) // 4
    return {
        "id": f"chatcmpl-{rng.getrandbits(48):012x}",
        "object": "chat.completion",
        "created": second,
        "model": LEGACY_MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 2, "total_tokens": prompt_tokens + 2},
    }


def answer_line(text: str, label: str) -> bytes:
    """A recorded answer, to what the teacher is asked: the messages after redaction."""
    return dump({"messages": Redactor().value(messages(text)), "completion": label})


def dump(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row)


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))


if __name__ == "__main__":
    main()
