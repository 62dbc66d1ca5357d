"""Targets → notification blocks of types that every Prefect server knows: it is the server that loads and sends them.

The keys end up in the block's secret fields, which Prefect keeps encrypted and shows masked.
"""

import os
from typing import cast
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.types import SecretDict
from pydantic import SecretStr

from deployments.alerts.config import AnyTarget, Email, ExistingBlock, Slack, Webhook, require_http
from potstill.errors import UsageError

PREFIX = "potstill-alert-"
MAIL_MODES = {"smtps": ("ssl", 465), "smtp": ("starttls", 587)}
SLACK_HOSTS = {"hooks.slack.com", "hooks.slack-gov.com"}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def block_of(target: AnyTarget) -> Block | None:
    """The block that sends to a target; None where it names one that exists.

    Errors: `UsageError` where a variable that it names is not set or holds something else.
    """
    match target:
        case Slack():
            return SlackWebhook(url=SecretStr(_slack_url(target.url_env)))
        case Webhook():
            return _webhook(target)
        case Email():
            # Prefect has no block of its own for SMTP. This one hands every address that is not Slack's to Apprise, the
            # library that sends for all of them, and Apprise sends mail.
            return SlackWebhook(url=SecretStr(mail_address(target, _value(target.smtp_env))))
        case ExistingBlock():
            return None


def save(target: AnyTarget) -> UUID:
    """Put the target's block on the server, and return its document's id. Saved again, it stays the same document."""
    block = block_of(target)
    if block is None:
        assert isinstance(target, ExistingBlock)
        return _existing(target.block)
    return cast("UUID", block.save(f"{PREFIX}{target.label}", overwrite=True))


def remove_others(labels: set[str], client: SyncPrefectClient) -> list[str]:
    """Remove the blocks of ours that no target uses, and return their names."""
    wanted = {f"{PREFIX}{label}" for label in labels}
    filter_ = {"block_documents": {"is_anonymous": {"eq_": False}, "name": {"like_": PREFIX}}}
    removed: list[str] = []
    for document in client.request("POST", "/block_documents/filter", json=filter_).json():
        if document["name"].startswith(PREFIX) and document["name"] not in wanted:
            client.request("DELETE", "/block_documents/{id}", path_params={"id": document["id"]})
            removed.append(document["name"])
    return removed


def mail_address(target: Email, server: str) -> str:
    """Apprise's address of a mail server, from ours. A server on this machine may do without TLS; another may not."""
    parts = urlsplit(server)
    if parts.scheme not in MAIL_MODES or not parts.hostname:
        raise UsageError(f"{target.smtp_env} holds no smtp:// or smtps:// address: set it as docs/alerts.md says")
    mode, port = MAIL_MODES[parts.scheme]
    plain = parts.scheme == "smtp" and parts.hostname in LOOPBACK
    user = f"{parts.username}:{parts.password or ''}@" if parts.username else ""
    query = {
        "smtp": parts.hostname,
        "from": target.sender,
        "to": ",".join(target.recipients),
        "mode": "insecure" if plain else mode,
        "format": "text",
    }
    scheme = "mailto" if plain else "mailtos"
    return f"{scheme}://{user}{parts.hostname}:{parts.port or port}?{urlencode(query, quote_via=quote)}"


def _webhook(target: Webhook) -> CustomWebhookNotificationBlock:
    # Only `secrets` is a secret field of this block: the address stands there, and a placeholder in its own field.
    secrets = {"url": require_http(target.url_env, _value(target.url_env))}
    headers = None
    if target.token_env is not None:
        secrets["token"] = _value(target.token_env)
        headers = {"Authorization": "Bearer {{ token }}"}
    return CustomWebhookNotificationBlock(
        name=target.label,
        url="{{ url }}",
        json_data={
            "text": "{{ subject }}\n{{ body }}",
            "subject": "{{ subject }}",
            "body": "{{ body }}",
            "source": "potstill",
        },
        headers=headers,
        cookies=None,
        secrets=SecretDict(secrets),
    )


def _slack_url(variable: str) -> str:
    url = require_http(variable, _value(variable))
    if urlsplit(url).hostname not in SLACK_HOSTS:
        raise UsageError(
            f"{variable} holds no address of Slack's (https://hooks.slack.com/services/…): for others write `to: webhook`"
        )
    return url


def _existing(slug: str) -> UUID:
    try:
        block = Block.load(slug)
    except ValueError:
        raise UsageError(f"the server has no block {slug!r}: make it in Prefect's UI under Blocks") from None
    if not isinstance(block, NotificationBlock):
        raise UsageError(f"block {slug!r} cannot notify: name a notification block")
    return cast("UUID", block._block_document_id)


def _value(variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UsageError(f"{variable} is not set: the alerts file names it, so set it for this command")
    return value
