"""The same meaning has the same digest; anything else has another."""

import hashlib
import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.fingerprint import code_revision, file_sha256, fingerprint
from potstill.recipe import Price


def test_it_is_the_sha256_of_canonical_json():
    assert fingerprint({"b": 1, "a": "é"}) == hashlib.sha256('{"a":"é","b":1}'.encode()).hexdigest()


@pytest.mark.parametrize(
    ("value", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, 2), [1, 2]),
        ({"x", "y"}, ["x", "y"]),
        (frozenset("yx"), ["x", "y"]),
        (Path("a/b"), "a/b"),
        (Decimal("0.10"), "0.10"),
        (
            Price(input_per_million=Decimal(1), output_per_million=Decimal(2)),
            {"output_per_million": 2.0, "input_per_million": 1.0},
        ),
    ],
)
def test_form_does_not_count(value, same):
    assert fingerprint(value) == fingerprint(same)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(json_values, json_values)
def test_content_counts(first, second):
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (fingerprint(first) == fingerprint(second)) == same


def test_a_file_is_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"\x00" * 100_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"\x00" * 100_000).hexdigest()


def test_the_code_revision_is_a_commit_or_nothing():
    revision = code_revision()
    assert revision == "" or len(bytes.fromhex(revision.removesuffix("+dirty"))) == 20
