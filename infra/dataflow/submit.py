"""Submit a corpus job to Google Cloud Dataflow, with a wheel of this checkout and a worker image with the rest.

    python -m infra.dataflow.submit --project P --region R --bucket gs://B --image IMAGE build_memory --input
    'gs://B/corpus/*' --output gs://B/memory …

With --check the job is made and shown, and nothing is sent. GPUs: --gpu-type nvidia-l4 --device cuda among the job's
arguments.
"""

from collections.abc import Sequence

from clara.errors import InputError, command_line
from infra.submit.job import run_job, submit_parser


def main(argv: Sequence[str]) -> int:
    """Add what Dataflow needs to the job's arguments, and run it."""
    parse = submit_parser("dataflow", __doc__, ("build_memory",))
    add = parse.add_argument
    add("--project", required=True, help="Google Cloud project")
    add("--region", required=True, help="region, as europe-west4")
    add(
        "--bucket",
        required=True,
        metavar="gs://BUCKET[/FOLDER]",
        help="temporary and staged files go to temp/ and staging/ there",
    )
    add("--image", required=True, help="worker image: target beam of the Dockerfile, pushed")
    add("--service-account", default="", help="e-mail address that the workers act as (default: the project's own)")
    add("--max-machines", type=int, default=0, metavar="N", help="bound on the machines (default: 0, Dataflow's)")
    add("--machine-type", default="", help="as n2-standard-8 (default: Dataflow's choice)")
    add(
        "--check",
        action="store_true",
        help="make the job, print its steps with image and accelerator, and send nothing",
    )
    args = parse.parse_args(argv)
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
