"""A worker process of the local runner: Beam's own, without what it says while it starts and ends."""

import logging
import sys


def main(argv: list[str]) -> None:
    """Serve until the runner closes the channel; errors are still told."""
    logging.disable(logging.WARNING)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(argv)


if __name__ == "__main__":
    main(sys.argv)
