"""What several machines share: objects in a bucket of S3-compatible storage, named by `POTSTILL_STORE`.

Reached through fsspec (s3fs); keys, region and endpoint come from the usual AWS variables and files. One object is read and
replaced whole. A conditional PUT takes the place of a lock: of two that replace the same object, one is refused.
"""

import os
import re
import uuid
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from potstill.errors import NotAuthorisedError, StoreUnreachableError, UsageError

if TYPE_CHECKING:
    from s3fs import S3FileSystem

STORE_VARIABLE = "POTSTILL_STORE"
ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[^?#]*))?")
PROBE = "conditional-put"
"""An object that is only there to see a conditional PUT refused."""

REFUSED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "NoSuchKey"})
"""What a conditional PUT is answered where the object is no longer what it was."""
NOT_ALLOWED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"})

SETTINGS = {
    "retries": {"mode": "standard", "total_max_attempts": 4},
    "connect_timeout": 5,
    "read_timeout": 60,
}
"""Of botocore, which asks again by itself: what fails here has failed for some seconds."""

T = TypeVar("T")


class Blob(NamedTuple):
    """A small object, read whole."""

    content: bytes
    etag: str
    """What a later `replace` proves by that the object is still this one."""


class ObjectStore:
    """The objects below one address.

    Errors of every call: `UsageError` (no such bucket), `NotAuthorisedError` (keys missing or refused),
    `StoreUnreachableError` (no answer, after retries).
    """

    def __init__(self, address: str) -> None:
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise UsageError(
                f"{STORE_VARIABLE}={address}: not an address of a bucket: write s3://BUCKET or s3://BUCKET/PREFIX, or "
                "unset it to keep everything in POTSTILL_HOME"
            )
        self.address = address.rstrip("/")
        self._bucket = match["bucket"]
        self._prefix = f"{match['prefix'].strip('/')}/" if match["prefix"] and match["prefix"].strip("/") else ""
        self._fs = file_system()
        self._honours_conditions = False

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    def read(self, name: str) -> Blob | None:
        """A small object; None where there is none."""
        from fsspec.asyn import sync

        def get() -> Blob:
            answer: Any = self._fs.call_s3("get_object", Bucket=self._bucket, Key=self._key(name))
            content: Any = sync(self._fs.loop, answer["Body"].read)
            return Blob(content, answer["ETag"])

        try:
            return self._do(get)
        except _NoSuchObject:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Put an object there, whatever was there before."""
        self._store(lambda: self._put(name, content))

    def replace(self, name: str, content: bytes, etag: str | None) -> bool:
        """Put an object in the place of the one that had `etag`; None: in the place of none. False where it is another's.

        A request that was sent twice, because its first answer got lost, finds its own object there: that is a success.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            self._do(lambda: self._put(name, content, **condition))
        except _Refused as refused:
            if etag is None and isinstance(refused, _NoSuchObject):
                raise self._unreachable("404 to a PUT") from refused
            found = self.read(name)
            return found is not None and found.content == content
        return True

    def upload(self, path: Path, name: str) -> None:
        """Copy a file there; a large one in parts, which become one object at the end."""
        self._store(lambda: self._fs.put_file(str(path), f"{self._bucket}/{self._key(name)}"))

    def download(self, name: str, path: Path) -> bool:
        """Copy an object into a file; False where there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._do(lambda: self._fs.get_file(f"{self._bucket}/{self._key(name)}", str(path)))
        except _NoSuchObject:
            return False
        return True

    def names(self, below: str) -> dict[str, datetime]:
        """The objects whose names start with `below/`, and when each was written."""
        root = f"{self._bucket}/{self._prefix}"
        try:
            found: Any = self._do(lambda: self._fs.find(f"{root}{below}", detail=True))
        except _NoSuchObject:
            return {}
        return {path.removeprefix(root): entry["LastModified"] for path, entry in found.items()}

    def require_conditions(self) -> None:
        """See that the server refuses a PUT whose condition does not hold; one that ignores it would lose moves.

        Errors: `UsageError` where it does not.
        """
        if self._honours_conditions:
            return
        self.replace(PROBE, b"", None)
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": f'"{uuid.uuid4().hex}"'}):
            try:
                self._do(lambda condition=condition: self._put(PROBE, b"", **condition))
            except _Refused:
                continue
            raise UsageError(
                f"{STORE_VARIABLE}={self.address}: this server ignores {next(iter(condition))} on PUT, so two releases at "
                "once could undo each other: use a store that honours it (docs/store.md names some)"
            )
        self._honours_conditions = True

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _put(self, name: str, content: bytes, **condition: str) -> None:
        self._fs.call_s3("put_object", Bucket=self._bucket, Key=self._key(name), Body=content, **condition)

    def _store(self, call: Callable[[], None]) -> None:
        try:
            self._do(call)
        except _Refused as refused:
            raise self._unreachable(f"{refused} to a PUT") from refused

    def _do(self, call: Callable[[], T]) -> T:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call()
        except (OSError, BotoCoreError, ClientError) as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> Exception:
        """What an error of the library means here; the two private ones never leave this module."""
        from botocore.exceptions import NoCredentialsError, PartialCredentialsError

        cause = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
        code = str(cause.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            return UsageError(f"{STORE_VARIABLE}={self.address}: there is no bucket {self._bucket}: create it first")
        if code in NOT_ALLOWED or isinstance(error, (PermissionError, NoCredentialsError, PartialCredentialsError)):
            return NotAuthorisedError(
                f"{STORE_VARIABLE}={self.address}: {error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or "
                "AWS_PROFILE) to keys that may read, write and list there"
            )
        if code in REFUSED and code != "NoSuchKey":
            return _Refused(code)
        if code == "NoSuchKey" or isinstance(error, FileNotFoundError):
            return _NoSuchObject(code)
        return self._unreachable(error)

    def _unreachable(self, said: object) -> StoreUnreachableError:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        return StoreUnreachableError(
            f"{STORE_VARIABLE}={self.address} (endpoint {endpoint}) does not answer as it should: {said}: run the same "
            "again once it does; what is finished stays"
        )


class _Refused(Exception):  # noqa: N818 - a signal of this module, no error of the tree
    """The condition of a PUT does not hold."""


class _NoSuchObject(_Refused):
    """There is no object of this name."""


def open_remote() -> ObjectStore | None:
    """The store that `POTSTILL_STORE` names; None where everything is kept in `POTSTILL_HOME`.

    Errors: `UsageError` where it names no bucket, or s3fs is not installed.
    """
    address = os.environ.get(STORE_VARIABLE)
    return _opened(address, os.getpid()) if address else None


@lru_cache(maxsize=8)
def _opened(address: str, _pid: int) -> ObjectStore:
    """One a process: a fork has no thread that would do what its parent's store asks for."""
    return ObjectStore(address)


def file_system(needed_for: str = STORE_VARIABLE) -> "S3FileSystem":
    """S3 as all of Potstill reaches it. Errors: `UsageError` where s3fs is not installed."""
    try:
        from s3fs import S3FileSystem
    except ImportError:
        raise UsageError(f"{needed_for} needs s3fs, which is not installed: pip install 'potstill[s3]'") from None
    found = S3FileSystem(use_listings_cache=False, skip_instance_cache=True, config_kwargs=SETTINGS)
    found.retries = 2  # times botocore's own, and once for a download that breaks off
    return found
