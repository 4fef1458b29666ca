"""One re-encoding of MEMORY with a snapshot of the compressor.

`training.refresh.process` and `ray_actors` run it beside training.

python -m training.refresh --job FILE        (one job again, as a run left it beside its log)
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from clara.config.flags import plain_parser
from clara.errors import InputError
from clara.storage.folders import atomic_write
from training.refresh.job import RefreshJob, expected_fingerprint, fingerprint_of, run_job


def read_job(path: str) -> RefreshJob:
    """A job from its JSON.

    Raises:
        InputError: no such file, or not a job.
    """
    try:
        fields: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return RefreshJob(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"--job {path}: not a refresh job ({error}); joint training writes it") from error


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("training.refresh", __doc__)
    parser.add_argument("--job", required=True, help="JSON with the fields of RefreshJob")
    parser.add_argument("--result", default="", help="file for the result, as JSON (default: print it)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the job and the fingerprint that its MEMORY will have, and stop"
    )
    options = parser.parse_args(argv)
    job = read_job(options.job)
    if options.dry_run:
        fingerprint = expected_fingerprint(job.checkpoint, job.backbone, fingerprint_of(job.parent)).hash
        print(json.dumps(dataclasses.asdict(job) | {"fingerprint": fingerprint}, indent=1))
        return 0
    result = json.dumps(dataclasses.asdict(run_job(job)), indent=1)
    if options.result:
        atomic_write(options.result, result + "\n")
    else:
        print(result)
    return 0
