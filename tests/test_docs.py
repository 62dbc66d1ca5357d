"""What the pages name is there: files and headings behind links, commands, targets of make, environment variables."""

import json
import re
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import COMMANDS
from potstill.curation.readers import read_lines

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCED = re.compile(r"^( *)```.*?^\1```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)\)")
VARIABLE = re.compile(r"(?<![A-Z_])POTSTILL_[A-Z]+(?:_[A-Z]+)*")
CODE = [
    *(path for folder in ("potstill", "tasks", "flows", "deployments") for path in sorted((ROOT / folder).rglob("*"))),
    ROOT / "prefect.yaml",
    ROOT / "Makefile",
]
OWN_CHILDREN_ONLY = {
    "POTSTILL_BACKEND_KEY": "the gateway tells it to the process that answers for a student",
    "POTSTILL_RUN_MARK": "by it the processes of a run find each other",
    "POTSTILL_SMTP_URL": "the name of a variable in an example of deployments/alerts.yaml",
    "POTSTILL_DEBUG": "what --debug sets",
}
"""What the code reads and no user sets."""
MADE_BY_USERS = {"deployments/docker/potstill.env", "potstill/llm/providers/NAME.py"}
OF_TESTS_ONLY = {"POTSTILL_TESTS_REQUIRE", "POTSTILL_TESTS_SCREENSHOTS"}


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, no punctuation, hyphens for blanks, numbered where a heading comes again."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", FENCED.sub("", text(page)), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(FENCED.sub("", text(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def named_in_code(pattern: str) -> dict[str, set[str]]:
    """What the pages name in code, and on which pages."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        blocks = [block.group() for block in FENCED.finditer(text(page))]
        for code in [*blocks, *re.findall(r"`([^`\n]+)`", FENCED.sub("", text(page)))]:
            for name in re.findall(pattern, code, re.MULTILINE):
                found.setdefault(name, set()).add(page.relative_to(ROOT).as_posix())
    return found


def readable(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.is_file() and path.suffix != ".pyc"]


def variables(paths: list[Path]) -> set[str]:
    return {name for path in readable(paths) for name in VARIABLE.findall(text(path))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_no_file_or_no_heading_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading: `with` marks\n## Twice\n## Twice\n```sh\n# no heading\n```\n[a](#a-heading-with-marks) [b](#twice-1)"
        " [c](gone.md) [d](page.md#no-heading) [e](https://example.org/x) [f [g]](page.md#twice-2) [h](../out.md)"
    )
    (tmp_path.parent / "out.md").write_text("outside of the repository")
    assert broken_links(page) == ["gone.md", "page.md#no-heading", "page.md#twice-2", "../out.md"]


def test_every_page_that_the_code_names_is_there_and_each_alert_has_its_part_of_the_runbook() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {page}#{anchor}"
        for path in readable(CODE)
        for page, anchor in re.findall(r"(docs/[\w/-]+\.md)(?:#([a-z][\w-]*))?", path.read_text(encoding="utf-8"))
        if not (ROOT / page).exists() or (anchor and anchor not in anchors(ROOT / page))
    ]
    assert wrong == []
    alerts = re.findall(r'^    [A-Z]+ = "(\w+)"$', text(ROOT / "deployments" / "alerts" / "config.py"), re.MULTILINE)
    assert len(alerts) == 6
    assert set(alerts) <= anchors(ROOT / "docs" / "operations.md")


def test_every_command_in_the_pages_is_one_and_each_stands_on_a_page() -> None:
    commands = named_in_code(r"(?:^|(?<!-n)[\s;&/])potstill ([a-z]\w*)")
    assert {name: pages for name, pages in commands.items() if name not in COMMANDS} == {}
    assert set(COMMANDS) - set(commands) == set()


def test_every_file_that_the_pages_name_in_code_is_there() -> None:
    files = named_in_code(
        r"(?<![\w/.-])((?:tests|potstill|tasks|flows|deployments|bench|docs|examples)/[\w./-]*\w\.\w+)(?![\w*])"
    )
    assert {
        name: pages for name, pages in files.items() if name not in MADE_BY_USERS and not (ROOT / name).exists()
    } == {}


def test_every_target_of_make_in_the_pages_is_one() -> None:
    makefile = text(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    in_pages = named_in_code(r"(?:^|[\s;&])make ([a-z][a-z-]*)")
    assert {name: pages for name, pages in in_pages.items() if name not in targets} == {}


def test_every_variable_in_the_pages_is_read_and_every_one_that_is_read_stands_in_them() -> None:
    in_code, in_pages = variables(CODE), variables(PAGES) - OF_TESTS_ONLY
    assert in_pages - in_code == set(), "named in a page, read nowhere"
    assert in_code - in_pages - set(OWN_CHILDREN_ONLY) == set(), "read, and named in no page"
    assert set(OWN_CHILDREN_ONLY) - in_code == set(), "nobody reads it any more"


def test_the_script_that_converts_openais_files_makes_chat_lines_of_them(tmp_path: Path) -> None:
    [script] = re.findall(r"```python\n(.*?)```", text(ROOT / "docs" / "leaving-openai.md"), re.DOTALL)
    (tmp_path / "convert.py").write_text(script)

    def convert(*files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        paths = [tmp_path / f"{number}.jsonl" for number, _ in enumerate(files)]
        for path, rows in zip(paths, files, strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, "-S", str(tmp_path / "convert.py"), *map(str, paths)]
        made = subprocess.run(command, capture_output=True, check=True).stdout
        assert all(line.reason is None for line in read_lines(BytesIO(made)))
        return [json.loads(line) for line in made.splitlines()]

    asked, said = {"role": "user", "content": "My card was charged twice"}, {"role": "assistant", "content": "billing"}
    choices = [{"index": 0, "message": said, "finish_reason": "stop"}]
    prompt = {"messages": [asked]}
    assert convert([{"messages": [asked, said | {"weight": 1}]}]) == [{"messages": [asked, said]}]
    preference = {"input": prompt | {"tools": []}, "preferred_output": [said], "non_preferred_output": [asked]}
    assert convert([preference]) == [prompt | {"reference": "billing"}]
    assert convert([{"id": "chatcmpl-1", "messages": [asked], "choices": choices}]) == [
        prompt | {"reference": "billing"}
    ]
    batch = [{"custom_id": one, "method": "POST", "body": prompt | {"model": "gpt-4o"}} for one in ("a", "b", "c")]
    replies = [
        {"custom_id": "b", "response": None, "error": {"code": "batch_expired"}},
        {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": choices}}, "error": None},
    ]
    assert convert(batch) == [prompt] * 3
    assert convert(batch, replies) == [prompt | {"reference": "billing"}, prompt, prompt]
