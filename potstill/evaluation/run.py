"""The generation child: `python -m potstill.evaluation.run SPEC`. What it has answered, it never answers again."""

import sys
import time
from pathlib import Path

from potstill.artifacts import write_atomically
from potstill.evaluation.generate import (
    ANSWERS,
    SPEED,
    GenerationSpec,
    GenerationStep,
    ServedSpeed,
    read_answers,
    select_prompts,
)
from potstill.records import Completion, Prompt, Usage
from potstill.run_folder import ChildStatus, RunFolder
from potstill.student.generator import Conversation, Generated, StudentGenerator

ADAPTER = "student"
TIMED_PROMPTS = 20
TIMED_SECONDS = 20.0
"""No further prompt is timed after so long."""


def main() -> None:
    """Generate as the spec says."""
    spec = GenerationSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
    folder = RunFolder(Path(spec.run_dir))
    folder.work(lambda: _generate(spec, folder))


def _generate(spec: GenerationSpec, folder: RunFolder) -> ChildStatus:
    prompts = select_prompts(spec)
    known = read_answers(folder.path)
    have = {row.prompt_id for row in known}
    answers = folder.path / ANSWERS
    answers.write_bytes(b"".join(row.model_dump_json().encode() + b"\n" for row in known))
    missing = [prompt for prompt in prompts if prompt.prompt_id not in have]
    is_timed = spec.adapter is None or (folder.path / SPEED).exists()
    if not missing and is_timed:
        return ChildStatus()
    adapters = {ADAPTER: Path(spec.adapter)} if spec.adapter else None
    generator = StudentGenerator(spec.base, spec.revision, adapters)
    missing.sort(key=lambda prompt: len(str(prompt.messages)))  # batches of like lengths need little padding
    size = spec.config.batch_size
    with answers.open("ab", buffering=0) as file, folder.progress.open("ab", buffering=0) as progress:
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            began = time.monotonic()
            generated = generator.generate(
                [Conversation(prompt.messages, prompt.tools) for prompt in batch],
                adapter=ADAPTER if spec.adapter else None,
                max_tokens=spec.config.max_tokens,
            )
            seconds = time.monotonic() - began
            rows = [
                _completion(prompt, result, spec.name, seconds / len(batch))
                for prompt, result in zip(batch, generated, strict=True)
            ]
            file.write(b"".join(row.model_dump_json().encode() + b"\n" for row in rows))
            tokens = sum(result.input_tokens + result.output_tokens for result in generated)
            done = len(have) + start + len(batch)
            step = GenerationStep(done=done, total=len(prompts), tokens_per_second=tokens / seconds)
            progress.write(step.model_dump_json().encode() + b"\n")
    if not is_timed:
        write_atomically(folder.path / SPEED, _time_one_by_one(generator, prompts, spec).model_dump_json())
    return ChildStatus()


def _time_one_by_one(generator: StudentGenerator, prompts: list[Prompt], spec: GenerationSpec) -> ServedSpeed:
    began = time.monotonic()
    seconds: list[float] = []
    for prompt in prompts[:TIMED_PROMPTS]:
        encoded = generator.encode(Conversation(prompt.messages, prompt.tools))
        generator.answer(encoded, adapter=ADAPTER, max_tokens=spec.config.max_tokens, on_text=lambda _: True)
        seconds.append(time.monotonic() - began - sum(seconds))
        if sum(seconds) > TIMED_SECONDS:
            break
    return ServedSpeed(prompts=len(seconds), seconds_per_prompt=sum(seconds) / len(seconds))


def _completion(prompt: Prompt, generated: Generated, name: str, seconds: float) -> Completion:
    return Completion(
        prompt_id=prompt.prompt_id,
        teacher=name,
        completion=generated.text,
        message={"role": "assistant", "content": generated.text},
        finish_reason=generated.finish_reason,
        usage=Usage(input=generated.input_tokens, output=generated.output_tokens),
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
