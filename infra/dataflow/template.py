"""Entry point of a flex template: submits `pipelines.build_memory` with the template's parameters, without waiting.

The launcher of Dataflow runs this file in the image of the Dockerfile's target dataflow. `metadata.json` says the
parameters and what they may be.
"""

import argparse
from collections.abc import Sequence

from clara.errors import InputError, command_line
from pipelines.build_memory.command import main as build_memory
from pipelines.build_memory.command import parser

_SET_HERE = {"runner", "no_wait"}


def to_arguments(parameters: Sequence[str]) -> list[str]:
    """The job's arguments: names with hyphens, lists without commas, switches without values; others go to Beam.

    Raises:
        InputError: a parameter without a value, or a switch that is neither true nor false.
    """
    flags = {action.dest: action for action in parser()._actions}
    found = []
    for parameter in parameters:
        name, equals, value = parameter.removeprefix("--").partition("=")
        action = flags.get(name.replace("-", "_"))
        if action is None:
            found.append(parameter)
            continue
        if action.dest in _SET_HERE:
            continue
        if not equals:
            raise InputError(f"{parameter}: a parameter without a value; give {name}=VALUE")
        flag = f"--{action.dest.replace('_', '-')}"
        if isinstance(action, argparse._StoreTrueAction):
            if value not in ("true", "false"):
                raise InputError(f"{name} {value!r}: expected true or false")
            found += [flag] if value == "true" else []
        elif action.nargs:
            found += [flag, *value.split(",")]
        else:
            found.append(f"{flag}={value}")
    return [*found, "--runner=DataflowRunner", "--no-wait"]


def main(argv: Sequence[str]) -> int:
    """Submit the job."""
    return build_memory(to_arguments(argv))


if __name__ == "__main__":
    command_line(main)
