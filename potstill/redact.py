"""Personal data out, before anything else sees it: e-mail, phone, card, IBAN, national ids, IP addresses, API keys, passwords in URLs.

Each value is replaced by a realistic stand-in out of a range reserved for examples (RFC 2606 domains, 555-01xx numbers,
the card networks' test numbers), so that a text keeps its shape and a second pass changes nothing. Within one prompt the
same value always gets the same stand-in. Numbers without separators or a "+" are phone numbers behind a word that
says so only: identifiers look the same. A number in national form counts in North America and in the countries of `NATIONAL`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, cycle, repeat
from typing import Any, NamedTuple, TypeVar

VERSION = 4

T = TypeVar("T")


class _Kind(NamedTuple):
    name: str
    pattern: re.Pattern[str]
    is_personal: Callable[[str, str], bool]
    """Of what the pattern found, and of the text before it."""
    stand_ins: Callable[[], Iterator[str]]


_CARDS = ("4111 1111 1111 1111", "5555 5555 5555 4444", "3782 822463 10005", "6011 1111 1111 1117")
_IBANS = ("DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32", "FR14 2004 1010 0505 0001 3M02 606")
_RESERVED_EMAIL = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|example|invalid|test)$", re.IGNORECASE)
_RESERVED_PHONE = re.compile(r"555\D?01\d\d$")
_SERVICE_EMAIL = re.compile(r"git@", re.IGNORECASE)
_KEBAB_WORDS = re.compile(r"sk-(?:[a-z]{1,15}[-_]+)*[a-z]{1,15}")
"""Such as the CSS class sk-toggleable__content-arrow of scikit-learn's pages."""
_ISBN = re.compile(r"(?:97[89][ -])?\d{1,5}[ -]\d{1,7}[ -]\d{1,7}[ -]\d")
CONTEXT = 24
"""Characters before a value that are looked at."""
_PHONE_WORD = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell|fax|desk|call|sms|whatsapp|handy|number is)\b[\s.:#=]*$", re.IGNORECASE
)
NATIONAL = ("GB", "DE", "FR")
"""Countries whose numbers are recognised as they are written at home, with a leading 0 and gaps."""
_NATIONAL = re.compile(r"\(?0[1-9]\d{0,4}\)?(?:[ -]\d{2,8})+")
_DATE = re.compile(r"(?:19|20)\d\d([-.])\d{1,2}\1\d{1,2}(?!\d)")
_RESERVED_SSN = re.compile(r"987-65-43[23]\d")
"""Of advertisements (SSA); none with a 9 in front is a Social Security number at all."""
_BEFORE_VERSION = re.compile(r"(?:\b(?:version|release|section|chapter|v|rev)\.?|[=<>~^§])\s*$", re.IGNORECASE)
_MASK = re.compile(r"255\.|0\.")
_EXAMPLE_NETWORKS = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
"""RFC 5737 and 3849."""
_MARKS = re.compile(r"[@0-9]|sk-|gh[pousr]_|github_pat_|glpat-|hf_|AKIA|AIza|xox|k_(?:live|test)_|eyJ")
"""A text without any of these holds nothing that is looked for."""


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_card(text: str, _: str) -> bool:
    from stdnum import luhn

    digits = _digits(text)
    reserved = {_digits(card) for card in _CARDS}
    return digits not in reserved and len(set(digits)) > 2 and luhn.is_valid(digits)


def _is_iban(text: str, _: str) -> bool:
    from stdnum import iban

    reserved = {value.replace(" ", "") for value in _IBANS}
    return text.replace(" ", "").upper() not in reserved and iban.is_valid(text)


def _is_national_id(text: str, _: str) -> bool:
    from stdnum.br import cpf
    from stdnum.es import dni, nie
    from stdnum.fr import nir
    from stdnum.it import codicefiscale

    digits = re.sub(r"[ .-]", "", text).upper()
    if re.fullmatch(r"[A-Z]{2}\d{6}[A-D]", digits):  # the UK's, which have no check digit
        return digits[:2] not in {"BG", "GB", "NK", "KN", "TN", "NT", "ZZ"}
    return any(kind.is_valid(digits) for kind in (cpf, dni, nie, nir, codicefiscale))


def _is_address(text: str, before: str) -> bool:
    from ipaddress import ip_address, ip_network

    if _BEFORE_VERSION.search(before):
        return False
    if ":" in text and len(text.replace(":", " ").split()) < 3:
        return False  # [::2] and the like in code
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or address.is_multicast or _MASK.match(text):
        return False
    networks = map(ip_network, _EXAMPLE_NETWORKS)
    return not any(address.version == network.version and address in network for network in networks)


