"""A row of a question file: its fields in the types that files store them as, and which of them were read."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clara.data.ids import spelt_id
from clara.data.records import normalise
from clara.errors import InputError
from pipelines.build_questions.stored_text import parsed

_NAMES_OF_ID = ("_id", "id", "question_id", "query_id", "qid")
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
_NEAR = 0.8  # similarity of two names of a field that may be meant for each other


class Row(Mapping[str, Any]):
    """An object of a file. Looking a field up notes its name, so that those that nothing reads can be reported.

    Attributes:
        where: file and line, for messages.
        asked: names that were looked up, whether the row has them or not.
        parts: objects inside it, as its passages, with the name of their field.
    """

    def __init__(self, values: Any, where: str, sign: str = "") -> None:
        """A row of an object; `sign` names a field that it should have, for error messages.

        Raises:
            InputError: the value is not an object.
        """
        if not isinstance(values, Mapping):
            wanted = f" with {sign!r}" if sign else ""
            raise InputError(f"{where}: {values!r:.80} where an object{wanted} is expected; is --format right?")
        self._values: Mapping[str, Any] = values._values if isinstance(values, Row) else values
        self.where = where
        self.asked: set[str] = set()
        self.parts: list[tuple[str, Row]] = []

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return name in self._values

    def __repr__(self) -> str:
        return repr(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def part(self, name: str, values: Any, where: str) -> "Row":
        """An object inside a field, whose fields are noted too.

        Raises:
            InputError: the value is not an object.
        """
        found = Row(values, where)
        self.parts.append((name, found))
        return found

    def peek(self, name: str) -> Any:
        """A field without a note that it was read; None where there is none."""
        return self._values.get(name)

    def name_of(self, names: Iterable[str]) -> str:
        """The first of some names under which there is something; empty: there is none."""
        return next((name for name in names if not is_empty(self.get(name))), "")

    def unread(self) -> list[str]:
        """Names of the fields that hold something and were not looked up."""
        return [name for name, value in self._values.items() if name not in self.asked and not is_empty(value)]


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, NaN, or nothing in it."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ("", b"", [], {}, ())


def near_miss(name: str, known: Iterable[str]) -> str:
    """The known name that an unknown one may be meant for; empty: there is none."""
    plain = {_plain(other): other for other in sorted(known, reverse=True)}
    found = difflib.get_close_matches(_plain(name), plain, 1, _NEAR)
    return plain[found[0]] if found else ""


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


# --- values ----------------------------------------------------------------------------------------------------------


def field(row: Row, name: str, kind: type, where: str = "") -> Any:
    """A field of a row; a list or an object may be stored as text, a text as bytes.

    Raises:
        InputError: it is missing or of another type.
    """
    where = where or row.where
    if name not in row:
        near = near_miss(name, row)
        raise InputError(
            f"{where}: no field {name!r} (there are {', '.join(sorted(row)) or 'none'}); "
            f"{f'did you mean {near!r}?' if near else 'is --format right?'}"
        )
    value = row[name]
    if kind is str and isinstance(value, bytes):
        return text_of(value, name, where)
    value = parsed(value) if kind in (list, dict) else value
    if not isinstance(value, kind):
        raise InputError(f"{where}: {name} is {row[name]!r:.80}; expected {kind.__name__}")
    return value


def text_of(value: Any, name: str, where: str) -> str:
    """A text, normalised; bytes are UTF-8, and a whole number its digits.

    Raises:
        InputError: the value is not a text.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: {name} is {value!r:.80}, not UTF-8 ({error}); convert it") from error
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} is {value!r:.80}; expected a string")
    return normalise(value)


def texts(values: Any, name: str, where: str) -> tuple[str, ...]:
    """A list of strings, normalised, each once, empty ones left out.

    Raises:
        InputError: the value is not a list of strings.
    """
    found = parsed(values)
    if not isinstance(found, list | tuple) or not all(isinstance(v, str | bytes) for v in found):
        raise InputError(f"{where}: {name} is {values!r:.80}; expected a list of strings")
    return tuple(dict.fromkeys(t for v in found if (t := text_of(v, name, where))))


