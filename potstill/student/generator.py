"""The one way in which a student generates: the evaluation and the server both call it, so what was tested is served.

Runs only in a generation or serving child; torch and transformers are imported there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from potstill.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Conversation(NamedTuple):
    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None = None


class Generated(NamedTuple):
    text: str
    finish_reason: str
    """"stop", or "length" where `max_tokens` cut it."""
    input_tokens: int
    output_tokens: int


class StudentGenerator:
    """A base model and any number of adapters on it, by name. Greedy decoding; one call at a time.

    Args:
        base: a directory or hub id.
        revision: the commit of a hub id.
        adapters: directories of LoRA adapters by name.
    """

    def __init__(self, base: str, revision: str | None = None, adapters: Mapping[str, Path] | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(base, revision)
        self.tokenizer.padding_side = "left"
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, revision=revision, dtype=torch.bfloat16, trust_remote_code=False
        )
        self._model: Any = model.to(self.device).eval()
        self._adapters: set[str] = set()
        for name, directory in (adapters or {}).items():
            self.load_adapter(name, directory)

    @property
    def adapters(self) -> frozenset[str]:
        return frozenset(self._adapters)

    def load_adapter(self, name: str, directory: Path) -> None:
        """Add an adapter; a name is never given a second meaning."""
        from peft import PeftModel

        if name in self._adapters:
            return
        if self._adapters:
            self._model.load_adapter(str(directory), adapter_name=name)
        else:
            self._model = PeftModel.from_pretrained(self._model, str(directory), adapter_name=name)
            self._model.eval()
        self._adapters.add(name)

    def encode(self, conversation: Conversation) -> list[int]:
        """The token ids of a conversation with the generation prompt behind it."""
        text = render_prompt(self.tokenizer, conversation)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def generate(
        self, conversations: Sequence[Conversation], *, adapter: str | None, max_tokens: int
    ) -> list[Generated]:
        """Answer a batch of conversations, with an adapter or (None) as the base; answers come in the same order."""
        import torch

        encoded = [self.encode(conversation) for conversation in conversations]
        batch = self.tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.device)
        with torch.inference_mode(), self._adapter(adapter):
            output = self._model.generate(
                **batch,
                max_new_tokens=max_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        width = batch["input_ids"].shape[1]
        return [self._read(ids, row[width:].tolist()) for ids, row in zip(encoded, output, strict=True)]

    def _read(self, prompt: list[int], answer: list[int]) -> Generated:
        ends = _end_tokens(self._model.generation_config.eos_token_id)
        stop = next((index for index, token in enumerate(answer) if token in ends), None)
        finish_reason = "length" if stop is None else "stop"
        kept = answer if stop is None else answer[:stop]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        assert isinstance(text, str)
        return Generated(text, finish_reason, len(prompt), len(answer) if stop is None else stop + 1)

    def _adapter(self, name: str | None) -> Any:
        from contextlib import nullcontext

        if name is not None:
            self._model.set_adapter(name)
            return nullcontext()
        return self._model.disable_adapter() if self._adapters else nullcontext()


def load_tokenizer(base: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base model, able to pad."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def render_prompt(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> str:
    """The text that the model sees before its answer."""
    text = tokenizer.apply_chat_template(
        list(conversation.messages),
        tools=list(conversation.tools) if conversation.tools else None,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert isinstance(text, str)
    return text


def _end_tokens(eos: int | list[int] | None) -> set[int]:
    return set(eos) if isinstance(eos, list) else set() if eos is None else {eos}
