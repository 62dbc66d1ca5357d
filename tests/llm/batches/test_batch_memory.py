"""A batch as large as OpenAI takes it, handed in and read back without ever being in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.batch_teacher import BatchTeacher

ROOT = Path(__file__).parents[3]
COUNT = 50_000
LETTERS = 1200

CLIENT = """
import asyncio, json, re, sys
from pathlib import Path
from potstill.llm.batches import open_batches
from potstill.llm.batches.base import custom_id
from potstill.llm.endpoint import open_endpoint
from potstill.llm.messages import Reply

def peak_megabytes():
    # not ru_maxrss, which a child inherits from its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def requests(token, count):
    for number in range(count):
        messages = [{"role": "user", "content": f"#{number:05d} " + "x" * 600}]
        yield custom_id(token, f"{number:05d}"), {"model": "m", "messages": messages}

async def go_through(batches, token, count):
    submitted = await batches.submit(requests(token, count), token)
    right = 0
    async for result in batches.results(await batches.state(submitted.id)):
        mark = "#" + result.custom_id.removeprefix(f"{token}-")
        right += isinstance(result.outcome, Reply) and result.outcome.text.startswith(mark)
    return right

async def main(url, count):
    async with open_batches(open_endpoint("openai", url)) as batches:
        await go_through(batches, "warming_up", 200)
        before = peak_megabytes()
        right = await go_through(batches, "night_0007", count)
        print(json.dumps({"right": right, "grown": peak_megabytes() - before}))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.flow  # fifty thousand lines take a while
def test_fifty_thousand_requests_and_their_answers_stream() -> None:
    with BatchTeacher() as teacher:
        teacher.answer = lambda mark: mark + "y" * LETTERS
        command = [sys.executable, "-c", CLIENT, teacher.url, str(COUNT)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        told = json.loads(run.stdout)
        largest = max(len(batch.output) for batch in teacher.batches.values())
        assert told["right"] == COUNT
        assert len(teacher.billed) == COUNT + 200
    assert largest > 70_000_000
    assert told["grown"] < 40, f"{told['grown']:.0f} MB for a file of {largest / 1e6:.0f} MB"
