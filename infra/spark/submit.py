"""Submit a corpus job to a Spark cluster, with a wheel of this checkout.

    python -m infra.spark.submit --master spark://head:7077 --processes 8 build_memory --input '/data/*.jsonl' --output
    /data/memory …

Every node runs `python -m pipelines.worker_pool --port 50000`, or has docker and gets --image. See
infra/spark/README.md.
"""

from collections.abc import Sequence

from clara.errors import command_line
from infra.submit.job import run_job, submit_parser


def main(argv: Sequence[str]) -> int:
    """Add what Spark needs to the job's arguments, and run it."""
    parse = submit_parser("spark", __doc__, ("build_memory", "score_utilities"))
    add = parse.add_argument
    add("--master", required=True, metavar="URL", help="spark://HOST:PORT, or local[N] for a trial on this machine")
    add(
        "--pool",
        default="localhost:50000",
        metavar="HOST:PORT",
        help="worker pool as a node sees it (default: %(default)s)",
    )
    add("--image", default="", help="run Python in containers of this image instead of a pool; the nodes need docker")
    add(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="Python processes of a node, each with its own model (default: %(default)s)",
    )
    add(
        "--job-server-jar",
        default="",
        metavar="FILE",
        help="of Beam's Spark 3 job server (default: fetched from Maven Central, once)",
    )
    add(
        "--files-to-stage",
        default="",
        metavar="FILES",
        help="jars for the executors, with commas (default: all that the job server runs with)",
    )
    args = parse.parse_args(argv)
    engine = ["--runner=SparkRunner", f"--spark_master_url={args.master}", f"--sdk_worker_parallelism={args.processes}"]
    if args.image:
        engine += ["--environment_type=DOCKER", f"--environment_config={args.image}"]
    elif not args.master.startswith("local"):
        engine += ["--environment_type=EXTERNAL", f"--environment_config={args.pool}"]
    if args.job_server_jar:
        engine.append(f"--spark_job_server_jar={args.job_server_jar}")
    engine += [f"--files_to_stage={file}" for file in args.files_to_stage.split(",") if file]
    return run_job(args, engine)


if __name__ == "__main__":
    command_line(main)
