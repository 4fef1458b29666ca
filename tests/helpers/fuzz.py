"""How many examples a property-based test draws: a few in `make test`, many in `make test-release`."""

import os


def examples(count: int) -> int:
    """`count`, multiplied by the environment variable CLARA_FUZZ (default 1)."""
    return count * int(os.environ.get("CLARA_FUZZ", "1"))
