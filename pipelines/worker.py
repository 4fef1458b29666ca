"""A worker process of the local runner or of a pool: Beam's own, without what it says while it starts and ends, and never without its job."""

import logging
import os
import sys
import threading
import time

_POLL_SECONDS = 0.5


def leave_with(parent: int) -> None:
    """End this process when its parent has ended, so that a killed job leaves nobody who still writes."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def main(argv: list[str]) -> None:
    """Serve until the runner closes the channel; errors are still told."""
    threading.Thread(target=leave_with, args=(os.getppid(),), name="leave_with", daemon=True).start()
    logging.disable(logging.WARNING)
    from apache_beam.runners.worker import sdk_worker_main

    try:
        sdk_worker_main.main(argv)
    except BaseException:
        # Whoever gave the work is gone, and may have given it to another already: threads that still write end here too.
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv)
