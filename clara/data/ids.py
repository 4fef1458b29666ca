"""Ids of documents and questions: one spelling, whatever a file stores them as."""

import math
from decimal import Decimal
from typing import Any
from uuid import UUID

_EXACT = 2**53  # integers beyond it are rounded as floats
_MARKED = ("$oid", "$numberLong", "$numberInt", "$uuid")  # values of an id in exports of MongoDB


def spelt_id(value: Any) -> str:
    """The spelling of an id that a file holds; empty for none (null, NaN or an empty string).

    Integers that a table made floats are integers again (`4101.0` is `4101`), bytes are UTF-8. Strings stay as they
    are; of MongoDB's `{"$oid": "65a…"}` the value is the id.

    Raises:
        ValueError: the value is no id; the message says what it is, and what is expected.
    """
    if isinstance(value, dict) and len(value) == 1:
        value = next((value[mark] for mark in _MARKED if mark in value), value)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | bytes | int | float | Decimal | UUID):
        raise ValueError(f"{value!r:.60} is {type(value).__name__}, expected a string or an integer")
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, float | Decimal):
        return _whole(value)
    return str(value)


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{value!r:.60} is bytes that are not UTF-8, expected a string or an integer") from error


def _whole(value: float | Decimal) -> str:
    if math.isnan(value):
        return ""
    if isinstance(value, float) and abs(value) >= _EXACT:
        raise ValueError(
            f"{value!r} is a float of 2^53 or more, whose last digits are lost; store ids as strings or integers"
        )
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"{value!r} is {type(value).__name__}, expected a string or an integer")
    return str(int(value))
