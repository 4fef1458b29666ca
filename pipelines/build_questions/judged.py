"""Queries and judgements in separate files: BEIR's, MS MARCO's and ColBERT's."""

import argparse
import csv
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clara.data.corpus import read_rows
from clara.data.ids import spelt_id
from clara.data.input_files import expand
from clara.data.streams import COMPRESSIONS, as_utf8, opened
from clara.errors import InputError
from clara.storage.cache import local_file
from clara.storage.folders import sha256_file
from pipelines.build_questions.convert import PublishedFormat
from pipelines.build_questions.published import ANSWERS, Published, answers_of
from pipelines.build_questions.question_format import Built
from pipelines.build_questions.row import Row, given_id, question_of

_TEXTS = ("text", "query", "question")
_HEADS = {
    "query": ("query-id", "query_id", "queryid", "qid", "query", "topic", "topic-id", "topic_id"),
    "document": (
        *("corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "docno", "document-id", "document_id", "documentid"),
        *("pid", "passage-id", "passage_id"),
    ),
    "grade": ("score", "relevance", "label", "grade", "rel", "relevancy", "judgment", "judgement"),
}
_TABLES = (".jsonl", ".ndjson", ".json", ".parquet")
_log = logging.getLogger(__name__)
UNKNOWN_QUERY = "judged queries that are not in the input"
Judgements = dict[str, dict[str, float]]
"""Grade of each judged document, by query."""


@dataclass(frozen=True)
class JudgedFormat:
    """Queries whose right documents another file names (`--qrels`). See `QuestionFormat`.

    Attributes:
        name: that `--format` takes.
        rows: reads the queries of a file, each with its position for messages.
    """

    name: str
    rows: Callable[[str], Iterator[tuple[str, Any]]]
    brings_documents = False

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """See `QuestionFormat`; the judgements are a part of the recipe.

        Raises:
            InputError: no judgements are given.
        """
        if not options.qrels:
            beside = [found for file in expand(options.input) for found in _beside(file)]
            raise InputError(
                f"--format {options.format}: {options.input[0]} has no judgements in it; give them with --qrels FILE"
                + (f", one of {', '.join(beside)}" if beside else ", as qrels/test.tsv")
            )
        qrels = expand(options.qrels, "--qrels")
        own = PublishedFormat(self.name, self.rows, _no_judgements, has_qrels=True).settings(options)
        return {**own, "qrels": dict(zip(qrels, map(sha256_file, map(local_file, qrels)), strict=True))}

    def build(self, files: Sequence[str], settings: Mapping[str, Any]) -> Built:
        """See `QuestionFormat`. Counts: rows = questions + dropped."""
        judgements = read_judgements(list(settings["qrels"]))
        seen: set[str] = set()

        def convert(row: Row) -> Published | None:
            query = given_id(row)
            if not query:
                raise InputError(f"{row.where}: no id of the query (there are {', '.join(sorted(row))}); expected _id")
            seen.add(query)
            question = question_of(row, *_TEXTS)
            answers = answers_of(row, question, ANSWERS, needed=False)
            right = {document: grade for document, grade in judgements.get(query, {}).items() if grade > 0}
            if not right and not answers:
                return None
            return Published(
                query, question, answers, (), tuple(right), positive_grades=tuple(map(float, right.values()))
            )

        built = PublishedFormat(self.name, self.rows, convert).build(files, settings)
        unknown = sorted(judgements.keys() - seen)
        if unknown:
            _log.warning("%d %s, %r first", len(unknown), UNKNOWN_QUERY, unknown[0])
        return Built(built.questions, (), {**built.counts, **({UNKNOWN_QUERY: len(unknown)} if unknown else {})})


def _no_judgements(row: Row) -> Published:
    raise AssertionError("settings only")


def _beside(path: str) -> list[str]:
    """Files of judgements in the folder `qrels` beside a file of queries."""
    folder = os.path.join(os.path.dirname(path), "qrels")
    return sorted(os.path.join(folder, name) for name in os.listdir(folder)) if os.path.isdir(folder) else []


# --- queries ---------------------------------------------------------------------------------------------------------


def tsv_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Queries of a file with an id, a tab and a text on each line; a line of the columns' names may come first.

    Raises:
        InputError: a line has no tab, or is not UTF-8.
    """
    for number, line in _lines(path):
        query, tab, text = line.partition("\t")
        if not tab:
            raise InputError(f"{path}:{number}: {line[:60]!r} has no tab; expected an id, a tab and a question")
        if number == 1 and query.strip().casefold() in (*_HEADS["query"], "id", "_id"):
            continue
        yield f"{path}:{number}", {"qid": query.strip(), "query": text}


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty."""
    with opened(path) as stream:
        for number, line in enumerate(as_utf8(stream), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: {line[:60]!r}: not UTF-8 ({error}); convert the file") from error
            if text.strip():
                yield number, text


# --- judgements ------------------------------------------------------------------------------------------------------


def read_judgements(files: Sequence[str]) -> Judgements:
    """Grades of files: BEIR's three columns with names, TREC's four without, or rows of JSON or Parquet.

    Raises:
        InputError: a line is malformed, or two grades of one document differ.
    """
    judgements: Judgements = {}
    for path in files:
        for where, query, document, grade in _judged_rows(path) if _is_table(path) else _judged_lines(path):
            known = judgements.setdefault(query, {}).setdefault(document, grade)
            if known != grade:
                raise InputError(
                    f"{where}: document {document!r} of query {query!r} has the grade {grade:g}, and {known:g} before; "
                    "keep one of them"
                )
    if not judgements:
        raise InputError(f"--qrels {', '.join(files)}: no judgement in it; expected query-id, corpus-id and score")
    return judgements


def _is_table(path: str) -> bool:
    stem, ending = os.path.splitext(path.lower())
    return (os.path.splitext(stem)[1] if ending in COMPRESSIONS else ending) in _TABLES


def _judged_rows(path: str) -> Iterator[tuple[str, str, str, float]]:
    for number, values in read_rows(path):
        row = Row(values, f"{path}:{number}")
        names = {role: row.name_of(heads) for role, heads in _HEADS.items()}
        if values and all(isinstance(judged, Mapping) for judged in values.values()):  # as pytrec_eval takes them
            for query, judged in values.items():
                yield from (_judgement(row.where, query, document, grade) for document, grade in judged.items())
            continue
        if not names["query"] or not names["document"]:
            raise InputError(
                f"{row.where}: no query-id or corpus-id (there are {', '.join(sorted(row))}); give a file of judgements"
            )
        grade = row[names["grade"]] if names["grade"] else 1
        yield _judgement(row.where, row[names["query"]], row[names["document"]], grade)


def _judged_lines(path: str) -> Iterator[tuple[str, str, str, float]]:
    columns: tuple[int, int, int] | None = None
    for number, line in _lines(path):
        cells = [cell.strip() for cell in _cells(line)]
        if number == 1 and cells[0].casefold() in (*_HEADS["query"], *_HEADS["document"]):
            columns = _named_columns(cells, f"{path}:1")
            continue
        where = f"{path}:{number}"
        positions = columns or {2: (0, 1, -1), 3: (0, 1, 2), 4: (0, 2, 3)}.get(len(cells))
        if positions is None or max(positions) >= len(cells):
            raise InputError(
                f"{where}: {len(cells)} columns, {line[:60]!r}; expected query, document and grade, or TREC's query, "
                "0, document and grade"
            )
        yield _judgement(
            where, cells[positions[0]], cells[positions[1]], cells[positions[2]] if positions[2] >= 0 else 1
        )


def _cells(line: str) -> list[str]:
    """The cells of a line with tabs, commas (CSV) or blanks between them; those of tables may be quoted."""
    delimiter = "\t" if "\t" in line else "," if "," in line and len(line.split()) == 1 else ""
    if delimiter == "," or (delimiter and line.startswith('"')):
        return next(csv.reader([line], delimiter=delimiter))
    return line.split(delimiter or None)


def _named_columns(cells: Sequence[str], where: str) -> tuple[int, int, int]:
    """Places of query, document and grade (-1: there is none) by a line of names."""
    plain = [cell.casefold() for cell in cells]
    found = {role: next((plain.index(head) for head in heads if head in plain), -1) for role, heads in _HEADS.items()}
    if found["query"] < 0 or found["document"] < 0:
        raise InputError(f"{where}: columns are {', '.join(cells)}; expected query-id, corpus-id and score")
    return found["query"], found["document"], found["grade"]


def _judgement(where: str, query: Any, document: Any, grade: Any) -> tuple[str, str, str, float]:
    shown = f"{where}: query {query!r:.40}, document {document!r:.40}, grade {grade!r:.40}"
    try:
        names, number = (spelt_id(query), spelt_id(document)), float(grade)
    except (ValueError, TypeError) as error:
        raise InputError(f"{shown}: {error}; expected two ids and a number") from error
    if not all(names) or not math.isfinite(number):
        raise InputError(f"{shown}; expected two ids and a number")
    return where, *names, number
