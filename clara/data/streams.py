"""The bytes of an input file: decompressed, and text in UTF-16 or UTF-32 as UTF-8."""

import codecs
import io
import lzma
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import zstandard

from clara.errors import InputError
from clara.storage.cache import local_file

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz"}
"""Compression of a file by the ending of its name."""
ZSTD_WINDOW_BYTES = 2**31
"""Largest window of a zstd file, that of `zstd --long=31`; reading one takes as much memory."""

DAMAGE = (OSError, EOFError, lzma.LZMAError, pa.ArrowException, zstandard.ZstdError)
"""What reading a damaged file raises."""

_BLOCK_BYTES = 2**12  # of compressed data, which may be many times as long
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz"}
_MARKS = (  # the longer ones first, as one begins with another
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD_BYTES = 256


class _Blocks(io.RawIOBase):
    """A readable stream of an iterator's blocks."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _zstd_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    """The content of all frames of a file.

    Not zstandard's own stream reader, for which a frame that is cut short simply ends, nor Arrow's, whose window has
    128 MiB at most.

    Raises:
        EOFError: the last frame is cut short.
        zstandard.ZstdError: damaged, or a larger window than `ZSTD_WINDOW_BYTES`.
    """
    frame, ended, data = None, True, b""
    while data := data or raw.read(_BLOCK_BYTES):
        if frame is None or ended:
            frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
        yield frame.decompress(data)
        ended, data = frame.eof, frame.unused_data
    if not ended:
        raise EOFError("the file ends inside a zstd frame")


def decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    """A stream's content; empty: it is not compressed. Files of several parts are read to the end of the last one."""
    if compression == "xz":  # which Arrow has not
        return lzma.LZMAFile(raw)
    if compression == "zstd":
        return io.BufferedReader(_Blocks(_zstd_blocks(raw)))
    return (
        io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)) if compression else raw
    )


def compression_of(path: str, head: bytes) -> str:
    """The compression of a file by its first bytes; by the ending of its name if they belong to none.

    A file that a browser has unpacked while it kept its name begins with text, and is not compressed.
    """
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
    named = COMPRESSIONS.get(os.path.splitext(path.lower())[1], "")
    if found or not named:
        return found
    try:
        text = codecs.getincrementaldecoder(_encoding_of(head) or "utf-8")().decode(head)
    except UnicodeDecodeError:
        return named
    return "" if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[", "<") and "\0" not in text else named


def _encoding_of(head: bytes) -> str:
    """UTF-16 or UTF-32 if a byte order mark or the zeros of Latin letters show it; empty: UTF-8, or unknown."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    zeros = bytes(byte == 0 for byte in head[:4])
    return {b"\0\1\0\1": "utf-16-le", b"\1\0\1\0": "utf-16-be"}.get(zeros, "")


def _transcoded(stream: IO[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    while block := stream.read(_BLOCK_BYTES):
        yield decoder.decode(block).encode()
    yield decoder.decode(b"", final=True).encode()


def as_utf8(stream: IO[bytes]) -> IO[bytes]:
    """A stream of text as UTF-8, where its first bytes show that it is UTF-16 or UTF-32; with a `peek`.

    Reading may raise UnicodeDecodeError or UnicodeEncodeError then.
    """
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    encoding = _encoding_of(buffered.peek(_HEAD_BYTES)[:_HEAD_BYTES])
    return io.BufferedReader(_Blocks(_transcoded(buffered, encoding))) if encoding else buffered


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The content of a file, or of a URL's copy on this machine, decompressed.

    Raises:
        InputError: it is not there, or damaged anywhere that is read inside.
    """
    try:
        with open(local_file(path), "rb") as raw:
            compression = compression_of(os.fspath(path), raw.peek(_HEAD_BYTES)[:_HEAD_BYTES])
            with decompressed(raw, compression) as stream:
                yield stream
    except DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read to its end ({unreadable(error)}); correct the path, or copy the file again"
        ) from error


def unreadable(error: BaseException) -> str:
    """Why a file that raised one of `DAMAGE` could not be read to its end: a window that is too large is no damage."""
    if "too much memory" in str(error):
        return (
            f"packed with a larger window than {ZSTD_WINDOW_BYTES} bytes ({error}); unpack it with "
            "zstd -d --memory=4GB, and pack it without --ultra and --long"
        )
    return f"{type(error).__name__}: {' '.join(str(error).split())}"  # Arrow's messages have several lines
