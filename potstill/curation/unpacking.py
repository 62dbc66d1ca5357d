"""Packed files as raw streams that give all they can before they say that they break off."""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

GZIP_WINDOW = 16 + zlib.MAX_WBITS


class Borrowed(io.RawIOBase):
    """A file of somebody else's: closing this one leaves it open. What reading it failed with is kept in `failure`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        try:
            piece = self._file.read(len(buffer))
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(piece)] = piece
        return len(piece)


class Packing(NamedTuple):
    name: str
    start: Callable[[], Any]
    """A decompressor of one member, as `zlib.decompressobj` makes them."""
    error: Callable[[], type[Exception]]
    chunk_bytes: int
    """Unpacked at once: what it may become is held in memory, a thousandfold and more."""


class Unpacked(io.RawIOBase):
    """What is in a file that gzip or Zstandard has packed, member by member.

    Errors, when read: `EOFError` where it is cut off, `OSError` where it is damaged. All that stands before is given first,
    which the standard library's reader of gzip does not do.
    """

    def __init__(self, file: IO[bytes], packing: Packing) -> None:
        self._file = file
        self._packing = packing
        self._member: Any = None
        """None between two members."""
        self._unpacked = b""
        self._failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._unpacked:
            if self._failure is not None:
                raise self._failure
            packed = self._file.read(self._packing.chunk_bytes)
            if not packed and self._member is not None:
                raise EOFError(f"it ends within its {self._packing.name} data")
            if not packed:
                return 0
            self._unpacked = b"".join(self._unpack(packed))
        piece, self._unpacked = self._unpacked[: len(buffer)], self._unpacked[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def _unpack(self, packed: bytes) -> Iterator[bytes]:
        while packed:
            if self._member is None:
                packed = packed.lstrip(b"\0")  # a tape's padding
                self._member = self._packing.start() if packed else None
                continue
            try:
                yield self._member.decompress(packed)
            except self._packing.error() as error:
                self._failure = OSError(f"its {self._packing.name} data are damaged: {error}")
                return
            packed = self._member.unused_data if self._member.eof else b""
            if self._member.eof:
                self._member = None


def _zstandard() -> Any:
    from zstandard import ZstdDecompressor

    return ZstdDecompressor().decompressobj()


def _zstandard_error() -> type[Exception]:
    from zstandard import ZstdError

    return ZstdError


GZIP = Packing("gzip", lambda: zlib.decompressobj(GZIP_WINDOW), lambda: zlib.error, 64 * 1024)
ZSTANDARD = Packing("Zstandard", _zstandard, _zstandard_error, 8 * 1024)
