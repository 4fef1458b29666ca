"""Beam jobs and their command lines: corpora in, artefacts out."""
