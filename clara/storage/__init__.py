"""Artefacts and files, in folders of this machine and behind URLs."""
