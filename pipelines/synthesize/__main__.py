"""Runs `pipelines.synthesize.command` as `python -m pipelines.synthesize`."""

from clara.errors import command_line
from pipelines.synthesize.command import main

command_line(main)
