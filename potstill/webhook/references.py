"""Files that a webhook names: opened only where the configuration allows it, whatever links and dots say."""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from potstill.errors import DataError, InboxError, NotAuthorisedError, PotstillError, UsageError

PATIENCE = {"connect_timeout": 5, "read_timeout": 15, "retries": {"max_attempts": 2}}
"""botocore's, in seconds: a sender waits for its answer."""
COPY_BYTES = 1024 * 1024
LOCAL_HOSTS = ("", "localhost")


class ReferenceReader:
    """Opens what lies under one of the prefixes. Errors: `UsageError` for a prefix that is no folder's address."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._folders: list[Path] = []
        self._buckets: list[str] = []
        for prefix in prefixes:
            parts = urlsplit(prefix)
            if parts.scheme == "file" and parts.netloc in LOCAL_HOSTS and parts.path.startswith("/"):
                self._folders.append(Path(unquote(parts.path)))
            elif parts.scheme == "s3" and parts.netloc and _is_plain(parts.path):
                self._buckets.append(f"{parts.netloc}{parts.path.rstrip('/')}/")
            else:
                raise UsageError(f"references.prefixes: {prefix}: write file:///folder/ or s3://bucket/folder/")

    @contextmanager
    def open(self, uri: str) -> Iterator[BinaryIO]:
        """The file behind an address.

        Errors: `NotAuthorisedError` outside the prefixes, whether or not a file is there; `DataError` where none is;
        `InboxError` where the store does not answer.
        """
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise _outside() from None
        if parts.scheme == "file" and parts.netloc in LOCAL_HOSTS and not parts.query and not parts.fragment:
            with self._open_file(unquote(parts.path)) as file:
                yield file
        elif parts.scheme == "s3" and not parts.query and not parts.fragment:
            with self._open_object(parts.netloc + parts.path) as file:
                yield file
        else:
            raise _outside()

    @contextmanager
    def _open_file(self, name: str) -> Iterator[BinaryIO]:
        if not name.startswith("/") or "\0" in name:
            raise _outside()
        path = _resolve(Path(name))
        self._check(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"the file cannot be read ({error.strerror})") from None
        try:
            self._check_opened(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        with os.fdopen(descriptor, "rb") as file:
            yield file

    def _check_opened(self, descriptor: int) -> None:
        link = Path(f"/proc/self/fd/{descriptor}")
        if link.is_symlink():  # a folder may have become a link since it was resolved
            self._check(link.readlink())
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError("the address is not a plain file's")

    def _check(self, path: Path) -> None:
        if not any(path.is_relative_to(_resolve(folder)) for folder in self._folders):
            raise _outside()

    @contextmanager
    def _open_object(self, path: str) -> Iterator[BinaryIO]:
        if not _is_plain(path) or not any(path.startswith(bucket) for bucket in self._buckets):
            raise _outside()
        import fsspec

        try:
            store = fsspec.filesystem("s3", config_kwargs=PATIENCE)
            with io.BufferedReader(cast("io.RawIOBase", store.open(path, "rb")), COPY_BYTES) as file:
                yield file
        except PotstillError:  # of what is in the file
            raise
        except ImportError:
            raise InboxError("s3:// needs the extra s3: pip install potstill[s3]") from None
        except (FileNotFoundError, IsADirectoryError):
            raise DataError("the object cannot be read (no such object)") from None
        except PermissionError:
            raise DataError("the object cannot be read (the store refuses)") from None
        except Exception as error:  # noqa: BLE001  botocore has its own tree, which depends on the store
            raise InboxError(f"the object store does not answer ({type(error).__name__})") from None


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that is too long
        raise _outside() from None


def _is_plain(path: str) -> bool:
    """Whether no part of a key would be read as another folder's, or as a pattern."""
    return not any(part in {".", ".."} for part in path.split("/")) and not set(path) & set("*?[]#\0")


def _outside() -> NotAuthorisedError:
    return NotAuthorisedError("the address is under none of the prefixes that the receiver's configuration allows")
