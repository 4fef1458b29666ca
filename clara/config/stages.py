"""Sections of the configuration that say how a stage trains."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clara.config.model import Reads, Temperature
from clara.config.refresh import Refresh
from clara.config.section import Section

RateOf = Literal["query_reasoner", "generator", "compressor", "question_mean"]
Share = Annotated[float, Field(ge=0, lt=1)]


class Optimiser(Section):
    """AdamW and its schedule."""

    learning_rate: float = Field(1e-4, gt=0, description="rate of an update, before the schedule")
    betas: tuple[Share, Share] = Field((0.9, 0.95), description="decay of AdamW's first and second moments")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of all gradients together; 0: no clipping")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="cosine falls towards min_ratio of the rate, which it would have one step after the last",
    )
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the rate rises linearly")
    warmup_from_zero: bool = Field(
        False, description="a fault of the reference: with a warm-up, the first update has rate 0"
    )
    min_ratio: float = Field(0.1, ge=0, le=1, description="share of the rate that cosine falls towards")


class Pretrain(Section):
    """Stage `pretrain` (SCP, P §2.1): the generator reproduces a document's content from its memory."""

    steps: int = Field(1000, ge=1, description="optimiser updates")
    documents_per_step: int = Field(8, ge=1, description="over all ranks")
    question_weight: float = Field(
        1.0, ge=0, description="weight of the questions' tokens in question-answer lists; answers weigh 1"
    )
    mse_weight: float = Field(
        0.1, ge=0, description="λ of Eq. 2.1: squared difference of mean memory and mean document state, mean over D"
    )
    max_answer_tokens: int = Field(512, ge=1, description="tokens of a target; the rest is cut and counted")
    train_backbone: bool = Field(
        False, description="train the LM itself too (a model from nothing); it is then stored in the checkpoint"
    )
    train_memory_tokens: bool = Field(True, description="train memory tokens, markers and gate")
    optimiser: Optimiser = Optimiser(schedule="cosine", warmup_ratio=0.03)


class Instruct(Section):
    """Stage `instruct` (P §2.2): answers from the memories of K documents, one of them right."""

    steps: int = Field(1000, ge=1, description="optimiser updates")
    questions_per_step: int = Field(8, ge=1, description="over all ranks")
    num_documents: int = Field(5, ge=1, description="K memories in a prompt: the right one and others of the batch")
    positives: Literal["first", "all"] = Field(
        "first",
        description="of a question with several right documents: the first alone, or all of them (K at most; "
        "multi-hop questions)",
    )
    negatives: Literal["batch", "pool"] = Field(
        "batch", description="where a prompt's other documents come from; pool: candidate_ids"
    )
    without_right: float = Field(
        0.0, ge=0, lt=1, description="share of prompts with others only, so that these mislead less"
    )
    mse_weight: float = Field(0.1, ge=0, description="as pretrain.mse_weight, over the documents of the prompt")
    generator: Literal["carry_over", "restart"] = Field(
        "carry_over", description="restart: a fresh adapter, as the reference does"
    )
    train_compressor: bool = Field(True, description="train the compressor's adapter")
    train_memory_tokens: bool = Field(False, description="train memory tokens, markers and gate")
    optimiser: Optimiser = Optimiser(schedule="cosine", warmup_ratio=0.03)


