"""Turns at a model: one picture is drawn at a time, and what somebody waits for at a dial comes first."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds by which others may overtake: every turn comes, however many dials are being turned.
DIAL, PICTURE, ROW = 0.0, 0.3, 1.0


class Turns:
    """Lets one thread at a time through, those whose time came first first.

    Args:
        most: threads that are served or wait; more are refused.
    """

    def __init__(self, most: int):
        self.most = most
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int]] = []  # a heap
        self._numbers = itertools.count()
        self._busy = False

    @contextmanager
    def take(self, patience: float = ROW) -> Iterator[None]:
        """Wait for a turn.

        Args:
            patience: seconds by which turns that are asked for later may come first.

        Raises:
            ValueError: too many are waiting.
        """
        ticket = (time.monotonic() + patience, next(self._numbers))
        with self._changed:
            if len(self._waiting) + self._busy >= self.most:
                raise ValueError("many people are turning dials just now: try again in a moment")
            heapq.heappush(self._waiting, ticket)
            self._changed.wait_for(lambda: not self._busy and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
