"""Fixtures of the tests of synthesis."""

from tests.helpers.asking import ask

__all__ = ["ask"]
