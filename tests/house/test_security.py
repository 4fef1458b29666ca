"""What docs/security.md claims of loading models, and that the tests which it names exist."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clara.config.model import Backbone as BackboneSettings
from clara.config.model import Lora
from clara.errors import InputError
from clara.model.backbone import Backbone
from clara.model.backbone_files import load_tokenizer
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]
PACKAGES = ("clara", "pipelines", "training", "infra", "benchmarks")
LOADERS = ("from_pretrained", "SentenceTransformer", "CrossEncoder")


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Calls of a function or method of that name, with file and line."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and name in (
                    getattr(node.func, "attr", None),
                    getattr(node.func, "id", None),
                ):
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node))
    return found


def value(call: ast.Call, name: str) -> object:
    """The literal that a call gives for a parameter, None where it gives none."""
    return next((getattr(k.value, "value", "no literal") for k in call.keywords if k.arg == name), None)


# --- by source ---


def test_every_loader_runs_no_code_and_asks_no_hub() -> None:
    loaders = [found for name in LOADERS for found in calls(name)]
    assert len(loaders) >= 6
    for place, call in loaders:
        assert value(call, "trust_remote_code") is False, place
        assert value(call, "local_files_only") is True, place


def test_nothing_is_unpickled() -> None:
    for place, call in calls("load"):
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if owner == "torch":
            assert value(call, "weights_only") is True, place
        if owner == "np" and not place.startswith("benchmarks"):
            assert value(call, "allow_pickle") is False, place
        assert owner not in ("pickle", "yaml", "joblib"), place


def test_the_page_of_threats_names_tests_that_exist() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    references = re.findall(r"`(tests/[\w/]+\.py):(\w+)`", page)
    assert len(references) >= 18
    missing = [(file, name) for file, name in references if f"def {name}(" not in (ROOT / file).read_text("utf-8")]
    assert missing == []
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert [row for row in rows if "`tests/" not in row] == []


# --- by trying ---


def with_code(folder: Path) -> Path:
    """A model folder of an unknown kind, whose own code would run on loading."""
    tiny.write_backbone(folder)
    code = f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()\n"  # it is copied before it is run
    (folder / "own.py").write_text(code, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "of-its-author", "architectures": ["Own"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
    return folder


def load_backbone(folder: str) -> object:
    return Backbone.load(BackboneSettings(path=folder, dtype="float32"), Lora(rank=2, alpha=4.0, dropout=0.0), ())


@pytest.mark.parametrize("load", [load_backbone, load_tokenizer])
def test_code_in_a_model_folder_is_not_run(
    load: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = with_code(tmp_path / "model")
    with pytest.raises(InputError, match=r"trust_remote_code|cannot be"):
        load(str(folder))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("load", [load_backbone, load_tokenizer])
def test_a_name_of_a_hub_is_refused(
    load: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"give a (model )?folder"):
        load("organisation/model")
