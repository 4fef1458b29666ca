"""What re-encoding costs a run: share of device-seconds, share that training waits, and training's pace."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clara.config.tree import Config
from training.refresh.policy import policy_of


@dataclass(frozen=True)
class Devices:
    """Cores or GPUs that training holds, and those of a refresh; `alike` where both are of one kind."""

    training: float
    refresh: float
    alike: bool

    @classmethod
    def of(cls, config: Config, threads: int) -> "Devices":
        """As a configuration has them, with that many torch threads of a rank."""
        launch, refresh = config.launch, config.joint.refresh
        training = launch.num_ranks * (1 if launch.gpu else threads)
        each = refresh.num_gpus or max(1, int(refresh.num_cpus))
        workers = policy_of(refresh).num_workers
        return cls(training, workers * each, launch.gpu == bool(refresh.num_gpus))

    def share(self, refresh_seconds: float, training_seconds: float) -> float | None:
        """The refreshes' share of all device-seconds; None where the two are not of one kind."""
        refresh, training = refresh_seconds * self.refresh, training_seconds * self.training
        return refresh / (refresh + training) if self.alike and refresh + training else None


@dataclass
class Spent:
    """Seconds of a run so far: of steps, waited in them, and of refreshes, failed attempts included."""

    step_seconds: float = 0.0
    blocked_seconds: float = 0.0
    refresh_seconds: float = 0.0

    def add(self, step: float, blocked: float, refresh: float) -> None:
        """One more step."""
        self.step_seconds += step
        self.blocked_seconds += blocked
        self.refresh_seconds += refresh

    def figures(self, devices: Devices) -> dict[str, float]:
        """`blocked_share` of the time, and `refresh_compute_share` of the device-seconds, if that is defined."""
        share = devices.share(self.refresh_seconds, self.step_seconds)
        blocked = {"blocked_share": self.blocked_seconds / self.step_seconds} if self.step_seconds else {}
        return blocked | ({} if share is None else {"refresh_compute_share": share})

    def state(self) -> dict[str, float]:
        """The counts, as a run state keeps them."""
        return asdict(self)


def cost(
    config: Config,
    threads: int,
    metrics: Mapping[int, Mapping[str, float]],
    refreshes: Sequence[Mapping[str, Any]],
    lost: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What re-encoding cost, from the figures of all steps, the notes of all refreshes and failed attempts.

    `seconds`: of work, of refreshes that came to something. `mean_ready_seconds`: from a request beside training to
    readiness. `compute_share`: see `Devices.share`; failed attempts count with all their time, waiting for
    room included. Pace with a refresh beside it and without: median seconds of a step, and questions in a second over
    all such steps, evaluations and waiting included; `throughput_beside_a_refresh` is the ratio of the medians.
    """
    devices = Devices.of(config, threads)
    seconds, lost_seconds = (sum(float(r["seconds"]) for r in found) for found in (refreshes, lost))
    ready = [float(r["ready_seconds"]) for r in refreshes if "ready_seconds" in r]
    training = sum(v["step_seconds"] for v in metrics.values())
    beside = [v["step_seconds"] for v in metrics.values() if v.get("refreshing")]
    alone = [v["step_seconds"] for v in metrics.values() if not v.get("refreshing")]

    def pace(steps: list[float]) -> float | None:
        return config.joint.questions_per_step * len(steps) / sum(steps) if steps else None

    return {
        "refreshes": len(refreshes),
        "seconds": seconds,
        "mean_ready_seconds": statistics.mean(ready) if ready else None,
        "lost_tries": len(lost),
        "lost_seconds": lost_seconds,
        "bytes": sum(int(r["bytes"]) for r in refreshes),
        "encoding_device_seconds": (seconds + lost_seconds) * devices.refresh,
        "training_device_seconds": training * devices.training,
        "compute_share": devices.share(seconds + lost_seconds, training),
        "median_step_seconds_beside_a_refresh": statistics.median(beside) if beside else None,
        "median_step_seconds_alone": statistics.median(alone) if alone else None,
        "questions_per_second_beside_a_refresh": pace(beside),
        "questions_per_second_alone": pace(alone),
        "throughput_beside_a_refresh": statistics.median(alone) / statistics.median(beside)
        if beside and alone
        else None,
    }
