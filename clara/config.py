"""The typed configuration tree: TOML files hold what differs from the defaults, `--set a.b=c` overrides, an unknown key is an error."""

import ast
import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from clara.errors import InputError
from clara.refresh_settings import YEAR_SECONDS, Refresh
from clara.section import Section, near_entries


class Backbone(Section):
    """The causal LM that every role shares."""

    path: str = Field("", description="folder of a causal LM in the transformers format; empty: the one inside the checkpoint")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="type of weights and activations")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention implementation of transformers")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass (non-reentrant, same gradients)")


class Lora(Section):
    """Each adapter; targets are all linear layers of the trunk (P B.2 of arXiv:2511.18659)."""

    rank: int = Field(16, ge=1, description="rank of the update")
    alpha: float = Field(32.0, gt=0, description="scale is alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the adapter's input, in parts that train only")


class Model(Section):
    """Memory tokens and what surrounds them. A CHECKPOINT holds these settings (and `prompts`) and keeps them: see `checkpoint.check_given`."""

    num_memory_tokens: int = Field(16, ge=1, description="M, learned slots a document is compressed into")
    max_document_tokens: int = Field(256, ge=1, description="tokens of a chunk; the corpus job splits longer texts, others cut them")
    max_question_tokens: int = Field(256, ge=1, description="tokens of a question; the rest is cut")
    residual: Literal["none", "segment_mean"] = Field(
        "none",
        description="segment_mean: memory = gate · normalised state + mean input embedding of the slot's segment of the document "
        "(small models; Differs from the paper, which has none)",
    )
    query_residual: Literal["none", "question_mean"] = Field(
        "none", description="question_mean: the same with the mean over the whole question"
    )
    markers: bool = Field(True, description="learned vectors: one in front of each text to compress, one after each memory in a prompt")
    cut_inputs: bool = Field(
        False,
        description="a fault of the reference, for imported checkpoints: a text is cut together with its eos, to max_document_tokens + 1, "
        "so that a longer one keeps one token more and loses its end",
    )
    overlapping_slots: bool = Field(
        False,
        description="a fault of the reference (its sep = false): memories are written without room for the markers that the prompt holds",
    )
    lora: Lora = Lora()


class Prompts(Section):
    """What the generator reads. `{documents}` stands for the memory slots, `{question}` for the question."""

    answer_system: str = (
        "You are a helpful assistant. Your task is to extract relevant information from provided documents "
        "and to answer to questions as briefly as possible."
    )
    answer_user: str = "Background:\n{documents}\n\nQuestion:{question}"
    pairs_system: str = (
        "You are a helpful assistant. Given a document, your task is to generate some single questions to cover all key information "
        "of the document and answer them sequentially."
    )
    pairs_user: str = "Background:\n{documents}"
    paraphrase_system: str = "You are a helpful assistant. Your task is follow the instructions to paraphrase the background information."
    paraphrase_users: tuple[str, ...] = (
        "Background: {documents} means the same as",
        "Say in other words what this says: {documents}",
        "{documents}\nThe text above, told again:",
    )
    template_arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="further arguments of the chat template; enable_thinking is false where it knows that and nothing is said",
    )
    keep_system: bool = Field(
        True,
        description="where the template drops the system role, its text goes in front of the user's; false: it is lost, as in the reference",
    )
    whole_tail: bool = Field(
        False,
        description="an answer is followed by all that the template puts there, as in the reference; false: up to the first special token",
    )

    @model_validator(mode="after")
    def _placeholders(self) -> "Prompts":
        for name, text in (
            ("answer_user", self.answer_user),
            ("pairs_user", self.pairs_user),
            *(("paraphrase_users", t) for t in self.paraphrase_users),
        ):
            if text.count("{documents}") != 1:
                raise ValueError(f"prompts.{name} is {text!r}; it must hold {{documents}} exactly once")
        if "{question}" not in self.answer_user:
            raise ValueError(f"prompts.answer_user is {self.answer_user!r}; it must hold {{question}}")
        return self


