"""A worker process of a pool: Beam's worker with its start-up log silenced; exits when its job or pool is gone."""

import logging
import os
import sys

from clara.processes import end_with_parent


def main(argv: list[str]) -> None:
    """Serve until the runner closes the channel; errors are still logged."""
    end_with_parent(os.getppid())
    logging.disable(logging.WARNING)
    from apache_beam.runners.worker import sdk_worker_main

    try:
        sdk_worker_main.main(argv)
    except BaseException:
        # The runner is gone and may have given the work to another worker, so threads that still write must end, too.
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv)
