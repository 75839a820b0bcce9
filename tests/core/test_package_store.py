"""Packages in the bucket and on a disk of limited size: whatever happens, a package is whole or not there."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
import pytest

from threefold import package_download
from threefold.errors import InvalidPackage, MissingPackage, NotServable, RegistryUnreachable, UnknownModel
from threefold.package import MANIFEST, Output, Package, digest_of, open_package, pack
from threefold.package_cache import SPARE_BYTES, PackageCache
from threefold.package_store import PackageStore, Published

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from obstore.store import MemoryStore, S3Store

    from tests.conftest import Graphs, PackageMaker
    from tests.core.conftest import Line

VALUE = Output(kind="regression", value="value")
# What the line may have carried and the client not yet handed over.
PIECE = 64 * 1024


@pytest.fixture(scope="module")
def small(graphs: Graphs, make_package: PackageMaker) -> Package:
    return make_package(graphs.linear([1.0, 2.0]), output=VALUE, name="wine")


@pytest.fixture(scope="module")
def large(graphs: Graphs, make_package: PackageMaker) -> Package:
    """A megabyte that does not deflate."""
    weights = np.random.default_rng(0).normal(size=250_000).astype(np.float32)
    return make_package(graphs.linear(weights.tolist()), output=VALUE, name="wine", version="2.0.0")


@pytest.fixture(scope="module")
def series(graphs: Graphs, make_package: PackageMaker) -> list[Package]:
    """Packages of about 40 kB each."""
    random = np.random.default_rng(1)
    return [
        make_package(graphs.linear(random.normal(size=10_000).tolist()), name="wine", version=f"{i}.0.0")
        for i in range(5)
    ]


@pytest.fixture
def packages(store: MemoryStore, tmp_path: Path) -> PackageStore:
    return PackageStore(store, cache=tmp_path / "cache", baked=tmp_path / "baked")


def rewritten(package: Package, target: Path, **fields: object) -> Package:
    """The same package as another release of Threefold would write it, but for some fields of its manifest."""
    shutil.copytree(package.folder, target)
    document = json.loads((target / MANIFEST).read_text()) | fields
    (target / MANIFEST).write_text(json.dumps(document, indent=7, sort_keys=True))
    return open_package(target, digest_of(target))


def keys(store: MemoryStore) -> list[str]:
    return sorted(entry["path"] for page in obstore.list(store, "packages/") for entry in page)


def lying(cache: Path) -> list[str]:
    """All files that lie in the cache, by the beginning of their slot."""
    return sorted(
        {f"{path.relative_to(cache).parts[0][:12]}/{path.name}" for path in cache.rglob("*") if path.is_file()}
    )


def test_the_same_content_is_one_package(packages: PackageStore, store: MemoryStore, small: Package) -> None:
    assert packages.publish(small) == Published(small.digest, new=True)
    assert packages.publish(small) == Published(small.digest, new=False)
    assert keys(store) == [f"packages/wine/{small.digest}.zip", "packages/wine/versions/1.0.0"]


def test_a_version_is_one_package(
    packages: PackageStore, store: MemoryStore, small: Package, graphs: Graphs, make_package: PackageMaker
) -> None:
    packages.publish(small)
    before = keys(store)
    other = make_package(graphs.linear([3.0, 4.0]), output=VALUE, name="wine")
    with pytest.raises(InvalidPackage, match=f"1.0.0, which is package {small.digest[:12]}"):
        packages.publish(other)
    assert keys(store) == before
    assert packages.publish(make_package(graphs.linear([3.0, 4.0]), output=VALUE, name="wine", version="1.0.1")).new


def test_a_version_that_another_release_of_threefold_wrote_is_the_known_one(
    packages: PackageStore, store: MemoryStore, small: Package, tmp_path: Path
) -> None:
    packages.publish(small)
    before = keys(store)
    again = rewritten(small, tmp_path / "again", notes="")
    assert again.digest != small.digest
    assert packages.publish(again) == Published(small.digest, new=False)
    assert keys(store) == before


def test_a_version_whose_manifest_says_something_else_is_another_package(
    packages: PackageStore, small: Package, tmp_path: Path
) -> None:
    packages.publish(small)
    with pytest.raises(InvalidPackage, match=f"which is package {small.digest[:12]}"):
        packages.publish(rewritten(small, tmp_path / "again", notes="better"))


def test_a_version_whose_package_is_gone_is_taken_all_the_same(
    packages: PackageStore, store: MemoryStore, small: Package, tmp_path: Path
) -> None:
    obstore.put(store, "packages/wine/versions/1.0.0", b"0" * 64)
    with pytest.raises(InvalidPackage, match="which is package 000000000000"):
        packages.publish(small)


def test_a_publish_that_was_cut_short_can_be_done_again(
    packages: PackageStore, store: MemoryStore, small: Package
) -> None:
    obstore.put(store, "packages/wine/versions/1.0.0", small.digest.encode())
    assert packages.publish(small).new


def test_a_package_is_found_by_label_digest_or_its_beginning(packages: PackageStore, series: list[Package]) -> None:
    for package in series:
        packages.publish(package)
    wanted = series[2].digest
    assert [packages.digest("wine", reference) for reference in ("2.0.0", wanted, wanted[:6], wanted[:40])] == [
        wanted
    ] * 4


@pytest.mark.parametrize("reference", ["9.9", "", "..", "../versions/1.0.0", "1.0.0/", "\ud800", "0" * 64, "A" * 6])
def test_a_reference_to_nothing_says_what_there_is(reference: str, packages: PackageStore, small: Package) -> None:
    packages.publish(small)
    with pytest.raises(UnknownModel, match=r"model 'wine': want one out of \['1\.0\.0'\], got ") as caught:
        packages.digest("wine", reference)
    str(caught.value).encode()


def test_a_beginning_of_two_digests_or_of_too_few_characters_is_nobodys(
    packages: PackageStore, store: MemoryStore
) -> None:
    one, two = "abcdef" + "0" * 58, "abcdef" + "1" * 58
    for digest in (one, two):
        obstore.put(store, f"packages/wine/{digest}.zip", b"")
    with pytest.raises(UnknownModel, match=r"want one out of \['abcdef000000', 'abcdef111111'\], got 'abcdef'"):
        packages.digest("wine", "abcdef")
    assert packages.digest("wine", "abcdef1") == two
    with pytest.raises(UnknownModel):
        packages.digest("wine", two[:5])


def test_a_label_whose_package_is_gone_is_unknown(packages: PackageStore, store: MemoryStore, small: Package) -> None:
    packages.publish(small)
    obstore.put(store, "packages/wine/versions/2.0.0", b"f" * 64)
    with pytest.raises(UnknownModel, match=r"got 2\.0\.0, which was removed"):
        packages.digest("wine", "2.0.0")


@pytest.mark.parametrize("model", ["beer", "", "..", "Wine", "wine/versions", "win"])
def test_a_model_without_packages_is_unknown(model: str, packages: PackageStore, small: Package) -> None:
    packages.publish(small)
    assert packages.list(model) == []
    with pytest.raises(UnknownModel, match="want one with packages"):
        packages.digest(model, "1.0.0")


def test_a_listing_has_the_packages_and_nothing_else_the_newest_first(
    packages: PackageStore, store: MemoryStore, small: Package, large: Package
) -> None:
    packages.publish(small)
    packages.publish(large)
    for path in ("wine/README", "wine/notes.zip", f"wine/old/{'0' * 64}.zip", "Not A Model/x", "stray"):
        obstore.put(store, f"packages/{path}", b"")
    found = packages.list("wine")
    assert [one.digest for one in found] == [large.digest, small.digest]
    assert [one.size_bytes for one in found] == [len(pack(large.folder)), len(pack(small.folder))]
    assert all(datetime.now(UTC) - one.modified < timedelta(minutes=1) for one in found)
    assert packages.models() == ["wine"]


def test_without_the_bucket_nothing_is_said_of_packages(dead_store: S3Store, small: Package, tmp_path: Path) -> None:
    packages = PackageStore(dead_store, cache=tmp_path / "cache", baked=tmp_path / "baked")
    acts: list[Callable[[], object]] = [
        packages.models,
        lambda: packages.list("wine"),
        lambda: packages.digest("wine", "1.0.0"),
        lambda: packages.publish(small),
        lambda: packages.open("wine", small.digest),
    ]
    for act in acts:
        with pytest.raises(RegistryUnreachable, match="want the model bucket to answer"):
            act()
    assert not packages.at_hand(small.digest)


def test_a_package_is_downloaded_once(
    packages: PackageStore, store: MemoryStore, small: Package, tmp_path: Path
) -> None:
    packages.publish(small)
    package = packages.open("wine", small.digest)
    assert package.manifest == small.manifest
    assert packages.at_hand(small.digest)
    obstore.delete(store, f"packages/wine/{small.digest}.zip")
    assert packages.open("wine", small.digest) == package
    # Its zip takes no room any more.
    assert lying(tmp_path / "cache") == [f"{small.digest[:12]}/{name}" for name in (MANIFEST, "model.onnx")]


@pytest.mark.parametrize("damage", [lambda whole: whole[:-30], lambda whole: whole[:100], lambda _whole: b""])
def test_a_damaged_package_is_refused_and_nothing_of_it_stays(
    damage: Any, packages: PackageStore, store: MemoryStore, small: Package, tmp_path: Path
) -> None:
    obstore.put(store, f"packages/wine/{small.digest}.zip", damage(pack(small.folder)))
    with pytest.raises(InvalidPackage):
        packages.open("wine", small.digest)
    assert list((tmp_path / "cache").iterdir()) == []
    # And once it is whole, it is served.
    obstore.put(store, f"packages/wine/{small.digest}.zip", pack(small.folder))
    assert packages.open("wine", small.digest).digest == small.digest


def test_a_package_of_another_digest_is_refused_and_nothing_of_it_stays(
    packages: PackageStore, store: MemoryStore, small: Package, large: Package, tmp_path: Path
) -> None:
    obstore.put(store, f"packages/wine/{small.digest}.zip", pack(large.folder))
    with pytest.raises(InvalidPackage, match=f"want digest {small.digest}, got {large.digest}"):
        packages.open("wine", small.digest)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_that_is_not_there_is_refused_by_name(packages: PackageStore, tmp_path: Path) -> None:
    with pytest.raises(MissingPackage, match=f"got no packages/wine/{'0' * 64}.zip"):
        packages.open("wine", "0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("retries", [0, 2])
def test_a_download_goes_on_where_its_connection_broke(
    retries: int, line: Line, large: Package, tmp_path: Path
) -> None:
    content = line.objects[f"packages/wine/{large.digest}.zip"] = pack(large.folder)
    line.cut_after = 200_000
    packages = PackageStore(line.store(retries), cache=tmp_path, baked=tmp_path / "baked")
    assert packages.open("wine", large.digest).manifest == large.manifest
    starts = [start for start, _, _ in line.ranges]
    assert len(starts) >= len(content) // 200_000
    assert starts == sorted(set(starts))
    assert sum(sent for _, _, sent in line.ranges) <= len(content) + len(starts) * PIECE


def test_a_download_that_is_broken_off_again_and_again_ends(line: Line, large: Package, tmp_path: Path) -> None:
    """As in a function that is frozen after each call: no connection outlives the call that made it."""
    content = line.objects[f"packages/wine/{large.digest}.zip"] = pack(large.folder)
    calls = 0
    while True:
        # Each time another process, with nothing but what lies on the disk.
        packages = PackageStore(line.store(), cache=tmp_path, baked=tmp_path / "baked")
        line.left = 150_000
        calls += 1
        try:
            package = packages.open("wine", large.digest)
        except RegistryUnreachable:
            assert calls < 20
        else:
            break
    assert calls >= len(content) // 150_000
    assert package.manifest == large.manifest
    assert sum(sent for _, _, sent in line.ranges) <= len(content) + calls * PIECE
    assert lying(tmp_path) == [f"{large.digest[:12]}/{name}" for name in (MANIFEST, "model.onnx")]


def test_a_line_that_brings_nothing_is_given_up(line: Line, large: Package, tmp_path: Path) -> None:
    line.objects[f"packages/wine/{large.digest}.zip"] = pack(large.folder)
    line.cut_after = 0
    packages = PackageStore(line.store(), cache=tmp_path, baked=tmp_path / "baked")
    with pytest.raises(RegistryUnreachable):
        packages.open("wine", large.digest)


def test_what_arrived_of_one_content_is_never_joined_with_another(line: Line, large: Package, tmp_path: Path) -> None:
    key, whole = f"packages/wine/{large.digest}.zip", pack(large.folder)
    packages = PackageStore(line.store(), cache=tmp_path, baked=tmp_path / "baked")
    # The same size, so that only the e-tag says that it is another.
    line.objects[key], line.left = bytes(len(whole)), 300_000
    with pytest.raises(RegistryUnreachable):
        packages.open("wine", large.digest)
    line.objects[key], line.left, line.ranges = whole, None, []
    assert packages.open("wine", large.digest).digest == large.digest
    assert line.ranges[0][0] == 0


def test_a_content_that_is_replaced_while_it_is_read_is_read_anew(line: Line, large: Package, tmp_path: Path) -> None:
    key, whole = f"packages/wine/{large.digest}.zip", pack(large.folder)
    line.objects[key], line.cut_after = bytes(len(whole)), 300_000
    carries = line.carries

    def replace(start: int, end: int) -> int:
        line.objects[key] = whole
        return carries(start, end)

    line.carries = replace  # type: ignore[method-assign]
    packages = PackageStore(line.store(), cache=tmp_path, baked=tmp_path / "baked")
    with pytest.raises(RegistryUnreachable, match="while it is read, got another"):
        packages.open("wine", large.digest)
    assert packages.open("wine", large.digest).digest == large.digest


def test_what_arrived_before_and_is_damaged_does_not_stick(line: Line, large: Package, tmp_path: Path) -> None:
    line.objects[f"packages/wine/{large.digest}.zip"] = pack(large.folder)
    packages = PackageStore(line.store(), cache=tmp_path, baked=tmp_path / "baked")
    line.left = 300_000
    with pytest.raises(RegistryUnreachable):
        packages.open("wine", large.digest)
    (archive,) = tmp_path.rglob("*.zip")
    damaged = bytearray(archive.read_bytes())
    damaged[1000:2000] = bytes(1000)
    archive.write_bytes(damaged)
    line.left = None
    assert packages.open("wine", large.digest).digest == large.digest


def test_threads_that_want_the_same_package_share_one_download(line: Line, large: Package, tmp_path: Path) -> None:
    content = line.objects[f"packages/wine/{large.digest}.zip"] = pack(large.folder)
    line.cut_after = 300_000
    packages = PackageStore(line.store(), cache=tmp_path, baked=tmp_path / "baked")
    together = threading.Barrier(6)

    def open_it(_: int) -> str:
        together.wait(10)
        return digest_of(packages.open("wine", large.digest).folder)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(open_it, range(6))) == {large.digest}
    assert sum(sent for _, _, sent in line.ranges) <= len(content) + len(line.ranges) * PIECE


PROCESS = """
import sys
from pathlib import Path
from obstore.store import LocalStore
from threefold.package import digest_of
from threefold.package_cache import SPARE_BYTES
from threefold.package_store import PackageStore
bucket, cache, limit, *digests = sys.argv[1:]
def free(folder):
    # As good as a process can tell while others write and remove.
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            pass
    return int(limit) + SPARE_BYTES - total
