"""Time and work: a pace that many share, and how much fits into what time is left."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# As much as is tried before it is known how long it takes.
UNKNOWN: Final = 100
# The next may take so many times as long as the last.
_SLOWER: Final = 1.5


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


class Estimate:
    """How long a unit of work takes, as it was last seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing known."""
        self._clock = clock
        self._seconds: float | None = None

    def fits(self, wanted: int, deadline: float) -> int:
        """How many units there is time for.

        Args:
            wanted: the most.
            deadline: on the clock.
        """
        left = deadline - self._clock()
        if left <= 0:
            return 0
        if self._seconds is None:
            return min(wanted, UNKNOWN)
        most = int(left / (_SLOWER * self._seconds)) if self._seconds else wanted
        if not most:
            # Or one that took too long would keep all others out for good.
            self._seconds /= 2
        return min(wanted, most)

    @contextmanager
    def timed(self, units: int) -> Iterator[None]:
        """See how long some units take."""
        began = self._clock()
        yield
        self._seconds = (self._clock() - began) / units
