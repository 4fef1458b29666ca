"""Runs `infra.demo.command` as `python -m infra.demo`."""

from clara.errors import command_line
from infra.demo.command import main

command_line(main)
