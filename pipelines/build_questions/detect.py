"""Which format rows are of, by their fields; and which fields of theirs a format does not read."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clara.data.streams import COMPRESSIONS, opened
from clara.errors import InputError
from pipelines.build_questions.published import plain_rows, whole_object
from pipelines.build_questions.row import Row, is_empty, near_miss
from pipelines.build_questions.stored_text import parsed

_NUM_SAMPLED = 100  # rows of a file that are looked at
_KINDS = {  # of a multi-hop question: the sets that have such
    "bridge": ("hotpotqa",),
    "compositional": ("2wiki",),
    "inference": ("2wiki",),
    "bridge_comparison": ("2wiki",),
}
_NESTED: tuple[tuple[str, set[str], type], ...] = (  # formats, their fields, and the type of the first in the alphabet
    ("kilt", {"input", "output"}, object),
    ("mrqa", {"context", "qas"}, str),
    ("mrqa", {"header"}, dict),
    ("bioasq", {"body", "snippets"}, str),
    ("bioasq", {"body", "exact_answer"}, str),
    ("bioasq", {"body", "ideal_answer"}, str),
    ("eli5", {"answers", "title", "q_id"}, dict),
    ("nq", {"annotations", "question_text"}, list),
)
MULTI_HOP = ("hotpotqa", "2wiki")
QUERIES_OR_CORPUS = ("beir", "msmarco", "cloze")


def formats_of(values: Any) -> tuple[str, ...]:
    """The formats that a row may be of; empty: none that is known."""
    if not isinstance(values, Mapping):
        return ()
    row = {name: parsed(value) for name, value in values.items() if value in ([], ()) or not is_empty(value)}
    asked = "question" in row
    if asked and isinstance(row.get("docs"), list):
        return ("clara",)
    if asked and "supporting_facts" in row and "context" in row:
        return _multi_hop(row)
    for format_, signs in (
        ("dpr", ("positive_ctxs", "positive_passages", *(("pos",) if "query" in row else ()))),
        ("fid", ("ctxs", "passages") if asked or "query" in row else ()),
        ("flashrag", ("golden_answers",) if asked else ()),
        ("popqa", ("possible_answers",) if asked else ()),
        ("triviaqa", ("Data",)),
    ):
        if any(sign in row for sign in signs):
            return (format_,)
    return _by_answer(row) if asked else _without_question(row)


def _by_answer(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "paragraphs" in row:
        return ("musique",)
    if "detected_answers" in row:  # a question of MRQA without the others of its context
        return ("mrqa",)
    if isinstance(row.get("context"), str) and isinstance(row.get("answers"), dict | list):
        return ("squad",)
    if isinstance(row.get("answer"), Mapping):
        return ("triviaqa",)
    if row.keys() == {"question", "answer"} and isinstance(row["answer"], list):
        return ("nq-open",)
    return ("jsonl",) if any(name in row for name in ("answers", "answer", "positive_ids")) else ()


def _multi_hop(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row.keys() & {"evidences", "evidences_id", "answer_id"}:
        return ("2wiki",)
    if "level" in row:
        return ("hotpotqa",)
    return _KINDS.get(str(row.get("type")), MULTI_HOP)


def _without_question(row: Mapping[str, Any]) -> tuple[str, ...]:
    articles = row.get("data") if isinstance(row.get("data"), list) else [row]
    if any(isinstance(article, Mapping) and "paragraphs" in article for article in articles or ()):
        return ("squad",)
    for format_, signs, kind in _NESTED:
        if signs <= row.keys() and isinstance(row[min(signs)], kind):
            return (format_,)
    if "Question" in row and "Answer" in row:
        return ("triviaqa",)
    if "query" in row:
        return ("beir",)
    if "text" in row:
        return ("cloze",) if "title" in row else QUERIES_OR_CORPUS
    return ()


def detect(files: Sequence[str], *, judged: bool) -> str:
    """The format of files, by the fields of their first rows.

    Args:
        files: of questions.
        judged: whether judgements are given apart.

    Raises:
        InputError: rows may be of several formats, or are of none that is known; or files differ.
    """
    found: set[tuple[str, ...]] = set()
    for path in files:
        for where, row in _sample(path):
            names = formats_of(row)
            if judged and ("beir" in names or names == ("jsonl",)):
                names = ("msmarco",) if _is_tsv(path) else ("beir",)
            if not names:
                fields = ", ".join(sorted(row)) if isinstance(row, Mapping) else f"{row!r:.60}"
                raise InputError(f"{where}: fields {fields} are of no format that is known; give --format")
            found.add(names)
    if not found:
        raise InputError(f"{', '.join(files)}: no row in it; give files of questions")
    common = set.intersection(*map(set, found))
    if len(common) == 1:
        return common.pop()
    possible = sorted(set(itertools.chain(*found)))
    raise InputError(
        f"{', '.join(files)}: rows may be of the formats {' and '.join(possible)}; say which with "
        + " or ".join(f"--format {name}" for name in possible)
        + (" (beir and msmarco with judgements: --qrels FILE)" if "beir" in possible else "")
    )


def _is_tsv(path: str) -> bool:
    stem, ending = os.path.splitext(path.lower())
    return (os.path.splitext(stem)[1] if ending in COMPRESSIONS else ending) == ".tsv"


def _sample(path: str) -> Iterator[tuple[str, Any]]:
    """The first rows of a file; a JSON object over several lines is one."""
    if _is_tsv(path):
        with opened(path) as stream:
            first = stream.readline().decode("utf-8", "replace")
        cells = first.rstrip("\r\n").split("\t")
        if len(cells) == 2 and "question" not in map(str.casefold, cells) and isinstance(parsed(cells[1]), str):
            yield f"{path}:1", {"qid": "", "query": cells[1]}
            return
    rows: list[tuple[str, Any]] = []
    try:
        rows = list(itertools.islice(plain_rows(path), _NUM_SAMPLED))
    except InputError:
        whole = whole_object(path)
        if whole is None:
            raise
        rows = [(path, whole)]
    yield from rows


def hint(values: Any, name: str) -> str:
    """What to add to the error of a row that looks like another format; empty: nothing."""
    other = formats_of(values)
    if not other or name in other or other == ("jsonl",):
        return ""
    return f"; the row looks like --format {' or '.join(other)}"


class FieldsOfRows:
    """Counts fields of rows that were not read, and suggests why.

    Attributes:
        num_rows: rows that have some.
    """

    def __init__(self, name: str) -> None:
        self._name, self.num_rows = name, 0
        self._unread: Counter[tuple[str, str]] = Counter()
        self._asked: set[tuple[str, str]] = set()
        self._held: set[tuple[str, str]] = set()
        self._others: dict[str, None] = {}

    def add(self, row: Row) -> None:
        """Count the fields of a row and of the objects inside it, which has been converted."""
        unread: dict[tuple[str, str], None] = {}  # each once a row
        inside = [inner for _, part in row.parts for inner in part.parts]
        for of, part in [("", row), *row.parts, *inside]:
            unread |= dict.fromkeys((of, name) for name in part.unread())
            self._held |= {(of, name) for name in part}
            self._asked |= {(of, name) for name in part.asked}
        if unread:
            self.num_rows += 1
            self._unread.update(list(unread))
            if self.num_rows == 1:
                values = {name: row.peek(name) for name in row}
                self._others = dict.fromkeys(n for n in formats_of(values) if n not in (self._name, "jsonl"))

    def report(self, num_rows: int) -> str:
        """The fields in one line."""
        names = {(of, name): f"{of}.{name}" if of else name for of, name in self._unread}
        text = (
            f"{', '.join(f'`{shown}`' for shown in names.values())} {'are' if len(names) > 1 else 'is'} not read by "
            f"--format {self._name} ({self.num_rows} of {num_rows} rows)"
        )
        for (of, name), shown in names.items():
            near = near_miss(name, (other for place, other in self._asked if place == of))
            if near and (of, near) not in self._held:
                text += f"; is `{shown}` meant to be `{near}`?"
        if self._others:
            text += f"; the rows look like --format {' or '.join(self._others)}"
        return text
