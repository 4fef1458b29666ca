"""Runs `infra.evidence.command` as `python -m infra.evidence`."""

from clara.errors import command_line
from infra.evidence.command import main

command_line(main)
