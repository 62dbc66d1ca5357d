"""What a server sends back of a key: it is taken out of every reply before anything reads, keeps or shows it."""

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import orjson

SHORTEST_SECRET = 12
"""A shorter key is a placeholder, such as EMPTY, that an answer may hold by chance: replies are left as they are."""
MASK = "[api key]"


class KeyMask:
    """Replaces a key, also in Base64, percent-encoded, and as JSON may escape it.

    It costs about 4 µs for a reply of a kilobyte that does not hold the key.
    """

    def __init__(self, key: str | None) -> None:
        self._forms = _forms(key) if key and len(key) >= SHORTEST_SECRET else ()

    def clean(self, content: bytes) -> bytes:
        """The same bytes without the key."""
        for form in self._forms:
            if form in content:
                content = content.replace(form, MASK.encode())
        return content

    def read_json(self, content: bytes) -> Any:
        """What JSON holds, without the key, however it was escaped. Errors: `orjson.JSONDecodeError`."""
        body = orjson.loads(self.clean(content))
        if not self._forms or (b"\\u" not in content and b"\\/" not in content):
            return body
        unescaped = orjson.dumps(body)
        cleaned = self.clean(unescaped)
        return body if cleaned == unescaped else orjson.loads(cleaned)

    def clean_text(self, text: str) -> str:
        """The same for text, such as what an exception says."""
        for form in self._forms:
            text = text.replace(form.decode(), MASK)
        return text

    async def clean_lines(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same for a stream of lines, wherever it is cut into chunks."""
        rest = b""
        async for chunk in chunks:
            whole, end, rest = (rest + chunk).rpartition(b"\n")
            if end:
                yield self.clean(whole + end)
        if rest:
            yield self.clean(rest)


def _forms(key: str) -> tuple[bytes, ...]:
    """The longest first, so that no form is replaced in the middle of another one."""
    plain, in_json, in_url = key.encode("ascii"), orjson.dumps(key)[1:-1], quote(key, safe="")
    lower_url = re.sub("%..", lambda code: code.group().lower(), in_url)
    found = {
        *(plain, in_json, in_json.replace(b"/", b"\\/"), in_url.encode(), lower_url.encode()),
        *(_inside_base64(plain, offset, encode) for offset in range(3) for encode in (b64encode, urlsafe_b64encode)),
    }
    return tuple(sorted(found, key=len, reverse=True))


def _inside_base64(plain: bytes, offset: int, encode: Callable[[bytes], bytes]) -> bytes:
    """What Base64 makes of a key that begins so many bytes after a multiple of three, whatever stands around it."""
    first, end = (8 * offset + 5) // 6, 8 * (offset + len(plain)) // 6
    return encode(bytes(offset) + plain)[first:end]
