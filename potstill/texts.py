"""Text from elsewhere, made fit for every place that it goes to."""

import re

_ADDRESS = re.compile(r"([\w+.-]*://)?([^?#]*)(.*)", re.DOTALL)
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def one_line(text: str) -> str:
    """The text without what a terminal obeys and what a database refuses: control characters, NUL, lone surrogates."""
    return _UNFIT.sub(" ", text)


def masked(address: str) -> str:
    """An address as it may be shown: what stands before an @ may be a password, and what follows a ? a key, even where it
    is no address.
    """
    found = _ADDRESS.fullmatch(address)
    assert found is not None
    scheme, place, query = found.groups(default="")
    if "@" in query:  # of a password, perhaps, that holds the ? itself
        return f"{scheme}…"
    return scheme + re.sub(r".*@", "…@", place, flags=re.DOTALL) + ("?…" if query else "")
