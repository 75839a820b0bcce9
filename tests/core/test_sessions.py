"""Many models within a budget of bytes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from threefold.errors import InvalidPackage, NotServable, RegistryUnreachable
from threefold.model import Model
from threefold.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Graphs, PackageMaker
    from threefold.package import Package


@pytest.fixture(scope="module")
def packages(graphs: Graphs, make_package: PackageMaker) -> dict[str, Package]:
    made = [make_package(graphs.linear([float(i), 1.0]), name=f"model-{i}") for i in range(4)]
    return {package.digest: package for package in made}


class Loader:
    """Loads models, and remembers which."""

    def __init__(self, packages: dict[str, Package]) -> None:
        self.packages = packages
        self.loads: list[str] = []
        self.before: Callable[[], None] = lambda: None

    def __call__(self, _name: str, digest: str) -> Model:
        self.loads.append(digest)
        self.before()
        return Model(self.packages[digest])


@pytest.fixture
def loader(packages: dict[str, Package]) -> Loader:
    return Loader(packages)


def test_the_least_recently_used_goes_first(loader: Loader) -> None:
    one, two, three, _ = loader.packages
    size = Model(loader.packages[one]).size_bytes
    sessions = Sessions(loader, budget_bytes=2 * size)
    sessions.get("m", one)
    sessions.get("m", two)
    sessions.get("m", one)
    sessions.get("m", three)
    assert [sessions.peek(digest) is not None for digest in (one, two, three)] == [True, False, True]
    assert sessions.size_bytes <= 2 * size
    assert loader.loads == [one, two, three]


def test_a_model_larger_than_the_budget_is_kept_alone(loader: Loader) -> None:
    one, two, *_ = loader.packages
    sessions = Sessions(loader, budget_bytes=1)
    sessions.get("m", one)
    sessions.get("m", two)
    assert (len(sessions), sessions.peek(two) is not None) == (1, True)


def test_a_load_that_takes_too_long_goes_on_beside(loader: Loader) -> None:
    (one, *_) = loader.packages
    gate = threading.Event()
    loader.before = lambda: assert_set(gate)
    sessions = Sessions(loader, budget_bytes=10**9)
    assert sessions.get_within("m", one, 0.01) is None
    assert sessions.get_within("m", one, 0.0) is None
    gate.set()
    model = sessions.get_within("m", one, 10)
    assert model is not None
    assert sessions.get("m", one) is model
    assert loader.loads == [one]


def assert_set(gate: threading.Event) -> None:
    assert gate.wait(10)


def test_who_can_wait_gets_the_load_that_is_under_way(loader: Loader) -> None:
    (one, *_) = loader.packages
    gate = threading.Event()
    loader.before = lambda: assert_set(gate)
    sessions = Sessions(loader, budget_bytes=10**9)
    assert sessions.get_within("m", one, 0.01) is None
    threading.Timer(0.05, gate.set).start()
    assert sessions.get("m", one).digest == one
    assert loader.loads == [one]


def test_a_load_that_nobody_came_back_for_is_let_go(loader: Loader) -> None:
    one, two, three, _ = loader.packages
    gate = threading.Event()
    loader.before = lambda: assert_set(gate)
    sessions = Sessions(loader, budget_bytes=10**9)
    assert sessions.get_within("m", one, 0.01) is None
    gate.set()
    sessions._loading[one].result(10)
    assert sessions.get_within("m", two, 10) is not None
    assert sessions.get_within("m", three, 10) is not None
    assert sessions._loading == {}


@pytest.mark.parametrize("within", [True, False])
def test_a_refused_package_is_not_tried_again(within: bool, loader: Loader) -> None:
    def refuse() -> None:
        raise InvalidPackage("package: want a good one, got this")

    (one, *_) = loader.packages
    loader.before = refuse
    sessions = Sessions(loader, budget_bytes=10**9)
    errors = []
    for _ in range(3):
        with pytest.raises(InvalidPackage, match="want a good one") as caught:
            sessions.get_within("m", one, 10) if within else sessions.get("m", one)
        errors.append(caught.value)
    assert loader.loads == [one]
    # One error raised again and again would keep the frames, and payloads, of each time before.
    assert len({id(error) for error in errors}) == 3


@pytest.mark.parametrize("within", [True, False])
def test_a_package_that_could_not_be_had_is_tried_again(within: bool, loader: Loader) -> None:
    def fail() -> None:
        raise RegistryUnreachable("registry: want an answer, got none")

    (one, *_) = loader.packages
    loader.before = fail
    sessions = Sessions(loader, budget_bytes=10**9)
    for _ in range(2):
        with pytest.raises(NotServable):
            sessions.get_within("m", one, 10) if within else sessions.get("m", one)
    loader.before = lambda: None
    assert sessions.get_within("m", one, 10) is not None
    assert loader.loads == [one] * 3


def test_a_load_that_breaks_in_an_unforeseen_way_is_tried_again(loader: Loader) -> None:
    def fail() -> None:
        raise MemoryError

    (one, *_) = loader.packages
    loader.before = fail
    sessions = Sessions(loader, budget_bytes=10**9)
    with pytest.raises(MemoryError):
        sessions.get_within("m", one, 10)
    loader.before = lambda: None
    assert sessions.get_within("m", one, 10) is not None
