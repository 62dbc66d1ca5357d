"""Inputs in a bucket of S3-compatible storage, read where they lie. Keys, region and endpoint come from the usual AWS variables."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from potstill.errors import DataError, NotAuthorisedError, StoreUnreachableError
from potstill.object_store import file_system

SCHEME = "s3://"
BLOCK_BYTES = 8 * 1024 * 1024
_MAGIC = re.compile(r"[*?[]")


class FoundObject(NamedTuple):
    address: str
    num_bytes: int
    etag: str


def is_address(pattern: str) -> bool:
    """Whether an input lies in a bucket."""
    return pattern.startswith(SCHEME)


def find_objects(pattern: str) -> list[FoundObject]:
    """The objects of an address, a glob, or a prefix that stands for all below it.

    Errors: `NotAuthorisedError`, `StoreUnreachableError`; `UsageError` where s3fs is not installed.
    """
    files = file_system("s3:// inputs")
    path = pattern.removeprefix(SCHEME)
    with _told(pattern):
        if _MAGIC.search(path):
            listed: Any = files.glob(path, detail=True)
        else:
            listed = files.find(path.rstrip("/"), detail=True)
    return [
        FoundObject(f"{SCHEME}{name}", int(entry["size"]), str(entry["ETag"]).strip('"'))
        for name, entry in listed.items()
        if entry["type"] == "file" and not name.rpartition("/")[2].startswith(".")
    ]


@contextmanager
def open_object(address: str) -> Iterator[BinaryIO]:
    """An object to read; one that is replaced meanwhile is noticed by the store, and breaks off."""
    files = file_system("s3:// inputs")
    with _told(address), files.open(address.removeprefix(SCHEME), "rb", block_size=BLOCK_BYTES) as file:
        yield cast("BinaryIO", file)


@contextmanager
def _told(address: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except FileNotFoundError:
        raise DataError(f"input {address}: no such object or bucket") from None
    except (PermissionError, NoCredentialsError, PartialCredentialsError) as error:
        raise NotAuthorisedError(
            f"input {address}: {error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) to keys that may "
            "read and list there"
        ) from None
    except (OSError, BotoCoreError, ClientError) as error:
        raise StoreUnreachableError(
            f"input {address}: the store does not answer as it should: {error}: run the same again once it does"
        ) from error
