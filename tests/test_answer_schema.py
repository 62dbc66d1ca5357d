"""A schema that is none is found before anything is paid, and no schema makes anything fetch anything."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.answer_schema import check_schema, validator_of
from potstill.recipe import Teacher

NODE = {"type": "object", "properties": {"inner": {"$ref": "#/$defs/node"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]},
        {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
        {"$ref": "#/parts/node", "parts": {"node": {"type": "string"}}},
        {"$ref": "#named", "$defs": {"a": {"$anchor": "named", "type": "string"}}},
        {"$id": "https://example.org/s", "$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"properties": {"$ref": {"type": "string"}}, "enum": [{"$ref": "https://example.org/no-reference"}]},
    ],
    ids=str,
)
def test_a_schema_that_is_whole_is_taken(schema: dict[str, Any]) -> None:
    check_schema(schema)
    assert Teacher(model="m", response_schema=schema).response_schema == schema


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "objekt"}, r"no JSON schema of draft 2020-12: \$\.type: 'objekt' is not .*: mend that place"),
        ({"properties": {"a": {"minimum": "3"}}}, r"\$\.properties\.a\.minimum: '3' is not of type 'number'"),
        ({"pattern": "("}, r"\$\.pattern: '\(' is not a 'regex'"),
        ({"items": [{"type": "string"}]}, r"\$\.items"),
        (
            {"$ref": "https://127.0.0.1:9/x.json"},
            r"\$: \$ref 'https://127\.0\.0\.1:9/x\.json' is another document.*\$defs",
        ),
        ({"items": {"$ref": "x.json#/a"}}, r"\$\.items: \$ref 'x\.json#/a' is another document"),
        ({"allOf": [{}, {"$dynamicRef": "x#y"}]}, r"\$\.allOf\[1\]: \$dynamicRef 'x#y' is another document"),
        ({"$ref": "#/definitions/missing"}, r"\$: \$ref '#/definitions/missing' leads nowhere: put what it names"),
        ({"$ref": "#/type/deeper", "type": "object"}, "leads nowhere"),
        ({"$ref": "#missing"}, "leads nowhere"),
        ({"$ref": "#/parts/a", "parts": {"a": {"type": "objekt"}}}, r"\$\.parts\.a\.type: 'objekt'"),
        ({"$ref": "#/type", "type": "object"}, r"\$\.type: 'object' is not of type"),
        (
            {"$ref": "#/parts/a", "parts": {"a": {"items": {"$ref": "http://x/"}}}},
            r"\$\.parts\.a\.items: .*'http://x/'",
        ),
        ({"$ref": "#/$defs/b", "not": {"$ref": "x"}, "$defs": {"b": {"items": {"$ref": "#"}}}}, "another document"),
        ({"$ref": 3}, r"\$ref.*: 3 is not of type 'string'"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "without end"),
        ({"properties": {3: {}}}, "it is no JSON: .*in quotes"),
    ],
    ids=str,
)
def test_what_is_no_schema_is_named_with_its_place_and_its_remedy(schema: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        Teacher(model="m", response_schema=schema)
    assert caught.value.errors()[0]["loc"] == ("response_schema",)


def test_a_validator_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    with pytest.raises(Exception, match="Unresolvable"):
        next(validator_of(b'{"$ref": "https://127.0.0.1:9/x.json"}').iter_errors({}))


def test_a_teacher_without_a_schema_does_not_load_jsonschema() -> None:
    code = "import sys, potstill.teacher.quality, potstill.recipe as r; r.Teacher(model='m'); print('jsonschema' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
