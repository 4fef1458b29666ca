"""Runs `clara.import_reference.command` as `python -m clara.import_reference`."""

from clara.errors import command_line
from clara.import_reference.command import main

command_line(main)
