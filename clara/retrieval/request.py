"""Requests of a service: questions in every form that callers and MLflow's server have, and parameters of an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from clara.data.records import encodable
from clara.errors import InputError

COLUMN = "question"
PARAMETERS = ("num_selected", "max_new_tokens")
"""What a request may set; what it leaves out is as registered."""


def questions_of(given: Any) -> list[str]:
    """The questions of a request.

    Args:
        given: texts (a list, an array, a column), one text, rows whose one field is `question`, or a table (a data
            frame or columns by name) whose one column is `question`.

    Raises:
        InputError: a table with other columns, or a question that is no text or an empty one.
    """
    if hasattr(given, "columns") or isinstance(given, Mapping):
        names = [str(name) for name in (given.columns if hasattr(given, "columns") else given)]
        if names != [COLUMN]:
            raise InputError(
                f"a table with the columns {', '.join(names)}; expected one column {COLUMN} and no other, "
                "or a list of questions"
            )
        given = given[COLUMN]
    given = given.tolist() if hasattr(given, "tolist") else given
    rows = [given] if isinstance(given, str) else list(given)
    return [_question(number, row) for number, row in enumerate(rows, 1)]


def _question(number: int, row: Any) -> str:
    if isinstance(row, Mapping):
        if list(row) != [COLUMN]:
            raise InputError(
                f"row {number} has the fields {', '.join(map(str, row))}; expected the field {COLUMN} and no other"
            )
        row = row[COLUMN]
    if not isinstance(row, str) or not row.strip():
        raise InputError(f"question {number} is {row!r}; expected some text")
    return row


def parameters_of(given: Mapping[str, Any] | None) -> dict[str, int]:
    """The parameters that a request sets.

    Raises:
        InputError: another name, or a value that is no whole number from 1.
    """
    found = {}
    for name, value in (given or {}).items():
        if name not in PARAMETERS:
            raise InputError(f"params has {name!r}; expected {' or '.join(PARAMETERS)}")
        if value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
            raise InputError(f"params.{name} is {value!r}; expected a whole number from 1")
        found[name] = int(value)
    return found


def check_request(questions: Sequence[str], num_selected: int, max_new_tokens: int, num_rows: int) -> None:
    """Refuse what cannot be answered from a MEMORY of `num_rows` rows.

    Raises:
        InputError: see `Retriever.check`.
    """
    for number, question in enumerate(questions, 1):
        if not question.strip() or not encodable(question):
            raise InputError(f"question {number} is {question!r}; expected some text, in whole characters (UTF-8)")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; expected 1 or more")
    if not 1 <= num_selected <= num_rows:
        raise InputError(
            f"num_selected is {num_selected}, the MEMORY holds {num_rows} rows; choose a number from 1 to {num_rows}"
        )
