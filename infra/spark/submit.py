"""Submit a corpus job to a Spark cluster, with a wheel of this checkout.

    python -m infra.spark.submit --master spark://head:7077 --processes 8 build_memory --input '/data/*.jsonl' --output
    /data/memory …

Every node runs `python -m pipelines.worker_pool --port 50000`, or has docker and gets --image. See
infra/spark/README.md.
"""

from collections.abc import Sequence

from clara.config.flags import Command, add_setting
from clara.errors import command_line
from infra.submit.job import parsed, run_job, submit_parser

JOBS = ("build_memory", "score_utilities")


def parser() -> Command:
    """The command line."""
    parse = submit_parser("spark", __doc__, JOBS)
    add_setting(parse, "engine.spark.master", required=True, metavar="URL")
    for name in ("pool", "image", "processes", "job_server_jar", "files_to_stage"):
        add_setting(parse, f"engine.spark.{name}")
    return parse


def main(argv: Sequence[str]) -> int:
    """Add what Spark needs to the job's arguments, and run it."""
    args = parsed(parser(), argv, JOBS)
    engine = ["--runner=SparkRunner", f"--spark_master_url={args.master}", f"--sdk_worker_parallelism={args.processes}"]
    if args.image:
        engine += ["--environment_type=DOCKER", f"--environment_config={args.image}"]
    elif not args.master.startswith("local"):
        engine += ["--environment_type=EXTERNAL", f"--environment_config={args.pool}"]
    if args.job_server_jar:
        engine.append(f"--spark_job_server_jar={args.job_server_jar}")
    engine += [f"--files_to_stage={file}" for file in args.files_to_stage]
    return run_job(args, engine)


if __name__ == "__main__":
    command_line(main)
