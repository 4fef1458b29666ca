"""Floors: paired with baselines over the questions that both have, by an interval that resamples targets."""

import dataclasses

import numpy as np
import pytest

from clara.config.load import Override, resolve
from clara.errors import InputError
from clara.intervals import grouped_interval, paired_test
from training.registry.evaluated import Evaluated, target_numbers
from training.registry.floors import check, refusal

DEFAULT = ("index.log_likelihood>=baselines", "index.recall@5>=baselines")


def evaluated(targets: int = 6, **systems: tuple[float, float]) -> Evaluated:
    """Two questions for each target, all with the same likelihood and recall of a system."""
    rows = {}
    for name, (likelihood, recall) in systems.items():
        rows[name.replace("_", "/")] = [
            {
                "question_id": f"q{n}",
                "question": f"Question {n}?",
                "answers": ["yes"],
                "positive_ids": [f"d{n // 2}"],
                "index.log_likelihood": likelihood + (n % 3),
                "index.recall@5": recall,
            }
            for n in range(2 * targets)
        ]
    return Evaluated("towns version 1", "after", rows)


def test_a_version_as_good_as_every_baseline_reaches_the_floors() -> None:
    of = evaluated(after=(-5.0, 0.5), bm25_after=(-5.5, 0.5), dense_after=(-6.0, 0.25))
    found = check(of, DEFAULT)
    assert [each.floor for each in found] == [
        *("index.log_likelihood>=bm25", "index.log_likelihood>=dense"),
        *("index.recall@5>=bm25", "index.recall@5>=dense"),
    ]
    assert [each.difference for each in found] == pytest.approx([0.5, 1.0, 0.0, 0.25])
    assert {(each.num_questions, each.num_targets) for each in found} == {(12, 6)}
    assert all(each.reached for each in found)
    assert refusal(found) == ""


def test_the_refusal_is_one_line_with_the_floor_the_difference_and_the_remedy() -> None:
    of = evaluated(after=(-5.0, 0.25), bm25_after=(-5.5, 0.5))
    text = refusal(check(of, DEFAULT))
    assert text.startswith(
        "does not reach the floor index.recall@5>=bm25: -0.2500 [-0.2500, -0.2500], 12 questions of 6 targets; "
    )
    assert "promotion.floors sets the floors" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("floor", "reached"),
    [
        ("index.recall@5>=0.3", True),
        ("index.recall@5>=0.31", False),
        ("index.log_likelihood<=-1e1", False),
        ("index.log_likelihood<=0", True),
    ],
)
def test_a_bound_may_be_a_number(floor: str, reached: bool) -> None:
    assert check(evaluated(after=(-5.0, 0.3)), [floor])[0].reached is reached


def test_a_size_is_a_measure() -> None:
    of = dataclasses.replace(evaluated(after=(-5.0, 0.3)), sizes={"memory.bytes": 2e9})
    (found,) = check(of, ["memory.bytes<=1e9"])
    assert (found.reached, found.difference, found.low, found.high) == (False, 1e9, 1e9, 1e9)
    assert check(of, ["memory.bytes<=2e9"])[0].reached


def test_latency_is_a_measure_of_the_questions_that_were_timed() -> None:
    of = evaluated(after=(-5.0, 0.3))
    with pytest.raises(InputError, match="or evaluate with --timed N and register again"):
        check(of, ["answer.seconds<=2"])
    for number, row in enumerate(of.rows["after"]):
        row |= {"answer.seconds": 1.0 + number if number < 4 else None}  # type: ignore[operator]
    (found,) = check(of, ["answer.seconds<=2"])
    assert (found.reached, found.difference, found.num_questions, found.num_targets) == (False, 0.5, 4, 2)
    assert check(of, ["answer.seconds<=2.5"])[0].reached


def test_what_cannot_be_measured_is_refused() -> None:
    of = evaluated(after=(-5.0, 0.5), dense_after=(-5.0, 0.5))
    with pytest.raises(InputError, match=r"has no bm25/after; evaluate with --baselines bm25"):
        check(of, DEFAULT)
    with pytest.raises(InputError, match=r"promotion\.floors 'index\.seconds<=2': towns version 1 has index\.log_lik"):
        check(of, ["index.seconds<=2"])
    del of.rows["after"][0]["index.recall@5"]
    one = Evaluated(
        of.label, "after", {"after": of.rows["after"][:1] + [of.rows["after"][1] | {"index.recall@5": None}]}
    )
    with pytest.raises(InputError, match="measured on 1 questions with it; expected two"):
        check(Evaluated(of.label, "after", {"after": of.rows["after"][1:2]}), ["index.recall@5>=0"])
    assert one.values("index.recall@5") == {}
    with pytest.raises(InputError, match=r"promotion\.floors has 'recall > bm25'; expected MEASURE>=BOUND"):
        resolve({}, [Override("promotion.floors", ["recall > bm25"])], None)


def test_a_target_is_the_set_of_right_documents() -> None:
    rights = {"a": ("d1", "d2"), "b": ("d2", "d1"), "c": ("d1",), "e": (), "f": ()}
    targets = target_numbers({name: ("Who?", ("x",), right) for name, right in rights.items()}, rights)
    assert targets.tolist() == [0, 0, 1, 2, 3]


def test_questions_of_one_target_are_drawn_together() -> None:
    differences = np.array([1.0, 1.0, 1.0, -1.0])
    asked = {n: ("Who?", ("x",), target) for n, target in zip("abcd", [("d",), ("d",), ("d",), ()], strict=True)}
    targets = target_numbers(asked, "abcd")
    assert targets.tolist() == [0, 0, 0, 1]
    # Two targets, drawn twice: three questions of +1, all four, or one of -1 (a quarter each of both ends).
    assert grouped_interval(differences, targets) == (-1.0, 1.0)
    # With as many groups as questions, the tests are the same; of two groups every pattern is as far from 0.
    ours, theirs = np.arange(9.0), np.arange(9.0)[::-1] / 3
    assert paired_test(ours, theirs, groups=np.arange(9)).p_value == paired_test(ours, theirs).p_value
    assert paired_test(ours, theirs, groups=np.zeros(9, int)).p_value == 1.0
