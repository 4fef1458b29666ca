"""Runs `infra.report.command` as `python -m infra.report`."""

from clara.errors import command_line
from infra.report.command import main

command_line(main)
