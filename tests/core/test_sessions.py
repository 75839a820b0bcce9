"""Many models within a budget of bytes, and what happens while another one comes."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from threefold.errors import InvalidPackage, NotServable, RegistryUnreachable
from threefold.model import Model, memory_bytes
from threefold.sessions import REFUSED_SECONDS, RETRY_SECONDS, Sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import onnx

    from tests.conftest import Graphs, PackageMaker
    from tests.core.conftest import Clock
    from threefold.package import Package


@pytest.fixture(scope="module")
def packages(graphs: Graphs, make_package: PackageMaker) -> dict[str, Package]:
    made = [make_package(graphs.linear([float(i), 1.0]), name=f"model-{i}") for i in range(4)]
    return {package.digest: package for package in made}


class Loader:
    """Fetches and loads models, and remembers which."""

    def __init__(self, packages: dict[str, Package]) -> None:
        self.packages = packages
        self.fetched: list[str] = []
        self.loaded: list[str] = []
        self.alive: list[weakref.ref[Model]] = []
        self.at_once: list[int] = []
        self.before_fetch: Callable[[], None] = lambda: None
        self.before_load: Callable[[], None] = lambda: None
        self.after_load: Callable[[Model], None] = lambda _: None

    def fetch(self, _name: str, digest: str) -> Package:
        self.fetched.append(digest)
        self.before_fetch()
        return self.packages[digest]

    def load(self, _name: str, digest: str) -> Model:
        self.loaded.append(digest)
        self.before_load()
        model = Model(self.packages[digest])
        self.alive.append(weakref.ref(model))
        self.at_once.append(sum(each() is not None for each in self.alive))
        self.after_load(model)
        return model

    def sessions(self, models: float, **fields: Any) -> Sessions:
        """A cache that has room for so many of these models."""
        size = memory_bytes(next(iter(self.packages.values())))
        return Sessions(self.fetch, self.load, budget_bytes=int(models * size), **fields)


@pytest.fixture
def loader(packages: dict[str, Package]) -> Loader:
    return Loader(packages)


def assert_set(gate: threading.Event) -> None:
    assert gate.wait(10)


def kept(sessions: Sessions, loader: Loader) -> list[int]:
    with sessions._state:
        return [i for i, digest in enumerate(loader.packages) if digest in sessions._models]


def settle(sessions: Sessions) -> None:
    """Wait until nothing is brought any more."""
    for future in list(sessions._bringing.values()):
        future.exception(10)


def test_the_least_recently_used_goes_first(loader: Loader) -> None:
    one, two, three, _ = loader.packages
    sessions = loader.sessions(2)
    sessions.get("m", one)
    sessions.get("m", two)
    sessions.get("m", one)
    sessions.get("m", three)
    assert kept(sessions, loader) == [0, 2]
    assert loader.loaded == [one, two, three]


def test_what_has_to_go_goes_before_the_next_is_opened(loader: Loader) -> None:
    sessions = loader.sessions(2)
    for digest in [*loader.packages, *loader.packages]:
        sessions.get("m", digest)
    assert loader.at_once == [1, *[2] * 7]


def test_what_a_model_takes_is_known_before_it_is_opened(loader: Loader) -> None:
    (one, *_) = loader.packages
    model = loader.sessions(1).get("m", one)
    assert memory_bytes(model.package) == model.size_bytes


def test_a_model_larger_than_the_budget_is_kept_alone(loader: Loader) -> None:
    one, two, *_ = loader.packages
    sessions = loader.sessions(0.1)
    sessions.get("m", one)
    sessions.get("m", two)
    assert kept(sessions, loader) == [1]
    assert loader.at_once == [1, 1]


def test_a_fetch_that_takes_too_long_goes_on_beside(loader: Loader) -> None:
    (one, two, *_) = loader.packages
    sessions = loader.sessions(10)
    sessions.get("m", two)
    gate = threading.Event()
    loader.before_fetch = lambda: assert_set(gate)
    assert sessions.get_within("m", one, 0.01, beside=two) is None
    assert sessions.get_within("m", one, 0.0, beside=two) is None
    gate.set()
    model = sessions.get_within("m", one, 10, beside=two)
    assert model is not None
    assert sessions.get("m", one) is model
    assert loader.loaded == [two, one]
    assert loader.fetched == [two, one]


def test_a_load_that_takes_too_long_goes_on_beside(loader: Loader) -> None:
    (one, two, *_) = loader.packages
    sessions = loader.sessions(10)
    sessions.get("m", two)
    gate = threading.Event()
    loader.before_load = lambda: assert_set(gate)
    assert sessions.get_within("m", one, 0.01, beside=two) is None
    assert sessions.peek(two) is not None
    gate.set()
    settle(sessions)
    # It is there without anybody's coming back for it.
    assert sessions.peek(one) is not None
    assert loader.loaded == [two, one]


def test_who_can_wait_gets_the_load_that_is_under_way(loader: Loader) -> None:
    (one, two, *_) = loader.packages
    sessions = loader.sessions(10)
    gate = threading.Event()
    loader.before_fetch = lambda: assert_set(gate)
    assert sessions.get_within("m", one, 0.01, beside=two) is None
    threading.Timer(0.05, gate.set).start()
    assert sessions.get("m", one).digest == one
    assert loader.loaded == [one]


def test_others_than_the_one_that_answers_make_room_beside_it(loader: Loader) -> None:
    one, two, three, four = loader.packages
    sessions = loader.sessions(3)
    for digest in (one, two, three):
        sessions.get("m", digest)
    # Although it is the least recently used of all.
    assert sessions.get_within("m", four, 10, beside=one) is not None
    assert kept(sessions, loader) == [0, 2, 3]
    assert max(loader.at_once) == 3


def test_where_one_has_room_the_old_one_answers_until_the_new_one_is_fetched(loader: Loader) -> None:
    old, new, *_ = loader.packages
    sessions = loader.sessions(1.5)
    sessions.get("m", old)
    gate = threading.Event()
    loader.before_fetch = lambda: assert_set(gate)
    for _ in range(3):
        assert sessions.get_within("m", new, 0.01, beside=old) is None
        assert sessions.peek(old) is not None
    gate.set()
    settle(sessions)
    # It was fetched, and nothing was opened while nobody waited.
    assert loader.loaded == [old]
    assert sessions.peek(old) is not None
    assert sessions.get_within("m", new, 10, beside=old) is not None
    assert kept(sessions, loader) == [1]
    assert loader.at_once == [1, 1]


def test_where_one_has_room_a_refused_one_is_gone_before_the_old_one_comes_back(loader: Loader) -> None:
    def refuse(_model: Model) -> None:
        message = "package: want a good one, got this"
        raise InvalidPackage(message)

    old, new, *_ = loader.packages
    sessions = loader.sessions(1.5)
    sessions.get("m", old)
    loader.after_load = refuse
    try:
        sessions.get_within("m", new, 10, beside=old)
    except InvalidPackage:
        loader.after_load = lambda _: None
        # Within the except: the error that is being handled must hold nothing.
        assert sessions.get("m", old).digest == old
    assert loader.loaded == [old, new, old]
    assert loader.at_once == [1, 1, 1]
    # And nothing goes to and fro for it again.
    for _ in range(3):
        with pytest.raises(InvalidPackage, match="want a good one"):
            sessions.get_within("m", new, 10, beside=old)
    assert loader.loaded == [old, new, old]


def test_a_model_is_gone_when_it_is_let_go(packages: dict[str, Package]) -> None:
    """Without a cycle in it that would keep its memory until the garbage is collected."""
    gc.disable()
    try:
        model: Model | None = Model(next(iter(packages.values())))
        found = weakref.ref(model)
        del model
        assert found() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("step", ["fetch", "load"])
def test_a_refused_package_is_tried_again_only_after_a_while(
    step: str, *, within: bool, loader: Loader, clock: Clock
) -> None:
    def refuse() -> None:
        message = "package: want a good one, got this"
        raise InvalidPackage(message)

    one, two, *_ = loader.packages
    setattr(loader, f"before_{step}", refuse)
    sessions = loader.sessions(10, clock=clock)
    errors = []
    for _ in range(3):
        with pytest.raises(InvalidPackage, match="want a good one") as caught:
            sessions.get_within("m", one, 10, beside=two) if within else sessions.get("m", one)
        errors.append(caught.value)
        clock.seconds += 0.3 * REFUSED_SECONDS
    assert getattr(loader, f"{step}ed") == [one]
    # One error raised again and again would keep the frames, and payloads, of each time before.
    assert len({id(error) for error in errors}) == 3
    with pytest.raises(InvalidPackage):
        sessions.fetch("m", one)
    assert getattr(loader, f"{step}ed") == [one]
    # What was damaged may have been put right.
    setattr(loader, f"before_{step}", lambda: None)
    clock.seconds += 0.2 * REFUSED_SECONDS
    assert sessions.get("m", one).digest == one


def test_a_package_whose_weights_are_missing_is_refused(loader: Loader) -> None:
    one, package = next(iter(loader.packages.items()))
    loader.packages = {one: replace(package, manifest=replace(package.manifest, weights=("model.bin",)))}
    sessions = Sessions(loader.fetch, loader.load, budget_bytes=10**9)
    for _ in range(2):
        with pytest.raises(InvalidPackage, match=r"want the file model\.bin"):
            sessions.get("m", one)
    assert loader.fetched == [one]


def test_no_more_than_a_thousand_failures_are_remembered(loader: Loader) -> None:
    def refuse(_name: str, digest: str) -> Package:
        loader.fetched.append(digest)
        raise InvalidPackage(digest)

    sessions = Sessions(refuse, loader.load, budget_bytes=1)
    for i in range(3000):
        with pytest.raises(InvalidPackage):
            sessions.get("m", f"{i:064x}")
    assert len(sessions._failures) == 1000
    with pytest.raises(InvalidPackage):
        sessions.get("m", f"{2999:064x}")
    assert len(loader.fetched) == 3000


def away() -> None:
    message = "registry: want an answer, got none"
    raise RegistryUnreachable(message)


def test_what_may_pass_is_left_alone_for_a_while_if_another_answers(loader: Loader, clock: Clock) -> None:
    one, two, *_ = loader.packages
    sessions = loader.sessions(10, clock=clock)
    loader.before_fetch = away
    for _ in range(5):
        with pytest.raises(RegistryUnreachable, match="got none"):
            sessions.get_within("m", one, 10, beside=two)
    assert loader.fetched == [one]
    clock.seconds += RETRY_SECONDS
    for _ in range(5):
        with pytest.raises(RegistryUnreachable):
            sessions.get_within("m", one, 10, beside=two)
    assert loader.fetched == [one] * 2
    loader.before_fetch = lambda: None
    clock.seconds += RETRY_SECONDS
    assert sessions.get_within("m", one, 10, beside=two) is not None


def test_what_may_pass_is_tried_again_at_once_by_whom_nobody_else_answers(loader: Loader) -> None:
    one, *_ = loader.packages
    sessions = loader.sessions(10)
    loader.before_fetch = away
    for _ in range(2):
        with pytest.raises(NotServable):
            sessions.get("m", one)
    loader.before_fetch = lambda: None
    assert sessions.get("m", one).digest == one
    assert loader.fetched == [one] * 3


def test_a_failure_beside_that_nobody_waited_for_is_told_once_and_then_tried_again(
    loader: Loader, clock: Clock
) -> None:
    one, two, *_ = loader.packages
    sessions = loader.sessions(10, clock=clock)
    gate = threading.Event()
    loader.before_fetch = lambda: (assert_set(gate), away())
    assert sessions.get_within("m", one, 0.0, beside=two) is None
    gate.set()
    settle(sessions)
    with pytest.raises(RegistryUnreachable):
        sessions.get_within("m", one, 10, beside=two)
    loader.before_fetch = lambda: None
    clock.seconds += RETRY_SECONDS
    assert sessions.get_within("m", one, 10, beside=two) is not None


@pytest.mark.parametrize("models", [10, 1.5])
def test_a_load_without_enough_memory_is_no_fault_of_the_package(models: float, loader: Loader, clock: Clock) -> None:
    def fail() -> None:
        raise MemoryError

    one, two, *_ = loader.packages
    sessions = loader.sessions(models, clock=clock)
    sessions.get("m", two)
    loader.before_load = fail
    with pytest.raises(NotServable, match="want memory to load it") as caught:
        sessions.get_within("m", one, 10, beside=two)
    assert caught.value.retryable
    loader.before_load = lambda: None
    clock.seconds += RETRY_SECONDS
    assert sessions.get_within("m", one, 10, beside=two) is not None


@pytest.mark.parametrize("models", [10, 1.5])
def test_a_load_that_breaks_in_an_unforeseen_way_is_left_alone_for_a_while(
    models: float, loader: Loader, clock: Clock
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    one, two, *_ = loader.packages
    sessions = loader.sessions(models, clock=clock)
    sessions.get("m", two)
    loader.before_load = fail
    # This request and the next are answered by the old one.
    for _ in range(2):
        with pytest.raises(NotServable, match="want it loaded, got ZeroDivisionError"):
            sessions.get_within("m", one, 10, beside=two)
    with pytest.raises(NotServable, match="want it loaded, got ZeroDivisionError"):
        sessions.get_within("m", one, 10, beside=two)
    loader.before_load = lambda: None
    assert sessions.get("m", two).digest == two
    clock.seconds += RETRY_SECONDS
    assert sessions.get_within("m", one, 10, beside=two) is not None


def test_threads_that_want_the_same_model_load_it_once(loader: Loader) -> None:
    one, two, *_ = loader.packages
    sessions = loader.sessions(10)
    together = threading.Barrier(8)

    def get(i: int) -> int:
        together.wait(10)
        model = sessions.get("m", one) if i % 2 else sessions.get_within("m", one, 10, beside=two)
        return id(model)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(get, range(8)))) == 1
    assert loader.loaded == [one]


def test_threads_that_want_more_than_there_is_room_for_all_get_theirs(loader: Loader) -> None:
    sessions = loader.sessions(1.5)
    digests = list(loader.packages)

    def get(i: int) -> bool:
        wanted, beside = digests[i % 4], digests[(i + 1) % 4]
        model = sessions.get("m", wanted) if i % 3 else sessions.get_within("m", wanted, 10, beside=beside)
        return model is not None and model.digest == wanted

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(get, range(400)))
    assert len(sessions) == 1


SWAP = """
import sys, resource
from pathlib import Path
from threefold.errors import InvalidPackage
from threefold.model import Model
from threefold.package import open_package
from threefold.sessions import Sessions

