"""A pace: so much a second, however many ask for it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Pacer:
    """Gives out units at a steady rate, to any number of threads.

    Nothing is saved up: after a pause the rate is the same, so that a table's burst capacity stays for others.
    """

    def __init__(
        self,
        per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make a pacer.

        Args:
            per_second: how many units a second, more than 0.
            clock: seconds that never go back.
            sleep: waits.
        """
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def take(self, units: float, *, deadline: float) -> bool:
        """Wait for one's turn.

        Args:
            units: how many are wanted; the next one waits for all of them.
            deadline: on the clock.

        Returns:
            Whether it came in time; if not, nothing was taken.
        """
        with self._lock:
            now = self._clock()
            turn = max(now, self._free_at)
            if turn > deadline:
                return False
            self._free_at = turn + units / self._per_second
        if turn > now:
            self._sleep(turn - now)
        return True
