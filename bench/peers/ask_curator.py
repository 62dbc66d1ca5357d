"""Curator with its OpenAI backend. Run by the Python of the peer's own environment.

    python -m bench.peers.ask_curator URL PROMPTS OUT CONCURRENCY

It tokenizes with a file that it would fetch; TIKTOKEN_CACHE_DIR must name a directory that holds it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from bespokelabs import curator
from datasets import Dataset

from bench.peers.told import Told, tell

UNLIMITED = 10**9


class Asker(curator.LLM):
    def prompt(self, input: dict[str, Any]) -> list[dict[str, str]]:  # noqa: A002 - the name in the base class
        return json.loads(input["messages"])

    def parse(self, input: dict[str, Any], response: str) -> dict[str, str]:  # noqa: A002 - the name in the base class
        return {"id": input["id"], "completion": response}


def main() -> None:
    url, source, target, concurrency = sys.argv[1:]
    with Path(source).open() as file:
        prompts = [json.loads(line) for line in file]
    asker = Asker(
        model_name="gpt-4o-mini",
        backend="openai",
        generation_params={"max_tokens": 256, "temperature": 0},
        backend_params={
            "base_url": url,
            "max_concurrent_requests": int(concurrency),
            "max_requests_per_minute": UNLIMITED,
            "max_tokens_per_minute": UNLIMITED,
        },
    )
    rows = [{"id": prompt["id"], "messages": json.dumps(prompt["messages"])} for prompt in prompts]
    told = Told()
    answers = asker(Dataset.from_list(rows)).dataset
    told.generated(len(answers))
    with Path(target).open("w") as file:
        file.writelines(json.dumps({"id": row["id"], "completion": row["completion"]}) + "\n" for row in answers)
    tell(told)


main()
