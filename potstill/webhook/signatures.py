"""Who may send: the signatures of the Standard Webhooks specification, with one secret or several."""

import base64
import binascii
import os
import re
from collections.abc import Sequence
from typing import Protocol

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from potstill.errors import NotAuthorisedError, UsageError

VARIABLE = "POTSTILL_WEBHOOK_SECRETS"
PREFIX = "whsec_"
SHORTEST_SECRET_BYTES = 24
"""As the specification has it."""
HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
MOST_SIGNATURES = 32
"""In one header; each costs a comparison."""
ID = re.compile(r"[!-\-/-~]{1,256}")
"""Printable ASCII without a full stop, which parts the fields of what is signed."""
HOW = f"""set {VARIABLE} to a secret, or to several with spaces between them. A new one: \
python -c "import base64, secrets; print('{PREFIX}' + base64.b64encode(secrets.token_bytes(32)).decode())\""""


class Headers(Protocol):
    """Starlette's, as far as they are looked at."""

    def getlist(self, key: str) -> list[str]: ...


class Signatures:
    """Checks webhooks against secrets, any of which may have signed. The library allows five minutes of age."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._webhooks = [Webhook(_key(number, secret)) for number, secret in enumerate(secrets, start=1)]

    def check(self, headers: Headers, body: bytes) -> str:
        """The webhook's id. Errors: `NotAuthorisedError` saying what is wrong, never what would be right."""
        given = {name: headers.getlist(name) for name in HEADERS}
        if wrong := [name for name, values in given.items() if len(values) != 1]:
            raise NotAuthorisedError(f"{', '.join(wrong)}: sent once, each, with every webhook")
        single = {name: values[0] for name, values in given.items()}
        if single["webhook-signature"].count(" ") >= MOST_SIGNATURES:
            raise NotAuthorisedError(f"webhook-signature: more than {MOST_SIGNATURES} signatures")
        reason = "no secret is set"
        for webhook in self._webhooks:
            try:
                webhook.verify(body, single, json_parse=False)
            except WebhookVerificationError as error:
                reason = str(error)
            except ValueError:  # what is no base64, no version, or no UTF-8
                reason = "the signature or the body is malformed"
            else:
                return single["webhook-id"]
        raise NotAuthorisedError(reason)


def read_secrets() -> Signatures:
    """The secrets of the environment. Errors: `UsageError` where there is none, or one that is weak or mistyped."""
    secrets = os.environ.get(VARIABLE, "").split()
    if not secrets:
        raise UsageError(f"no webhook secret: {HOW}")
    return Signatures(secrets)


def _key(number: int, secret: str) -> bytes:
    """The message never repeats the secret."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or len(key) < SHORTEST_SECRET_BYTES:
        raise UsageError(
            f"secret {number} of {VARIABLE} is not {PREFIX} and the base64 of {SHORTEST_SECRET_BYTES} bytes or more: {HOW}"
        )
    return key
