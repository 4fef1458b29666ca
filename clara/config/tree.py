"""The typed configuration tree: TOML files, then `--set a.b=c` overrides; an unknown key is an error."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from clara.config.evaluation import Evaluation, Promotion
from clara.config.jobs import (
    Cloze,
    CorpusJob,
    Engine,
    ExamplesJob,
    IndexJob,
    QuestionsJob,
    Records,
    Selection,
    UtilityJob,
)
from clara.config.model import Backbone, Model, Prompts
from clara.config.refresh import YEAR_SECONDS
from clara.config.section import Section
from clara.config.serving import Serving
from clara.config.stages import Instruct, Joint, Pretrain
from clara.config.synthesis import Synthesis
from clara.config.world import World
from clara.endpoints import refuse_password


class Retrieval(Section):
    """The two levels of retrieval: an INDEX proposes candidates, exact scores rank them."""

    factory: str = Field(
        "auto",
        description="FAISS factory string; auto: when an INDEX is built, Flat, "
        "IVF with float16 keys or OPQ+IVF+PQ by the number of rows; "
        "in a refresh, that of the run's INDEX",
    )
    first_level: int = Field(200, ge=1, description="L, candidates from the INDEX whose exact scores are then computed")
    candidates: int = Field(
        100,
        ge=1,
        description="rows that a fused score (model.fusion) takes from each source; it scores their union, this "
        "number times the sources at most",
    )
    exact_rows: int = Field(
        5000,
        ge=0,
        description="a MEMORY of at most so many rows is searched exactly, as if L were their number; 0: never",
    )
    dense_model: str = Field(
        "",
        description="sentence-transformers folder, or URL of an OpenAI-compatible embeddings endpoint as "
        "http://localhost:8000/v1: an INDEX is built with its vectors of all rows, "
        "and a search by them embeds questions with it; nothing is downloaded",
    )
    dense_name: str = Field("", description="with an endpoint: name of the embedding model there")
    dense_question_prompt: str = Field(
        "",
        description='put in front of questions, as "query: "; without this and the next, a folder has the prompts of '
        "its own configuration",
    )
    dense_text_prompt: str = Field("", description='put in front of texts, as "passage: "')
    dense_size: int = Field(
        0, ge=0, description="with an endpoint: numbers of a vector, sent as dimensions; 0: as many as the model gives"
    )
    dense_key_variable: str = Field(
        "OPENAI_API_KEY",
        description="with an endpoint: environment variable with its key, where the model is asked; none is sent if it "
        "is not set",
    )
    dense_concurrency: int = Field(8, ge=1, description="with an endpoint: requests at once, of 32 texts each")
    dense_seconds: float = Field(
        60.0, gt=0, le=YEAR_SECONDS, description="with an endpoint: longest wait for an answer; it is asked five times"
    )
    search_shards: int = Field(
        0,
        ge=0,
        description="0: each rank maps the whole INDEX, and ranks of a machine share its pages; N: "
        "N search servers (Ray actors) hold "
        "a share of its rows each, for an INDEX larger than a machine; the same rows are found",
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

    def only_dense(self) -> "Retrieval":
        """The settings of the embedding model alone; the others at their defaults."""
        return Retrieval(**{name: value for name, value in self.model_dump().items() if name.startswith("dense_")})


class Launch(Section):
    """The launcher of training, its ranks, devices and threads."""

    launcher: Literal["ray", "local"] = Field(
        "ray", description="ray: Ray Train with DeepSpeed; local: one plain torch process"
    )
    num_workers: int = Field(2, ge=1, description="ranks under Ray")
    gpu: bool = Field(False, description="one GPU for each rank; without it the CPU is used, never silently")
    zero_stage: Literal[1, 2, 3] = Field(
        2,
        description="what is sharded over the ranks: 1 the optimiser's state, 2 gradients too, 3 parameters too, "
        "the frozen LM's "
        "among them",
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

    @property
    def num_ranks(self) -> int:
        """Processes that train: `num_workers` under Ray, otherwise one."""
        return self.num_workers if self.launcher == "ray" else 1


class Tracking(Section):
    """Where runs are logged, and under which names."""

    uri: Annotated[str, AfterValidator(refuse_password)] = Field(
        "",
        description="MLflow store or server, as sqlite:///PATH (its artefacts are stored beside it); empty: "
        "no tracking, and no models:/ names",
    )
    experiment: str = Field("clara", description="experiment of runs, evaluations and registrations")
    corpus_experiment: str = Field("corpus", description="experiment of artefacts that corpus jobs make")


class Config(Section):
    """The root of the configuration tree."""

    seed: int = Field(0, ge=0, description="of everything that is drawn")
    device: str = Field("cpu", description="cpu or cuda, of commands that run without a launcher; fails if unavailable")
    stage: Literal["pretrain", "instruct", "joint"] = Field("joint", description="what a training run trains")
    checkpoint: str = Field(
        "",
        description="CHECKPOINT to start from or to use, for some commands also models:/NAME@ALIAS or "
        "models:/NAME/VERSION of the MLflow store; empty: fresh adapters, in stage pretrain",
    )
    examples: str = Field("", description="EXAMPLES for stage pretrain")
    questions: str = Field("", description="QUESTIONS: of stages instruct and joint, and of an evaluation")
    corpus: str = Field(
        "", description="corpus that holds the questions' documents, a file or a glob, for stage instruct"
    )
    memory: str = Field("", description="MEMORY that the checkpoint's compressor made")
    index: str = Field("", description="INDEX over that MEMORY; empty: exact search over all rows")
    utilities: str = Field(
        "",
        description="UTILITIES of the questions over that MEMORY, for stage joint: "
        "pools and likelihoods scored beforehand",
    )
    output: str = Field("", description="directory that the command writes")
    backbone: Backbone = Backbone()
    model: Model = Model()
    prompts: Prompts = Prompts()
    pretrain: Pretrain = Pretrain()
    instruct: Instruct = Instruct()
    joint: Joint = Joint()
    records: Records = Records()
    engine: Engine = Engine()
    corpus_job: CorpusJob = CorpusJob()
    index_job: IndexJob = IndexJob()
    cloze: Cloze = Cloze()
    questions_job: QuestionsJob = QuestionsJob()
    examples_job: ExamplesJob = ExamplesJob()
    synthesis: Synthesis = Synthesis()
    selection: Selection = Selection()
    world: World = World()
    utility_job: UtilityJob = UtilityJob()
    retrieval: Retrieval = Retrieval()
    serving: Serving = Serving()
    evaluation: Evaluation = Evaluation()
    promotion: Promotion = Promotion()
    launch: Launch = Launch()
    tracking: Tracking = Tracking()

    def part(self, keys: Iterable[str]) -> dict[str, Any]:
        """What a command's keys and sections are set to, as nested tables."""
        wanted: dict[str, Any] = {}
        for key in keys:
            section, _, below = key.partition(".")
            wanted[section] = {below: True} | wanted.get(section, {}) if below else True
        return self.model_dump(include=wanted)


