"""Whether a teacher's terms let its output train another model: known for some, attested for the others."""

from typing import NamedTuple
from urllib.parse import urlsplit

from potstill.errors import NotAuthorisedError
from potstill.kinds import TermsKind
from potstill.llm.keys import is_loopback
from potstill.llm.providers import base_url_of
from potstill.recipe import Teacher
from potstill.records import TeacherTerms


class Terms(NamedTuple):
    kind: TermsKind
    link: str
    """Where the provider says so; "" where nobody looked."""


TERMS = {
    "api.openai.com": Terms("restricted", "https://openai.com/policies/services-agreement"),
    "api.anthropic.com": Terms("restricted", "https://www.anthropic.com/legal/commercial-terms"),
    "generativelanguage.googleapis.com": Terms("restricted", "https://ai.google.dev/gemini-api/terms"),
    ".amazonaws.com": Terms("restricted", "https://aws.amazon.com/service-terms/"),
    ".azure.com": Terms("unknown", "https://www.microsoft.com/licensing/terms"),
    "api.mistral.ai": Terms("unknown", "https://mistral.ai/terms"),
    "openrouter.ai": Terms("unknown", "https://openrouter.ai/terms"),
    "api.deepseek.com": Terms(
        "unknown", "https://cdn.deepseek.com/policies/en-US/deepseek-open-platform-terms-of-service.html"
    ),
    "api.together.xyz": Terms("unknown", "https://www.together.ai/terms-of-service"),
    "api.groq.com": Terms("unknown", "https://groq.com/terms-of-use"),
    "api.fireworks.ai": Terms("unknown", "https://fireworks.ai/terms-of-service"),
}
"""By host; a name that begins with a dot stands for every host that ends so. What is unknown depends on model or
contract."""


def terms_of(teacher: Teacher) -> Terms:
    """The terms of the host that answers; a server on this machine is the user's own."""
    base_url = base_url_of(teacher)
    if is_loopback(base_url):
        return Terms("allowed", "")
    host = urlsplit(base_url).hostname or ""
    found = (terms for name, terms in TERMS.items() if host == name or (name[0] == "." and host.endswith(name)))
    return next(found, Terms("unknown", ""))


def check_terms(teacher: Teacher) -> None:
    """Before a cent is spent. Errors: `NotAuthorisedError` where training on the output needs an attestation."""
    terms = terms_of(teacher)
    if terms.kind != "allowed" and not (teacher.attest or "").strip():
        link = f" (see {terms.link})" if terms.link else ""
        raise NotAuthorisedError(
            f"the terms of {teacher.model} on training with its output are {terms.kind}{link}: state why you may, "
            'with --attest "…" or teacher.attest'
        )


def state_terms(teacher: Teacher) -> TeacherTerms:
    """The terms under which a teacher's answers are had, as the manifests of all that is made of them keep them."""
    terms = terms_of(teacher)
    host = urlsplit(base_url_of(teacher)).hostname or ""
    attested = (teacher.attest or "").strip() or None
    return TeacherTerms(teacher=teacher.model, host=host, kind=terms.kind, link=terms.link, attested=attested)
