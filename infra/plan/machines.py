"""How fast a machine works: GPUs by assumption, as nobody has run one; this kind of CPU by measurement.

GPU figures are peak numbers of NVIDIA's data sheets (dense bfloat16, memory) times a share that is assumed: 0.40 of the
peak in compression (0.20 to 0.55) and 0.30 in training (0.15 to 0.45), about what appendix B of PaLM (arXiv:2204.02311)
reports of large training runs; passes here are short, so that the range is wide.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.errors import InputError

RESULTS = Path(__file__).resolve().parents[1] / "results"
CONSTANTS = RESULTS / "plan" / "results.json"
INDEX_RESULTS = RESULTS / "index" / "1000k-rows.json"
_ASSUMED = "assumed: no run on a GPU yet; a share of the data sheet's peak"
_COMPRESSION_SHARES, _TRAINING_SHARES = (0.40, 0.20, 0.55), (0.30, 0.15, 0.45)


@dataclass(frozen=True)
class Figure:
    """A number with its range.

    Attributes:
        value: the most likely one.
        low: smallest.
        high: largest.
        assumed: whether nobody has measured it.
        source: where it is from.
    """

    value: float
    low: float
    high: float
    assumed: bool
    source: str

    def seconds(self, operations: float, fixed: float = 0.0) -> "Figure":
        """Seconds of an amount of work at this rate; the range turns over."""
        return Figure(
            fixed + operations / self.value,
            fixed + operations / self.high,
            fixed + operations / self.low,
            self.assumed,
            self.source,
        )

    def times(self, factor: float) -> "Figure":
        """So many times the number."""
        return Figure(self.value * factor, self.low * factor, self.high * factor, self.assumed, self.source)

    def shifted(self, amount: float) -> "Figure":
        """The number and its range, larger by an amount."""
        return Figure(self.value + amount, self.low + amount, self.high + amount, self.assumed, self.source)

    def plus(self, other: "Figure") -> "Figure":
        """The sum; assumed if one of them is."""
        sources = dict.fromkeys([*self.source.split("; "), *other.source.split("; ")])
        low, high, assumed = self.low + other.low, self.high + other.high, self.assumed or other.assumed
        return Figure(self.value + other.value, low, high, assumed, "; ".join(sources))


@dataclass(frozen=True)
class Machine:
    """One GPU, or one core.

    Attributes:
        name: as it was given.
        memory_bytes: of a GPU; 0: a core, whose memory is the machine's.
        compression: operations a second of compressing passes.
        training: operations a second of a step.
        step_seconds: of a micro-batch, whatever it computes.
    """

    name: str
    memory_bytes: float
    compression: Figure
    training: Figure
    step_seconds: float = 0.0


_GPUS = {
    # name: dense bfloat16 in 10^12 operations a second, memory in 10^9 bytes
    "b200": (2250.0, 180.0),
    "h200": (989.0, 141.0),
    "h100": (989.0, 80.0),
    "a100-80": (312.0, 80.0),
    "a100-40": (312.0, 40.0),
    "l40s": (362.0, 48.0),
    "l4": (121.0, 24.0),
    "rtx4090": (165.0, 24.0),
}
NAMES = ("cpu", *_GPUS)


def machine_of(name: str, constants: Mapping[str, Any]) -> Machine:
    """The machine of a name.

    Args:
        name: one of `NAMES`.
        constants: see `read_constants`.

    Raises:
        InputError: an unknown name.
    """
    if name == "cpu":
        return _core(constants)
    if name not in _GPUS:
        raise InputError(f"--gpu {name!r}: not known; give one of {', '.join(NAMES)}")
    peak, memory = _GPUS[name]

    def rate(shares: tuple[float, float, float]) -> Figure:
        value, low, high = (peak * 1e12 * share for share in shares)
        return Figure(value, low, high, True, _ASSUMED)

    return Machine(name, memory * 1e9, rate(_COMPRESSION_SHARES), rate(_TRAINING_SHARES))


def _core(constants: Mapping[str, Any]) -> Machine:
    source = f"measured: {constants['processor']}, one core, {constants['dtype']}, {constants['model']}"

    def rate(name: str) -> Figure:
        found = constants["constants"][name]
        return Figure(found["value"], found["low"], found["high"], False, source)

    step = constants["constants"]["step_seconds"]["value"]
    return Machine("cpu", 0.0, rate("compression_operations_per_second"), rate("training_operations_per_second"), step)


def peak_of(device: str) -> float | None:
    """Operations a second of a device by the data sheet, from the name that its driver gives; None: not known."""
    words = device.lower().replace("-", " ").split()
    found = [peak * 1e12 for name, (peak, _) in _GPUS.items() if name.partition("-")[0] in words]
    return found[0] if found else None


def read_constants(file: Path = CONSTANTS) -> dict[str, Any]:
    """What `benchmarks.plan_constants` measured.

    Raises:
        InputError: missing, or not such a file.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["constants"]["step_seconds"]["value"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: not the constants of a plan ({error}); make them with python -m benchmarks.plan_constants"
        ) from error
    return dict(found)