class Optimiser(Section):
    """AdamW and its schedule."""

    learning_rate: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of all gradients together; 0: no clipping")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine falls towards min_ratio of the rate, which it would have one step after the last"
    )
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the rate rises linearly")
    warmup_from_zero: bool = Field(False, description="a fault of the reference: with a warm-up, the first update has rate 0")
    min_ratio: float = Field(0.1, ge=0, le=1)


class Pretrain(Section):
    """Stage `pretrain` (SCP, P §2.1): the generator tells a document's content from its memory."""

    steps: int = Field(1000, ge=1, description="optimiser updates")
    documents_per_step: int = Field(8, ge=1, description="over all ranks")
    question_weight: float = Field(1.0, ge=0, description="weight of the questions' tokens in question-answer lists; answers weigh 1")
    mse_weight: float = Field(0.1, ge=0, description="λ of Eq. 2.1: squared difference of mean memory and mean document state, mean over D")
    max_answer_tokens: int = Field(512, ge=1, description="tokens of a target; the rest is cut and counted")
    train_backbone: bool = Field(False, description="train the LM itself too (a model from nothing); it is then stored in the checkpoint")
    train_memory_tokens: bool = Field(True, description="train memory tokens, markers and gate")
    optimiser: Optimiser = Optimiser(schedule="cosine", warmup_ratio=0.03)


class Instruct(Section):
    """Stage `instruct` (P §2.2): answers from the memories of K documents, one of them right."""

    steps: int = Field(1000, ge=1, description="optimiser updates")
    questions_per_step: int = Field(8, ge=1, description="over all ranks")
    num_documents: int = Field(5, ge=1, description="K memories in a prompt: the right one and others of the batch")
    positives: Literal["first", "all"] = Field(
        "first", description="of a question with several right documents: the first alone, or all of them (K at most; multi-hop questions)"
    )
    negatives: Literal["batch", "pool"] = Field("batch", description="where a prompt's other documents come from; pool: candidate_ids")
    without_right: float = Field(0.0, ge=0, lt=1, description="share of prompts with others only, so that these mislead less")
    mse_weight: float = Field(0.1, ge=0)
    generator: Literal["carry_over", "restart"] = Field("carry_over", description="restart: a fresh adapter, as the reference does")
    train_compressor: bool = True
    train_memory_tokens: bool = False
    optimiser: Optimiser = Optimiser(schedule="cosine", warmup_ratio=0.03)


