"""The parts for a borrowed GPU, at tiny shapes on a CPU, with the packages of a bare machine and the archive alone."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_pack
from benchmarks.gpu_parity import compared
from clara.errors import InputError
from infra.plan.machines import peak_of

ROOT = Path(__file__).parents[2]
# What a machine with torch, transformers, peft and pyarrow lacks, and the archive does not bring.
ABSENT = (
    *("ray", "deepspeed", "mlflow", "apache_beam", "scipy", "sklearn", "matplotlib", "pandas", "bm25s", "orjson"),
    *("mwparserfromhell", "datasketch", "sentence_transformers", "openai", "fastapi", "gguf", "flash_attn"),
)
# Runs `MODULE ARGUMENTS…` where these can't be imported, not even by another library; in its child processes too.
SITE = f"""
import importlib.machinery
find_spec = importlib.machinery.PathFinder.find_spec
def bare(name, path=None, target=None):
    if name.partition(".")[0] not in {ABSENT!r}:
        return find_spec(name, path, target)
importlib.machinery.PathFinder.find_spec = bare
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python processes of this test find none of `ABSENT`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def results(folder: Path) -> dict[str, dict[str, object]]:
    return {path.stem: json.loads(path.read_text())["found"] for path in folder.glob("*.json")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_parts_at_tiny_shapes_on_a_bare_machine(
    tmp_path: Path, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu"
    arguments = ["--device", "cpu", "--tiny", "--output", str(output)]
    status = gpu.main(arguments)
    logs = {path.name: path.read_text()[-3000:] for path in output.glob("*.log")}
    assert status == 0, logs
    found = results(output)
    assert found.keys() == gpu.PARTS.keys()
    assert found["parity"]["within"]
    assert len(found["parity"]["losses"]["cpu"]) == 20  # type: ignore[index]
    for name in ("1b", "7b"):
        cases = found[name]["cases"]
        assert isinstance(cases, dict)
        assert cases["flash_attention_2"] == {"failed": "the package flash_attn is not installed"}
        for case in ("sdpa", "sdpa, compiled"):
            assert cases[case]["compression"]["tokens_per_second"] > 0, cases[case]
            assert cases[case]["joint_step"]["operations_per_second"] > 0
    assert found["world"]["recall_at_1"].keys() == {"unseen", "unseen_wording"}  # type: ignore[attr-defined]
    assert found["faiss"]["gpu"] is None
    assert found["faiss"]["cpu"]

    capsys.readouterr()
    (output / "faiss.json").write_text(json.dumps({"complete": False}))  # cut short
    assert gpu.main([*arguments, "--dry-run"]) == 0
    states = json.loads(capsys.readouterr().out)["parts"]
    assert states == dict.fromkeys(gpu.PARTS, "complete") | {"faiss": "to do"}
    assert gpu.main(arguments) == 0
    assert "faiss: done" in capsys.readouterr().out


def test_a_part_that_fails_is_named_and_the_others_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def apart(name: str, options: object) -> str:
        return "exit status 1, see log" if name == "1b" else ""

    monkeypatch.setattr(gpu, "run_apart", apart)
    assert gpu.main(["--parts", "parity,1b,7b", "--output", str(tmp_path / "gpu")]) == 1
    assert capsys.readouterr().out.splitlines() == ["parity: done", "1b: exit status 1, see log", "7b: done"]
    with pytest.raises(InputError, match="--parts 'other': no such part; there are parity, 1b, 7b, world, faiss"):
        gpu.main(["--parts", "other"])


def test_all_parts_have_less_than_eight_minutes() -> None:
    assert sum(part.limit_seconds for part in gpu.PARTS.values()) < 480


def test_a_difference_is_found() -> None:
    import torch

    same = {"losses": [1.0, 0.5], "memory": torch.ones(2), "scores": torch.ones(2), "tokens": [[1]]}
    assert compared(same, same)["within"]
    for other in ({"losses": [1.0, 0.51]}, {"memory": torch.full((2,), 1.01)}, {"tokens": [[2]]}):
        assert not compared(same | other, same)["within"]


def test_a_device_has_the_peak_of_its_data_sheet() -> None:
    assert peak_of("NVIDIA H200") == peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_of("NVIDIA L4") == 121e12
    assert peak_of("another") is None


def test_the_archive_has_sources_wheels_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "one.whl").write_bytes(b"wheel")
    archive = tmp_path / "gpu.tar.gz"
    assert gpu_pack.pack(archive, wheels) < 3 * 2**20
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    for name in ("run.sh", "wheels/one.whl", "benchmarks/gpu.py", "infra/configs/world.toml", "clara/__init__.py"):
        assert f"clara-gpu/{name}" in names
    monkeypatch.setattr(gpu_pack, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="expected at most 60; leave FAISS out with --no-faiss"):
        gpu_pack.pack(archive, wheels)
    assert gpu_pack.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "faiss-gpu-cu12==" in said
    assert "pydantic==" in said
    with pytest.raises(InputError, match="left-pad has no pinned version"):
        gpu_pack.pinned(["left-pad"])


@pytest.mark.slow
def test_the_sources_of_the_archive_run_by_themselves(tmp_path: Path, bare: None) -> None:
    """The dry run and the imports of every part, from the unpacked archive alone."""
    (tmp_path / "wheels").mkdir()
    gpu_pack.pack(tmp_path / "gpu.tar.gz", tmp_path / "wheels")
    with tarfile.open(tmp_path / "gpu.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / gpu_pack.FOLDER
    program = "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]]\n"
    program += "".join(f"import {part.module}\n" for part in gpu.PARTS.values())
    program += "import clara; print(clara.__file__)"
    command = [sys.executable, "-c", program, str(ROOT)]
    environment = {"PYTHONPATH": f"{tmp_path / 'site'}:{folder}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "clara" / "__init__.py")
