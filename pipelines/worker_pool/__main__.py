"""Runs `pipelines.worker_pool.command` as `python -m pipelines.worker_pool`."""

from clara.errors import command_line
from pipelines.worker_pool.command import main

command_line(main)
