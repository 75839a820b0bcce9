"""Into a zip and out again: one identity, and nothing that is not plain data."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import struct
import sys
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from threefold import package as package_module
from threefold.errors import InvalidManifest, InvalidPackage, NotServable
from threefold.package import MAXIMUM_FILES, Gate, Manifest, Output, Package, digest_of, open_package, pack, unpack
from threefold.signature import Feature
from threefold.sources import WindowSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Graphs, PackageMaker

DIGEST = "0" * 64


@pytest.fixture(scope="module")
def small(graphs: Graphs, make_package: PackageMaker) -> Package:
    return make_package(graphs.linear([1.0, 2.0]), output=Output(kind="regression", value="value"), name="wine")


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def refused(content: Path, tmp_path: Path, *, digest: str = DIGEST, match: str | None = None) -> None:
    """Refused, and nothing is left of it: not in the target's folder, not beside it."""
    target = tmp_path / "cache" / digest
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidPackage, match=match):
        unpack(content, digest, target)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path != target.parent] == []


def test_a_package_survives_its_zip(small: Package, tmp_path: Path) -> None:
    content = tmp_path / "package.zip"
    content.write_bytes(pack(small.folder))
    target = tmp_path / "cache" / small.digest
    opened = unpack(content, small.digest, target)
    assert opened == Package(target, small.digest, small.manifest)
    assert digest_of(target) == small.digest
    assert [path.name for path in target.parent.iterdir()] == [small.digest]


def test_the_digest_is_of_the_files_and_not_of_the_zip(small: Package, tmp_path: Path) -> None:
    names = sorted(path.name for path in small.folder.iterdir())
    for i, (order, method) in enumerate([(names, zipfile.ZIP_STORED), (names[::-1], zipfile.ZIP_DEFLATED)]):
        entries = [
            (zipfile.ZipInfo(name, (1999 + i, 1, 1, 0, 0, 0)), (small.folder / name).read_bytes()) for name in order
        ]
        content = zipped(tmp_path / f"{i}.zip", *entries, method=method)
        assert unpack(content, small.digest, tmp_path / str(i)).digest == small.digest


def test_the_digest_is_the_one_that_the_contracts_say(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"")
    # sha256sum of [["a",0,"e3b0c442..."],["b",3,"3fc4ccfe..."]], the files' own sha256sums written out.
    assert digest_of(tmp_path) == "66489415f535f98f9c4b2bd64e32459796dfd2091455deb3a2f177d07d8aca8d"


def test_packing_gives_the_same_bytes_whenever_it_is_done(small: Package, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small.folder, copy)
    os.utime(copy / "model.onnx", (time.time() - 10**6,) * 2)
    assert pack(copy) == pack(small.folder)


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "../../../../tmp/escaped",
        "/etc/passwd",
        "folder/model.onnx",
        "folder/",
        "..\\model.onnx",
        "C:model.onnx",
        ".hidden",
        "..",
        "model onnx",
        "mödel.onnx",
        "a" * 101,
        "-rf",
    ],
)
def test_a_name_that_is_no_plain_file_name_is_refused(name: str, tmp_path: Path) -> None:
    refused(zipped(tmp_path / "x.zip", ("model.onnx", b"x"), (name, b"x")), tmp_path, match="plain file names")
    assert not Path("/tmp/escaped").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("model.onnx")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(zipped(tmp_path / "x.zip", (link, b"/etc/passwd")), tmp_path, match="no links")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    started = time.perf_counter()
    refused(zipped(tmp_path / "x.zip", ("model.onnx", bytes(30 * 1024**2))), tmp_path, match="deflate by at most")
    assert time.perf_counter() - started < 5


def test_a_size_that_the_header_hides_is_not_unpacked(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "x.zip", ("model.onnx", bytes(5 * 1024**2))).read_bytes())
    # The uncompressed size, in the local header and in the central directory.
    central = content.index(b"PK\x01\x02")
    content[22:26] = content[central + 24 : central + 28] = (10).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(content)
    refused(tmp_path / "x.zip", tmp_path)


