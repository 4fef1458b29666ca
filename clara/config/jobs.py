"""Sections of the configuration for the jobs that make artefacts out of a corpus."""

from typing import Literal

from pydantic import Field

from clara.config.section import Section


class Records(Section):
    """Records of a corpus: their format and field names, and which of them are dropped."""

    format: str = Field(
        "auto",
        description="jsonl, json, parquet, csv, tsv, text, mediawiki (a dump); auto: by the name, else the content",
    )
    id_field: str = Field("id", description="field with the document's id; without it, the hash of its content")
    title_field: str = Field("title", description="field with the title, which goes in front of the text")
    text_field: str = Field("text", description="field with the text")
    min_characters: int = Field(0, ge=0, description="drop documents with a shorter text")
    max_characters: int = Field(0, ge=0, description="drop documents with a longer text; 0: no bound")
    languages: tuple[str, ...] = Field(
        (), description="drop documents in other languages than these, as en de; empty: none"
    )
    max_symbol_ratio: float = Field(
        1.0, ge=0, le=1, description="drop documents with a larger share of characters that are no letters or digits"
    )
    near_duplicates: float = Field(
        0.0,
        ge=0,
        le=1,
        description="drop documents at least this similar to an earlier one, as 0.8: estimated Jaccard similarity of "
        "five-word shingles; in scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character "
        "counts as a word; texts without words only where they are equal; 0: off",
    )
    limit: int = Field(0, ge=0, description="use the first N documents only; 0: all")
    max_failures: int = Field(-1, ge=-1, description="fail when more records than this cannot be used; -1: no bound")


class Spark(Section):
    """The Spark cluster that a job is submitted to."""

    master: str = Field("", description="spark://HOST:PORT, or local[N] for a trial on this machine")
    pool: str = Field("localhost:50000", description="HOST:PORT of the worker pool, as a node sees it")
    image: str = Field(
        "", description="run Python in containers of this image instead of a pool; the nodes need docker"
    )
    processes: int = Field(1, ge=1, description="Python processes of a node, each with its own model")
    job_server_jar: str = Field(
        "", description="file of Beam's Spark 3 job server; empty: fetched from Maven Central, once"
    )
    files_to_stage: tuple[str, ...] = Field(
        (), description="jars for the executors; empty: all that the job server runs with"
    )


class Dataflow(Section):
    """The Google Cloud project in which a job runs, and its machines."""

    project: str = Field("", description="Google Cloud project")
    region: str = Field("", description="region, as europe-west4")
    bucket: str = Field(
        "", description="gs://BUCKET[/FOLDER]; temporary and staged files go to temp/ and staging/ there"
    )
    image: str = Field("", description="worker image: target beam of the Dockerfile, pushed")
    service_account: str = Field("", description="e-mail address that the workers act as; empty: the project's own")
    max_machines: int = Field(0, ge=0, description="bound on the machines; 0: Dataflow's")
    machine_type: str = Field("", description="as n2-standard-8; empty: Dataflow's choice")


class Engine(Section):
    """Where a Beam job runs."""

    runner: str = Field("local", description="local, or a runner that Beam knows, with its own arguments")
    num_workers: int = Field(0, ge=0, description="processes of the local runner; 0: all cores")
    spill: str = Field(
        "",
        description="folder in which the local runner spills chunks, about as large as the text; "
        "removed at the end; "
        "empty: .spill in the output",
    )
    gpu_type: str = Field(
        "", description="on Dataflow: GPU of the machines that compress, as nvidia-l4; others get none; empty: none"
    )
    gpu_count: int = Field(1, ge=1, description="on Dataflow: GPUs of such a machine")
    spark: Spark = Spark()
    dataflow: Dataflow = Dataflow()


class CorpusJob(Section):
    """How a corpus is cut into chunks and compressed into MEMORY, and how training encodes it again."""

    max_tokens: int = Field(
        0,
        ge=0,
        description="tokens of a chunk, title included; 0: model.max_document_tokens, of the checkpoint if "
        "there is one",
    )
    overlap_tokens: int = Field(0, ge=0, description="tokens that a chunk repeats of the one before")
    num_shards: int = Field(
        0,
        ge=0,
        description="files of rows; 0: by the number of chunks, 512 to 1,024 rows each in a large corpus, "
        "fewer in a small one",
    )
    codec: Literal["float16", "int8", "int4", "pq4", "pq8"] = Field("float16", description="how memory is stored")
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="type that the corpus job compresses in; auto: backbone.dtype; int8: on a CPU, faster and less "
        "exact, for a MEMORY that is searched and read, not trained with",
    )
    key_size: int = Field(0, ge=0, description="numbers of a row's index key; 0: 256, or M·D where that is less")
    key_seed: int = Field(0, ge=0, lt=2**32, description="seed of the key projection")
    batch_tokens: int = Field(4096, ge=1, description="tokens of one compressing batch, padding included")


