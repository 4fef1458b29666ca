"""The comparison of refresh policies: its figures in closed form, and the command on a tiny world."""

import json
from pathlib import Path

import pytest

from clara.errors import InputError
from infra.refresh_policies import command as refresh_policies
from infra.refresh_policies.figures import compare, draw, markdown


def run(seconds: list[float], recall: list[float], blocked: float = 0.0, refreshes: int = 0) -> dict[str, object]:
    """Two evaluations, after the second and the fourth step."""
    metrics = {
        step: {"seconds": now, "answer_nats": 1.0 / step, "memory_lag_steps": step - 1.0, "pool_lag_steps": 0.0}
        for step, now in enumerate(seconds, 1)
    }
    for step, value in zip((2, 4), recall, strict=True):
        metrics[step] |= {f"held_out_{name}pool_recall_at_{d}": value for name in ("", "fresh_") for d in (1, 5)}
        metrics[step] |= {"held_out_answer_nats": 1 - value, "held_out_fresh_answer_nats": 2 - value}
        metrics[step] |= {"canary_cosine": value, "canary_overlap": value}
    cost = {
        "refreshes": refreshes,
        "seconds": 6.0 * refreshes,
        "bytes": 2_000_000 * refreshes,
        "compute_share": 0.25 if refreshes else 0.0,
        "median_step_seconds_beside_a_refresh": 2.0 if refreshes else None,
        "median_step_seconds_alone": 1.0,
        "throughput_beside_a_refresh": 0.5 if refreshes else None,
    } | ({"mean_ready_seconds": 7.5, "lost_tries": 1} if refreshes else {})
    report = {
        "questions_per_second": 8.0,
        "blocked_seconds": blocked * seconds[-1],
        "blocked_share": blocked,
        "rerank_seconds": 0.0,
        "versions_by_step": [{}] * (refreshes + 1),
        "refresh_cost": cost,
        "staleness": [],
    }
    return {"metrics": metrics, "report": report}


def result(by_seed: dict[str, object]) -> dict[str, object]:
    return {"command": "c", "processor": "p", "cores": 2, "load_average_after_each_command": [1.0], "by_seed": by_seed}


def test_policies_are_compared_at_equal_steps_and_at_equal_time(tmp_path: Path) -> None:
    runs = {"none": run([1, 2, 3, 4], [0.5, 0.25]), "full": run([2, 4, 6, 8], [0.5, 0.75], blocked=0.01, refreshes=2)}
    found = compare(runs)
    assert [found[name]["at_equal_steps"]["fresh_recall_at_5"] for name in runs] == [0.25, 0.75]
    # In the four seconds of the quicker run the slower one had come to its second step.
    assert [found[name]["at_equal_time"]["step"] for name in runs] == [4, 2]
    assert [found[name]["at_equal_time"]["fresh_recall_at_1"] for name in runs] == [0.25, 0.5]
    assert found["full"]["equal_time_seconds"] == 4
    assert found["full"]["at_equal_steps"]["fresh_answer_nats"] == 1.25
    assert found["full"]["canary_cosine_mean"] == 0.625
    assert found["none"]["mean_memory_lag_steps"] == 1.5
    text = markdown(result({"0": found}))
    assert "| full | 4 | 8 | 0.750 | 0.750 | 1.250 | 0.750 | 0.750 | 0.250 |" in text
    assert "| full | 8.00 | 1.00% | 2 | 6.0 | 7.5 | 1 | 2.0 | 25.0% | 2.000 | 1.000 | 50% | 0 | 1.5 |" in text
    assert "| none | 8.00 | 0.00% | 0 | – | – | – | – | 0.0% | – | 1.000 | – |" in text
    draw({name: [values["metrics"]] * 2 for name, values in runs.items()}, tmp_path / "curves.png")  # type: ignore[list-item]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_where_nothing_was_looked_at_there_is_a_dash() -> None:
    bare = run([1, 2, 3, 4], [0.5, 0.5])
    bare["metrics"] = {step: {"seconds": float(step)} for step in range(1, 4)}
    found = compare({"none": bare})
    assert found["none"]["at_equal_steps"] is None
    assert "| none | – | – |" in markdown(result({"0": found}))