packages = PackageStore(LocalStore(bucket), cache=Path(cache), baked=Path(cache) / "none", free=free)
for turn in range(15):
    for digest in digests:
        with packages.held("wine", digest) as package:
            assert digest_of(package.folder) == digest
"""


def test_processes_that_share_a_cache_put_nothing_out_of_each_others_hands(
    series: list[Package], tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    (bucket / "packages" / "wine").mkdir(parents=True)
    for package in series:
        (bucket / "packages" / "wine" / f"{package.digest}.zip").write_bytes(pack(package.folder))
    # Room for four of five at most, of which three processes hold one each, and each fetches one more.
    limit = str(8 * len(pack(series[0].folder)))
    digests = [package.digest for package in series]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(bucket), str(tmp_path / "cache"), limit, *digests[i:], *digests[:i]],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [("", 0)] * 3
    assert not list((tmp_path / "cache").glob(".*"))


def test_what_a_killed_process_left_behind_goes(packages: PackageStore, small: Package, tmp_path: Path) -> None:
    packages.publish(small)
    slot = tmp_path / "cache" / small.digest
    (slot / f".{small.digest[:12]}-abc").mkdir(parents=True)
    (slot / f".{small.digest[:12]}-abc" / "model.onnx").write_bytes(b"half")
    (slot / "0123456789abcdef.zip").write_bytes(b"of a content that is gone")
    packages.open("wine", small.digest)
    assert [path.name for path in slot.iterdir()] == ["package"]


def test_who_waited_for_a_slot_that_is_gone_by_then_gets_another(tmp_path: Path) -> None:
    cache, turns = PackageCache(tmp_path), threading.Barrier(2)

    def wait_for_it() -> bool:
        turns.wait(10)
        with cache.filling("0" * 64) as slot:
            return slot.folder.is_dir()

    with ThreadPoolExecutor(1) as pool:
        with cache.filling("0" * 64):
            waiting = pool.submit(wait_for_it)
            turns.wait(10)
            time.sleep(0.05)
            # Nothing was put into it, so that it goes.
        assert waiting.result(10)


def test_a_store_without_e_tags_is_read_all_the_same(packages: PackageStore, small: Package, monkeypatch: Any) -> None:
    packages.publish(small)
    head = obstore.head
    monkeypatch.setattr(obstore, "head", lambda *args: {**head(*args), "e_tag": None})
    assert packages.open("wine", small.digest).digest == small.digest


class Disk:
    """A disk that holds so many bytes in all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, folder: Path) -> int:
        return self.limit + SPARE_BYTES - self.used(folder)

    @staticmethod
    def used(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def disk() -> Disk:
    return Disk(10**9)


@pytest.fixture
def narrow(store: MemoryStore, disk: Disk, series: list[Package], tmp_path: Path) -> PackageStore:
    """Packages behind a disk that has room for three, one of them with its zip."""
    packages = PackageStore(store, cache=tmp_path / "cache", baked=tmp_path / "baked", free=disk)
    for package in series:
        packages.publish(package)
    disk.limit = max(3 * disk.used(package.folder) + 2 * len(pack(package.folder)) for package in series)
    disk.limit -= 10_000
    return packages


def at_hand(packages: PackageStore, series: list[Package]) -> list[int]:
    return [i for i, package in enumerate(series) if packages.at_hand(package.digest)]


def test_the_least_recently_used_package_makes_room(narrow: PackageStore, series: list[Package]) -> None:
    for i in (0, 1, 2, 0, 3):
        narrow.open("wine", series[i].digest)
    assert at_hand(narrow, series) == [0, 2, 3]
    narrow.open("wine", series[4].digest)
    assert at_hand(narrow, series) == [0, 3, 4]
    # One that went comes back.
    assert digest_of(narrow.open("wine", series[1].digest).folder) == series[1].digest


def test_what_arrived_of_a_package_that_nobody_wants_any_more_makes_room(
    *, line: Line, large: Package, store: MemoryStore, small: Package, tmp_path: Path
) -> None:
    content = line.objects[f"packages/wine/{large.digest}.zip"] = pack(large.folder)
    line.left = len(content) // 2
    disk = Disk(2 * len(content))
    with pytest.raises(RegistryUnreachable):
        PackageStore(line.store(), cache=tmp_path, baked=tmp_path / "none", free=disk).open("wine", large.digest)
    packages = PackageStore(store, cache=tmp_path, baked=tmp_path / "none", free=disk)
    packages.publish(small)
    disk.limit = disk.used(tmp_path)
    packages.open("wine", small.digest)
    assert {name.partition("/")[0] for name in lying(tmp_path)} == {small.digest[:12]}


def test_a_package_in_use_makes_no_room(narrow: PackageStore, series: list[Package]) -> None:
    zero, one, two, three, _ = [package.digest for package in series]
    with narrow.held("wine", zero) as first, narrow.held("wine", one), narrow.held("wine", two):
        with pytest.raises(NotServable, match=r"want \d+ bytes of room on the disk and \d+ to spare, got") as caught:
            narrow.open("wine", three)
        assert caught.value.retryable
        assert at_hand(narrow, series) == [0, 1, 2]
        assert digest_of(first.folder) == zero
    narrow.open("wine", three)
    assert at_hand(narrow, series) == [1, 2, 3]


def test_what_can_never_fit_is_not_downloaded_and_puts_nothing_out(
    *, narrow: PackageStore, series: list[Package], large: Package, store: MemoryStore, disk: Disk, tmp_path: Path
) -> None:
    obstore.put(store, f"packages/wine/{large.digest}.zip", pack(large.folder))
    narrow.open("wine", series[0].digest)
    need = 2 * len(pack(large.folder))
    with pytest.raises(NotServable, match=f"package {large.digest[:12]}: want {need} bytes of room") as caught:
        narrow.open("wine", large.digest)
    assert f"got {disk.limit + SPARE_BYTES - disk.used(tmp_path / 'cache')} that are free" in str(caught.value)
    assert at_hand(narrow, series) == [0]
    assert {name.partition("/")[0] for name in lying(tmp_path / "cache")} == {series[0].digest[:12]}


def test_the_zip_s_own_directory_says_what_its_files_need(
    *, store: MemoryStore, graphs: Graphs, make_package: PackageMaker, series: list[Package], tmp_path: Path
) -> None:
    random = np.random.default_rng(2).normal(size=5000).tolist()
    deflating = make_package(graphs.linear(random * 50), name="wine")
    content, unpacked = pack(deflating.folder), Disk.used(deflating.folder)
    assert unpacked > 10 * len(content)
    disk = Disk(10**9)
    packages = PackageStore(store, cache=tmp_path, baked=tmp_path / "none", free=disk)
    for package in (deflating, series[0]):
        packages.publish(package)
    packages.open("wine", series[0].digest)
    disk.limit = 10 * len(content)
    with pytest.raises(NotServable, match=f"want {unpacked} bytes of room"):
        packages.open("wine", deflating.digest)
    assert packages.at_hand(series[0].digest)
    disk.limit = unpacked + len(content)
    assert packages.open("wine", deflating.digest).digest == deflating.digest
    assert not packages.at_hand(series[0].digest)


@pytest.mark.parametrize("step", ["download", "unpack"])
@pytest.mark.parametrize("enough", [True, False])
def test_a_disk_that_is_full_all_the_same_is_emptied_once(
    step: str, *, enough: bool, store: MemoryStore, series: list[Package], tmp_path: Path, monkeypatch: Any
) -> None:
    """Others write there too, and what was free a moment ago is not."""
    packages = PackageStore(store, cache=tmp_path, baked=tmp_path / "none", free=lambda _: 10**12)
    old, new = series[:2]
    for package in (old, new):
        packages.publish(package)
    packages.open("wine", old.digest)
    tries = []

    def fill_up(_self: object, *_args: object) -> None:
        tries.append(packages.at_hand(old.digest))
        if tries[-1] or not enough:
            raise OSError(errno.ENOSPC, "No space left on device")

    write, extract = package_download._write, zipfile.ZipFile.extractall
    if step == "download":
        monkeypatch.setattr(package_download, "_write", lambda *args: (fill_up(*args), write(*args)))
    else:
        monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda *args: (fill_up(*args), extract(*args)))
    if enough:
        assert digest_of(packages.open("wine", new.digest).folder) == new.digest
    else:
        with pytest.raises(NotServable, match=r"want \d+ bytes of room on the disk .* got 1000000000000 that are free"):
            packages.open("wine", new.digest)
    assert tries[:2] == [True, False]
    assert len(tries) == 2


