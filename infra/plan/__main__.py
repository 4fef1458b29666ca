"""Runs `infra.plan.command` as `python -m infra.plan`."""

from clara.errors import command_line
from infra.plan.command import main

command_line(main)
