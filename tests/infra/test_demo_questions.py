"""The questions that the demo measures and shows."""

from pathlib import Path

from clara.data.questions import Question, write_questions
from infra.demo.questions import KNOWN, measured_questions, shown_questions
from infra.demo.steps import Demo


def natural(number: int, split: str) -> Question:
    return Question(f"{split}{number}", f"Where is {split}{number}?", ("Here",), (f"d{split}{number}",), split=split)


def test_three_held_out_questions_are_shown_and_the_known_one_among_them(tmp_path: Path) -> None:
    folder = str(tmp_path / "natural-questions")
    assert shown_questions(folder) == []
    questions = [natural(i, split) for split in ("train", "unseen") for i in range(60)]
    write_questions(folder, questions, recipe={})
    measured = [q.question for q in measured_questions(folder)]
    assert len(set(measured)) == 50
    assert all("unseen" in question for question in measured)
    assert shown_questions(folder) == measured[:3]
    write_questions(folder, [*questions, Question("k", KNOWN, ("Cervantes",), ("d",), split="train")], recipe={})
    assert shown_questions(folder) == [KNOWN, *measured[:2]]
    demo = Demo(tmp_path, 1000)
    ask = demo.steps()[-2].command if demo.world else demo.steps()[-1].command
    assert ask[ask.index("--judge-by") + 1].endswith("natural-questions")
    assert KNOWN in ask
