"""What may import what, what importing costs, and that the shipped text names no place of its making."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORCHESTRATORS = ("apache_beam", "ray", "deepspeed", "mlflow", "pipelines", "training", "infra")
CORE = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "clara").rglob("*.py")
    if not path.stem.startswith("__")
)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert ", 0 broken" in done.stdout


def test_importing_all_of_clara_pulls_in_no_orchestrator():
    """Also through third parties: sys.modules is asked, not the source."""
    code = (
        f"import sys\nfor name in {CORE!r}: __import__(name)\nprint([m for m in {ORCHESTRATORS!r} if m in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_importing_clara_is_cheap():
    """Under a second beside torch, in processor time, as the machine may be busy."""
    code = "import time, torch\nbegan = time.process_time()\nimport clara\nprint(time.process_time() - began)"
    assert float(python(code)) < 1.0


@pytest.mark.parametrize("name", CORE)
def test_a_module_is_read_in_one_sitting(name: str):
    assert len((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("package", ["clara", "pipelines", "training", "infra"])
def test_nothing_is_pickled_and_no_absolute_path_is_written_down(package: str):
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text, path
        assert "weights_only=False" not in text, path
        assert str(ROOT) not in text, path