budget, refused, *folders = sys.argv[1:]
packages = {folder: open_package(Path(folder), folder) for folder in folders}

def load(name, digest):
    model = Model(packages[digest])
    if digest == refused:
        raise InvalidPackage("package: want a good one, got this")
    return model

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

sessions = Sessions(lambda name, digest: packages[digest], load, budget_bytes=int(budget))
old, new = folders
sessions.get("m", old)
Path("/proc/self/clear_refs").write_text("5")
try:
    sessions.get_within("m", new, 60, beside=old)
except InvalidPackage:
    sessions.get("m", old)
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("refused", [False, True])
def test_a_swap_in_memory_for_one_never_holds_two(*, refused: bool, graphs: Graphs, make_package: PackageMaker) -> None:
    weights = np.random.default_rng(0).normal(size=(2000, 4000)).astype(np.float32)
    made = [make_package(heavy(graphs, weights * factor)) for factor in (1, 2)]
    size = memory_bytes(made[0])
    folders = [str(package.folder) for package in made]

    def peak(budget: int) -> int:
        command = [sys.executable, "-c", SWAP, str(budget), folders[1] if refused else "", *folders]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)

    # Weights of 32 MB: beside each other the two take as much more at the same moment.
    assert peak(3 * size // 2) < peak(3 * size) - 24 * 1024**2


def heavy(graphs: Graphs, weights: npt.NDArray[np.float32]) -> onnx.ModelProto:
    """y = x @ w."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    rows, columns = weights.shape
    constant = numpy_helper.from_array(weights, "w")
    return graphs.make([node], [("x", "FP32", ["n", rows])], [("y", "FP32", ["n", columns])], [constant])
