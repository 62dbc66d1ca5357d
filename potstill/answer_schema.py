"""The JSON schema that answers follow: known to be one before anything is paid, and whole, so that nothing is ever fetched.

jsonschema is imported only where there is a schema: most recipes have none, and commands have to start fast.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import orjson

REFERENCES = ("$ref", "$dynamicRef")
INSTANCES: tuple[Any, ...] = ({}, [], "", 0, True, None)
"""One of each kind: a reference that leads back to itself without end does so for one of them."""


def check_schema(schema: dict[str, Any]) -> None:
    """Errors: `ValueError` for what is no JSON schema, or needs another document; it names the place and the remedy."""
    try:
        written = orjson.dumps(schema)
    except TypeError as error:  # what YAML makes of an unquoted name
        raise ValueError(f"it is no JSON: {error}: write the names in it in quotes") from None
    whole = orjson.loads(written)
    try:
        _check_form(whole, "$")
        _References.of(whole).check()
    except RecursionError:
        raise ValueError("it refers to itself without end, or is nested too deeply: break that up") from None


@lru_cache(maxsize=4)
def validator_of(schema: bytes) -> Any:
    """The validator of a schema in JSON; it fetches nothing."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(orjson.loads(schema), registry=Registry())


def _check_form(schema: Any, place: str) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where, said = place + error.json_path[1:], " ".join(error.message.split())[:120]
        raise ValueError(f"it is no JSON schema of draft 2020-12: {where}: {said}: mend that place") from None


class _References(NamedTuple):
    """Follows what one schema refers to."""

    whole: Any
    validator: Any
    seen: dict[int, tuple[Any, Any]]
    """Parts by their identity, each with the resolver of what it refers to."""

    @classmethod
    def of(cls, whole: Any) -> "_References":
        return cls(whole, validator_of(orjson.dumps(whole)), {})

    def check(self) -> None:
        from referencing import Registry
        from referencing.jsonschema import DRAFT202012

        resource = DRAFT202012.create_resource(self.whole)
        self._read(resource, Registry().resolver_with_root(resource))
        for part, resolver in self.seen.values():
            for instance in INSTANCES if any(name in part for name in REFERENCES) else ():
                list(self.validator.descend(instance, part, resolver=resolver))

    def _read(self, resource: Any, resolver: Any) -> None:
        part = resource.contents
        if not isinstance(part, dict) or id(part) in self.seen:
            return
        self.seen[id(part)] = (part, resolver)
        for name in REFERENCES:
            if name in part:
                self._follow(part, name, resolver)
        for inner in resource.subresources():
            self._read(inner, resolver.in_subresource(inner))

    def _follow(self, part: dict[str, Any], name: str, resolver: Any) -> None:
        """Check what a reference leads to, which may stand where nobody looks for a schema."""
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        reference, place = part[name], _place_of(part, self.whole)
        if not reference.startswith("#"):
            raise ValueError(
                f"{place}: {name} {reference!r} is another document, and none is fetched: put it under $defs and refer to "
                "it as '#/$defs/NAME'"
            )
        try:
            found = resolver.lookup(reference)
        except (Unresolvable, LookupError, TypeError, ValueError):
            raise ValueError(f"{place}: {name} {reference!r} leads nowhere: put what it names under $defs") from None
        _check_form(found.contents, _place_of(found.contents, self.whole))
        self._read(DRAFT202012.create_resource(found.contents), found.resolver)


def _place_of(part: Any, whole: Any, place: str = "$") -> str:
    """Where a part stands, as a JSON path; "" where it is none."""
    if part is whole:
        return place
    inner = enumerate(whole) if isinstance(whole, list) else whole.items() if isinstance(whole, dict) else ()
    found = (
        _place_of(part, value, f"{place}[{name}]" if isinstance(whole, list) else f"{place}.{name}")
        for name, value in inner
    )
    return next(filter(None, found), "")