class Joint(Section):
    """Stage `joint` (P §3): the answer's loss reaches the query reasoner through a straight-through top-k."""

    steps: int = Field(1000, ge=1, description="optimiser updates")
    questions_per_step: int = Field(32, ge=1, description="over all ranks and accumulation steps")
    micro_batch: int = Field(2, ge=1, description="questions in one forward pass of one rank")
    num_candidates: int = Field(20, ge=1, description="N offered to top-k")
    num_selected: int = Field(5, ge=1, description="K chosen")
    from_index: int = Field(10, ge=0, description="candidates of a question from the index")
    from_bm25: int = Field(10, ge=0, description="candidates of a question from BM25")
    in_batch: bool = Field(True, description="fill up with the other questions' candidates")
    published_pool: bool = Field(
        False, description="the question's own candidate_ids instead of a search; a pool of fewer than K is read whole"
    )
    inject_positives: bool = Field(False, description="put the known positives into the pool")
    temperature: float = Field(0.02, gt=0, description="τ of the scores")
    mask_epsilon: float = Field(
        0.0, ge=0, lt=1, description="0: what is taken is masked by −inf; 1e-8: the published mask, which leaks (for parity with it only)"
    )
    answer_weight: float = Field(1.0, ge=0, description="weight of the answer's loss (straight-through, the paper's)")
    labels_weight: float = Field(0.0, ge=0, description="weight of the multi-positive InfoNCE on positive_ids")
    utility_weight: float = Field(0.0, ge=0, description="weight of KL(softmax of each candidate's own answer likelihood ‖ scores)")
    utility_temperature: float = Field(1.0, gt=0, description="nats by which the likelihoods are divided")
    cut_gradient: bool = Field(
        False,
        description="the control: no gradient from the answer to the scores, neither through top-k nor through utilities; labels stay",
    )
    shuffle_answers: bool = Field(False, description="the other control: answers shuffled among the questions")
    train_generator: bool = True
    train_compressor: bool = False
    compressor_steps: int = Field(
        0,
        ge=0,
        description="updates in which the compressor trains, where it does, before it stands still; 0: all. A MEMORY of any later snapshot fits "
        "the final CHECKPOINT exactly",
    )
    train_query_reasoner: bool = True
    right_memory_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of questions whose last selected memory is replaced by a known positive's: the generator keeps reading",
    )
    evaluate_every: int = Field(0, ge=0, description="steps between evaluations on held-out questions; 0: none")
    evaluate_questions: int = Field(64, ge=1, description="held-out questions (split unseen, else seen) of such an evaluation")
    evaluate_answer_tokens: int = Field(
        0, ge=0, description="longest answer generated there from the K documents found, for its exact match; 0: none is generated"
    )
    evaluate_pools: bool = Field(False, description="rank held-out questions' own candidates there instead of searching the INDEX")
    evaluate_fresh: bool = Field(
        False,
        description="where held-out pools are ranked: on memory encoded afresh too, as a whole encoding would give it; N compressions each",
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between run states (for resuming)")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="a loss or gradient that is not finite on any rank: every rank stops, or skips the update and goes on (ten in a row stop it)",
    )
    optimiser: Optimiser = Optimiser(learning_rate=5e-6)
    learning_rates: dict[Literal["query_reasoner", "generator", "compressor"], Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="rates of single adapters, where they differ from the optimiser's"
    )
    refresh: Refresh = Refresh()

    @property
    def compressor_updates(self) -> int:
        """Updates in which the compressor trains: the first ones."""
        if not self.train_compressor:
            return 0
        return min(self.steps, self.compressor_steps or self.steps)

    @model_validator(mode="after")
    def _pool(self) -> "Joint":
        if self.num_selected > self.num_candidates:
            raise ValueError(
                f"joint.num_selected is {self.num_selected}, joint.num_candidates {self.num_candidates}: K of N needs K ≤ N; lower num_selected or raise num_candidates"
            )
        if self.answer_weight + self.labels_weight + self.utility_weight == 0:
            raise ValueError("joint.answer_weight, labels_weight and utility_weight are all 0: nothing is trained; set one of them")
        return self


class Memory(Section):
    """How MEMORY is encoded again. The corpus job's own settings are arguments of `pipelines.build_memory`."""

    batch_tokens: int = Field(4096, ge=1, description="tokens of one compressing batch, padding included")


class Index(Section):
    """The two levels of retrieval."""

    factory: str = Field("auto", description="FAISS factory string of a refresh; auto: that of the INDEX given")
    first_level: int = Field(200, ge=1, description="L candidates from FAISS whose exact scores are then computed")
    search_shards: int = Field(
        0,
        ge=0,
        description="0: each rank maps the whole INDEX, and ranks of a machine share its pages; N: N search servers (Ray actors) hold a share of its rows "
        "each, for an INDEX larger than a machine; the same rows are found",
    )
    search_seconds: float = Field(300.0, gt=0, le=YEAR_SECONDS, description="longest wait for search servers, restarts included")
    search_restarts: int = Field(3, ge=0, description="times that Ray starts a search server again by itself, on any node")
    search_cpus: float = Field(
        0.0, ge=0, description="cores that Ray reserves for a search server, and its threads; 0: none reserved, one thread"
    )


class Launch(Section):
    """Who computes."""

    launcher: Literal["ray", "local"] = Field("ray", description="ray: Ray Train with DeepSpeed; local: one plain torch process")
    num_workers: int = Field(2, ge=1, description="ranks under Ray")
    gpu: bool = Field(False, description="one GPU for each rank; without it the CPU is used, never silently")
    zero_stage: Literal[1, 2, 3] = Field(
        2,
        description="what is shared out over the ranks: 1 the optimiser's state, 2 gradients too, 3 parameters too, the frozen LM's among them",
    )
    zero3_keep_whole_below: int = Field(
        100_000, ge=0, description="numbers; with zero_stage 3 smaller parameters stay whole on every rank, which saves collectives"
    )
    cpus_per_worker: float = Field(0.0, ge=0, description="cores reserved for a rank; 0: an even share of what is left, 1 at most")
    threads: int = Field(0, ge=0, description="torch threads of a rank; 0: cores / ranks")
    max_failures: int = Field(3, ge=0, description="times that ranks start again, from the last run state, or wait again (600 s) for room")
    storage: str = Field("", description="where Ray Train keeps its own state; empty: inside the output")