class IndexJob(Section):
    """How an INDEX is built, and how its recall is measured."""

    probes: int = Field(
        0, ge=0, description="inverted lists that a query looks into; 0: a sixteenth of them, 8 at least"
    )
    queries: int = Field(
        64,
        ge=0,
        description="indexed rows that the measurement asks for, disturbed by noise of half their length; "
        "it reads the payload once; "
        "0: no measurement",
    )
    measure_gib: float = Field(
        32.0,
        gt=0,
        description="GiB of payload that the measurement may read; of more, a sample of whole shards is read "
        "and recall is estimated "
        "from below",
    )
    recall_floor: float = Field(0.9, ge=0, le=1, description="warn of recall@10 under this share, with what would help")
    strict_recall: bool = Field(
        False, description="refuse a recall under the floor; without it the INDEX is kept with a warning"
    )
    gpu: bool = Field(False, description="cluster and assign on a CUDA device, with faiss-gpu-cu12; else on the CPU")
    parent: str = Field(
        "",
        description="INDEX of the version before: its training, and its rows whose shard files are the same, "
        "are reused; empty: none",
    )
    words: bool = Field(True, description="write the words of all rows too, which BM25 searches")
    verify: bool = Field(True, description="read every byte of the MEMORY and check its sha256 first")


class Cloze(Section):
    """Cloze questions out of a corpus (pipelines/corpus/bridges.py), and the articles that they hold out."""

    max_per_target: int = Field(3, ge=1, description="most questions that ask for one article, in each split")
    max_mentions: int = Field(
        0,
        ge=0,
        description="also mask names that no article bears and that occur in 2 to this many articles, in each of them; "
        "the others are the positives; 0: none",
    )
    min_words: int = Field(6, ge=1, description="shortest sentence, in words")
    max_words: int = Field(60, ge=1, description="longest sentence, in words")
    held_out_share: float = Field(0.1, ge=0, le=1, description="share of articles that training never asks for")
    salt: str = Field("held-out", description="what the ids of held-out articles are hashed with")
    pool_size: int = Field(0, ge=0, description="documents in the fixed pool of a seen or unseen question; 0: no pools")
    train_pools: bool = Field(
        False,
        description="give training questions a pool of that size too, of articles that are not held out "
        "(for instruct.negatives = pool)",
    )


class QuestionsJob(Section):
    """How published questions are converted."""

    split: Literal["", "train", "seen", "unseen"] = Field(
        "", description="split of all questions; empty: of jsonl each row's own field split, else none"
    )
    skip_bad: bool = Field(False, description="count rows without a question or answer and continue; else stop")
    document_ids: Literal["given", "content"] = Field(
        "given",
        description="ids of documents where a format brings some (dpr, fid): those, or the hash of the content",
    )


class ExamplesJob(Section):
    """Examples for stage pretrain that need no language model."""

    kinds: tuple[str, ...] = Field(("autoencode", "cloze"), description="what a corpus gives: autoencode, cloze")
    pairs: int = Field(6, ge=1, description="most pairs of a cloze example")
    max_sentence_characters: int = Field(300, ge=1, description="longer sentences are not asked about")
    exclude_held_out: bool = Field(
        False, description="leave out held-out articles and sentences that mention one (see section cloze)"
    )


class Selection(Section):
    """A smaller corpus whose articles mention each other densely."""

    documents: int = Field(1000, ge=1, description="articles to keep")


class UtilityJob(Section):
    """Pools of questions, and the likelihood of the answer given each candidate alone."""

    split: str = Field("train", description="of the questions; empty: all")
    pool_size: int = Field(20, ge=2, description="rows of a pool")
    from_index: int = Field(5, ge=0, description="of these, best of the index")
    from_bm25: int = Field(5, ge=0, description="of these, best of BM25")
    from_dense: int = Field(
        0, ge=0, description="of these, best by the dense vectors of the INDEX, with retrieval.dense_model"
    )
    fold: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="only questions of this share of the targets, those that joint.fit_share keeps from training; 0: "
        "all questions",
    )
    limit: int = Field(0, ge=0, description="most questions, of as many targets as can be; 0: all")
    reuse: str = Field(
        "",
        description="UTILITIES of the same reader, MEMORY and settings, for other or fewer questions: what they hold "
        "is not scored again",
    )
    shuffle_answers: bool = Field(
        False,
        description="the control: score every question with another one's answers; what is fitted to these "
        "may gain nothing",
    )
    positives: bool = Field(True, description="put the known positives into the pools")
    published_pools: bool = Field(
        False, description="score each question's own candidate_ids, all of them, instead of drawing a pool"
    )
