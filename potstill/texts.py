"""Text from elsewhere, made fit for every place that it goes to."""

import re

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def one_line(text: str) -> str:
    """The text without what a terminal obeys and what a database refuses: control characters, NUL, lone surrogates."""
    return _UNFIT.sub(" ", text)
