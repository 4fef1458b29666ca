"""Evaluation: finders rank rows, readers answer from them, measures compare systems question by question."""
