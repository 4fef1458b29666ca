"""A rate that is kept to: so many units a minute, evenly, without a burst."""

import asyncio
import time


class Pace:
    """Spaces out what is taken: after `cost` units the next begins `cost · 60 / per_minute` seconds later.

    A bucket that fills up while nothing is asked would let twice the rate through in a minute, which endpoints refuse.
    """

    def __init__(self, per_minute: float) -> None:
        """Nothing is used yet; 0 a minute means no limit."""
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._free_at = self._held_until = 0.0

    async def take(self, cost: float) -> None:
        """Wait for one's turn; who was waiting when the other side asked for a break lines up again behind it."""
        while True:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + cost * self._seconds
            if start > now:
                await asyncio.sleep(start - now)
            if time.monotonic() >= self._held_until:
                return

    def correct(self, cost: float) -> None:
        """What was taken turned out to cost so much more (less: a negative number)."""
        self._free_at += cost * self._seconds

    def hold(self, seconds: float) -> None:
        """Let nobody begin for so long: the other side asked for it."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)
        self._free_at = max(self._free_at, self._held_until)
