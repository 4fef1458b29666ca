"""Every stage, compression, search and answers on a device that is not the CPU: the same figures, or an error.

One process for each type of the LM runs all cases: `tests/helpers/placement.py`.
"""

import json
from typing import Any

import pytest

from tests.helpers import placement, warm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(
    scope="module",
    params=["float32", pytest.param("bfloat16", marks=pytest.mark.release)],
    ids=lambda dtype: str(dtype),
)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the cases came to, in the LM's type; in bfloat16 with recomputed activations."""
    folder = tmp_path_factory.mktemp("placement")
    process = warm.start(placement.main, str(folder), request.param, said=folder / "said")
    process.join()
    assert process.exitcode == 0, (folder / "said").read_text()[-4000:]
    outcome: dict[str, Any] = json.loads((folder / placement.OUTCOME).read_text())
    return outcome


@pytest.mark.parametrize("case", placement.NAMES)
def test_the_other_device_gives_the_figures_of_the_cpu(found: dict[str, Any], case: str) -> None:
    """In bfloat16 losses alone are compared: rounding decides between rows of nearly equal scores."""
    on_cpu, elsewhere = found["cases"][case]["cpu"], found["cases"][case]["elsewhere"]
    assert "error" not in on_cpu, on_cpu["error"]
    assert "error" not in elsewhere, elsewhere["error"]
    expected, figures = on_cpu["figures"], elsewhere["figures"]
    assert len(expected) >= 2
    if found["dtype"] == "float32":
        assert figures == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        losses = {name: value for name, value in expected.items() if name.endswith(("loss", "nats"))}
        assert {name: figures[name] for name in losses} == pytest.approx(losses, rel=0.05, abs=0.05)


@pytest.mark.parametrize("what", ["a factor made in the model", "a mask of the batch"])
def test_a_tensor_that_is_left_on_the_cpu_is_found(found: dict[str, Any], what: str) -> None:
    if found["planted"]:  # in float32 only
        assert "WrongDeviceError" in found["planted"][what]["error"]
