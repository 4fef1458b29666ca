"""Question files in published formats, and what the command makes of them."""

import json
from pathlib import Path
from typing import Any

from clara.data.questions import Question, read_questions
from clara.data.records import document_id
from pipelines.build_questions.command import main

HOTPOT = {
    "_id": "q1",
    "question": " Which  river? ",
    "answer": "Tamo",
    "supporting_facts": [["Arlen", 0], ["Arlen", 1]],
    "context": [
        ["Arlen", ["Arlen sits on the Tamo.", " It is small."]],
        ["Brask", ["Brask is a town."]],
        ["Empty", [""]],
    ],
}
MUSIQUE = {
    "id": "q1",
    "question": "Which river?",
    "answer": "Tamo",
    "answer_aliases": ["the Tamo", "Tamo"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Brask", "paragraph_text": "Brask is a town.", "is_supporting": False},
        {"idx": 1, "title": "Arlen", "paragraph_text": "Arlen sits on the Tamo. It is small.", "is_supporting": True},
    ],
}
SQUAD = {
    "data": [
        {
            "title": "Arlen",
            "paragraphs": [
                {
                    "context": "Arlen sits on the Tamo. It is small.",
                    "qas": [
                        {"id": "q1", "question": "Which river?", "answers": [{"text": "Tamo", "answer_start": 18}] * 2}
                    ],
                }
            ],
        }
    ]
}
ARLEN, BRASK = document_id("Arlen", "Arlen sits on the Tamo. It is small."), document_id("Brask", "Brask is a town.")

DYKE_ROW = {
    "_id": "h1",
    "question": "Who leads the town of the dyke?",
    "answer": "Mirel Tove",
    "type": "bridge",
    "supporting_facts": [["Arlen", 0]],
    "context": [["Arlen", ["Mirel Tove leads Arlen.", "It has a dyke."]], ["Jorvik", ["Jorvik has a market."]]],
}
DYKE = document_id("Arlen", "Mirel Tove leads Arlen. It has a dyke.")
OTHER = document_id("Jorvik", "Jorvik has a market.")


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def build(tmp_path: Path, form: str, content: Any, *extra: str, lines: bool = False) -> list[Question]:
    file = tmp_path / "input"
    rows = content if lines else [content]
    file.write_text(
        "".join(json.dumps(row) + "\n" for row in rows) if lines or form != "list" else json.dumps(content),
        encoding="utf-8",
    )
    assert main(["--input", str(file), "--format", form, "--output", str(tmp_path / "out"), *extra]) == 0
    return read_questions(tmp_path / "out")
