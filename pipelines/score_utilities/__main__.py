"""Runs `pipelines.score_utilities.command` as `python -m pipelines.score_utilities`."""

from clara.errors import command_line
from pipelines.score_utilities.command import main

command_line(main)
