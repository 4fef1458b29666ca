"""Write one wheel of this source tree, which the submit commands stage and a worker's environment installs.

python -m infra.submit.wheel --output dist
"""

from collections.abc import Sequence
from pathlib import Path

from clara.config.flags import plain_parser
from clara.errors import command_line
from clara.own_wheel import build_wheel


def main(argv: Sequence[str]) -> int:
    """The command line."""
    parse = plain_parser("infra.submit.wheel", __doc__)
    parse.add_argument(
        "--output", type=Path, default=Path("dist"), metavar="DIR", help="where the wheel goes (default: %(default)s)"
    )
    print(build_wheel(parse.parse_args(argv).output))
    return 0


if __name__ == "__main__":
    command_line(main)
