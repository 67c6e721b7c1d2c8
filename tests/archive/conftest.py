"""Archives that the tests of this folder share: built once a session, never changed."""

from __future__ import annotations

import pytest
from build import Built, File, Item, build_archive, noise, smooth

from pipeline.archive.index import FailedLine


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Many sizes, chains and path lengths in four frames: a member above two blocks, a cut item, a failed one."""
    sizes = [0, 1, 511, 512, 513, 10_000]
    small = [File(f"1.2.{n}.dcm", noise(size, n)) for n, size in enumerate(sizes)]
    pixels = [File(f"9.8.{n}.dcm", smooth(150_000, n), "A2") for n in range(4)]
    deep = "c/" + "/".join(name * 80 for name in "pqr")
    frames = [
        [Item("1.2", "c/patient/CT_1.2", small), Item("1.3", "c/patient/MR_1.3", pixels)],
        [Item("1.4", deep, [File("s" * 200 + ".dcm", smooth(3000), "RGB"), File("t.jpg", noise(100_000), "J")])],
        [Item("1.5", "c/q/pät", [File("big.dcm", smooth(3_000_000, 5), "A2"), File("z", b"z")], 0, 2)],
        [Item("1.5", "c/q/pät", [File("zz.dcm", smooth(70_000, 6), "S")], 1, 2)],
    ]
    failed = (FailedLine(id="1.6", path="c/r", reason="withdrawn", message="gone"),)
    folder = tmp_path_factory.mktemp("varied")
    return build_archive(folder, frames, failed=failed, beside=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A few kilobytes in two frames, without an index beside: every byte of it can be tried."""
    frames = [
        [Item("1.2", "c/1.2", [File("a", b"a" * 600), File("b", noise(100))])],
        [Item("1.3", "c/1.3", [File("c", smooth(900), "A2")]), Item("1.4", "c/1.4", [File("d", b"")])],
    ]
    return build_archive(tmp_path_factory.mktemp("tiny"), frames)