PRETRAIN = (
    *("seed", "stage", "checkpoint", "examples", "questions", "corpus", "output", "backbone", "model", "prompts"),
    *("pretrain", "instruct", "joint.checkpoint_every", "launch.gpu", "launch.threads", "tracking.uri"),
)
"""Keys and sections that stages `pretrain` and `instruct` read."""
JOINT = (
    *("seed", "stage", "checkpoint", "questions", "memory", "index", "utilities", "output", "backbone"),
    *("model", "prompts", "joint", "retrieval", "corpus_job.batch_tokens", "launch"),
    *("tracking.uri", "tracking.experiment"),
)
"""Keys and sections that stage `joint` reads; of `model` and `prompts` only whether they are the CHECKPOINT's."""
READ_BY = {
    "backbone": (
        "train pretrain",
        "build-memory",
        "score-utilities",
        "train joint",
        "evaluate",
        "register",
        "ask",
        "serve",
        "set-score",
        "fit-score",
        "demo",
        "plan",
        "report",
    ),
    "model": ("synthesize", "train pretrain", "train joint", "set-score", "fit-score", "demo", "plan"),
    "prompts": ("train pretrain", "train joint", "demo"),
    "pretrain": ("train pretrain", "demo"),
    "instruct": ("train pretrain", "demo"),
    "joint": ("train joint", "train phases", "fit-score", "demo", "plan"),
    "records": ("select-corpus", "build-questions", "build-examples", "synthesize", "build-memory"),
    "engine": ("synthesize", "build-memory", "build-index", "score-utilities", "submit spark", "submit dataflow"),
    "corpus_job": ("synthesize", "build-memory", "compact", "train joint", "plan"),
    "index_job": ("build-index", "plan"),
    "cloze": ("select-corpus", "build-questions", "build-examples"),
    "questions_job": ("build-questions",),
    "examples_job": ("build-examples",),
    "synthesis": ("synthesize",),
    "selection": ("select-corpus", "demo"),
    "world": ("world",),
    "utility_job": ("score-utilities",),
    "retrieval": (
        "build-index",
        "score-utilities",
        "train joint",
        "train phases",
        "fit-score",
        "evaluate",
        "register",
        "ask",
        "serve",
        "plan",
        "report",
    ),
    "serving": ("register", "ask", "serve"),
    "evaluation": ("evaluate", "report"),
    "promotion": ("promote",),
    "launch": ("train pretrain", "train joint", "train phases", "demo"),
    "tracking": (
        "train pretrain",
        "synthesize",
        "build-memory",
        "train joint",
        "train phases",
        "evaluate",
        "register",
        "promote",
        "registry",
        "ask",
        "serve",
        "report",
    ),
}
"""Commands that read a section, as the console command names them."""
