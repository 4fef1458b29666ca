"""The typed configuration tree: TOML files hold what differs from the defaults, `--set a.b=c` overrides, an unknown key is an error."""

from typing import Literal

from pydantic import Field

from clara.config.model import Backbone, Model, Prompts
from clara.config.refresh import YEAR_SECONDS
from clara.config.section import Section
from clara.config.stages import Instruct, Joint, Pretrain


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
    search_seconds: float = Field(
        300.0, gt=0, le=YEAR_SECONDS, description="longest wait for search servers, restarts included"
    )
    search_restarts: int = Field(
        3, ge=0, description="times that Ray starts a search server again by itself, on any node"
    )
    search_cpus: float = Field(
        0.0,
        ge=0,
        description="cores that Ray reserves for a search server, and its threads; 0: none reserved, one thread",
    )


class Launch(Section):
    """Who computes."""

    launcher: Literal["ray", "local"] = Field(
        "ray", description="ray: Ray Train with DeepSpeed; local: one plain torch process"
    )
    num_workers: int = Field(2, ge=1, description="ranks under Ray")
    gpu: bool = Field(False, description="one GPU for each rank; without it the CPU is used, never silently")
    zero_stage: Literal[1, 2, 3] = Field(
        2,
        description="what is shared out over the ranks: 1 the optimiser's state, 2 gradients too, 3 parameters too, the frozen LM's among them",
    )
    zero3_keep_whole_below: int = Field(
        100_000,
        ge=0,
        description="numbers; with zero_stage 3 smaller parameters stay whole on every rank, which saves collectives",
    )
    cpus_per_worker: float = Field(
        0.0, ge=0, description="cores reserved for a rank; 0: an even share of what is left, 1 at most"
    )
    threads: int = Field(0, ge=0, description="torch threads of a rank; 0: cores / ranks")
    max_failures: int = Field(
        3, ge=0, description="times that ranks start again, from the last run state, or wait again (600 s) for room"
    )
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
    corpus: str = Field(
        "", description="corpus that the questions' documents lie in, a file or a glob, for stage instruct"
    )
    memory: str = Field("", description="MEMORY for stage joint")
    index: str = Field("", description="INDEX over that MEMORY")
    utilities: str = Field(
        "",
        description="UTILITIES of the questions over that MEMORY, for stage joint: pools and likelihoods scored beforehand",
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