class Tracking(Section):
    """MLflow."""

    uri: str = Field("", description="tracking URI, as sqlite:///PATH; empty: no tracking")
    experiment: str = "clara"


class Config(Section):
    """The root."""

    seed: int = 0
    stage: Literal["pretrain", "instruct", "joint"] = "joint"
    checkpoint: str = Field("", description="CHECKPOINT to start from; empty: fresh adapters")
    examples: str = Field("", description="EXAMPLES for stage pretrain")
    questions: str = Field("", description="QUESTIONS for stages instruct and joint")
    corpus: str = Field("", description="corpus that the questions' documents lie in, a file or a glob, for stage instruct")
    memory: str = Field("", description="MEMORY for stage joint")
    index: str = Field("", description="INDEX over that MEMORY")
    utilities: str = Field(
        "", description="UTILITIES of the questions over that MEMORY, for stage joint: pools and likelihoods scored beforehand"
    )
    output: str = Field("", description="directory for the run and its CHECKPOINT")
    backbone: Backbone = Backbone()
    model: Model = Model()
    prompts: Prompts = Prompts()
    pretrain: Pretrain = Pretrain()
    instruct: Instruct = Instruct()
    joint: Joint = Joint()
    corpus_job: Memory = Memory()
    retrieval: Index = Index()
    launch: Launch = Launch()
    tracking: Tracking = Tracking()


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree below a section."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")


def _value(text: str) -> Any:
    """A `--set` value: TOML where it is TOML, else a Python literal, else the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _merge(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for depth, part in enumerate(path[:-1], 1):
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise InputError(
                f"--set {'.'.join(path)}: {'.'.join(path[:depth])} is {tree!r}, a value with no keys below it; correct the key"
            )
    tree[path[-1]] = value


def explain(error: ValidationError, source: str) -> InputError:
    """Pydantic's findings as one error: each with its key, value and constraint, and the near ones of an unknown key."""
    known = list(keys(Config))
    lines = []
    for finding in error.errors():
        key = ".".join(str(p) for p in finding["loc"])
        if finding["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or difflib.get_close_matches(
                key.split(".")[-1], known, n=3, cutoff=0.4
            )
            lines.append(f"{key}: unknown key" + (f"; near ones: {', '.join(near)}" if near else ""))
        elif finding["loc"][-1:] == ("[key]",):  # of a table whose keys are fixed
            lines.append(f"{key.removesuffix('.[key]')}: unknown key; near ones: {near_entries(str(finding['loc'][-2]), finding['ctx'])}")
        else:
            value = finding.get("input")
            shown = "" if isinstance(value, dict) or not key else f" is {value!r}:"
            lines.append(f"{key}{shown} {finding['msg'].removeprefix('Value error, ')}")
    return InputError(f"{source}: " + "; ".join(lines))


def load(path: str | None, sets: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply `a.b=c` overrides.

    Raises:
        InputError: the file is missing or not TOML, an override is not `key=value`, a key is unknown, or a value breaks its constraint.
    """
    tree: dict[str, Any] = {}
    if path:
        try:
            tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such configuration file; shipped ones are in infra/configs/") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); give a TOML file; shipped ones are in infra/configs/") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not TOML: {error}") from error
    for override in sets:
        name, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"--set {override}: expected key=value, as in --set joint.steps=100")
        _merge(tree, name.strip().split("."), _value(text.strip()))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, path or "--set") from error


def require(config: Config, *names: str) -> None:
    """Refuse a run whose paths are not given.

    Raises:
        InputError: one of the named root keys is empty.
    """
    missing = [name for name in names if not getattr(config, name)]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: empty; set {'it' if len(missing) == 1 else 'them'} in the file or with --set {missing[0]}=PATH"
        )
