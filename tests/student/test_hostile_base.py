"""A base may come from anybody: its weights, its configuration and its chat template run no code of theirs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from potstill.errors import DataError
from potstill.student.generator import Conversation, StudentGenerator, load_tokenizer, render_prompt

pytestmark = pytest.mark.flow

TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}",
    "{{ ''['format']('{0.__class__}', 1).__class__.__base__.__subclasses__() }}",
    "{{ strftime_now.__globals__.sys.modules['os'].system('touch MARK') }}",
    "{% set _ = messages.append(1) %}",
)


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What is there only if code of the base's was run."""
    return tmp_path / "mark"


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_code_beside_the_weights_is_not_imported(base: Path, mark: Path) -> None:
    (base / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    change(
        base / "config.json",
        auto_map={"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
    )
    change(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.Evil", None]})
    assert StudentGenerator(str(base)).generate(
        [Conversation([{"role": "user", "content": "help"}])], adapter=None, max_tokens=1
    )
    assert not mark.exists()


def test_a_model_that_needs_its_own_code_is_refused(base: Path, mark: Path) -> None:
    (base / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    change(base / "config.json", model_type="evil", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    with pytest.raises((ValueError, OSError, KeyError)):
        StudentGenerator(str(base))
    assert not mark.exists()


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def write_pickle(path: Path, mark: Path) -> None:
    import torch

    torch.save({"weight": _Evil(mark)}, path)


def test_pickled_weights_are_not_unpickled(base: Path, mark: Path) -> None:
    (base / "model.safetensors").unlink()
    write_pickle(base / "pytorch_model.bin", mark)
    with pytest.raises(OSError, match="safetensors"):
        StudentGenerator(str(base))
    assert not mark.exists()


def test_pickled_weights_beside_others_are_not_looked_at(base: Path, mark: Path) -> None:
    write_pickle(base / "pytorch_model.bin", mark)
    StudentGenerator(str(base))
    assert not mark.exists()


def test_a_pickled_adapter_is_not_unpickled(base: Path, mark: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    )
    write_pickle(adapter / "adapter_model.bin", mark)
    with pytest.raises(DataError, match=r"no adapter_model\.safetensors"):
        StudentGenerator(str(base), adapters={"student": adapter})
    assert not mark.exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_reaches_nothing_but_the_messages(base: Path, mark: Path, template: str) -> None:
    from jinja2.exceptions import SecurityError, UndefinedError

    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = template.replace("MARK", str(mark))
    try:
        text = render_prompt(tokenizer, Conversation([{"role": "user", "content": "help"}]))
    except (SecurityError, UndefinedError):
        text = ""
    assert "class" not in text
    assert not mark.exists()
