"""Replies of models: every form that is understood, and why another is not. Texts never break the parser."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.synthesize import replies
from pipelines.synthesize.replies import Reply, UnusableError, parse

FORMS = (replies.questions, replies.answer, replies.verdict, replies.coverage, replies.paraphrase)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"questions": ["Who?", "When?"]}', ["Who?", "When?"]),
        ('```json\n{"questions": ["Who?"]}\n```', ["Who?"]),
        ('Sure! Here you are:\n{"questions": ["Who?"]}\nAnything else?', ["Who?"]),
        ('["Who?", " When \\n exactly? "]', ["Who?", "When exactly?"]),
        ('{"Question1": "Who?", "question 2": "When?"}', ["Who?", "When?"]),
        ('{"questions": [{"question": "Who?", "type": "chain"}]}', ["Who?"]),
        ('{"questions": []}', []),
        ("{}", []),
        ('<think>{"questions": ["No."]} hm</think>{"questions": ["Who?"]}', ["Who?"]),
        ('I first thought of {"questions": ["No."]}, but: {"questions": ["Who?"]}', ["Who?"]),
        ('{"questions": ["Was heißt \\"{\\"?", "\\ud800?"]}', ['Was heißt "{"?', "??"]),
    ],
)
def test_questions(text: str, expected: list[str]) -> None:
    assert parse(Reply(text), replies.questions) == expected


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (replies.answer, '{"answer": "Arlen"}', "Arlen"),
        (replies.answer, '{"answer": 1969}', "1969"),
        (replies.answer, '{"answer": true}', "yes"),
        (replies.answer, '{"answer": null}', ""),
        (replies.verdict, '{"verdict": "Correct."}', True),
        (replies.verdict, '{"verdict": "incorrect"}', False),
        (replies.verdict, "**Incorrect**: the text says otherwise", False),
        (replies.verdict, "Yes", True),
        (replies.verdict, "no.", False),
        (replies.verdict, '{"verdict": false}', False),
        (replies.coverage, '{"covered": true, "questions": []}', (True, [])),
        (replies.coverage, '{"questions": ["Who?"]}', (False, ["Who?"])),
        (replies.coverage, '{"covered": false}', (False, [])),
        (replies.paraphrase, '{"paraphrase": "So \\n it is."}', "So it is."),
    ],
)
def test_other_forms(form: Any, text: str, expected: Any) -> None:
    assert parse(Reply(text), form) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"paraphrase": "So\nit\tis."}', "So it is."),
        ('{"paraphrase": "So it is.",}', "So it is."),
        ("{'paraphrase': 'So it's there.'}", "So it's there."),
        ('{"paraphrase": "He said "so" twice."}', 'He said "so" twice.'),
        ("{“paraphrase”: “So it is.”}", "So it is."),
        ('{paraphrase: "So it is."}', "So it is."),
        (r'{"paraphrase": "C:\Data, 5\,% of \sum, \u00e9"}', r"C:\Data, 5\,% of \sum, é"),
        (r'{"paraphrase": "a \d and \"b\" \ud83d\ude00",}', 'a \\d and "b" \U0001f600'),
        ('```json\n{"paraphrase": "So it is.",}\n```', "So it is."),
        ('```\n{"paraphrase": "So ```it``` is.",\n}', "So ```it``` is."),
        ('{"paraphrase": "So it is.", "sure": True, "why": None}', "So it is."),
        ('First {"paraphrase": "a draft"}, then {"paraphrase": "So it is.",}', "So it is."),
        ("<thinking>hm</thinking>{'paraphrase': 'So it is.'}", "So it is."),
        ("[THINK]hm[/THINK]\n{'paraphrase': 'So it is.'}", "So it is."),
        ('<|channel|>analysis<|message|>{"paraphrase": "no"}<|channel|>final<|message|>{"paraphrase": "So."}', "So."),
    ],
)
def test_json_by_hand_is_understood(text: str, expected: str) -> None:
    assert parse(Reply(text), replies.paraphrase) == expected
    thought = "I weigh {this}, ['that'], [1] and {\"so\": 'on. " * 1500
    for long in (f"<think>{thought}</think>{text}", f"{thought}\n\n{text}"):
        assert parse(Reply(long), replies.paraphrase) == expected, "the end of a reply counts"


def test_json_in_a_json_string_is_understood() -> None:
    assert parse(Reply(json.dumps('{"paraphrase": "So it is."}')), replies.paraphrase) == "So it is."


@pytest.mark.parametrize("kind", [replies.questions, replies.coverage])
def test_trailing_commas_everywhere(kind: Any) -> None:
    found = parse(Reply('{"covered": false, "questions": ["Who?", {"question": "Wo\'s da?",},],}'), kind)
    assert found == ["Who?", "Wo's da?"] if kind is replies.questions else (False, ["Who?", "Wo's da?"])


@pytest.mark.parametrize(
    ("form", "reply", "why"),
    [
        (replies.questions, Reply(""), "empty"),
        (replies.questions, Reply(" \n"), "empty"),
        (replies.questions, Reply("<think>and so on", cut=True), "cut short"),
        (replies.questions, Reply('{"questions": ["Who?", "Wh', cut=True), "cut short"),
        (replies.questions, Reply('{"questions": ["Who?", "Wh'), "no JSON"),
        (replies.questions, Reply('{"questions": "Who?"}'), "another form"),
        (replies.questions, Reply('{"questions": [1, 2]}'), "another form"),
        (replies.questions, Reply('{"answer": "Arlen"}'), "another form"),
        (replies.answer, Reply("Arlen"), "no JSON"),
        (replies.answer, Reply('{"answer": ["Arlen"]}'), "another form"),
        (replies.verdict, Reply("It depends"), "no JSON"),
        (replies.verdict, Reply('{"verdict": "perhaps"}'), "another form"),
        (replies.coverage, Reply('{"covered": "mostly"}'), "another form"),
        (replies.paraphrase, Reply('{"paraphrase": " "}'), "another form"),
    ],
)
def test_an_unusable_reply_is_reported(form: Any, reply: Reply, why: str) -> None:
    with pytest.raises(UnusableError, match=why):
        parse(reply, form)


@given(
    st.one_of(
        st.text(),
        st.text(alphabet='{}[]":,\\ntrue1 ', max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda x: (
                st.lists(x)
                | st.dictionaries(st.sampled_from(["questions", "answer", "verdict", "covered", "paraphrase", "x"]), x)
            ),
        ).map(json.dumps),
    )
)
def test_any_text_is_understood_or_refused(text: str) -> None:
    for form in FORMS:
        try:
            parse(Reply(text), form)
        except UnusableError:
            continue


def test_deep_and_long_nests_end() -> None:
    for text in (
        "[" * 60_000,
        '{"questions": ' * 20_000,
        "<think>" * 9_000,
        '{"' * 30_000,
        "{'a':[" * 9_000,
        '["' * 30_000,
    ):
        with pytest.raises(UnusableError):
            parse(Reply(text), replies.questions)
