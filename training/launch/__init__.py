"""Starts ranks: in one process, or under Ray Train with search servers beside them."""
