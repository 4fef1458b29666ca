"""Sections of the configuration for a trained system: measuring it, promoting it."""

import re
from typing import Literal, get_args

from pydantic import Field, model_validator

from clara.config.section import Section

Condition = Literal["index", "pool", "right", "wrong", "none"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
"""What an answer is read from: the system's retrieval, the question's pool, right documents, wrong ones, nothing."""
FLOOR = re.compile(
    r"(?P<measure>[^\s<>=]+)(?P<sign>>=|<=)(?P<bound>baselines|bm25|dense|[-+]?\d+(\.\d*)?(e[-+]?\d+)?)", re.ASCII
)
"""A floor of a promotion."""
ANSWER_SECONDS = "answer.seconds"
"""The measure of a whole answer, one at a time: search, and all tokens of the answer."""
Baseline = Literal["bm25", "dense", "text"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


class Evaluation(Section):
    """How systems are compared on the same questions."""

    systems: tuple[str, ...] = Field(
        (), description="what to evaluate, compared in this order: NAME=CHECKPOINT,MEMORY[,INDEX]"
    )
    baselines: tuple[Baseline, ...] = Field((), description="of bm25, dense, text")
    dense_model: str = Field(
        "",
        description="sentence-transformers folder or URL of an endpoint (see retrieval.dense_name), for the baseline "
        "dense and for systems whose fused score has a weight for dense vectors; nothing is downloaded",
    )
    cross: bool = Field(
        False, description="let every system's generator also read what every other system's retrieval found"
    )
    num_aligned: int = Field(
        0,
        ge=0,
        description="questions of each split whose utility alignment is measured; "
        "costs about N × pool × 2 readings for each row of "
        "the report and each of two readers",
    )
    num_timed: int = Field(
        0,
        ge=0,
        description="questions of each split that every system also answers one at a time against the clock "
        "(answer.seconds: search and generation on this machine); 0: none",
    )
    splits: tuple[str, ...] = Field(("unseen", "seen"), description="splits of QUESTIONS; all: every question")
    limit: int = Field(0, ge=0, description="questions of each split, drawn by their ids; 0: all")
    pool_size: int = Field(20, ge=2, description="documents of a pool, for questions published without one")
    num_selected: int = Field(5, ge=1, description="K, rows that the generator reads")
    num_generated: int = Field(
        -1, ge=-1, description="questions of each split that are also answered in words; -1: all, 0: none"
    )
    conditions: tuple[Condition, ...] = Field(
        CONDITIONS, description="what the answers' likelihoods are measured after reading"
    )
    generate_conditions: tuple[Condition, ...] = Field(
        ("index", "right", "none"), description="what they are answered from, of index, pool, right, wrong, none"
    )
    retrieval_only: bool = Field(
        False, description="rank only: no likelihoods and no answers (seconds instead of minutes)"
    )
    max_new_tokens: int = Field(16, ge=1, description="longest generated answer, in tokens")
    accept_stale: tuple[str, ...] = Field(
        (), description="systems whose MEMORY another compressor made, to measure that"
    )
    verify: bool = Field(
        False, description="read every byte of each MEMORY and check its sha256 first; else sizes only"
    )


class Promotion(Section):
    """When a version of a registered model takes over an alias."""

    alias: str = Field("champion", description="what is to be moved")
    split: str = Field("unseen", description="held-out questions that decide")
    measure: str = Field("index.log_likelihood", description="what is compared, larger is better; nats an answer")
    level: float = Field(0.05, gt=0, lt=1, description="the paired test's p-value must be below it")
    floors: tuple[str, ...] = Field(
        ("index.log_likelihood>=baselines", "index.recall@5>=baselines"),
        description="what every version must reach, the first one too: MEASURE>=BOUND or MEASURE<=BOUND; the bound is "
        "a number, bm25, dense, or baselines (BM25, and dense where the EVALUATION has it), with the same generator",
    )

    @model_validator(mode="after")
    def _readable(self) -> "Promotion":
        for floor in self.floors:
            if not FLOOR.fullmatch(floor):
                raise ValueError(
                    f"promotion.floors has {floor!r}; expected MEASURE>=BOUND or MEASURE<=BOUND with a number, bm25, "
                    "dense or baselines, as index.recall@5>=bm25"
                )
        return self
