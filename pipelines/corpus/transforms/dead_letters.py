"""Dead letters in a Beam graph: collected, counted by reason, written in parts."""

from typing import Any

from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsSingleton, PCollection
from apache_beam.transforms import Create, FlatMap, Flatten, GroupByKey, Map, combiners

from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.dead_letters import letters_of_report, num_parts_of, number_of, write_part

COUNTERS = "build_memory"
"""Namespace of the runner's counters."""


def _to_part(letter: DeadLetter, num_parts: int) -> tuple[int, DeadLetter | None]:
    return number_of(letter) % num_parts, letter


def write_letters(letters: PCollection[DeadLetter], directory: str) -> PCollection[dict[str, Any]]:
    """Write the dead letters into a MEMORY. Returns the manifest entries of their files, at least one."""
    num_parts = AsSingleton(letters | "CountLetters" >> combiners.Count.Globally() | "ChooseParts" >> Map(num_parts_of))
    first = letters.pipeline | "FirstPart" >> Create([(0, None)])
    parted = letters | "PartLetters" >> Map(_to_part, num_parts)
    return (
        [first, parted]
        | "AllParts" >> Flatten()
        | "GatherLetters" >> GroupByKey()
        | "WriteLetters" >> Map(write_part, num_parts, directory)
    )


def _reason(letter: DeadLetter) -> tuple[bool, str]:
    Metrics.counter(COUNTERS, f"{'dropped' if letter.dropped else 'failed'}: {letter.reason}").inc()
    return letter.dropped, letter.reason


def count_reasons(letters: PCollection[DeadLetter]) -> PCollection[tuple[tuple[bool, str], int]]:
    """((Dropped, reason), number of dead letters). Also increments a counter of the runner for each reason."""
    return letters | "Reasons" >> Map(_reason) | "CountReasons" >> combiners.Count.PerElement()


def failures(reports: PCollection[dict[str, Any]]) -> PCollection[DeadLetter]:
    """Dead letters of all shards' failures."""
    return reports | "LettersOfShards" >> FlatMap(letters_of_report)
