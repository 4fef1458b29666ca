"""The question formats by the name that `--format` takes. To add one: an entry here, its code in this folder."""

from pipelines.build_questions.cloze import ClozeFormat
from pipelines.build_questions.convert import PublishedFormat
from pipelines.build_questions.published import (
    convert_hotpotqa,
    convert_jsonl,
    convert_musique,
    convert_nq_open,
    convert_squad,
    plain_rows,
    squad_rows,
)
from pipelines.build_questions.question_format import QuestionFormat

FORMATS: dict[str, QuestionFormat] = {
    "cloze": ClozeFormat(),
    "jsonl": PublishedFormat(plain_rows, convert_jsonl),
    "hotpotqa": PublishedFormat(plain_rows, convert_hotpotqa, is_pool=True, brings_documents=True),
    "2wiki": PublishedFormat(plain_rows, convert_hotpotqa, is_pool=True, brings_documents=True),
    "musique": PublishedFormat(plain_rows, convert_musique, is_pool=True, brings_documents=True),
    "squad": PublishedFormat(squad_rows, convert_squad, brings_documents=True),
    "nq-open": PublishedFormat(plain_rows, convert_nq_open),
}
