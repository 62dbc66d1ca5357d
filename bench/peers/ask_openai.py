"""The OpenAI SDK with a semaphore, as most scripts have it. Run by the Python of the peer's own environment.

python -m bench.peers.ask_openai URL PROMPTS OUT CONCURRENCY
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import openai

from bench.peers.told import Told, tell


async def ask_all(url: str, prompts: list[dict[str, Any]], concurrency: int) -> list[str]:
    slots = asyncio.Semaphore(concurrency)

    async def ask(prompt: dict[str, Any]) -> str:
        async with slots:
            reply = await client.chat.completions.create(
                model="gpt-4o-mini", messages=prompt["messages"], max_tokens=256, temperature=0
            )
        return reply.choices[0].message.content

    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        return await asyncio.gather(*map(ask, prompts))


def main() -> None:
    url, source, target, concurrency = sys.argv[1:]
    with Path(source).open() as file:
        prompts = [json.loads(line) for line in file]
    told = Told()
    answers = asyncio.run(ask_all(url, prompts, int(concurrency)))
    told.generated(len(answers))
    with Path(target).open("w") as file:
        file.writelines(
            json.dumps({"id": prompt["id"], "completion": answer}) + "\n"
            for prompt, answer in zip(prompts, answers, strict=True)
        )
    tell(told)


main()