def ids(values: Any, name: str, where: str) -> tuple[str, ...]:
    """Document ids as a corpus has them, where they may be integers; each once.

    Raises:
        InputError: not a list of ids.
    """
    found = parsed(values)
    if not isinstance(found, list | tuple):
        raise InputError(
            f"{where}: {name} is {values!r:.80}; expected a list of document ids, strings or integers as in the corpus"
        )
    try:
        return tuple(dict.fromkeys(spelt for v in found if (spelt := spelt_id(v))))
    except ValueError as error:
        raise InputError(f"{where}: {name}: {error}, as in the corpus") from error


def truth(value: Any, name: str, where: str) -> bool:
    """A boolean, perhaps as a number or a word.

    Raises:
        InputError: the value is not a boolean.
    """
    spelt = str(int(value) if isinstance(value, float) and value in (0, 1) else value).strip().casefold()
    if is_empty(value):
        return False
    if spelt not in _TRUTH:
        raise InputError(f"{where}: {name} is {value!r:.80}; expected true or false")
    return _TRUTH[spelt]


def whole_numbers(value: Any, name: str, where: str) -> list[int]:
    """A list of whole numbers or one of them, perhaps as text or as floats.

    Raises:
        InputError: the value is not a list of whole numbers.
    """
    found = parsed(value)
    items = found if isinstance(found, list | tuple) else [found]
    try:
        return [int(spelt_id(item)) for item in items]
    except ValueError as error:
        raise InputError(f"{where}: {name} is {value!r:.80}; expected whole numbers") from error


def objects(value: Any, name: str, where: str, sign: str = "") -> list[Row]:
    """A list of objects, which may be stored as columns, `{"title": [...], ...}`, or as text; for `sign` see `Row`.

    Raises:
        InputError: the value is not a list of objects, or its columns have different lengths.
    """
    found = parsed(value)
    if isinstance(found, Mapping):
        columns = {column: parsed(values) for column, values in found.items()}
        if not all(isinstance(values, list | tuple) for values in columns.values()):
            raise InputError(f"{where}: {name} is {value!r:.80}; expected a list of objects, or an object of lists")
        same_length(columns, name, where)
        found = [dict(zip(columns, entry, strict=True)) for entry in zip(*columns.values(), strict=True)]
    if not isinstance(found, list | tuple):
        raise InputError(f"{where}: {name} is {value!r:.80}; expected a list of objects")
    return [Row(parsed(entry), f"{where} {name} {number}", sign) for number, entry in enumerate(found)]


def same_length(columns: Mapping[str, Sequence[Any]], name: str, where: str) -> None:
    """Refuse columns of different length.

    Raises:
        InputError: the lengths differ.
    """
    if len({len(values) for values in columns.values()}) > 1:
        found = ", ".join(f"{len(values)} {column}" for column, values in columns.items())
        raise InputError(f"{where}: {name} has {found}; expected as many of each")


# --- a question ------------------------------------------------------------------------------------------------------


def given_id(row: Row) -> str:
    """The id that a row brings; empty for none.

    Raises:
        InputError: it is no string and no whole number.
    """
    name = row.name_of(_NAMES_OF_ID)
    try:
        return spelt_id(row[name]) if name else ""
    except ValueError as error:
        raise InputError(f"{row.where}: {name}: {error}") from error


def question_of(row: Row, *names: str) -> str:
    """The normalised question, under the first of some names that the row has; by default `question`.

    Raises:
        InputError: it is missing, empty or no string.
    """
    name = row.name_of(names) or (names[0] if names else "question")
    found = normalise(field(row, name, str))
    if not found:
        raise InputError(f"{row.where}: {name} is empty; leave the row out, or use --skip-bad")
    return found


def answered(row: Row, question: str, answers: Any) -> tuple[str, ...]:
    """The normalised answers of a question: a list, or one string, which may be a list as text.

    Raises:
        InputError: the question has no answer.
    """
    listed = parsed(answers)
    if isinstance(answers, str | bytes) and not (
        isinstance(listed, list | tuple) and all(isinstance(answer, str) for answer in listed)
    ):
        listed = [answers]  # one answer, even where it looks like a list of something else
    found = texts(listed, "answers", row.where)
    if not found:
        raise InputError(f"{row.where}: question {question[:60]!r} has no answer; leave the row out, or use --skip-bad")
    return found
