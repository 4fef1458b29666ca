"""The account of a corpus job: records in = out + dropped + failed, at each stage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clara.errors import InputError
from pipelines.corpus.census import separated


def raise_first_error(reports: Sequence[Mapping[str, Any]]) -> None:
    """Raise the errors that the shards of a job report about its input.

    Raises:
        InputError: the first error in alphabetical order, and how many more there are.
    """
    errors = sorted(report["error"] for report in reports if report.get("error"))
    if errors:
        raise InputError(errors[0] + (f" (and {len(errors) - 1} more shards failed)" if len(errors) > 1 else ""))


@dataclass(frozen=True)
class Account:
    """The outcomes of a job's records.

    Attributes:
        tallies: counts by name.
        failed: dead letters of records that could not be used, by reason.
        dropped: dead letters of records that were left out on purpose, by reason.
        noted: what a census counted beside, see `pipelines.corpus.census`.
    """

    tallies: Mapping[str, int]
    failed: Mapping[str, int]
    dropped: Mapping[str, int]
    noted: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, tallies: Mapping[str, int], reasons: Mapping[tuple[bool, str], int]) -> "Account":
        """From tallies, and dead letters by (dropped, reason)."""
        failed = {reason: count for (dropped, reason), count in sorted(reasons.items()) if not dropped}
        dropped = {reason: count for (dropped, reason), count in sorted(reasons.items()) if dropped}
        plain, noted = separated(tallies)
        return cls(plain, failed, dropped, noted)

    def total(self, *names: str) -> int:
        """Sum of tallies; 0 for those that were never counted."""
        return sum(self.tallies.get(name, 0) for name in names)

    def check_stages(self, stages: Iterable[tuple[str, int, int]]) -> None:
        """Check that no stage loses records.

        Args:
            stages: (name, records that came in, records that are accounted for) of each.

        Raises:
            RuntimeError: they differ, which is a bug of the job; its artefact is not completed.
        """
        for stage, came_in, went_out in stages:
            if came_in != went_out:
                raise RuntimeError(
                    f"{stage} lost records: {came_in} came in, {went_out} are accounted for; "
                    f"tallies {dict(self.tallies)}, failed {dict(self.failed)}, dropped {dict(self.dropped)}"
                )

    def check_result(self, made: int, without: str, letters: str, max_failures: int) -> None:
        """Check that there is a result, without too many failures.

        Args:
            made: number of rows or examples of the result.
            without: beginning of the error message if there is none.
            letters: path of the dead letters.
            max_failures: more failed records than this are an error; below 0: no limit.

        Raises:
            InputError: the result is empty, or more records failed than allowed.
        """
        if not made:
            raise InputError(
                f"{without}; failed: {self.failed or 'nothing'}, dropped: {self.dropped or 'nothing'}; "
                f"{letters} names each"
            )
        if 0 <= max_failures < sum(self.failed.values()):
            raise InputError(
                f"{sum(self.failed.values())} dead letters, --max-failures allows {max_failures}; "
                f"by reason: {self.failed}; {letters} names each"
            )

    def counts(self, **made: int) -> dict[str, Any]:
        """The counts for the artefact's manifest; `made` are counts of the result."""
        return {
            **self.tallies,
            **made,
            "dead letters": sum(self.failed.values()),
            "dead letters by reason": self.failed,
            "dropped": sum(self.dropped.values()),
            "dropped by reason": self.dropped,
            **self.noted,
        }
