"""Run the command."""

from benchmarks.whole_corpus.command import main
from clara.errors import command_line

command_line(main)