def test_a_disk_that_cannot_be_written_says_so(
    store: MemoryStore, small: Package, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    packages = PackageStore(store, cache=tmp_path, baked=tmp_path / "none")
    packages.publish(small)
    monkeypatch.setattr(package_download, "_write", fail)
    with pytest.raises(NotServable, match=r"want it written to the disk, got .*Input/output error") as caught:
        packages.open("wine", small.digest)
    assert caught.value.retryable


def test_a_removal_that_was_cut_short_leaves_no_half_a_package(
    narrow: PackageStore, series: list[Package], tmp_path: Path, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("threefold.package_cache._remove", lambda _path: None)
        for i in (0, 1, 2):
            narrow.open("wine", series[i].digest)
        with pytest.raises(NotServable):
            narrow.open("wine", series[3].digest)
    assert at_hand(narrow, series) == []
    narrow.open("wine", series[3].digest)
    assert digest_of(narrow.open("wine", series[0].digest).folder) == series[0].digest
    assert not list((tmp_path / "cache").glob(".gone-*"))


def test_a_baked_package_takes_no_room(store: MemoryStore, small: Package, dead_store: S3Store, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "baked" / "packages" / small.digest)
    packages = PackageStore(dead_store, cache=tmp_path / "cache", baked=tmp_path / "baked", free=lambda _: 0)
    assert packages.at_hand(small.digest)
    assert packages.open("wine", small.digest).manifest == small.manifest
    assert not (tmp_path / "cache").exists()
