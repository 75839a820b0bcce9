"""The environments of all functions: one per concurrent invocation, kept warm, replaced when the function changes."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .environment import Environment, EnvironmentGoneError, Outcome, Specification

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger("threefold.pool")
DEFAULT_CONCURRENCY: Final = 8
WAIT_SECONDS: Final = 60.0
IDLE_SECONDS: Final = 300.0


_REAP_EVERY_SECONDS: Final = 15.0

# A function's version, and whatever else an environment of it depends on.
State = tuple[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class _Idle:
    state: State
    environment: Environment


class ThrottledError(Exception):
    """No environment came free in time."""


class Pool:
    """Execution environments by function; a function's versions share its concurrency, as on Lambda."""

    def __init__(self, root: Path) -> None:
        """Keep the environments' folders under `root`, which is created."""
        self._root = root
        self._root.mkdir(parents=True)
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._idle: dict[str, list[_Idle]] = {}
        self._counts: dict[str, int] = {}
        self._all: set[Environment] = set()
        self._closed = False
        threading.Thread(target=self._reap, name="threefold-reaper", daemon=True).start()

    def invoke(
        self,
        function: str,
        state: State,
        specify: Callable[[], Specification],
        call: Callable[[Environment], Outcome],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> Outcome:
        """Run one invocation in an environment of its own.

        Args:
            function: the function's identity; environments of one identity share `concurrency`.
            state: the version, and what an environment of it must have been made from.
            specify: describes a new environment; called without locks, it may unpack layers.
            call: the invocation itself.
            concurrency: the most environments at a time; further invocations wait.

        Raises:
            ThrottledError: none came free within `WAIT_SECONDS`.
        """
        while True:
            environment = self._acquire(function, state, concurrency)
            try:
                if environment is None:
                    environment = self._start(specify())
                return call(environment)
            except EnvironmentGoneError:
                _log.warning("environment gone while idle, function=%s", function)
            finally:
                self._release(function, state, environment)

    def close(self) -> None:
        """End every environment, busy or not, and start no more."""
        with self._changed:
            self._closed = True
            environments = list(self._all)
            self._idle.clear()
            self._changed.notify_all()
        for environment in environments:
            environment.close()

    def _acquire(self, function: str, state: State, concurrency: int) -> Environment | None:
        """Take a fitting idle environment, or (None) the right to start one."""
        deadline = time.monotonic() + WAIT_SECONDS
        unfit: list[_Idle] = []
        try:
            with self._changed:
                while not self._closed:
                    idle = self._idle.setdefault(function, [])
                    # What was made from an earlier state of the same version will never be wanted again.
                    stale = [member for member in idle if member.state[0] == state[0] and member.state != state]
                    fitting = [member for member in idle if member.state == state]
                    if not fitting and not stale and idle and self._counts.get(function, 0) >= concurrency:
                        stale = idle[:1]
                    unfit += self._take(function, stale)
                    if fitting:
                        idle.remove(fitting[-1])
                        return fitting[-1].environment
                    if self._counts.get(function, 0) < concurrency:
                        self._counts[function] = self._counts.get(function, 0) + 1
                        return None
                    if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                        break
                raise ThrottledError
        finally:
            self._close(unfit)

    def _start(self, specification: Specification) -> Environment:
        environment = Environment(specification, self._root / str(next(self._numbers)))
        with self._changed:
            self._all.add(environment)
            closed = self._closed
        if closed:
            environment.close()
        return environment

    def _release(self, function: str, state: State, environment: Environment | None) -> None:
        with self._changed:
            keep = environment is not None and environment.alive and not self._closed
            if environment is not None and keep:
                self._idle.setdefault(function, []).append(_Idle(state, environment))
            else:
                self._counts[function] -= 1
            self._changed.notify()
        if environment is not None and not keep:
            self._close([_Idle(state, environment)])

    def _take(self, function: str, members: list[_Idle]) -> list[_Idle]:
        """Take members out of service; the caller closes them without the lock."""
        for member in members:
            self._idle[function].remove(member)
            self._counts[function] -= 1
        return members

    def _close(self, members: list[_Idle]) -> None:
        for member in members:
            member.environment.close()
            with self._changed:
                self._all.discard(member.environment)

    def _reap(self) -> None:
        while not self._closed:
            time.sleep(_REAP_EVERY_SECONDS)
            before = time.monotonic() - IDLE_SECONDS
            old: list[_Idle] = []
            with self._changed:
                for function, idle in self._idle.items():
                    old += self._take(function, [m for m in idle if m.environment.idle_since < before])
            self._close(old)
