"""Whether a teacher's terms let its output train another model: known for some, attested for the others."""

from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from potstill.errors import NotAuthorisedError
from potstill.llm.keys import is_loopback
from potstill.llm.providers import PROVIDERS
from potstill.recipe import Teacher


class Terms(NamedTuple):
    kind: Literal["restricted", "allowed", "unknown"]
    link: str
    """Where the provider says so; "" where nobody looked."""


KNOWN = {
    "api.openai.com": Terms("restricted", "https://openai.com/policies/services-agreement"),
    "api.anthropic.com": Terms("restricted", "https://www.anthropic.com/legal/commercial-terms"),
    "generativelanguage.googleapis.com": Terms("restricted", "https://ai.google.dev/gemini-api/terms"),
}


def terms_of(teacher: Teacher) -> Terms:
    """The terms of the host that answers; a server on this machine is the user's own."""
    base_url = teacher.base_url or PROVIDERS[teacher.provider].default_base_url or ""
    if is_loopback(base_url):
        return Terms("allowed", "")
    return KNOWN.get(urlsplit(base_url).hostname or "", Terms("unknown", ""))


def check_terms(teacher: Teacher) -> None:
    """Before a cent is spent. Errors: `NotAuthorisedError` where training on the output needs an attestation."""
    terms = terms_of(teacher)
    if terms.kind != "allowed" and not (teacher.attest or "").strip():
        link = f" (see {terms.link})" if terms.link else ""
        raise NotAuthorisedError(
            f"the terms of {teacher.model} on training with its output are {terms.kind}{link}: state why you may, "
            'with --attest "…" or teacher.attest'
        )
