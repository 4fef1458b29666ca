"""QUESTIONS: a round trip, splits, and what is refused."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clara.data.questions import (
    FILE,
    Question,
    by_target,
    check_targets,
    drawn,
    of_many_targets,
    read_questions,
    write_questions,
)
from clara.errors import InputError
from clara.storage.manifest import read_manifest

QUESTIONS = [
    Question("q1", "Who?", ("Ada", "A."), ("d1",), ("d1", "d2"), ("d3",), "train", (2,)),
    Question("q2", "Where?", ("Arlen",), split="unseen"),
]


def test_round_trip(tmp_path: Path) -> None:
    write_questions(tmp_path, QUESTIONS, recipe={}, counts={"rows": 3})
    assert read_questions(tmp_path) == QUESTIONS
    assert read_questions(tmp_path, "unseen") == QUESTIONS[1:]
    assert read_manifest(tmp_path)["counts"] == {"questions": 2, "split train": 1, "split unseen": 1, "rows": 3}
    with pytest.raises(InputError, match=r"no question with split 'seen'; there are \['train', 'unseen'\]"):
        read_questions(tmp_path, "seen")


def test_a_question_without_answer_or_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"question 'q7', 'Who\?': no answer; give it one at least, or leave it out"):
        Question("q7", "Who?", ())
    with pytest.raises(InputError, match="question 'q7' is ' '; expected some text"):
        Question("q7", " ", ("Ada",))


def test_an_artefact_from_before_hops_were_kept_is_read_and_hops_are_one_for_each_positive(tmp_path: Path) -> None:
    write_questions(tmp_path, QUESTIONS, recipe={})
    pq.write_table(pq.read_table(tmp_path / FILE).drop_columns(["positive_hops"]), tmp_path / FILE)
    assert [q.positive_hops for q in read_questions(tmp_path)] == [(), ()]
    assert read_questions(tmp_path)[1] == QUESTIONS[1]
    with pytest.raises(InputError, match="question 'q7': 1 hops for 2 positives"):
        Question("q7", "Who?", ("Ada",), ("d1", "d2"), positive_hops=(1,))


def test_a_question_without_an_answer_can_only_be_searched_for(tmp_path: Path) -> None:
    judged = Question("q3", "Where?", (), ("d1", "d2"), positive_grades=(2.0, 1.0))
    write_questions(tmp_path, [*QUESTIONS, judged], recipe={})
    assert read_questions(tmp_path, answers=False)[-1] == judged
    assert read_questions(tmp_path, "train") == QUESTIONS[:1]
    with pytest.raises(InputError, match=rf"{FILE}: question 'q3', 'Where\?': no answer \(1 of 3.*--retrieval-only"):
        read_questions(tmp_path)
    for grades in ((1.0,), (1.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(InputError, match=r"question 'q3': grades .* of 2 positives; give each one above 0"):
            Question("q3", "Where?", (), ("d1", "d2"), positive_grades=grades)


def test_an_artefact_that_holds_one_names_file_and_question(tmp_path: Path) -> None:
    write_questions(tmp_path, QUESTIONS, recipe={})
    rows = pq.read_table(tmp_path / FILE)
    changed = rows.set_column(2, "answers", [[["Ada"], []]])
    pq.write_table(changed, tmp_path / FILE)
    with pytest.raises(InputError, match=rf"{FILE}: question 'q2', 'Where\?': no answer"):
        read_questions(tmp_path)
    pq.write_table(rows.append_column("more", [["x", "y"]]), tmp_path / FILE)
    with pytest.raises(InputError, match=f"{FILE}: its columns are not those of QUESTIONS .*more"):
        read_questions(tmp_path)


def test_damage_and_a_place_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    write_questions(tmp_path / "a", QUESTIONS, recipe={})
    path = tmp_path / "a" / FILE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{FILE}: not readable as Parquet"):
        read_questions(tmp_path / "a")
    with pytest.raises(InputError, match=f"{FILE}/below: cannot be written"):
        write_questions(path / "below", QUESTIONS, recipe={})


def asked(*targets: str) -> list[Question]:
    return [Question(f"q{i}", f"{i}?", ("a",), tuple(target)) for i, target in enumerate(targets)]


def test_targets_group_questions_and_one_without_a_target_is_alone() -> None:
    assert by_target(asked("a", "b", "a", "", "ab", "ba", "")) == [[0, 2], [1], [3], [4, 5], [6]]


def test_few_questions_are_of_as_many_targets_as_can_be() -> None:
    questions = asked(*"aaabbc")
    ids = [[q.question_id for q in of_many_targets(questions, n)] for n in (0, 1, 3, 5, 6, 9)]
    assert ids[0] == []
    assert ids[1] == ["q0"]
    assert ids[2] == ["q0", "q3", "q5"]  # one of each target
    assert ids[3] == ["q0", "q1", "q3", "q4", "q5"]  # a second one of those that have one
    assert ids[4] == ids[5] == [q.question_id for q in questions]
    many = asked(*"abcdefgh", *"abcdefgh")
    assert [q.question_id for q in of_many_targets(many, 4)] == ["q0", "q2", "q4", "q6"]  # evenly spread


def test_questions_that_all_have_one_target_are_refused() -> None:
    with pytest.raises(InputError, match=r"QUESTIONS: all 2 training questions have the target a, .*several targets"):
        check_targets(asked("a", "a"), "QUESTIONS")
    for fine in ([], asked("a"), asked("", ""), asked("a", "b")):
        check_targets(fine, "QUESTIONS")


def test_a_larger_draw_only_adds() -> None:
    questions = asked(*"abcdefgh")
    assert [drawn(questions, n, 3) for n in range(9)] == [drawn(questions, 8, 3)[:n] for n in range(9)]
    assert drawn(questions[::-1], 4, 3) == drawn(questions, 4, 3) != drawn(questions, 4, 4)
