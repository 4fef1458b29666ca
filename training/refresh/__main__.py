"""Runs `training.refresh.command` as `python -m training.refresh`."""

from clara.errors import command_line
from training.refresh.command import main

command_line(main)
