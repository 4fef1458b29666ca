"""Input files on this machine, or at URLs of Beam's file systems (Beam is imported only for URLs)."""

import os
from typing import IO, TYPE_CHECKING

from clara.data.input_files import matches, without_other_files
from clara.errors import InputError
from clara.storage.bucket import require_credentials
from clara.storage.paths import is_url
from clara.storage.retry import with_deadline

if TYPE_CHECKING:
    from apache_beam.io.filesystems import FileSystems


def _file_systems() -> "type[FileSystems]":
    """Beam's file systems with the job's options; a local run without any uses what the environment says.

    Workers of Beam have the job's options as runtime options, which `set_options` would hide.
    """
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.options.value_provider import RuntimeValueProvider

    if FileSystems._pipeline_options is None and RuntimeValueProvider.runtime_options is None:
        FileSystems.set_options(PipelineOptions([]))
    return FileSystems


def open_file(path: str) -> IO[bytes]:
    """A file as it is stored, compressed or not.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_url(path):
        return open(path, "rb")
    from apache_beam.io.filesystem import CompressionTypes

    stream: IO[bytes] = _file_systems().open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return stream


def exists(path: str) -> bool:
    """Whether there is such a file."""
    if not is_url(path):
        return os.path.exists(path)
    return bool(_file_systems().exists(path))


def list_files(pattern: str) -> list[str]:
    """The files that a path or glob names, see `matches`, or URLs.

    Raises:
        InputError: there is none, or something that is no file; or the store cannot be listed.
    """
    if not is_url(pattern):
        return matches(pattern)
    from apache_beam.io.filesystem import BeamIOError

    file_systems = _file_systems()

    def match() -> list[str]:
        require_credentials(pattern)
        return [entry.path for entry in file_systems.match([pattern])[0].metadata_list]

    try:
        found = with_deadline(f"--input {pattern}", match)
    except (BeamIOError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--input {pattern!r}: cannot be listed ({error}); correct the path, or install Beam's extra for this kind"
        ) from error
    if not found:
        raise InputError(f"--input {pattern!r}: no such file; give a file or a quoted glob, as 'corpus/*.jsonl'")
    return without_other_files(pattern, found, "--input")


def size_and_change(url: str) -> tuple[int, float]:
    """Size of a file at a URL in bytes, and time of its last change in seconds since the epoch."""
    entry = _file_systems().match([url])[0].metadata_list[0]
    return entry.size_in_bytes, entry.last_updated_in_seconds
