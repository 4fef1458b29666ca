"""`python -m clara.serving`."""

from clara.errors import command_line
from clara.serving.command import main

command_line(main)
