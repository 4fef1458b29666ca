"""Runs `pipelines.world.command` as `python -m pipelines.world`."""

from clara.errors import command_line
from pipelines.world.command import main

command_line(main)