class Joint(Section):
    """Stage `joint` (P §3): the answer's loss reaches the query reasoner through a straight-through top-k."""

    steps: int = Field(1000, ge=1, description="optimiser updates")
    questions_per_step: int = Field(32, ge=1, description="over all ranks and accumulation steps")
    micro_batch: int = Field(2, ge=1, description="questions in one forward pass of one rank")
    balance_targets: bool = Field(
        False,
        description="draw each target equally often, however many questions it has; a question without known positives "
        "is a target by itself",
    )
    num_candidates: int = Field(20, ge=1, description="N offered to top-k")
    num_selected: int = Field(5, ge=1, description="K chosen")
    from_index: int = Field(10, ge=0, description="candidates of a question from the index")
    from_bm25: int = Field(10, ge=0, description="candidates of a question from BM25")
    from_dense: int = Field(
        0, ge=0, description="candidates of a question by the dense vectors of the INDEX, with retrieval.dense_model"
    )
    in_batch: bool = Field(True, description="fill up with the other questions' candidates")
    published_pool: bool = Field(
        False, description="the question's own candidate_ids instead of a search; a pool of fewer than K is read whole"
    )
    inject_positives: bool = Field(False, description="put the known positives into the pool")
    temperature: Temperature = Field(0.02, description="τ of the scores")
    mask_epsilon: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="0: what is taken is masked by −inf; 1e-8: the published mask, "
        "which leaks (for parity with it only)",
    )
    answer_weight: float = Field(1.0, ge=0, description="weight of the answer's loss (straight-through, the paper's)")
    labels_weight: float = Field(0.0, ge=0, description="weight of the multi-positive InfoNCE on positive_ids")
    utility_weight: float = Field(
        0.0, ge=0, description="weight of KL(softmax of each candidate's own answer likelihood ‖ scores)"
    )
    utility_temperature: float = Field(1.0, gt=0, description="nats by which the likelihoods are divided")
    utility_target: Literal["softmax", "mass"] = Field(
        "softmax",
        description="what utilities are distilled to: softmax of the likelihoods over the pool (Atlas); mass: "
        "exp(utility) − 1 of rows that make the answer more likely than no document does, other rows have none",
    )
    denominator: Literal["pool", "others", "helpful", "frequency", "targets", "all"] = Field(
        "pool",
        description="rows in the softmax of the losses by utility and by label, beside the question's own pool: "
        "others: the other pools of the step; helpful: rows that help some training question by UTILITIES, frequency: "
        "these, each counted as often as it helps one; targets: known positives of training questions; all: every row",
    )
    denominator_rows: int = Field(
        0,
        ge=0,
        description="of these, rows of the step's pools count once, and so many of the rest are drawn in each step, "
        "which count as all of the rest; 0: all of the rest",
    )
    cut_gradient: bool = Field(
        False,
        description="the control: no gradient from the answer to the scores, "
        "neither through top-k nor through utilities; labels stay",
    )
    shuffle_answers: bool = Field(False, description="the other control: answers shuffled among the questions")
    reads: Reads = Field(
        "memory",
        description="what the generator learns to read of the selected passages; text: the baseline, standard "
        "retrieval-augmented generation with an adapter of the same rank, which trains the generator alone",
    )
    train_generator: bool = Field(True, description="train the generator's adapter")
    train_compressor: bool = Field(
        False, description="train the compressor's adapter; MEMORY then ages, see joint.refresh"
    )
    compressor_steps: int = Field(
        0,
        ge=0,
        description="updates in which the compressor trains, if it does, before it is frozen; 0: all. "
        "A MEMORY of any later snapshot fits "
        "the final CHECKPOINT exactly",
    )
    train_query_reasoner: bool = Field(True, description="train the query reasoner's adapter")
    train_question_mean: bool = Field(
        False, description="train the questions' mean, which a centred score (model.score) subtracts from each question"
    )
    fit_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the targets, chosen by their ids, whose questions are never trained on: those that "
        "fit_score fits the weights of the fused score to; a question with targets on both sides is left out",
    )
    fit_questions: int = Field(
        0,
        ge=0,
        description="questions of that fold, evenly spread, that the fused score is fitted to after each switch to a "
        "new MEMORY and after the last step: their candidates, as training draws them but without known positives, are "
        "read one by one; 0: the score stays as it is",
    )
    right_memory_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of questions whose last selected memory is replaced by a known positive's: "
        "the generator keeps reading",
    )
    evaluate_every: int = Field(0, ge=0, description="steps between evaluations on held-out questions; 0: none")
    evaluate_questions: int = Field(64, ge=1, description="held-out questions of such an evaluation, evenly spread")
    evaluate_on: Literal["unseen", "fold"] = Field(
        "unseen",
        description="which questions: split unseen, else seen, or those of the fold that fit_share keeps from training "
        "(to choose settings by)",
    )
    evaluate_answer_tokens: int = Field(
        0,
        ge=0,
        description="longest answer generated there from the K documents found, for its exact match; 0: "
        "none is generated",
    )
    evaluate_pools: bool = Field(
        False, description="rank held-out questions' own candidates there instead of searching the INDEX"
    )
    evaluate_fresh: bool = Field(
        False,
        description="where held-out pools are ranked: on memory encoded afresh too, "
        "as a whole encoding would give it; N compressions each",
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between run states (for resuming)")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="a loss or gradient that is not finite on any rank: every rank stops, "
        "or skips the update and continues (ten in a row stop it)",
    )
    optimiser: Optimiser = Optimiser(learning_rate=5e-6)
    learning_rates: dict[RateOf, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="rates of single adapters and of the questions' mean, where they differ from the optimiser's",
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
                f"joint.num_selected is {self.num_selected}, joint.num_candidates {self.num_candidates}: "
                "K of N needs K ≤ N; lower num_selected or raise num_candidates"
            )
        if self.answer_weight + self.labels_weight + self.utility_weight == 0:
            raise ValueError(
                "joint.answer_weight, labels_weight and utility_weight are all 0: nothing is trained; set one of them"
            )
        if self.denominator != "pool" and not self.labels_weight + self.utility_weight:
            raise ValueError(
                f"joint.denominator is {self.denominator!r}, and neither utility_weight nor labels_weight is above 0: "
                'no loss has a denominator; set one of them, or denominator="pool"'
            )
        if self.denominator_rows and self.denominator in ("pool", "others"):
            raise ValueError(
                f"joint.denominator_rows is {self.denominator_rows}, and denominator {self.denominator!r} is never "
                "sampled; set helpful, frequency, targets or all, or denominator_rows=0"
            )
        return self
