"""Loaded models in memory: many models for one function, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from threefold.errors import NotServable

if TYPE_CHECKING:
    from collections.abc import Callable

    from threefold.model import Model


class Sessions:
    """A least-recently-used cache of loaded and checked models, by digest.

    The budget may be passed by one model, so that a model larger than the budget can be served, alone.
    """

    def __init__(self, load: Callable[[str, str], Model], *, budget_bytes: int) -> None:
        """Make an empty cache.

        Args:
            load: gives a loaded and checked model for (model name, digest).
            budget_bytes: what the models kept may take together.
        """
        self._load = load
        self._budget_bytes = budget_bytes
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._loading: dict[str, Future[Model]] = {}
        self._refused: dict[str, tuple[type[NotServable], str]] = {}
        self._pool: ThreadPoolExecutor | None = None

    @property
    def size_bytes(self) -> int:
        """What the models kept take together."""
        return sum(model.size_bytes for model in self._models.values())

    def __len__(self) -> int:
        """How many models are kept."""
        return len(self._models)

    def peek(self, digest: str) -> Model | None:
        """The model if it is loaded."""
        if (model := self._models.get(digest)) is not None:
            self._models.move_to_end(digest)
        return model

    def get(self, name: str, digest: str) -> Model:
        """The model, loaded now if need be.

        Raises:
            NotServable: its package cannot be had or must not be served; a refused package is not tried again.
        """
        if (model := self._at_hand(digest)) is not None:
            return model
        future = self._loading.pop(digest, None)
        try:
            return self._keep(self._load(name, digest) if future is None else future.result())
        except NotServable as error:
            self._remember(digest, error)
            raise

    def get_within(self, name: str, digest: str, seconds: float) -> Model | None:
        """The model, or None if it is not loaded within the time; the load goes on beside.

        Raises:
            NotServable: as `get`.
        """
        if (model := self._at_hand(digest)) is not None:
            return model
        if digest not in self._loading:
            # What was loaded beside and never fetched is no longer wanted.
            self._loading = {other: future for other, future in self._loading.items() if not future.done()}
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
            self._loading[digest] = self._pool.submit(self._load, name, digest)
        done, _ = wait([self._loading[digest]], timeout=seconds)
        return self.get(name, digest) if done else None

    def _at_hand(self, digest: str) -> Model | None:
        if (model := self.peek(digest)) is not None:
            return model
        if (refusal := self._refused.get(digest)) is not None:
            # A new one each time: an exception that is raised again keeps the frames of every time before.
            kind, message = refusal
            raise kind(message)
        return None

    def _keep(self, model: Model) -> Model:
        self._models[model.digest] = model
        while len(self._models) > 1 and self.size_bytes > self._budget_bytes:
            self._models.popitem(last=False)
        return model

    def _remember(self, digest: str, error: NotServable) -> None:
        if not error.retryable:
            self._refused[digest] = (type(error), str(error))
