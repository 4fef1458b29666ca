"""Runs `infra.refresh_policies.command` as `python -m infra.refresh_policies`."""

from clara.errors import command_line
from infra.refresh_policies.command import main

command_line(main)
