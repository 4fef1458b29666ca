"""Submit a corpus job to Google Cloud Dataflow, with a wheel of this checkout and a worker image with the rest.

    python -m infra.dataflow.submit --project P --region R --bucket gs://B --image IMAGE build_memory --input
    'gs://B/corpus/*' --output gs://B/memory …

With --check the job is made and shown, and nothing is sent. GPUs: --gpu-type nvidia-l4 --device cuda among the job's
arguments.
"""

from collections.abc import Sequence

from clara.config.flags import Command, add_setting
from clara.errors import InputError, command_line
from infra.submit.job import parsed, run_job, submit_parser

JOBS = ("build_memory",)


def parser() -> Command:
    """The command line."""
    parse = submit_parser("dataflow", __doc__, JOBS)
    for name in ("project", "region", "bucket", "image"):
        add_setting(parse, f"engine.dataflow.{name}", required=True)
    for name in ("service_account", "max_machines", "machine_type"):
        add_setting(parse, f"engine.dataflow.{name}")
    parse.add_argument(
        "--check",
        action="store_true",
        help="make the job, print its steps with image and accelerator, and send nothing",
    )
    return parse


def main(argv: Sequence[str]) -> int:
    """Add what Dataflow needs to the job's arguments, and run it."""
    args = parsed(parser(), argv, JOBS)
    bucket = args.bucket.rstrip("/")
    if not bucket.startswith("gs://"):
        raise InputError(f"--bucket {args.bucket}: expected gs://BUCKET or gs://BUCKET/FOLDER")
    engine = ["--runner=DataflowRunner", f"--project={args.project}", f"--region={args.region}"]
    engine += [
        f"--temp_location={bucket}/temp",
        f"--staging_location={bucket}/staging",
        f"--sdk_container_image={args.image}",
    ]
    given = {
        "--service_account_email": args.service_account,
        "--max_num_workers": args.max_machines or "",
        "--machine_type": args.machine_type,
        "--dry_run": "True" if args.check else "",
    }
    return run_job(args, [*engine, *(f"{flag}={value}" for flag, value in given.items() if value)])


if __name__ == "__main__":
    command_line(main)
