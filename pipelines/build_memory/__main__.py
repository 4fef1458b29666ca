"""Runs `pipelines.build_memory.command` as `python -m pipelines.build_memory`."""

from clara.errors import command_line
from pipelines.build_memory.command import main

command_line(main)