def test_more_than_may_be_unpacked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "MAXIMUM_BYTES", 1000)
    content = zipped(tmp_path / "x.zip", ("a", os.urandom(600)), ("b", os.urandom(600)))
    refused(content, tmp_path, match="at most 1000 bytes, got 1200")


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    entries = [(f"file-{i}", b"x") for i in range(MAXIMUM_FILES + 1)]
    refused(zipped(tmp_path / "x.zip", *entries), tmp_path, match="at most 16 files")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "x.zip", ("model.onnx", b"1"), ("model.onnx", b"2")), tmp_path, match="each once")


def overlapped(path: Path, plain: bytes, *, quoted: bool) -> Path:
    """Two files of the same bytes of a zip: one begins within the other, or where the other begins.

    The first quotes the second's header in a stored block and goes on with the second's own data
    (https://www.bamsoftware.com/hacks/zipbomb/).
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflate.compress(plain) + deflate.flush()

    def fields(name: str, content: bytes, size: int) -> bytes:
        return struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 33, zlib.crc32(content), size, len(content), len(name), 0)

    inner = b"PK\x03\x04" + fields("b.bin", plain, len(data)) + b"b.bin"
    quote = struct.pack("<BHH", 0, len(inner), len(inner) ^ 0xFFFF) + inner
    whole, size = inner + plain, len(quote) + len(data)
    outer = b"PK\x03\x04" + fields("a.bin", whole, size) + b"a.bin"
    files = [("a.bin", whole, size, 0), ("b.bin", plain, len(data), len(outer) + 5)]
    body = outer + quote + data
    if not quoted:
        files = [(name, plain, len(data), 0) for name in ("a.bin", "b.bin")]
        body = inner + data
    central = b"".join(
        b"PK\x01\x02\x14\x00" + fields(name, content, size) + struct.pack("<HHHLL", 0, 0, 0, 0, offset) + name.encode()
        for name, content, size, offset in files
    )
    path.write_bytes(body + central + struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 2, 2, len(central), len(body), 0))
    return path


@pytest.mark.parametrize("quoted", [True, False])
def test_files_that_share_the_same_bytes_are_refused(quoted: bool, tmp_path: Path) -> None:
    content = overlapped(tmp_path / "x.zip", b"many files of few bytes" * 9, quoted=quoted)
    if quoted and sys.version_info < (3, 11, 8):
        with zipfile.ZipFile(content) as archive:
            assert archive.testzip() is None, "zipfile itself unpacks it"
    refused(content, tmp_path, match=r"share no bytes of the zip, got 'b\.bin'")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression_is_refused(method: int, tmp_path: Path) -> None:
    refused(zipped(tmp_path / "x.zip", ("model.onnx", b"x" * 99), method=method), tmp_path, match="stored or deflated")


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "x.zip", ("model.onnx", b"x" * 99)).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    refused(tmp_path / "x.zip", tmp_path, match="not encrypted")


def test_other_content_than_the_digest_says_is_refused(small: Package, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(pack(small.folder))
    refused(tmp_path / "x.zip", tmp_path, match=f"want digest {DIGEST}, got {small.digest}")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_zip_is_refused(share: float, small: Package, tmp_path: Path) -> None:
    whole = pack(small.folder)
    (tmp_path / "x.zip").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "x.zip", tmp_path, digest=small.digest)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_damaged_zip_is_refused_or_holds_the_very_files(
    changes: list[tuple[int, int]], small: Package, tmp_path: Path
) -> None:
    content = bytearray(pack(small.folder))
    for position, value in changes:
        content[position % len(content)] = value
    (tmp_path / "x.zip").write_bytes(content)
    target = tmp_path / "cache" / small.digest
    shutil.rmtree(target, ignore_errors=True)
    try:
        unpack(tmp_path / "x.zip", small.digest, target)
    except InvalidPackage:
        assert not target.exists()
    else:
        assert digest_of(target) == small.digest


def test_a_folder_that_is_there_already_is_kept(small: Package, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(pack(small.folder))
    target = tmp_path / "cache" / small.digest
    unpack(tmp_path / "x.zip", small.digest, target)
    before = (target / "model.onnx").stat()
    unpack(tmp_path / "x.zip", small.digest, target)
    assert (target / "model.onnx").stat().st_ino == before.st_ino


def test_a_full_disk_is_no_fault_of_the_package(
    small: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: object, _path: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "x.zip").write_bytes(pack(small.folder))
    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(NotServable, match="No space left") as caught:
        unpack(tmp_path / "x.zip", small.digest, tmp_path / "cache" / small.digest)
    # A refused package is never tried again; this one must be.
    assert caught.value.retryable
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_manifest_survives_its_file(small: Package) -> None:
    assert Manifest.from_json(json.loads(json.dumps(small.manifest.to_json()))) == small.manifest


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(path.read_text().replace('"schema": 1', '"schema": 3')),
        lambda path: path.write_text(path.read_text().replace('"output"', '"outputs"')),
        lambda path: path.write_text(path.read_text().replace('"kind"', '"sort"')),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"gate": 3})),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"signature": {"inputs": [[]]}})),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"output": ["classes"]})),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": [3]})),
    ],
)
def test_an_unreadable_manifest_is_refused(break_it: Callable[[Path], Any], small: Package, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(small.folder, folder)
    break_it(folder / "manifest.json")
    with pytest.raises(InvalidPackage, match=r"manifest\.json"):
        open_package(folder, small.digest)


@pytest.mark.parametrize("name", ["../secret.csv", "/etc/hostname", "folder/x.csv", "..", "", "x\n"])
@pytest.mark.parametrize("place", ["examples", "confidence", "reference", "weights"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(
    place: str, name: str, small: Package, tmp_path: Path
) -> None:
    document = small.manifest.to_json()
    if place in document["gate"]:
        document["gate"][place] = name
    else:
        document[place] = [name] if place == "weights" else name
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InvalidPackage, match="want plain names of files in the package"):
        open_package(tmp_path, small.digest)


@pytest.mark.parametrize(
    "gate", [{"acceptable": [0.9]}, {"acceptable": ["0.9", 1]}, {"acceptable": 0.9}, {"latency_ms": "fast"}]
)
def test_a_gate_whose_numbers_are_none_is_refused(gate: dict[str, object], small: Package, tmp_path: Path) -> None:
    document = small.manifest.to_json()
    (tmp_path / "manifest.json").write_text(json.dumps(document | {"gate": document["gate"] | gate}))
    with pytest.raises(InvalidPackage, match="want two numbers as acceptable and one as latency_ms"):
        open_package(tmp_path, small.digest)


def test_what_came_later_is_not_written_where_it_is_not_set(small: Package) -> None:
    """A package of an earlier writer keeps its digest."""
    assert {"notes", "weights"} & small.manifest.to_json().keys() == set()
    assert {"target", "latency_ms"} & small.manifest.gate.to_json().keys() == set()
    manifest = replace(small.manifest, notes="new", weights=("w.bin",), gate=Gate(target="y", latency_ms=2.5))
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_zip_in_memory_is_a_zip_on_disk(small: Package) -> None:
    with zipfile.ZipFile(io.BytesIO(pack(small.folder))) as archive:
        assert archive.namelist() == sorted(path.name for path in small.folder.iterdir())
        assert archive.testzip() is None


def test_a_manifest_with_features_that_are_looked_up_is_refused_by_those_who_would_take_them_from_callers(
    small: Package,
) -> None:
    plain = small.manifest
    assert plain.to_json()["schema"] == 1
    assert "time" not in plain.to_json()
    window = WindowSource(entity="card_id", agg="count", over="1h")
    features = (Feature(name="count_1h", type="float32", source=window), Feature(name="b", type="float32"))
    online = replace(plain, signature=replace(plain.signature, features=features, layout="packed"), time="happened_at")
    document = json.loads(json.dumps(online.to_json()))
    # Older functions read schema 1 and refuse all others, with what to upgrade.
    assert document["schema"] == 2
    assert Manifest.from_json(document) == online


def test_a_manifest_whose_time_is_no_field_is_refused(small: Package) -> None:
    with pytest.raises(InvalidManifest, match=r"want the name of a field as time, got 3"):
        Manifest.from_json(small.manifest.to_json() | {"time": 3})
