"""Questions with nested answers or documents, as they are published."""

from typing import Any

KILT: dict[str, Any] = {
    "id": "k1",
    "input": "who runs it",
    "output": [
        {"answer": "Ada", "provenance": [{"wikipedia_id": "12", "title": "Arlen", "start_paragraph_id": 1}]},
        {"answer": "Ada L."},
        {"provenance": [{"wikipedia_id": 13, "title": "Bo"}]},
    ],
    "meta": {},
}
QUESTION: dict[str, Any] = {"question": "Where?", "answers": ["Bo", "the Bo"], "qid": "q1", "detected_answers": []}
MRQA: list[dict[str, Any]] = [
    {"header": {"dataset": "SQuAD", "split": "train"}},
    {"id": "c1", "context": "Arlen sits on Bo.", "qas": [QUESTION, {**QUESTION, "qid": "q2", "question": "Why?"}]},
]
SNIPPET: dict[str, Any] = {"text": "Bo is a river.", "document": "http://pubmed/1", "offsetInBeginSection": 0}
BIOASQ: dict[str, Any] = {
    "questions": [
        {
            "id": "b1",
            "body": "Which?",
            "type": "list",
            "exact_answer": [["Bo", "the Bo"], ["Ar"]],
            "snippets": [SNIPPET],
        },
        {"id": "b2", "body": "Is it?", "type": "yesno", "exact_answer": "yes", "snippets": []},
        {"id": "b3", "body": "What of it?", "type": "summary", "ideal_answer": ["It flows."], "snippets": [SNIPPET]},
    ]
}
ELI5: dict[str, Any] = {
    "q_id": "e1",
    "title": "Why?",
    "selftext": "I ask.",
    "answers": {"text": ["So.", "Thus."], "score": [3, 1]},
}
NQ: dict[str, Any] = {
    "example_id": 79,
    "question_text": "who runs it",
    "document_text": "<P> Ada runs it . </P> <P> Bo is a river . </P>",
    "long_answer_candidates": [
        {"start_token": 0, "end_token": 6, "top_level": True},
        {"start_token": 6, "end_token": 13, "top_level": True},
        {"start_token": 7, "end_token": 9, "top_level": False},
    ],
    "annotations": [
        {
            "long_answer": {"start_token": 0, "end_token": 6},
            "short_answers": [{"start_token": 1, "end_token": 2}],
            "yes_no_answer": "NONE",
        }
    ],
}
