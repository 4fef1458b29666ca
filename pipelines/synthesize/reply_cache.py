"""Replies that were paid for, kept in one SQLite file: whatever happens later, the same prompt is not paid again."""

import sqlite3
import time
from pathlib import Path

from clara.errors import InputError
from pipelines.synthesize.replies import Reply

FILE = "replies.sqlite"
_TABLE = """CREATE TABLE IF NOT EXISTS replies (
key TEXT PRIMARY KEY, template TEXT NOT NULL, text TEXT NOT NULL, cut INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, reply_tokens INTEGER NOT NULL, paid_at REAL NOT NULL) WITHOUT ROWID"""
_WITHOUT_EMPTY = "DELETE FROM replies WHERE trim(text, char(9, 10, 13, 32)) = ''"
"""Nothing that can be used was paid for: older programs kept such replies, so that they were never asked for again."""


class ReplyCache:
    """Replies by key. A reply is on disk before `put` returns; a process that is killed then has lost nothing."""

    def __init__(self, directory: Path) -> None:
        """Open or make the file.

        Raises:
            InputError: it cannot be opened, or is no such file.
        """
        self._path = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=60.0, isolation_level=None)
            # A log that is written ahead survives a kill without a wait for the disk at every reply.
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_TABLE)
            self._connection.execute(_WITHOUT_EMPTY)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> InputError:
        return InputError(
            f"--cache {self._path}: {error}; give a directory on a disk of this machine, with room, or move the file "
            "away"
        )

    def get(self, key: str) -> Reply | None:
        """The reply that was kept, if there is one."""
        try:
            row = self._connection.execute(
                "SELECT text, cut, prompt_tokens, reply_tokens FROM replies WHERE key = ?", (key,)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return Reply(row[0], bool(row[1]), row[2], row[3]) if row else None

    def put(self, key: str, template: str, reply: Reply) -> None:
        """Keep a reply."""
        row = (key, template, reply.text, reply.cut, reply.prompt_tokens, reply.reply_tokens, time.time())
        try:
            self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def totals(self) -> tuple[int, int, int]:
        """Replies, prompt tokens and reply tokens, of all that was ever paid."""
        row = self._connection.execute(
            "SELECT COUNT(*), TOTAL(prompt_tokens), TOTAL(reply_tokens) FROM replies"
        ).fetchone()
        return int(row[0]), int(row[1]), int(row[2])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
