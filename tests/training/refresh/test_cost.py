"""What a run's refreshes cost, in closed form."""

import pytest

from clara.config.tree import Config
from training.refresh.cost import Devices, Spent, cost

LOCAL = Config.model_validate(
    {"launch": {"launcher": "local"}, "joint": {"questions_per_step": 4, "refresh": {"num_cpus": 2.0}}}
)
REFRESHES = [{"seconds": 3.0, "bytes": 10}, {"seconds": 1.0, "bytes": 20}]


def test_shares_and_pace() -> None:
    metrics = {
        n: {"step_seconds": seconds, "refreshing": beside}
        for n, (seconds, beside) in enumerate([(1, 0), (1, 0), (2, 1), (4, 1)], 1)
    }
    found = cost(LOCAL, 3, metrics, REFRESHES)
    assert (found["refreshes"], found["seconds"], found["bytes"]) == (2, 4.0, 30)
    assert (found["encoding_device_seconds"], found["training_device_seconds"]) == (8.0, 24.0)
    assert found["compute_share"] == 0.25
    assert (found["median_step_seconds_alone"], found["median_step_seconds_beside_a_refresh"]) == (1, 3)
    assert found["throughput_beside_a_refresh"] == pytest.approx(1 / 3)
    assert (found["questions_per_second_alone"], found["questions_per_second_beside_a_refresh"]) == (
        4.0,
        pytest.approx(8 / 6),
    )


def test_lost_tries_cost_and_readiness_is_from_the_request() -> None:
    made = [
        {"seconds": 3.0, "bytes": 10, "ready_seconds": 8.0},
        {"seconds": 1.0, "bytes": 20, "ready_seconds": 2.0},
        {"seconds": 2.0, "bytes": 0},
    ]
    found = cost(LOCAL, 3, {1: {"step_seconds": 10.0, "refreshing": 1.0}}, made, [{"seconds": 4.0}, {"seconds": 0.5}])
    # The last one was after the last step, and asked for by nobody.
    assert (found["seconds"], found["mean_ready_seconds"]) == (6.0, 5.0)
    assert (found["lost_tries"], found["lost_seconds"]) == (2, 4.5)
    assert found["encoding_device_seconds"] == 2 * 10.5
    assert found["compute_share"] == 21.0 / (21.0 + 30.0)


def test_without_refreshes_there_is_no_pace_beside_one() -> None:
    found = cost(LOCAL, 1, {1: {"step_seconds": 2.0, "refreshing": 0.0}}, [])
    assert found["compute_share"] == 0.0
    assert found["median_step_seconds_beside_a_refresh"] is None
    assert found["throughput_beside_a_refresh"] is None


def test_cores_and_gpus_are_not_added_up() -> None:
    config = Config.model_validate({"launch": {"gpu": True, "num_workers": 8}})
    devices = Devices.of(config, 4)
    assert devices == Devices(8, 1, alike=False)
    assert devices.share(1.0, 1.0) is None
    assert "refresh_compute_share" not in Spent(2.0, 1.0, 1.0).figures(devices)


def test_what_was_spent_is_taken_up() -> None:
    spent = Spent()
    spent.add(3.0, 0.5, 0.0)
    again = Spent(**spent.state())
    again.add(1.0, 0.5, 4.0)
    assert again.figures(Devices(1, 1, alike=True)) == {"blocked_share": 0.25, "refresh_compute_share": 0.5}
