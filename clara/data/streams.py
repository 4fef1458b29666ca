"""The bytes of an input file: decompressed, and text in UTF-16 or UTF-32 as UTF-8."""

import bz2
import codecs
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
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

DAMAGE = (OSError, EOFError, lzma.LZMAError, pa.ArrowException, zlib.error, zstandard.ZstdError)
"""What reading a damaged file raises."""

_BLOCK_BYTES = 2**12  # of compressed data, which may be many times as long
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz"}
_MARKS = (  # the longer ones first, as one begins with another
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD_BYTES = 512
_READERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj(),
}
"""What unpacks one member of a file, by compression."""
_OTHERS = {
    (0, b"PK\x03\x04"): ("a zip archive or a spreadsheet", "unpack it, or export CSV"),
    (0, b"7z\xbc\xaf\x27\x1c"): ("a 7z archive", "unpack it"),
    (0, b"Rar!\x1a\x07"): ("a RAR archive", "unpack it"),
    (257, b"ustar"): ("a tar archive", "unpack it with tar -x"),
    (0, b"\x04\x22\x4d\x18"): ("packed by LZ4", "unpack it with lz4 -d"),
    (0, b"\x1f\x9d"): ("packed by compress", "unpack it with uncompress"),
    (0, b"ARROW1\0\0"): ("an Arrow file", "write it as Parquet, as Dataset.to_parquet does"),
    (0, b"\xff\xff\xff\xff"): ("an Arrow stream", "write it as Parquet, as Dataset.to_parquet does"),
    (0, b"Obj\x01"): ("an Avro file", "write it as Parquet or JSON Lines"),
    (0, b"SQLite format 3\0"): ("an SQLite database", "export its table as CSV"),
    (0, b"version https://git-lfs"): ("a pointer of Git LFS and no data", "fetch its content with git lfs pull"),
    (0, b"%PDF-"): ("a PDF", "extract its text"),
    (0, b"\xd0\xcf\x11\xe0"): ("an old document of Office", "export text or CSV"),
}
"""Contents that are not read, by place and first bytes: what they are, and what to do."""


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


def _blocks(packed: IO[bytes], compression: str) -> Iterator[bytes]:
    """The content of all members of a file. Zeros after a member are padding.

    Not the readers of Python and zstandard, for which a zstd frame that is cut short simply ends, nor Arrow's, whose
    window has 128 MiB at most and which loses what comes before damage.

    Raises:
        EOFError: the last member is cut short.
        zstandard.ZstdError: damaged, or a larger window than `ZSTD_WINDOW_BYTES`; others of `DAMAGE` for other
            compressions.
    """
    member: Any = None
    ended, data = True, b""
    while data := data or packed.read(_BLOCK_BYTES):
        if ended:
            if member is not None and not (data := data.lstrip(b"\0")):
                continue
            member = _READERS[compression]()
        yield member.decompress(data)
        ended, data = member.eof, member.unused_data
    if not ended:
        raise EOFError(f"the file ends inside a {compression} member")


def decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    """A stream's content; empty: it is not compressed. Files of several parts are read to the end of the last one.

    Content that is compressed again is unpacked again.
    """
    while compression:
        stream = io.BufferedReader(_Blocks(_blocks(raw, compression)))
        raw, compression = stream, _compression_by_magic(stream.peek(_HEAD_BYTES))
    return raw


def _compression_by_magic(head: bytes) -> str:
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def refuse_other(path: str, head: bytes) -> None:
    """Refuse a file by the first bytes of its content: archives and binary formats that are not read.

    Raises:
        InputError: the file is an archive or in a binary format that is not read.
    """
    for (place, magic), (what, remedy) in _OTHERS.items():
        if head[place:].startswith(magic):
            raise InputError(f"{path}: {what}, which is not read; {remedy}, and give the result")


def compression_of(path: str, head: bytes) -> str:
    """The compression of a file by its first bytes; by the ending of its name if they belong to none.

    A file that a browser has unpacked while it kept its name begins with text, and is not compressed.
    """
    found = _compression_by_magic(head)
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
                content: Any = stream
                refuse_other(os.fspath(path), content.peek(_HEAD_BYTES))
                yield stream
    except (*DAMAGE, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError) and not error.encoding.startswith(("utf-16", "utf-32")):
            raise
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
