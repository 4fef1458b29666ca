"""The model card of a registered version, in Markdown: what it is, data, licences, measures with intervals, limits."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clara.index.dense_model import is_endpoint
from clara.storage.paths import Name
from training.evaluation.files import REPORT
from training.evaluation.measures import Figure
from training.evaluation.tables import ANSWERS, LEGEND, TABLE, TIME, as_markdown, figure_table
from training.registry.registration import Registration

_LICENCE = re.compile(r"^licen[cs]e:\s*(\S.*)$", re.MULTILINE | re.IGNORECASE)
_NOT_STATED = "not stated"


def card(registration: Registration, licences: Mapping[str, str]) -> str:
    """The card.

    Args:
        registration: artefacts of the version, which fit each other.
        licences: by part (corpus, questions, model); others are looked for, or not stated.
    """
    checkpoint, memory = registration.checkpoint.manifest, registration.memory.manifest
    evaluation = registration.evaluation.manifest
    parts = [f"# {registration.name}", _what(registration, checkpoint, memory)]
    parts += ["## Data", _bullets(_data(registration, checkpoint, memory, evaluation))]
    parts += ["## Licences", _bullets(_licences(registration, licences))]
    parts += ["## Measures", *_measures(registration, evaluation)]
    parts += ["## Limits", _bullets(_limits(registration, checkpoint, memory))]
    return "\n\n".join(parts) + "\n"


def _bullets(lines: Iterator[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _what(registration: Registration, checkpoint: Mapping[str, Any], memory: Mapping[str, Any]) -> str:
    score, fusion = checkpoint["model"].get("score") or {}, checkpoint["model"].get("fusion") or {}
    weights = ", ".join(f"{name} {value:.3g}" for name, value in (fusion.get("weights") or {}).items())
    pooling = str(score.get("pooling", "flattened")).replace("_", " ")
    return (
        "A system of retrieval and generation (CLaRa, arXiv 2511.18659): documents are compressed into memory tokens; "
        "a question finds passages by their memory, and the generator answers from it. System "
        f"`{registration.system}` of its evaluation: CHECKPOINT of stage {checkpoint['stage']}, "
        f"{memory['counts'].get('rows', 'unknown')} passages, cosine of {pooling} vectors"
        f"{', centred' if score.get('centred') else ''}{f', weights of the score: {weights}' if weights else ''}. It "
        f"reads {registration.num_selected} passages and answers in {registration.max_new_tokens} tokens at most."
    )


def _data(
    registration: Registration,
    checkpoint: Mapping[str, Any],
    memory: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> Iterator[str]:
    recipe, counts = memory["made_by"]["recipe"], memory["counts"]
    for entry in recipe.get("input") or ():
        yield f"corpus: {Path(entry['path']).name}, sha256 {str(entry.get('sha256', 'unknown'))[:16]}…"
    known = ("documents", "chunks", "rows", "dropped", "dead letters")
    yield "MEMORY: " + ", ".join(f"{counts[name]} {name}" for name in known if name in counts) + _made(memory)
    for name, value in (checkpoint["made_by"]["recipe"].get("inputs") or {}).items():
        if value:
            yield f"trained on {name} {str(value)[:16]}…"
    questions = evaluation["questions"]
    yield f"measured on QUESTIONS {questions['manifest'][:16]}…, those asked: {questions['hash'][:16]}…"


def _made(manifest: Mapping[str, Any]) -> str:
    return f", made {manifest['made_by']['created']}" if manifest["made_by"].get("created") else ""


def _licences(registration: Registration, licences: Mapping[str, str]) -> Iterator[str]:
    language_model = _stated(registration.checkpoint.backbone_folder(registration.backbone))
    found = {"corpus": _NOT_STATED, "questions": _NOT_STATED, "language model": language_model}
    if model := registration.dense.dense_model:
        found["embedding model"] = _NOT_STATED if is_endpoint(registration.dense) else _stated(model)
    for part, licence in {**found, **licences}.items():
        yield f"{part}: {licence}"


def _stated(folder: Name) -> str:
    """The licence that a model's folder states: in the head of its README, or as a file."""
    readme = Path(folder, "README.md")
    if readme.is_file() and (stated := _LICENCE.search(readme.read_text(encoding="utf-8", errors="replace")[:4000])):
        return stated[1].strip()
    files = sorted(path.name for path in Path(folder).glob("LICEN*")) if Path(folder).is_dir() else []
    return f"see {', '.join(files)} in its folder" if files else _NOT_STATED


def _measures(registration: Registration, evaluation: Mapping[str, Any]) -> Iterator[str]:
    report = json.loads(registration.evaluation.file(REPORT).read_text(encoding="utf-8"))
    name, settings = registration.system, evaluation["made_by"]["recipe"]["settings"]
    yield f"{LEGEND} K = {settings['num_selected']}."
    for split in report["systems"][name]:
        figures = {
            system: {measure: Figure(**figure) for measure, figure in report["systems"][system][split].items()}
            for system in (name, f"bm25/{name}", f"dense/{name}")
            if split in report["systems"].get(system, {})
        }
        yield f"### {split or 'all questions'}"
        yield as_markdown(figure_table(figures, interval=True, columns=TABLE))
        for columns in (ANSWERS, TIME):
            if (more := figure_table(figures, interval=True, columns=columns))[1]:
                yield as_markdown(more)


def _limits(registration: Registration, checkpoint: Mapping[str, Any], memory: Mapping[str, Any]) -> Iterator[str]:
    yield "It knows the documents of its MEMORY and nothing later; the language model adds what it was trained on."
    yield "An answer may be wrong, even where the right passage was found: the measures above say how often."
    yield "The measures hold for questions like those above; other kinds and other languages were not measured."
    if longest := checkpoint["model"].get("max_question_tokens"):
        end = "beginning" if checkpoint["model"].get("question_keeps") == "end" else "end"
        yield f"Of more than {longest} tokens of a question the {end} is not searched for; the generator reads it."
    if truncated := memory["counts"].get("chunks truncated"):
        yield f"{truncated} passages are longer than the compressor reads, and were cut."
    yield f"Decoding is greedy, {registration.max_new_tokens} tokens at most."
