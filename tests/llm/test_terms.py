import re
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import NotAuthorisedError
from potstill.llm.keys import OWN_HOSTS
from potstill.llm.terms import TERMS, check_terms, state_terms, terms_of
from potstill.records import TeacherTerms
from tests.fake_teacher import make_teacher


def test_a_server_on_this_machine_is_the_users_own() -> None:
    teacher = make_teacher("http://127.0.0.1:8000/v1")
    assert terms_of(teacher).kind == "allowed"
    check_terms(teacher)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"provider": "openai", "base_url": None}, r"restricted \(see https://openai\.com"),
        ({"base_url": "https://api.anthropic.com/v1"}, r"restricted \(see https://www\.anthropic\.com"),
        ({"provider": "anthropic", "base_url": None}, r"restricted \(see https://www\.anthropic\.com"),
        ({"base_url": "https://bedrock-runtime.eu-west-1.amazonaws.com/v1"}, r"restricted \(see https://aws\."),
        ({"base_url": "https://amazonaws.com.llm.example/v1"}, "are unknown: state why you may"),
        ({"base_url": "https://api.mistral.ai/v1"}, r"unknown \(see https://mistral\.ai"),
        ({"base_url": "https://api.deepseek.com/v1"}, r"unknown \(see https://cdn\.deepseek\.com"),
        ({"base_url": "https://llm.example/v1"}, "are unknown: state why you may"),
    ],
)
def test_terms_that_restrict_or_that_nobody_knows_need_an_attestation(fields: dict[str, Any], says: str) -> None:
    for attest in (None, "", "  "):
        with pytest.raises(NotAuthorisedError, match=says):
            check_terms(make_teacher("", **fields, attest=attest))
    check_terms(make_teacher("", **fields, attest="our contract of May allows it"))


def test_what_is_stated_goes_down_word_for_word() -> None:
    teacher = make_teacher("", provider="openai", base_url=None, attest=" our contract of May allows it\n")
    link = "https://openai.com/policies/services-agreement"
    said = TeacherTerms(
        teacher="fake-1",
        host="api.openai.com",
        kind="restricted",
        link=link,
        attested="our contract of May allows it",
    )
    assert state_terms(teacher) == said
    assert said.describe() == (
        f'fake-1 at api.openai.com: restricted ({link}); attested: "our contract of May allows it"'
    )


def test_a_server_on_this_machine_needs_no_statement_and_gets_none() -> None:
    said = state_terms(make_teacher("http://127.0.0.1:8000/v1"))
    assert (said.kind, said.host, said.attested) == ("allowed", "127.0.0.1", None)
    assert said.describe() == "fake-1 at 127.0.0.1: allowed"


@pytest.mark.parametrize("host", OWN_HOSTS.values())
def test_whoever_has_a_known_key_has_a_link_to_terms(host: str) -> None:
    assert TERMS[host].link.startswith("https://")


def test_the_page_has_the_table_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "teacher.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (restricted|unknown)[^|]*\| \[[^\]]+\]\((\S+)\) \|$", page, re.MULTILINE)
    assert {host.removeprefix("*"): (kind, link) for host, kind, link in rows} == TERMS
