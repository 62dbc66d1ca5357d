"""Refusals in plain words: what the provider does not flag, as most servers of open weights do not.

Only an answer that is short and says nothing else counts: a reply that declines one thing and offers another is an answer.
"""

import re
from collections.abc import Sequence

import orjson

from potstill.records import Message

LONGEST = 300
"""Characters."""

_APOLOGY = r"(?:(?:i'm|i am) (?:so |very |really |truly )?sorry|sorry|i apologi[sz]e|(?:my )?apologies|unfortunately)"
_AS_AN_AI = r"as an (?:ai|artificial intelligence)(?: (?:language )?(?:model|assistant))?(?: (?:made|created|developed|trained) by \w+)?"
_CANNOT = r"i(?: (?:can't|cannot|can not|won't|will not)(?: be able to)?|(?:'m| am) (?:not able|unable) to)"
_REQUEST = r"(?:this|that|it|(?:this|that|the|your)(?: (?:particular|specific|type of|kind of))? (?:request|task|prompt|topic)s?)"
_HELP = rf"(?:(?:assist|help)(?: you)?(?: with {_REQUEST})?|(?:comply|engage) with {_REQUEST}|fulfill? {_REQUEST})"
_DECLINE = rf"i (?:must|have to|need to) (?:respectfully )?decline(?: to {_HELP}| {_REQUEST})"
_RULES = r"(?:content polic(?:y|ies)|usage polic(?:y|ies)|(?:my|safety|ethical|content) guidelines|my programming)"
_WHY = rf",? (?:as|because|since) (?:it|this|that) [^.!?]{{0,80}}\b{_RULES}"
_ELSE = r"(?:any|anything|something|another|other|more)\b"
_OFFER = (
    rf"(?:(?:please |but )?(?:let me know|feel free to ask) if (?:there is|there's|you have|you need) {_ELSE}[^.!?]*"
    rf"|if (?:there is|there's|you have|you need) {_ELSE}[^.!?]*"
    rf"|is there {_ELSE}[^.!?]*|how (?:else )?(?:can|may) i (?:help|assist)[^.!?]*)"
)
_REFUSAL = re.compile(
    rf"(?:{_APOLOGY}[,.;:]?(?: but| however,)? )?(?:{_AS_AN_AI}, )?(?:{_CANNOT} {_HELP}|{_DECLINE})(?:{_WHY})?[.!]?"
    rf"(?: {_OFFER}[.!?]?){{0,2}}"
)
_WAY_OUT = re.compile(r"\d|@|://|\b(?:call|contact|e-?mail|visit|phone|reach out|team|colleagues?)\b")
"""Who says where else there is help has answered."""
_ASKED_FOR = re.compile(
    r"declin|refus|apologi|off[- ]topic|out of scope"
    r"|(?:can't|cannot|can not|won't|unable to|not able to) (?:be able to )?(?:help|assist|comply|engage|fulfil)"
)


def is_refusal(text: str, asked: Sequence[Message] = ()) -> bool:
    """Whether an answer does nothing but refuse, in English, where the messages asked for no such thing.

    A prompt that speaks of declining may want just these words: then they are an answer.
    """
    if len(text) > LONGEST:
        return False
    said = _plain(text)
    if not _REFUSAL.fullmatch(said) or _WAY_OUT.search(said):
        return False
    return not _ASKED_FOR.search(_plain(orjson.dumps(list(asked)).decode()))


def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())
