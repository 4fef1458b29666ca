"""Every format by the name that `--format` takes. To add one: an entry here, its code in this folder.

A row format is a function that converts one row; `detect.formats_of` recognises its fields.
"""

from collections.abc import Callable

from pipelines.build_questions.convert import PublishedFormat
from pipelines.build_questions.from_corpus import CorpusFormat
from pipelines.build_questions.judged import JudgedFormat, tsv_rows
from pipelines.build_questions.multi_hop import convert_hotpotqa, convert_musique, convert_squad, squad_rows
from pipelines.build_questions.nested import (
    convert_bioasq,
    convert_eli5,
    convert_kilt,
    convert_mrqa,
    convert_nq,
    mrqa_rows,
)
from pipelines.build_questions.passages import convert_clara, convert_dpr, convert_fid, convert_flashrag
from pipelines.build_questions.published import (
    Published,
    convert_jsonl,
    convert_nq_open,
    convert_popqa,
    convert_triviaqa,
    plain_rows,
    triviaqa_rows,
)
from pipelines.build_questions.question_format import QuestionFormat
from pipelines.build_questions.row import Row

FROM_CORPUS = ("cloze", "natural", "cloze+natural")
"""Formats whose input is a corpus."""


def _pools(name: str, convert: Callable[[Row], Published], *, has_ids: bool = False) -> PublishedFormat:
    return PublishedFormat(name, plain_rows, convert, is_pool=True, brings_documents=True, has_ids=has_ids)


FORMATS: dict[str, QuestionFormat] = {
    "jsonl": PublishedFormat("jsonl", plain_rows, convert_jsonl),
    "clara": _pools("clara", convert_clara),
    "hotpotqa": _pools("hotpotqa", convert_hotpotqa),
    "2wiki": _pools("2wiki", convert_hotpotqa),
    "musique": _pools("musique", convert_musique),
    "squad": PublishedFormat("squad", squad_rows, convert_squad, brings_documents=True),
    "mrqa": PublishedFormat("mrqa", mrqa_rows, convert_mrqa, brings_documents=True, has_ids=True),
    "bioasq": PublishedFormat("bioasq", plain_rows, convert_bioasq, brings_documents=True),
    "nq": _pools("nq", convert_nq),
    "kilt": PublishedFormat("kilt", plain_rows, convert_kilt),
    "eli5": PublishedFormat("eli5", plain_rows, convert_eli5),
    "nq-open": PublishedFormat("nq-open", plain_rows, convert_nq_open),
    "triviaqa": PublishedFormat("triviaqa", triviaqa_rows, convert_triviaqa),
    "popqa": PublishedFormat("popqa", plain_rows, convert_popqa),
    "flashrag": _pools("flashrag", convert_flashrag),
    "dpr": _pools("dpr", convert_dpr, has_ids=True),
    "fid": _pools("fid", convert_fid, has_ids=True),
    "beir": JudgedFormat("beir", plain_rows),
    "msmarco": JudgedFormat("msmarco", tsv_rows),
    **{name: CorpusFormat(name, tuple(name.split("+"))) for name in FROM_CORPUS},
}
ALIASES = {"search-r1": "flashrag", "atlas": "fid", "colbert": "msmarco"}
"""Further names of formats."""