def test_seeds_are_summarised_by_mean_and_range() -> None:
    seeds = {str(n): compare({"full": run([2, 4, 6, 8 + 2 * n], [0.5, 0.25 * n], refreshes=n)}) for n in (0, 1, 3)}
    text = markdown(result(seeds))
    assert "Seeds of world and training: 0, 1, 3;" in text
    # Recall 0, 0.25 and 0.75 after 8, 10 and 14 seconds, each of which is the only run of its seed.
    assert "| full | 4 | 11 (8 to 14) | 0.333 (0.000 to 0.750) |" in text
    assert "within the 11 (8 to 14) s" in text
    assert "| 1.33 (0 to 3) | 6.0 | 7.5 | 1 | 2.0 |" in text  # a seed without a refresh has no seconds of one


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--policies 'none,often': expected some of none, rerank"):
        refresh_policies.main(["--output", str(tmp_path), "--policies", "none,often"])


def test_given_inputs_take_the_place_of_the_small_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, file = "checkpoint=/c,questions=/q,memory=/m,index=/i", tmp_path / "some.toml"
    file.write_text("[joint]\nmicro_batch = 2\n", encoding="utf-8")
    arguments = [
        "--output",
        str(tmp_path),
        "--inputs",
        inputs,
        "--policies",
        "full",
        "--config",
        str(file),
        "--dry-run",
    ]
    assert refresh_policies.main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert f"--config {file}" in line
    for part in ("index=/i", "joint.refresh.policy=full", "joint.refresh.every_steps=10"):
        assert f"--set {part}" in line
    assert "utility_weight" not in line


def test_every_seed_has_its_own_world_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        refresh_policies.main(
            ["--output", str(tmp_path), "--policies", "none,incremental+rerank", "--seeds", "0", "7", "--dry-run"]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (4 + 2)
    for line in lines[6:]:
        assert f"{tmp_path}/seed-7" in line
        assert f"{tmp_path}/seed-0" not in line
    assert "--seed 7" in lines[6]
    assert "--set seed=7" in lines[11]
    assert "joint.refresh.rerank=true" in lines[11]


@pytest.mark.release
@pytest.mark.timeout(1200)
def test_the_whole_command_on_a_tiny_world(tmp_path: Path) -> None:
    """Who waits is blocked, and who does not is not; MEMORY of who does nothing falls behind."""
    tiny = [
        "pretrain.steps=3",
        "instruct.steps=2",
        "joint.questions_per_step=4",
        "joint.micro_batch=4",
        "joint.evaluate_questions=4",
        "world.train=20",
        "world.held_out=20",
        "world.pretrain=20",
    ]
    sets = [
        part for value in [*tiny, "joint.evaluate_every=4", "joint.refresh.canary_every=4"] for part in ("--set", value)
    ]
    arguments = [
        "--output",
        str(tmp_path),
        "--steps",
        "8",
        "--every",
        "3",
        "--policies",
        "none,incremental,stop",
        *sets,
    ]
    assert refresh_policies.main(arguments) == 0
    found = json.loads((tmp_path / "results.json").read_text())["by_seed"]["0"]
    assert found["none"]["canary_cosine_last"] < found["stop"]["canary_cosine_last"]
    assert found["none"]["mean_memory_lag_steps"] == 3.5
    assert found["stop"]["versions_used"] == 3
    assert found["stop"]["blocked_share"] > 0.3 > 10 * found["none"]["blocked_share"]
    assert found["incremental"]["refresh_cost"]["refreshes"] >= 1
    assert (tmp_path / "curves.png").is_file()
    assert "At equal wall time" in (tmp_path / "results.md").read_text()
