"""Which files a user's paths and globs name."""

import glob
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence

from clara.errors import InputError
from clara.storage.bucket import url_glob
from clara.storage.cache import local_file
from clara.storage.folders import sha256_file
from clara.storage.paths import is_url

_LOG = logging.getLogger(__name__)
_WILD = re.compile(r"[*?\[]")
_NO_DATA = re.compile(
    r"readme([-_.].*)?[.](md|txt|rst|html)|(readme|license|licence|copying|notice|citation)([.](md|txt|rst|cff))?"
    r"|.*[.](crc|md5|sha1|sha256|sha512)|(md5|sha1|sha256|sha512)sums?([.]txt)?|.*_[$]folder[$]|thumbs[.]db|desktop[.]ini"
    r"|dataset_(info|infos|dict)[.]json|state[.]json",
    re.IGNORECASE,
)
"""Names of files beside data: descriptions, checksums, a store's markers of folders, what the
library `datasets` writes."""
_SHARD = re.compile(r"(?P<stem>.*)[-.](?P<number>\d{1,6})-of-(?P<of>\d{1,6})(?P<end>[^/]*)")
_NUM_SHOWN = 5


def expand(patterns: Sequence[str], option: str = "--input") -> list[str]:
    """The files and URLs that paths and globs name, sorted, each once; see `matches`.

    Raises:
        InputError: a pattern names none, or something that is no file.
    """
    return sorted({path for pattern in patterns for path in matches(pattern, option)})


def matches(pattern: str, option: str = "--input") -> list[str]:
    """The files that a path or glob names.

    A path that is there is that file, whatever characters it has. Of the files that a glob matches, those that are no
    data are left out and reported: hidden ones, names that begin with `_`, READMEs, checksums, markers of folders.

    Raises:
        InputError: it names none, or something that is no file, as a pipe.
    """
    if is_url(pattern):
        return without_other_files(pattern, url_glob(pattern), option)
    for given in dict.fromkeys((pattern, os.path.expandvars(os.path.expanduser(pattern)))):
        if os.path.lexists(given) and not os.path.isdir(given):
            return [_checked(given, option)]
        found = [path for path in sorted(_glob(given)) if not os.path.isdir(path)]
        if found:
            return [_checked(path, option) for path in without_other_files(given, found, option)]
        if os.path.isdir(given):
            raise InputError(
                f"{option} {pattern!r}: a directory; give the files in it, as '{pattern.rstrip('/')}/*', quoted"
            )
    raise InputError(f"{option} {pattern!r}: no such file; give a file or a quoted glob, as 'corpus/*.jsonl'")


def _glob(pattern: str) -> list[str]:
    """The paths that a glob matches, hidden ones too; leading folders that exist are no patterns."""
    parts, literal = pattern.split(os.sep), 0
    while literal < len(parts) and os.path.lexists(os.sep.join(parts[: literal + 1]) or os.sep):
        literal += 1
    escaped = [glob.escape(part) for part in parts[:literal]]
    return glob.glob(os.sep.join(escaped + parts[literal:]), recursive=True, include_hidden=True)


def _checked(path: str, option: str) -> str:
    """A path that is a file.

    Raises:
        InputError: it is something else: a pipe can be read once and by this process only, but files are read several
            times and by several processes.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{option} {path!r}: cannot be read ({error}); correct the path") from error
    if not stat.S_ISREG(mode) or os.path.abspath(path).startswith(("/dev/", "/proc/")):
        raise InputError(
            f"{option} {path!r}: a pipe or device, no file; write its content to a file, and give that file"
        )
    return path


def without_other_files(pattern: str, found: Sequence[str], option: str) -> list[str]:
    """The matches of a glob that may be data; the others are reported.

    Raises:
        InputError: the glob matches files, but none that may be data.
    """
    kept = [path for path in found if not _WILD.search(pattern) or _may_be_data(path, pattern)]
    kept = [path for path in kept if not _WILD.search(pattern) or not _is_queries_beside_corpus(path, kept)]
    _report_missing_shards(pattern, kept, option)
    left_out = [path for path in found if path not in set(kept)]
    if left_out:
        shown = ", ".join(left_out[:_NUM_SHOWN]) + (" …" if len(left_out) > _NUM_SHOWN else "")
        message = f"{option} {pattern}: {len(left_out)} matching files are no data by their names: {shown}"
        if not kept:
            raise InputError(f"{message}; give the name of one without * to read it all the same")
        _LOG.warning("%s; they are not read", message)
    return kept


def _is_queries_beside_corpus(path: str, found: Sequence[str]) -> bool:
    """Whether a file is the queries of a folder as BEIR publishes them, whose `corpus.jsonl` is matched too."""
    folder, _, name = path.rpartition("/")
    beside = f"{folder}/corpus" if folder else "corpus"
    return name.startswith("queries.jsonl") and any(other.startswith(f"{beside}.jsonl") for other in found)


def _report_missing_shards(pattern: str, found: Sequence[str], option: str) -> None:
    """Warn of files that are missing by their names, as `train-00001-of-00002.parquet`."""
    shards: dict[tuple[str, int, str], set[int]] = {}
    for path in found:
        if match := _SHARD.fullmatch(path):
            shards.setdefault((match["stem"], int(match["of"]), match["end"]), set()).add(int(match["number"]))
    for (stem, of, end), numbers in shards.items():
        first = min(0 if 0 in numbers else 1, *numbers)
        if _WILD.search(pattern) and len(numbers) < of and (lacking := set(range(first, first + of)) - numbers):
            _LOG.warning(
                "%s %s: %d of %d files %s-…-of-%d%s are there; number %d is the first that is missing",
                *(option, pattern, len(numbers), of, stem, of, end, min(lacking)),
            )


def _may_be_data(path: str, pattern: str) -> bool:
    """False for the name of a file beside data, or a hidden name, that the pattern itself does not give."""
    asked, parts = pattern.split("/"), path.split("/")
    fixed = next(number for number, part in enumerate(asked) if _WILD.search(part))
    begins = {part[:1] for part in asked[fixed:]}
    hidden = any(part[:1] in ("_", ".") and part[:1] not in begins for part in parts[fixed:])
    beside = _NO_DATA.fullmatch(parts[-1]) and _WILD.search(asked[-1])
    return bool(parts[-1]) and not hidden and not beside


def input_hashes(files: Iterable[str]) -> dict[str, str]:
    """File name to sha256, for a recipe; the whole path where two files in different folders have one name."""
    files = list(files)
    same = Counter(os.path.basename(f) for f in files)
    return {f if same[name] > 1 else name: sha256_file(local_file(f)) for f in files for name in [os.path.basename(f)]}
