"""Damaged question files: each mutated file gives questions and counted rows, or one line that names the file.

How many rows a file has is counted by other means: values of `json`, rows of `csv`, lines that are not blank.
"""

import argparse
import contextlib
import copy
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from clara.errors import InputError
from pipelines.build_questions.command import parser
from pipelines.build_questions.convert import NOT_JUDGED
from pipelines.build_questions.detect import detect
from pipelines.build_questions.formats import FORMATS
from pipelines.build_questions.stored_text import parsed
from tests.helpers.awkward import parquet
from tests.helpers.mutation import (
    Fuzzed,
    fuzz,
    json_counts,
    lines_of,
    parquet_counts,
    rows_in_values,
    table_counts,
    values_of,
)
from tests.helpers.nested_questions import BIOASQ, ELI5, KILT, MRQA, NQ
from tests.helpers.question_files import DYKE_ROW, HOTPOT, MUSIQUE, SQUAD

T = TypeVar("T")
PASSAGE = {"id": "11", "title": "Arlen", "text": "Ada is here.", "score": 1.5}
OWN = {"id": "q1", "question": "Who?", "answers": ["Ada", "Ada L."], "positive_ids": ["d1"], "candidate_ids": ["d2"]}
TRIVIA = {"QuestionId": "tc_3", "Question": "Where?", "Answer": {"Value": "Bo", "Aliases": ["Bo", "the Bo"]}}
COLUMNS = {
    "title": ["Arlen", "Jorvik"],
    "sentences": [["Mirel Tove leads Arlen."], ["Jorvik has a market."]],
}
HUB_SQUAD = {"id": "s1", "title": "A", "context": "On Bo.", "question": "Where?", "answers": {"text": ["Bo"]}}
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td3\t1\n"


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def of(row: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The row, and another one with another question."""
    return [row, {**row, **changes, "question": "Who else?", "id": "other", "_id": "other"}]


FILES: dict[str, tuple[str, str, bytes]] = {
    "own": ("jsonl", "a.jsonl", lines(*of(OWN, answers="['Ada' 'Bo']", positive_ids=[4101.0]))),
    "own-list": ("jsonl", "a.json", json.dumps(of(OWN), indent=1).encode()),
    "own-csv": (
        "jsonl",
        "a.csv",
        b'id,question,answers,positive_ids\n1,Who?,"[\'Ada\', \'B\']",\n2,Why?,So,"[""d""]"\n',
    ),
    "own-parquet": ("jsonl", "a.parquet", parquet({k: [v, v] for k, v in OWN.items()} | {"id": ["1", "2"]})),
    "clara": (
        "clara",
        "a.jsonl",
        lines({"question": "Who?", "docs": ["T\nAda.", "x"], "answer": "Ada", "pos_index": [0]}),
    ),
    "hotpotqa": ("hotpotqa", "a.json", json.dumps(of(DYKE_ROW)).encode()),
    "hotpotqa-columns": (
        "hotpotqa",
        "a.jsonl",
        lines(*of({**DYKE_ROW, "context": COLUMNS}, context=json.dumps(COLUMNS))),
    ),
    "2wiki": ("2wiki", "a.jsonl", lines(*of({**HOTPOT, "type": "compositional"}, supporting_facts='[["Arlen", 0]]'))),
    "musique": (
        "musique",
        "a.jsonl",
        lines(*of(MUSIQUE, answerable="False", paragraphs=json.dumps(MUSIQUE["paragraphs"]))),
    ),
    "squad": ("squad", "a.json", json.dumps(SQUAD).encode()),
    "squad-rows": ("squad", "a.jsonl", lines(*of(HUB_SQUAD))),
    "nq-open": (
        "nq-open",
        "a.jsonl",
        lines({"question": "who", "answer": ["Ada"]}, {"question": "b", "answer": ["c"]}),
    ),
    "qa-csv": ("nq-open", "nq-test.qa.csv", b"who is it\t['Ada', \"B's\"]\nwhere is it\t['x']\n"),
    "triviaqa": (
        "triviaqa",
        "a.json",
        json.dumps({"Data": [TRIVIA, {**TRIVIA, "Question": "Why?"}], "Version": 1}).encode(),
    ),
    "triviaqa-rows": (
        "triviaqa",
        "a.jsonl",
        lines(*of({"question": "Where?", "answer": {"value": "Bo", "aliases": []}})),
    ),
    "popqa": (
        "popqa",
        "a.tsv",
        b'id\tobj\tquestion\tpossible_answers\n1\tx\tWho?\t"[""a"", ""b""]"\n2\ty\tWhy?\t"[""c""]"\n',
    ),
    "flashrag": (
        "flashrag",
        "a.jsonl",
        lines(*of({"id": "t", "question": "who", "golden_answers": ["A"], "metadata": HOTPOT})),
    ),
    "dpr": (
        "dpr",
        "a.json",
        json.dumps(of({"question": "who", "answers": ["A"], "positive_ctxs": [PASSAGE]})).encode(),
    ),
    "fid": (
        "fid",
        "a.jsonl",
        lines(*of({"question": "who", "answers": ["A"], "ctxs": [{**PASSAGE, "has_answer": True}]})),
    ),
    "kilt": ("kilt", "a.jsonl", lines(KILT, {**KILT, "id": "k2", "input": "why"})),
    "mrqa": ("mrqa", "a.jsonl", lines(*MRQA)),
    "bioasq": ("bioasq", "a.json", json.dumps(BIOASQ).encode()),
    "eli5": ("eli5", "a.jsonl", lines(ELI5, {**ELI5, "q_id": "e2", "title": "How?"})),
    "nq": ("nq", "a.jsonl", lines(NQ, {**NQ, "example_id": 80})),
    "beir": (
        "beir",
        "queries.jsonl",
        lines({"_id": "q1", "text": "who"}, {"_id": "q2", "text": "why", "metadata": {}}),
    ),
    "msmarco": ("msmarco", "queries.tsv", b"q1\twho is it\nq2\twhy is it\n"),
    "qrels": ("beir", "qrels.tsv", QRELS.encode()),
}


# --- what was in a file ----------------------------------------------------------------------------------------------


def of_contexts(data: bytes) -> Iterator[int]:
    """Number of questions of MRQA's contexts; a context whose `qas` is no list is one row."""
    found = values_of(data)
    if found and any(isinstance(row, dict) and {"header", "qas"} & row.keys() for row in found):
        rows = [row for value in found for row in (value if isinstance(value, list) else [value])]
        rows = [row for row in rows if not (isinstance(row, dict) and "header" in row and "qas" not in row)]
        held = [row.get("qas") if isinstance(row, dict) else None for row in rows]
        yield sum(len(listed) if isinstance(listed := parsed(qas), list) else 1 for qas in held)


def nested(data: bytes) -> Iterator[int]:
    """Numbers of questions in a whole object of SQuAD or TriviaQA."""
    found = values_of(data)
    if found and len(found) == 1 and isinstance(found[0], dict):
        if isinstance(rows := found[0].get("Data"), list):
            yield len(rows)
        with contextlib.suppress(KeyError, TypeError):
            yield sum(len(paragraph["qas"]) for article in found[0]["data"] for paragraph in article["paragraphs"])


def counts_of(path: Path, data: bytes) -> set[int]:
    """The numbers of rows that a file may have."""
    if path.name == "queries.tsv":
        return {lines_of(data), lines_of(data) - 1}  # the first may be one of names
    if path.suffix == ".parquet":
        return parquet_counts(path, ("question",))
    if path.suffix in (".csv", ".tsv"):
        named = table_counts(data, ",;\t|", ["question", "Question", "query", "text"])
        return named | {lines_of(data)} if path.name.endswith("qa.csv") else named
    counts = json_counts(data, "question", lines=path.suffix == ".jsonl") | {*nested(data), *of_contexts(data)}
    # The one list of objects in a lone row, as in a wrapped file.
    return counts | ({rows} if (rows := rows_in_values(data, "question")) is not None else set())


# --- the property ----------------------------------------------------------------------------------------------------


def one_line(read: Callable[[], T], place: Path) -> T | None:
    """What a reader returns; None if it refuses the file, in one line that names it."""
    try:
        return read()
    except InputError as error:
        message = str(error)
    assert str(place) in message
    assert "\n" not in message
    return None


@functools.cache
def options(form: str) -> argparse.Namespace:
    """The options of a format; to make the parser takes ten times as long as to read a file."""
    return parser().parse_args(["--input", "in", "--output", "out", "--format", form])


def check(case: str, folder: Path, data: bytes) -> bool:
    """Detect the format of a file, and build its questions with and without `--skip-bad`; whether these are read."""
    form, name, _ = FILES[case]
    path, qrels = folder / name, folder / "qrels.tsv"
    qrels.write_text(QRELS)
    path.write_bytes(data)
    queries = path
    if case == "qrels":
        queries = folder / "queries.jsonl"
        queries.write_bytes(FILES["beir"][2])
    judged = form in ("beir", "msmarco")
    found = one_line(lambda: detect([str(queries)], judged=judged), queries)
    assert found is None or found in FORMATS
    built = None
    for skip_bad in (False, True):
        given = copy.copy(options(form))
        given.input, given.qrels, given.skip_bad = [str(queries)], [str(qrels)] if judged else None, skip_bad
        settings = one_line(lambda: FORMATS[form].settings(given), folder)  # noqa: B023 (called here)
        built = one_line(lambda: FORMATS[form].build([str(queries)], settings or {}), folder)  # noqa: B023
        if built is None:
            continue
        rows = built.counts["rows"]
        assert len(built.questions) + built.counts.get("dropped: bad", 0) + built.counts.get(NOT_JUDGED, 0) == rows
        assert case == "qrels" or rows in counts_of(path, data), built
        for question in built.questions:
            assert question.question.encode()
        known = {document.id for document in built.documents}
        assert not known or all({*q.positive_ids, *q.candidate_ids} <= known for q in built.questions)
    return built is not None


def run(case: str, folder: Path, count: int, until: float = math.inf) -> Fuzzed:
    return fuzz(case, FILES[case][2], lambda data: check(case, folder, data), count, until)
