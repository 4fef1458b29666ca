"""Sections of the configuration that say what the model is."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from clara.config.section import Section


class Backbone(Section):
    """The causal LM that every role shares."""

    path: str = Field(
        "", description="folder of a causal LM in the transformers format; empty: the one inside the checkpoint"
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="type of weights and activations")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="attention implementation of transformers"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass (non-reentrant, same gradients)"
    )


class Lora(Section):
    """Each adapter; targets are all linear layers of the trunk (P B.2 of arXiv:2511.18659)."""

    rank: int = Field(16, ge=1, description="rank of the update")
    alpha: float = Field(32.0, gt=0, description="scale is alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the adapter's input, in parts that train only")


class Score(Section):
    """How a question is compared with a row of MEMORY; the default is the published score."""

    pooling: Literal["flattened", "slot_mean"] = Field(
        "flattened", description="flattened: cosine of all M·D numbers; slot_mean: of the mean over the M memory tokens"
    )
    centred: bool = Field(
        False,
        description="the mean of the corpus is subtracted from rows, and that of questions from a question, before "
        "the cosine",
    )


Reads = Literal["memory", "text"]
FeatureName = Literal["memory", "bm25", "dense"]
SOURCE_SETTINGS: dict[FeatureName, str] = {"memory": "from_index", "bm25": "from_bm25", "dense": "from_dense"}
"""The setting of `joint` and `utility_job` that says how many rows of a pool each source finds."""
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]
"""τ; with weights in their range, float32 holds all logits."""
_LEAST_WEIGHT = 1e-20


class Fusion(Section):
    """The fused score z = a · cosine/τ + Σ w · feature; with a = 1 and no other weight it is the published score."""

    weights: dict[FeatureName, Weight] = Field(
        {"memory": 1.0},
        description="a (memory), and w of BM25's score and of the dense similarity; what is missing weighs 0",
    )
    temperature: Temperature = Field(0.02, description="τ, as joint.temperature")
    dense_model: str = Field("", description="hash of the embedding model that the weight of dense is for")

    @property
    def a(self) -> float:
        """Weight of cosine/τ."""
        return self.weights.get("memory", 0.0)

    @property
    def features(self) -> dict[FeatureName, float]:
        """Weights of what is not the memory's cosine, without those of 0, in the order of `FeatureName`."""
        names: tuple[FeatureName, ...] = get_args(FeatureName)
        return {name: w for name in names if name != "memory" and (w := self.weights.get(name, 0.0))}

    @property
    def published(self) -> bool:
        """Whether the fused score is the published one."""
        return self.a == 1 and not self.features

    @model_validator(mode="after")
    def _some_weight(self) -> "Fusion":
        if not any(weight >= _LEAST_WEIGHT for weight in self.weights.values()):
            raise ValueError("model.fusion.weights are all 0, so that no row is better than another; set one of them")
        if self.features.get("dense") and not self.dense_model:
            raise ValueError("model.fusion.weights has dense, and dense_model is empty: weights are for one model")
        return self


class Model(Section):
    """Memory tokens and what surrounds them.

    A CHECKPOINT holds these settings (and `prompts`) and keeps them: see `clara.model.artefact.check_given`.
    """

    num_memory_tokens: int = Field(16, ge=1, description="M, learned slots a document is compressed into")
    max_document_tokens: int = Field(
        256, ge=1, description="tokens of a chunk; the corpus job splits longer texts, others cut them"
    )
    max_question_tokens: int = Field(256, ge=1, description="tokens of a question; the rest is cut, see question_keeps")
    question_keeps: Literal["beginning", "end"] = Field(
        "beginning",
        description="what is kept of a question that is too long; long ones often ask at their end (the published form "
        "keeps the beginning)",
    )
    residual: Literal["none", "segment_mean"] = Field(
        "none",
        description="segment_mean: memory = gate · normalised state + mean input embedding of the slot's segment of "
        "the document "
        "(small models; Differs from the paper, which has none)",
    )
    query_residual: Literal["none", "question_mean"] = Field(
        "none", description="question_mean: the same with the mean over the whole question"
    )
    markers: bool = Field(
        True, description="learned vectors: one in front of each text to compress, one after each memory in a prompt"
    )
    cut_inputs: bool = Field(
        False,
        description="a fault of the reference, for imported checkpoints: a text is cut together with its eos, "
        "to max_document_tokens + 1, "
        "so that a longer one keeps one token more and loses its end",
    )
    overlapping_slots: bool = Field(
        False,
        description="a fault of the reference (its sep = false): memories are written without room for the markers "
        "that the prompt holds",
    )
    reads: Reads = Field(
        "memory",
        description="what the generator's adapter reads of a passage: its memory, or its text in the prompt, which is "
        "standard retrieval-augmented generation, the baseline; made by stage joint with joint.reads",
    )
    lora: Lora = Lora()
    score: Score = Score()
    fusion: Fusion = Fusion()


class Prompts(Section):
    """What the generator reads. `{documents}` is replaced by the memory slots, `{question}` by the question."""

    answer_system: str = Field(
        "You are a helpful assistant. Your task is to extract relevant information from provided documents "
        "and to answer to questions as briefly as possible.",
        description="system message of an answer",
    )
    answer_user: str = Field(
        "Background:\n{documents}\n\nQuestion:{question}",
        description="the user's message of an answer; holds {documents} once, and {question}",
    )
    pairs_system: str = Field(
        "You are a helpful assistant. Given a document, your task is to generate some single questions to cover all "
        "key information "
        "of the document and answer them sequentially.",
        description="system message of stage pretrain's question-answer lists",
    )
    pairs_user: str = Field(
        "Background:\n{documents}",
        description="the user's message of those; holds {documents} once",
    )
    paraphrase_system: str = Field(
        "You are a helpful assistant. Your task is follow the instructions to paraphrase the background information.",
        description="system message of stage pretrain's paraphrases",
    )
    paraphrase_users: tuple[str, ...] = Field(
        (
            "Background: {documents} means the same as",
            "Say in other words what this says: {documents}",
            "{documents}\nThe text above, told again:",
        ),
        description="the user's messages of those, drawn for each text; each holds {documents} once",
    )
    template_arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="further arguments of the chat template; enable_thinking is false where it knows that and it "
        "is not given, and strftime_now, the date that it may show, is 2024-07-26",
    )
    keep_system: bool = Field(
        True,
        description="where the template drops the system role, its text goes in front of the user's; false: "
        "it is lost, as in the reference",
    )
    whole_tail: bool = Field(
        False,
        description="an answer is followed by all that the template puts there, as in the reference; false: "
        "up to the first special token",
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
