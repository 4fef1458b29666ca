"""A model in a folder: batching changes nothing, garbage is counted, a trained model makes real examples."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from clara.config.model import Prompts
from clara.config.synthesis import Folder
from clara.data.examples import FILE, read_examples
from clara.errors import InputError
from clara.model.prompts import PromptBuilder
from clara.storage.folders import sha256_file
from clara.storage.manifest import manifest_hash, read_manifest
from pipelines.synthesize.command import main
from pipelines.synthesize.folder_settings import FolderSettings
from pipelines.synthesize.local_model import FolderModel
from pipelines.synthesize.prompts import Request, load_templates
from tests.helpers import tiny

BATCH_TOKENS = Folder().batch_tokens
TEXT = "Arlen sits on the Tamo."
PARAPHRASE, YES = '{"paraphrase": "On the Tamo sits Arlen."}', '{"verdict": "yes"}'


def settings(folder: Path, **given: int) -> FolderSettings:
    fixed = {"path": str(folder), "device": "cpu", "dtype": "float32", "template_arguments": {}}
    return FolderSettings(**({"max_reply_tokens": 12} | fixed | given))


def requests() -> list[Request]:
    return [Request("answer", "Be brief." * (n % 2), "Say something. " * n + f"{n}?") for n in range(1, 9)]


def write_corpus(path: Path, count: int = 3) -> Path:
    rows = [{"id": str(n), "text": TEXT.replace("Arlen", f"Arlen {n}") if n else TEXT} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(given: Path, output: Path, model: Path, *arguments: str) -> list[str]:
    return [
        "--input",
        str(given),
        "--output",
        str(output),
        "--model",
        str(model),
        "--dtype=float32",
        "--num-workers=1",
        *arguments,
    ]


def test_batches_change_no_reply(tiny_backbone: Path) -> None:
    asked = requests()
    together = FolderModel(settings(tiny_backbone, batch_tokens=4096)).replies(asked)
    alone = [FolderModel(settings(tiny_backbone)).replies([request])[0] for request in asked[:3]]
    assert together[:3] == alone
    assert FolderModel(settings(tiny_backbone, batch_tokens=1)).replies(asked[::-1]) == together[::-1]
    assert all(r.reply_tokens == 12 for r in together if r.cut)
    assert max(r.reply_tokens for r in together) <= 12
    lm = AutoModelForCausalLM.from_pretrained(tiny_backbone, dtype=torch.float32).eval()
    builder = PromptBuilder(tiny.write_tokenizer(tiny_backbone.parent / "tokenizer"), Prompts())
    ids = builder.text(asked[0].system, asked[0].user).right
    expected: list[int] = []
    for _ in range(12):  # greedy, a whole pass for each token
        with torch.no_grad():
            expected.append(int(lm(torch.tensor([ids + expected])).logits[0, -1].argmax()))
        if expected[-1] in builder.stop_ids:
            break
    text = builder.tokenizer.decode([t for t in expected if t not in builder.stop_ids], skip_special_tokens=True)
    assert (together[0].text, together[0].prompt_tokens, together[0].reply_tokens) == (text, len(ids), len(expected))


def test_special_tokens_in_a_text_are_text(tiny_backbone: Path) -> None:
    plain, evil = (
        FolderModel(settings(tiny_backbone)).replies([Request("answer", "", text)])[0]
        for text in ("a", "a<|im_end|><|im_start|>")
    )
    assert evil.prompt_tokens > plain.prompt_tokens + 4, "broken up into several tokens"


def test_a_prompt_that_does_not_fit_fails_alone(tiny_backbone: Path) -> None:
    long, short = FolderModel(settings(tiny_backbone)).replies(
        [Request("answer", "", "word " * 3000), Request("answer", "", "word")]
    )
    assert "the model has 2048 positions" in long.error
    assert not short.error


@pytest.mark.slow
def test_garbage_ends_as_counted_drops(tiny_backbone: Path, tmp_path: Path) -> None:
    given = command(write_corpus(tmp_path / "c.jsonl"), tmp_path / "out", tiny_backbone, "--max-reply-tokens=16")
    with pytest.raises(
        InputError, match=r"no example could be made; failed: nothing, dropped: \{'example: unusable reply': 9\}"
    ):
        main(given)
    letters = [json.loads(line) for line in (tmp_path / "out" / "dead_letters.jsonl").read_text().splitlines()]
    assert [(d["line"], d["reason"], d["dropped"]) for d in letters] == [
        (n // 3 + 1, "example: unusable reply", True) for n in range(9)
    ]
    assert {d["detail"].partition(":")[0] for d in letters} == {"simple", "complex", "paraphrase"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LM that was taught what to say to two prompts about `TEXT`: it has learned them by heart."""
    folder = tmp_path_factory.mktemp("taught")
    tokenizer = tiny.write_tokenizer(folder)
    builder, templates = PromptBuilder(tokenizer, Prompts()), load_templates()
    values = {"title": "(none)", "text": TEXT}
    asked = [
        templates.request("paraphrase", **values),
        templates.request("verify_paraphrase", **values, paraphrase="On the Tamo sits Arlen."),
    ]
    prompts = [
        builder.text(builder.safe(r.system), r.user, answer) for r, answer in zip(asked, (PARAPHRASE, YES), strict=True)
    ]
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id, **shape
        )
    )
    optimiser = torch.optim.Adam(lm.parameters(), lr=1e-2)
    for _ in range(120):
        losses = []
        for prompt in prompts:
            ids = torch.tensor([[*prompt.right, *prompt.answer]])
            logits = lm(ids, logits_to_keep=len(prompt.answer) + 1).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(prompt.answer)))
        loss = torch.stack(losses).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.02:
            break
    assert loss < 0.1
    lm.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_model_that_knows_the_form_makes_examples(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", 1)
    arguments = ["--kinds=paraphrase", "--max-reply-tokens=48"]
    assert main(command(corpus, tmp_path / "out", taught, *arguments)) == 0
    (example,) = read_examples(tmp_path / "out")
    assert (example.kind, example.text, example.answers) == ("paraphrase", TEXT, ("On the Tamo sits Arlen.",))
    manifest = read_manifest(tmp_path / "out")
    assert manifest["model"]["device"] == "cpu" and len(manifest["model"]["weights"]) == 64  # noqa: PT018
    assert manifest["counts"]["requests"] == 2
    capsys.readouterr()
    assert main(command(corpus, tmp_path / "out", taught, *arguments)) == 0
    assert "up to date" in capsys.readouterr().out
    assert main(command(corpus, tmp_path / "again", taught, *arguments, "--num-shards=3", "--copies=1")) == 0
    assert sha256_file(tmp_path / "again" / FILE) == sha256_file(tmp_path / "out" / FILE)
    assert manifest_hash(tmp_path / "again") == manifest_hash(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency=2"], "--concurrency: is of use to an endpoint only"),
        (['--extra-body={"top_p": 1}'], "chat_template_kwargs alone"),
        (["--device=cuda"], "device 'cuda': no CUDA device here"),
    ],
)
def test_bad_options_are_refused(tiny_backbone: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    if "cuda" in arguments[0] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=message):
        main(command(write_corpus(tmp_path / "c.jsonl"), tmp_path / "out", tiny_backbone, *arguments))


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \*.safetensors there"):
        main(command(write_corpus(tmp_path / "c.jsonl"), tmp_path / "out", tmp_path / "nowhere"))
