"""What a recipe may say of requests that leave: the address that they go to, and the headers that they carry.

No key may hide in either, and neither may bend a request: a recipe is printed, logged, kept in manifests, and comes from
outside too. Messages do not repeat what they refuse.
"""

import re
from base64 import b64decode
from urllib.parse import urlsplit

SECRET_HEADER = re.compile(
    r"auth(?!or(?!i))|token(?!s)|(?<!x-port)key|secret|passw|passphrase|credential|cookie|bearer|jwt", re.IGNORECASE
)
"""Names of headers that carry a key; authors, counts of tokens and Portkey's other headers do not."""
SECRET_VALUE = re.compile(
    r"\bbearer\s+\S"
    r"|(?<![a-z0-9])(sk-|gsk_|xai-|hf_|ghp_|github_pat_|pplx-|nvapi-|r8_|akia|aiza|eyj)(?=[\w-]*\d)[\w-]{8}",
    re.IGNORECASE,
)
"""A bearer's token, or how the keys of providers begin and go on: sk-learn is none."""
_BASIC = re.compile(r"\bbasic\s+(?=([\w+/-]{8,}))", re.IGNORECASE)
FRAMING_HEADERS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
    }
    | {"transfer-encoding", "upgrade", "metadata", "metadata-flavor", "x-aws-ec2-metadata-token-ttl-seconds"}
)
"""They say where a request ends, to whom it goes, or open the metadata service of a cloud: none is a recipe's to set."""
AZURE = ".azure.com"
"""Azure's hosts end so. They take a key in a header of its own, and their batches are another protocol."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BENT = re.compile(r"[^!-~]|\\")
"""Blanks, line ends, backslashes, letters beyond ASCII: programs disagree on which host an address with them names."""


def is_azure(base_url: str) -> bool:
    return (urlsplit(base_url).hostname or "").endswith(AZURE)


def check_address(base_url: str) -> None:
    """Errors: `ValueError` for an address that holds a user, a query or a fragment, or whose host is not plain to see."""
    authority = base_url.partition("//")
    if "@" in re.split(r"[/?#\\]", authority[2] or authority[0], maxsplit=1)[0]:
        raise ValueError(
            "the address holds a user or a password before its host: remove them, and name the key's variable in "
            "api_key_env"
        )
    if "?" in base_url or "#" in base_url:
        raise ValueError(
            "the address holds a query or a fragment, behind which no path can follow: remove it; Azure's version "
            "belongs into api_version, a key into the variable that api_key_env names"
        )
    if _BENT.search(base_url):
        raise ValueError(
            "the address holds a blank, a backslash or a letter beyond ASCII: write it plainly, a host of another script "
            "as xn--…"
        )


def check_headers(headers: dict[str, str]) -> None:
    """Errors: `ValueError` for what is no header, for one that would carry a key, or that is the client's own to set."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
            raise ValueError(f"{name!r} is no header of HTTP: a name is letters and hyphens, a value one line of ASCII")
        if SECRET_HEADER.search(name) or SECRET_VALUE.search(value) or _holds_password(value):
            raise ValueError(f"{name} would carry a key: name the key's variable in api_key_env instead")
        if name.lower() in FRAMING_HEADERS or name.lower().startswith("proxy-"):
            raise ValueError(f"{name} is set by the client, or opens what is no teacher: remove it")


def _holds_password(value: str) -> bool:
    """Whether it holds `Basic` and a user and password as RFC 7617 writes them; another word after "basic" is none."""
    decoded = map(_decoded, _BASIC.findall(value))
    return any(":" in text and text.isprintable() for text in decoded)


def _decoded(word: str) -> str:
    """What it says in base64; nothing where it is none."""
    try:
        return b64decode(word + "=" * (-len(word) % 4), altchars=b"-_").decode()
    except ValueError:
        return ""
