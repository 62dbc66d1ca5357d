"""The split: a keyed hash of the group decides, so that a prompt never moves when others arrive."""

import hashlib
import hmac

from potstill.recipe import Curation
from potstill.records import Split


def assign_split(group_id: str, config: Curation) -> Split:
    """train, validation or test, by where HMAC-SHA256(split_key, group) falls in [0, 1)."""
    digest = hmac.digest(config.split_key.encode(), group_id.encode(), hashlib.sha256)
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < config.test_fraction:
        return "test"
    if position < config.test_fraction + config.validation_fraction:
        return "validation"
    return "train"
