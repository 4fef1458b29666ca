"""The page that says which engine when: its prices are those of `clara plan`, and its table names all of infra/."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from infra.plan import command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "infra/README.md").read_text(encoding="utf-8")
REQUEST = [
    *("--documents", "1000000", "--tokens-per-document", "600", "--backbone", "mistral-7b"),
    *("--config", str(ROOT / "infra/configs/mistral_7b.toml"), "--json"),
]
ROWS = re.findall(r"^\| (\S+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)


def test_the_table_has_rows() -> None:
    assert [row[0] for row in ROWS] == ["h100", "a100-80", "l4", "cpu"]
    assert " ".join(REQUEST[:6]) in PAGE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_hours_and_prices_are_those_of_the_plan(row: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    gpu, gpus, price, *written = row
    assert command.main([*REQUEST, "--gpu", gpu, "--gpus", gpus, "--price", price]) == 0
    plan = json.loads(capsys.readouterr().out)
    found = [plan["hours"]["compression"], plan["price"]["compression"], plan["price"]["joint"]]
    assert [float(number) for number in written] == pytest.approx([part["value"] for part in found], rel=0.01)


def test_all_of_infra_is_in_the_table_of_what_was_run() -> None:
    table = PAGE.partition("## Run, dry-run or only written")[2]
    names = subprocess.run(["git", "ls-files", "infra"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {name.split("/")[1] for name in names.splitlines() if name.count("/") > 1} - {"results"}
    manifests = {name for name in names.splitlines() if re.fullmatch(r"infra/[^/]+/[^/]+\.yaml", name)}
    configs = {Path(name).stem for name in names.splitlines() if name.startswith("infra/configs/")}
    assert [name for name in sorted(folders) if f"infra/{name}/" not in table] == []
    assert [name for name in sorted(manifests) if Path(name).name not in table] == []
    assert [name for name in sorted(configs) if name not in table] == []
