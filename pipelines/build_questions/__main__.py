"""Runs `pipelines.build_questions.command` as `python -m pipelines.build_questions`."""

from clara.errors import command_line
from pipelines.build_questions.command import main

command_line(main)
