"""`clara plan`: formulas against torch's own counts and stored results, sizes by the system's functions, refusals."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clara.config.load import load
from clara.config.model import Score
from clara.config.roles import COMPRESSOR, ROLES
from clara.config.tree import Config
from clara.errors import InputError
from clara.index.factory import resolve_factory
from clara.memory.codec import encode_memory
from infra.plan import advice, command, gpu_memory, work
from infra.plan.estimate import Estimate, Request, Rows
from infra.plan.index_cost import index_kind, list_seconds
from infra.plan.machines import NAMES, machine_of, read_constants
from infra.plan.plan import plan_of
from infra.plan.shape import SHAPES, Shape, shape_of
from infra.plan.text import as_text
from tests.helpers import tiny

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "infra" / "results"
TRAINED = ("joint.train_compressor=true",)


def estimate(*sets: str, gpu: str = "h100", **changed: Any) -> Estimate:
    request = Request(1_000_000, 200, "mistral-7b", 8, 1, 2.0, 24, 12)
    constants = read_constants()
    asked = dataclasses.replace(request, **changed)
    return Estimate(load(None, list(sets)), shape_of(asked.backbone), asked, machine_of(gpu, constants), constants)


def plan(*sets: str, **changed: Any) -> dict[str, Any]:
    return plan_of(estimate(*sets, **changed), refresh_share=0.2, disk_bytes=2e12)


# --- formulas ---


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3"])
def test_numbers_of_lm_and_adapters_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    shape = shape_of(str(tiny.write_backbone(tmp_path, family)))
    model = tiny.build_model(tmp_path)
    assert shape.num_parameters == sum(p.numel() for p in model.role_parameters("backbone"))
    for role in ROLES:
        assert shape.adapter_numbers(4) == sum(p.numel() for p in model.role_parameters(role))


def test_operations_are_those_that_torch_counts(tiny_backbone: Path) -> None:
    shape, model = shape_of(str(tiny_backbone)), tiny.build_model(tiny_backbone)
    ids, length = [[5] * 50, [6] * 50], work.encoded_length(50, tiny.NUM_MEMORY_TOKENS)
    with sdpa_kernel(SDPBackend.MATH):  # whose products torch counts
        with FlopCounterMode(display=False) as counted:
            model.compress(ids)
        assert counted.get_total_flops() == pytest.approx(2 * work.forward(shape, length, 4), rel=0.01)
        model.train_only([COMPRESSOR, "memory_tokens"])
        for recomputed, tolerance in ((False, 0.02), (True, 0.1)):  # recomputation stops at the last tensor it needs
            if recomputed:
                model.backbone.enable_checkpointing()
            with FlopCounterMode(display=False) as counted:
                model.encode(ids, COMPRESSOR).memory.sum().backward()
            expected = 2 * work.trained(shape, length, 4, recomputed=recomputed)
            assert counted.get_total_flops() == pytest.approx(expected, rel=tolerance)


def test_what_ranks_hold_is_what_the_benchmark_of_zero_measured() -> None:
    rows = json.loads((RESULTS / "zero" / "results.json").read_text())["rows"]
    whole = rows[0]["most"]
    shape = Shape(512, 4, 4, 4, 128, 1536, 1)
    trained = 3 * shape.adapter_numbers(16)
    assert whole["gradients"] == 4 * trained
    assert len(rows) == 7
    for row in rows:
        of = dataclasses.asdict(gpu_memory.held(whole["weights"], trained, row["ranks"], row["stage"]))
        for part, num_bytes in of.items():
            assert num_bytes == pytest.approx(row["most"][part], rel=0.001), (row["ranks"], row["stage"], part)


def test_the_build_of_a_million_rows_predicts_that_of_ten_million() -> None:
    found = json.loads((RESULTS / "index" / "10000k-rows.json").read_text())
    seconds = list_seconds(index_kind(10_000_000, 256, Config()))
    assert seconds == pytest.approx(found["systems"]["ours"]["build_seconds"], rel=0.25)


# --- sizes ---


def test_bytes_by_codec_are_those_of_encoded_memory() -> None:
    of = estimate(backbone="smollm2-135m")
    slots, hidden = of.config.model.num_memory_tokens, of.shape.hidden_size
    memory = np.random.default_rng(0).standard_normal((3, slots, hidden)).astype(np.float32)
    for name in ("float16", "int8", "int4"):
        stored = sum(array.nbytes for array in encode_memory(memory, name).values())
        assert 3 * of.row_bytes()[name] == stored
    assert of.row_bytes()["pq8"] == slots * (hidden // 8 + 4)


@pytest.mark.parametrize("rows", [40_000, 2_000_000, 50_000_000])
def test_the_index_is_the_kind_that_a_build_chooses(rows: int) -> None:
    kind = index_kind(rows, 256, Config())
    assert kind.factory == resolve_factory("auto", rows, 256)
    lists = int(kind.factory.partition("IVF")[2].partition(",")[0] or 0)
    code = {"Flat": 4 * 256, "SQfp16": 2 * 256, "PQ64": 64}[kind.factory.rpartition(",")[2]]
    assert kind.num_bytes == rows * (code + 8) + 4 * lists * 256


def test_keys_of_slot_means_have_the_lms_width() -> None:
    of = estimate("corpus_job.codec=int8", documents=30_000)
    score = of.config.model.model_copy(update={"score": Score(pooling="slot_mean")})
    wide = dataclasses.replace(of, config=of.config.model_copy(update={"model": score}))
    assert wide.index.factory == "SQfp16"
    assert wide.index.num_bytes == 30_000 * (2 * 4096 + 8)


@pytest.mark.parametrize(
    ("tokens", "overlap", "expected"),
    [(200, 0, Rows(10, 200)), (256, 0, Rows(10, 256)), (257, 0, Rows(20, 128.5)), (300, 32, Rows(20, 166))],
)
def test_documents_are_cut_into_chunks(tokens: int, overlap: int, expected: Rows) -> None:
    assert Rows.of(10, tokens, 256, overlap) == expected


# --- hours, advice ---


def test_twice_the_documents_take_twice_the_compression_and_the_same_joint_training() -> None:
    one, two = plan(), plan(documents=2_000_000)
    assert two["hours"]["compression"]["value"] == pytest.approx(2 * one["hours"]["compression"]["value"])
    assert two["hours"]["joint"] == one["hours"]["joint"]
    assert two["break_even"]["answers"] == pytest.approx(2 * one["break_even"]["answers"], abs=2)


def test_more_gpus_take_less_time_and_cost_the_same() -> None:
    one, eight = plan(gpus=1), plan(gpus=8)
    assert eight["hours"]["compression"]["value"] == pytest.approx(one["hours"]["compression"]["value"] / 8)
    assert eight["price"]["compression"]["value"] == pytest.approx(one["price"]["compression"]["value"])
    assert plan(price=4.0)["price"]["total"]["value"] == pytest.approx(2 * eight["price"]["total"]["value"])
    assert plan(price=0.0)["price"] is None


def test_an_answer_from_memory_pays_compression_back() -> None:
    of = estimate()
    found, each = advice.break_even(of), work.answer(of.config, of.shape, of.lengths)
    once = of.rows.count * work.compression(of.config, of.shape, of.lengths)
    assert found["answers"] - 1 < once / (each["text"] - each["memory"]) <= found["answers"]
    assert found["answers_with_joint_training"] > found["answers"]
    assert advice.break_even(estimate("model.num_memory_tokens=400"))["answers"] is None


def test_the_policy_follows_from_what_a_refresh_takes() -> None:
    assert plan()["refresh"]["policy"]["name"] == "none"
    full = plan(*TRAINED, "joint.steps=100000", refresh_gpus=8)["refresh"]
    assert full["policy"]["name"] == "full"
    assert full["every_steps"] == 100_000 // full["most"]
    one = full["share_of_one"] / (1 - full["share_of_one"])
    shares = [number * one / (1 + number * one) for number in (full["most"], full["most"] + 1)]
    assert shares[0] <= 0.2 < shares[1]
    assert plan(*TRAINED, "joint.steps=100")["refresh"]["policy"]["name"] == "none, with rerank and final"
    seldom = plan(*TRAINED, "joint.steps=3000")["refresh"]
    assert seldom["policy"]["name"] == "incremental, with final"


def test_the_codec_is_the_least_lossy_one_that_the_disk_holds() -> None:
    def chosen(disk: float, **changed: Any) -> str:
        return advice.codec(estimate(**changed), disk).name

    assert chosen(2e12, documents=1000) == "float16"
    assert chosen(2e12) == "int8"
    total = 1_000_000 * estimate().row_bytes()["int4"]
    assert chosen(total * 1.3) == "int4"
    assert chosen(1e9) == "none"


def test_zero_shares_out_what_does_not_fit() -> None:
    stages = plan(gpu="l4")["gpu_memory"]["stages"]
    totals = [stages[f"ZeRO {n}"]["bytes"]["total"] for n in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    assert plan()["gpu_memory"]["choice"] == "ZeRO 2"
    small = plan(gpu="l4", backbone="llama-3.1-8b", gpus=1)["gpu_memory"]
    assert not small["choice"]
    assert "gradient_checkpointing" in small["advice"]
    assert plan(gpu="cpu", backbone="smollm2-135m")["gpu_memory"] == {}


def test_what_nobody_has_run_is_said_to_be_assumed() -> None:
    found = plan()
    assert found["assumed"] == ["compression", "joint", "joint_step", "refresh"]
    for name in found["assumed"]:
        hours = found["hours"][name]
        assert hours["low"] < hours["value"] < hours["high"]
        assert "assumed" in hours["source"]
    text = as_text(found)
    assert text.count(", assumed]") == 4 + 4  # hours and prices
    measured = plan(gpu="cpu", backbone="smollm2-135m")
    assert measured["assumed"] == []
    assert "measured" in measured["hours"]["joint"]["source"]


# --- the command ---

ASKED = ["--documents", "1000", "--tokens-per-document", "200"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ASKED, "--backbone", "mistral-7b", "--gpu", "h900"], "--gpu 'h900': not known; give one of cpu, "),
        (["--documents", "0", *ASKED[2:], "--backbone", "mistral-7b"], "--documents 0: expected 1 or more"),
        ([*ASKED, "--backbone", "."], "--backbone '.': no config.json there; give a folder"),
        (ASKED, "--backbone is missing"),
        ([*ASKED, "--backbone", "mistral-7b", "--compression", "1000"], "expected at most 256"),
        ([*ASKED, "--backbone", "mistral-7b", "--price", "nan"], "--price nan: expected a number over 0"),
        ([*ASKED, "--backbone", "mistral-7b", "--set", "retrieval.factory=HNSW"], "cannot be planned"),
        ([*ASKED, "--backbone", "mistral-7b", "--set", "corpus_job.overlap_tokens=200"], "expected 0 to 128"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        command.main(arguments)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 0}', '{"hidden_size": 64, "num_attention_heads": 2}'])
def test_a_config_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        shape_of(str(tmp_path))


def test_compression_sets_the_memory_tokens() -> None:
    parsed = command.parser().parse_args([*ASKED, "--backbone", "mistral-7b", "--compression", "32"])
    assert command.estimate_of(parsed).config.model.num_memory_tokens == 8


@pytest.mark.parametrize("gpu", NAMES)
@pytest.mark.parametrize("backbone", SHAPES)
def test_every_known_model_is_planned_for_every_machine(backbone: str, gpu: str) -> None:
    found = plan(*TRAINED, backbone=backbone, gpu=gpu)
    assert json.loads(json.dumps(found)) == found
    assert found["backbone"]["parameters"] > 1e8
    assert as_text(found).count("\n") > 20


def test_the_command_prints_json_without_torch_and_ends_with_2_on_bad_input(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom infra import cli\n"
        f"code = cli.main(['plan', *{ASKED!r}, '--backbone', 'mistral-7b', '--json'])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["count"] == 1000
    bad = [sys.executable, "-m", "infra.plan", "--documents", "0", *ASKED[2:], "--backbone", "mistral-7b"]
    done = subprocess.run(bad, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
