"""The one way in which a student generates: the evaluation and the server both call it, so what was tested is served.

Runs only in a generation or serving child; torch and transformers are imported there.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from potstill.errors import DataError
from potstill.messages import as_text
from potstill.records import Message
from potstill.student.precision import compute_dtype

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
            base, revision=revision, dtype=compute_dtype(), trust_remote_code=False, use_safetensors=True
        )
        self._model: Any = model.to(self.device).eval()
        self._adapters: set[str] = set()
        for name, directory in (adapters or {}).items():
            self.load_adapter(name, directory)

    @property
    def adapters(self) -> frozenset[str]:
        return frozenset(self._adapters)

    def load_adapter(self, name: str, directory: Path) -> None:
        """Add an adapter; a name is never given a second meaning. Errors: `DataError` where its weights are a pickle."""
        from peft import PeftModel

        if name in self._adapters:
            return
        if not (directory / "adapter_model.safetensors").is_file():
            raise DataError(
                f"{directory}: no adapter_model.safetensors in it, and nothing else is loaded: train it again"
            )
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
        return self._decode([self.encode(conversation) for conversation in conversations], adapter, max_tokens)

    def answer(
        self, prompt: list[int], *, adapter: str | None, max_tokens: int, on_text: Callable[[str], bool]
    ) -> Generated:
        """Answer one encoded conversation, handing each new piece of text to `on_text`; False from it ends the answer.

        The pieces joined are the text of the answer, and it is the answer of `generate`.
        """
        pieces = _Pieces(self._read, prompt, on_text)
        [generated] = self._decode([prompt], adapter, max_tokens, pieces)
        pieces.finish(generated.text)
        return generated

    @property
    def context_tokens(self) -> int | None:
        """Prompt and answer together are at most this long; None where the model does not say."""
        return getattr(self._model.config, "max_position_embeddings", None)

    def _decode(
        self, encoded: list[list[int]], adapter: str | None, max_tokens: int, pieces: "_Pieces | None" = None
    ) -> list[Generated]:
        import torch

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
                streamer=pieces,
                stopping_criteria=None if pieces is None else [pieces.stopped],
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


class _Pieces:
    """Transformers' streamer protocol: turns tokens into pieces of text as soon as no later token can change them."""

    def __init__(
        self, read: Callable[[list[int], list[int]], Generated], prompt: list[int], on_text: Callable[[str], bool]
    ) -> None:
        self._read = read
        self._prompt = prompt
        self._on_text = on_text
        self._answer: list[int] | None = None
        self._sent = ""
        self._wanted = True

    def put(self, tokens: Any) -> None:
        """The prompt comes first, then token after token."""
        if self._answer is None:
            self._answer = []
            return
        self._answer.extend(tokens.tolist())
        text = self._read(self._prompt, self._answer).text
        if not text.endswith("\ufffd"):  # half a character: its other bytes are still to come
            self.finish(text)

    def end(self) -> None:
        """Nothing to do: `finish` gets the text that `generate` returns."""

    def finish(self, text: str) -> None:
        piece = text[len(self._sent) :]
        if piece and self._wanted:
            self._sent = text
            self._wanted = self._on_text(piece)

    def stopped(self, input_ids: Any, _scores: Any, **_: Any) -> Any:
        """Transformers' stopping criterion: one flag for each sequence of the batch."""
        import torch

        return torch.full((input_ids.shape[0],), not self._wanted, device=input_ids.device)


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
        [as_text(message) for message in conversation.messages],
        tools=list(conversation.tools) if conversation.tools else None,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert isinstance(text, str)
    return text


def _end_tokens(eos: int | list[int] | None) -> set[int]:
    return set(eos) if isinstance(eos, list) else set() if eos is None else {eos}