def _is_phone(text: str, before: str) -> bool:
    from stdnum import isbn

    if _RESERVED_PHONE.search(text) or _DATE.match(text):
        return False
    if text.isdigit() and not _PHONE_WORD.search(before):
        return False  # an identifier, as far as anybody can tell
    if _ISBN.fullmatch(text) and isbn.is_valid(text):
        return False
    if sum(len(group) == 1 for group in re.findall(r"\d+", text)) > 2:
        return False  # a row of numbers
    is_national = _NATIONAL.fullmatch(text) or text.isdigit()
    return any(_is_valid_phone(text, home) for home in ((*NATIONAL, "US") if is_national else ("US",)))


def _is_valid_phone(text: str, home: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(re.sub(r"^00(?=[1-9])", "+", text), home))
    except phonenumbers.NumberParseException:
        return False


_KINDS = (
    _Kind(
        "api_key",
        re.compile(
            r"\b(?:sk-(?:ant-|proj-|or-v1-)?[A-Za-z0-9_-]{20,}|(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{22,}|hf_[A-Za-z0-9]{30,}|glpat-[A-Za-z0-9_-]{20,}"
            r"|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[0-9A-Za-z-]{10,}|[rs]k_(?:live|test)_[0-9A-Za-z]{16,}"
            r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})"
        ),
        lambda text, _: not _KEBAB_WORDS.fullmatch(text),
        lambda: (f"sk-example-{number:04d}" for number in count(1)),
    ),
    _Kind(
        "url_password",
        re.compile(r"(?<=://)[^\s/:@'\"<>]{1,128}:[^\s/@'\"<>]{1,256}(?=@)"),
        lambda text, _: text != "user:password",
        lambda: repeat("user:password"),
    ),
    _Kind(
        "email",
        re.compile(r"[\w+](?:[\w.+'-]{0,62}[\w+'-])?@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,}"),
        lambda text, before: (
            not (_RESERVED_EMAIL.search(text) or _SERVICE_EMAIL.match(text) or before.endswith("://user:"))
        ),
        lambda: (f"person{number}@example.com" for number in count(1)),
    ),
    _Kind(
        "iban",
        re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.IGNORECASE),
        _is_iban,
        lambda: cycle(_IBANS),
    ),
    _Kind(
        "card",
        re.compile(
            r"(?<!\d)(?<!\d[.,])(?:[2-6]\d{3}(?:[ .-]?\d){9,15}|(?:2131|1800)(?:[ .-]?\d){11}"
            r"|(?:50(?:18|20|38)|5[678]\d\d|6304|6390|6759|676[123]|0604)(?:[ .-]?\d){8})(?!\d)(?![.,]\d)"
        ),
        _is_card,
        lambda: cycle(_CARDS),
    ),
    _Kind(
        "ssn",
        re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
        lambda text, _: not _RESERVED_SSN.fullmatch(text),
        lambda: (f"987-65-43{20 + number % 10}" for number in count()),
    ),
    _Kind(
        "national_id",
        re.compile(
            r"\b(?:[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d{2}){3} ?[A-D]|\d{3}\.\d{3}\.\d{3}-\d{2}|[XYZ]?\d{7,8}-?[A-HJ-NP-TV-Z]"
            r"|[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}|[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z])\b"
        ),
        _is_national_id,
        lambda: repeat("QQ123456C"),
    ),
    _Kind(
        "ip",
        re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w|-[a-z])"),
        _is_address,
        lambda: (f"192.0.2.{1 + number % 254}" for number in count()),
    ),
    _Kind(
        "ipv6",
        re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:.])"),
        _is_address,
        lambda: (f"2001:db8::{1 + number % 65535:x}" for number in count()),
    ),
    _Kind(
        "phone",
        re.compile(
            r"(?<![\w./-])(?<!\d,)\+?(?:\((?=\d{1,4}\)))?\d(?:[ ().-]{0,2}\d){6,14}(?: ?(?:x|ext\.?) ?\d{1,6})?(?!\w|-[\da-z])"
        ),
        _is_phone,
        lambda: (f"+1 202-555-{100 + number % 100:04d}" for number in count()),
    ),
)


class Redactor:
    """Redacts the texts of one prompt; `counts` says how many values of each kind were replaced."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._known: dict[str, str] = {}
        self._stand_ins = {kind.name: kind.stand_ins() for kind in _KINDS}

    def text(self, text: str) -> str:
        """One text without the personal data that is recognised."""
        if not _MARKS.search(text):
            return text
        for kind in _KINDS:
            text = kind.pattern.sub(lambda match, kind=kind: self._replace(kind, match), text)
        return text

    def value(self, value: T) -> T:
        """The same JSON value, every string in it redacted; the names of fields stay."""
        return self._walk(value)

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._walk(item) for item in value]
        if isinstance(value, dict):
            return {name: self._walk(item) for name, item in value.items()}
        return value

    def _replace(self, kind: _Kind, match: re.Match[str]) -> str:
        found = match.group()
        if not kind.is_personal(found, match.string[max(0, match.start() - CONTEXT) : match.start()]):
            return found
        self.counts[kind.name] += 1
        if found not in self._known:
            self._known[found] = next(self._stand_ins[kind.name])
        return self._known[found]
