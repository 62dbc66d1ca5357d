"""The peers' own virtual environments, made where they are missing: their dependencies and ours cannot agree."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / ".venvs"


class Peer(NamedTuple):
    """A peer, and how it is run."""

    name: str
    requirement: str
    module: str
    """Takes URL, PROMPTS, OUT and CONCURRENCY."""
    tokenizers: str = ""
    """Where in its packages the file lies that its tokenizer would fetch; "" for none."""


OPENAI = Peer("openai", "openai==3.54.0", "bench.peers.ask_openai")
CURATOR = Peer(
    "curator",
    "bespokelabs-curator==0.1.31",
    "bench.peers.ask_curator",
    tokenizers="litellm/litellm_core_utils/tokenizers",
)
PEERS = {peer.name: peer for peer in (CURATOR, OPENAI)}


class EnvironmentFailedError(RuntimeError):
    """A peer's environment cannot be made here: pip says why."""


class Environment(NamedTuple):
    """A peer's Python, and the variables that it needs."""

    python: Path
    variables: Mapping[str, str]


def environment(peer: Peer, folder: Path = FOLDER) -> Environment:
    """The environment of a peer; made, or made anew, where it is not of this requirement.

    Errors: `EnvironmentFailedError` with pip's last words.
    """
    home = folder / peer.name
    stamp = home / ".requirement"
    python = home / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != peer.requirement:
        shutil.rmtree(home, ignore_errors=True)
        _call(peer, [sys.executable, "-m", "venv", str(home)])
        _call(peer, [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", peer.requirement])
        stamp.write_text(peer.requirement)
    if not peer.tokenizers:
        return Environment(python, {})
    found = next(home.glob(f"lib/python*/site-packages/{peer.tokenizers}"), None)
    if found is None:
        raise EnvironmentFailedError(f"{peer.requirement}: {peer.tokenizers} is not among its packages")
    return Environment(python, {"TIKTOKEN_CACHE_DIR": str(found)})


def _call(peer: Peer, command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise EnvironmentFailedError(f"{peer.requirement}: {' '.join(said[-3:])}")
