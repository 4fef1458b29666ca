"""Submitting a corpus job to an engine: the command's frame and the wheel that it stages."""
