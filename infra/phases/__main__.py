"""Runs `infra.phases.command` as `python -m infra.phases`."""

from clara.errors import command_line
from infra.phases.command import main

command_line(main)
