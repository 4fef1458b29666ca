"""The configuration: defaults, overrides, and errors that name the key, the value and what was expected."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from clara.config.load import fields, load, require
from clara.config.section import Section
from clara.config.tree import Config
from clara.errors import InputError

SHIPPED = sorted((Path(__file__).parents[3] / "infra" / "configs").rglob("*.toml"))


def test_no_file_and_no_override_give_the_defaults():
    assert load(None) == Config()


def test_a_file_holds_only_what_differs(tmp_path: Path):
    (tmp_path / "run.toml").write_text("seed = 3\n[joint]\nnum_selected = 2\noptimiser = { learning_rate = 1e-3 }\n")
    config = load(str(tmp_path / "run.toml"))
    assert (config.seed, config.joint.num_selected, config.joint.optimiser.learning_rate) == (3, 2, 1e-3)
    assert config.joint.num_candidates == Config().joint.num_candidates


def test_an_override_wins_over_the_file(tmp_path: Path):
    (tmp_path / "run.toml").write_text("[joint]\nsteps = 5\n")
    sets = [
        "joint.steps=7",
        "backbone.path=/a/b c",
        "joint.inject_positives=true",
        "joint.in_batch=False",
        "pretrain.optimiser.betas=(0.9, 0.99)",
    ]
    config = load(str(tmp_path / "run.toml"), sets)
    assert (config.joint.steps, config.backbone.path) == (7, "/a/b c")
    assert (config.joint.inject_positives, config.joint.in_batch) == (True, False)
    assert config.pretrain.optimiser.betas == (0.9, 0.99)


@pytest.mark.parametrize("text", ["6e-3", "0.006"])
def test_numbers_in_overrides_are_numbers(text: str):
    assert load(None, [f"joint.temperature={text}"]).joint.temperature == 0.006


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_configuration_loads(path: Path):
    assert load(str(path)) != Config()


def test_the_tree_is_frozen():
    with pytest.raises(ValidationError):
        Config().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("joint.num_candidate=3", "joint.num_candidate: unknown key; near ones: .*joint.num_candidates"),
        ("temprature=3", "temprature: unknown key; near ones: .*joint.temperature"),
        ("joint.num_selected=21", r"num_selected is 21, joint.num_candidates 20.*K ≤ N.*lower num_selected"),
        ("joint.steps=many", "joint.steps is 'many': .*integer"),
        ("joint.steps=1.5", "joint.steps is 1.5: .*integer"),
        ("joint.steps=0", "joint.steps is 0: .*greater than or equal to 1"),
        ("joint.temperature=0", "joint.temperature is 0: .*greater than or equal to 0.000001"),
        ("stage=train", "stage is 'train': .*'pretrain', 'instruct' or 'joint'"),
        ("backbone.dtype=float16", "backbone.dtype is 'float16': .*'float32' or 'bfloat16'"),
        ("joint=3", "joint is 3: "),
        ("joint.steps.more=3", "joint.steps"),
        ("model.lora.dropout=1", "model.lora.dropout is 1: .*less than 1"),
        ("joint.answer_weight=0", "answer_weight, labels_weight and utility_weight are all 0"),
        (
            "prompts.answer_user=Say {question}",
            "answer_user is 'Say {question}'; it must hold {documents} exactly once",
        ),
        (
            "joint.learning_rates={student = 1e-3}",
            "joint.learning_rates.student: unknown key; near ones: query_reasoner, generator, compressor",
        ),
        ("joint.learning_rates={query = 1e-3}", "joint.learning_rates.query: unknown key; near ones: query_reasoner$"),
        ("joint.learning_rates={compressor = -1e-3}", "joint.learning_rates.compressor is -0.001: .*greater than 0"),
        ("joint.optimiser.learning_rate=-1", "joint.optimiser.learning_rate is -1: .*greater than 0"),
        ("joint.refresh.wait_seconds=inf", "joint.refresh.wait_seconds is inf: .*"),
        ("joint.refresh.wait_seconds=1e300", "joint.refresh.wait_seconds is 1e.300: .*less than or equal to 31536000"),
        ("retrieval.search_seconds=inf", "retrieval.search_seconds is inf: .*"),
        ("joint.learning_rates={generator = inf}", "joint.learning_rates.generator is inf: .*finite"),
        ("joint.steps", "expected key=value"),
        ("=3", "unknown key|expected key=value"),
    ],
)
def test_a_wrong_value_is_an_error_that_says_what_was_expected(override: str, wanted: str):
    with pytest.raises(InputError, match=wanted):
        load(None, [override])


def test_an_override_below_a_plain_value_is_an_error(tmp_path: Path):
    (tmp_path / "run.toml").write_text("seed = 3\n")
    with pytest.raises(InputError, match="seed"):
        load(str(tmp_path / "run.toml"), ["seed.more=3"])


def test_several_errors_are_reported_at_once(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text("seeed = 3\n[joint]\nsteps = -1\n")
    with pytest.raises(InputError, match=r"run.toml: .*joint.steps is -1.*seeed: unknown key") as caught:
        load(str(path))
    assert "seed" in str(caught.value)


def test_a_missing_or_broken_file_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(InputError, match=r"none.toml: no such configuration file"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "broken.toml").write_text("seed = = 3\n")
    with pytest.raises(InputError, match=r"broken.toml: not TOML"):
        load(str(tmp_path / "broken.toml"))
    with pytest.raises(InputError, match=r"no such configuration file|cannot be read"):
        load(str(tmp_path))


def test_what_a_run_requires_is_named():
    with pytest.raises(InputError, match=r"questions, corpus: empty; set them"):
        require(Config(output="x"), "questions", "output", "corpus")
    require(Config(output="x"), "output")


def test_every_key_is_listed_and_described_or_plain():
    listed = [key for key, _ in fields()]
    assert len(listed) == len(set(listed))
    assert {"joint.refresh.policy", "model.lora.rank", "pretrain.optimiser.learning_rate"} <= set(listed)


def leaf_fields() -> dict[str, FieldInfo]:
    return {key: field for key, field in fields() if not isinstance(field.default, Section)}


def test_every_field_is_described():
    assert [key for key, field in leaf_fields().items() if not field.description] == []


def limits(kind: object) -> Iterator[bool]:
    """Whether each number of a type has a lower bound; of a field itself see its metadata."""
    if get_origin(kind) is Annotated:
        yield any(hasattr(limit, "ge") or hasattr(limit, "gt") for limit in get_args(kind)[1].metadata)
    elif get_origin(kind) in (tuple, dict):
        yield from (found for part in get_args(kind) for found in limits(part))
    elif kind in (int, float):
        yield False


def test_every_number_has_a_bound():
    fields_with_bounds = {
        key for key, field in leaf_fields().items() if any(hasattr(m, "ge") or hasattr(m, "gt") for m in field.metadata)
    }
    free = [key for key, field in leaf_fields().items() if not all(limits(field.annotation))]
    assert set(free) <= fields_with_bounds, set(free) - fields_with_bounds
