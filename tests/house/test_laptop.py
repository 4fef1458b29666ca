"""Answering and one-process training without Ray, DeepSpeed and Beam, as on a laptop that has none of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import joint_world

ROOT = Path(__file__).parents[2]
# Runs `MODULE ARGUMENTS…` where the three can't be imported, not even by another library.
RUN = """
import importlib.machinery, sys
find_spec = importlib.machinery.PathFinder.find_spec
def without_the_three(name, path=None, target=None):
    if name.partition(".")[0] not in ("ray", "deepspeed", "apache_beam"):
        return find_spec(name, path, target)
importlib.machinery.PathFinder.find_spec = without_the_three
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""


def run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ask_and_a_local_joint_run_need_no_ray_deepspeed_or_beam(
    tiny_checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    world = joint_world.make(tmp_path / "world", tiny_checkpoint, corpus_file)
    output = tmp_path / "run"
    run("training.joint", "--launcher", "local", *world.sets(output, joint__steps=2))
    assert json.loads((output / "report.json").read_text())["steps"] == 2
    places = [f"--checkpoint={output / 'checkpoint'}", f"--memory={world.memory}", f"--index={world.index}"]
    answered = run("clara.ask", *places, "Who is the mayor of Arlen?")
    assert answered.startswith("Q: Who is the mayor of Arlen?")
    assert "[1]" in answered
