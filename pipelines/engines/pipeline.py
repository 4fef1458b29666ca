"""The pipeline that a command's arguments ask for; Beam is imported only if there is one, or an argument for it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipelines.engines.names import LOCAL

if TYPE_CHECKING:
    import apache_beam as beam


def pipeline_of(runner: str, num_workers: int, arguments: Sequence[str]) -> "Callable[[], beam.Pipeline] | None":
    """What makes the pipeline; None for the local run.

    Args:
        runner: `local`, or a runner's name for Beam.
        num_workers: see `beam_options`.
        arguments: that the command does not know.

    Raises:
        InputError: the arguments are not valid.
    """
    if runner == LOCAL and not arguments:
        return None
    from pipelines.engines.runner import beam_options, make_pipeline  # imports Beam

    known = beam_options(arguments, runner, num_workers)
    return None if runner == LOCAL else lambda: make_pipeline(known, runner)
