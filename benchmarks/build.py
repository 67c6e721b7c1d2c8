"""Build an archive from files beside `tar cJf`: time, CPU, memory and size. Join parts beside `cat`.

python benchmarks/build.py                      made CT and MR series
python benchmarks/build.py --folder DIR         the DICOM files below DIR
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import measure, show

from pipeline.archive.blocks import encode_block
from pipeline.archive.frames import Member, cut_frame, place_members, read_blocks
from pipeline.archive.join import ArchiveWriter, read_back
from pipeline.demo.dicoms import make_series
from pipeline.dicom.check import check_dicom
from pipeline.dicom.choose import choose_chain
from pipeline.errors import ItemError

BLOCK = 4 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--pack", nargs=2, metavar=("FOLDER", "PART"), help=argparse.SUPPRESS)
    parser.add_argument("--join-bytes", type=int, default=1_000_000_000)
    options = parser.parse_args()
    if options.pack:
        pack(Path(options.pack[0]), Path(options.pack[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="medhaul-bench-") as text:
        root = Path(text)
        files = options.folder or make_files(root / "files")
        compare_packing(files, root)
        compare_joining(root, options.join_bytes)
    return 0


def make_files(folder: Path) -> Path:
    folder.mkdir()
    for kind, slices in (("CT", 80), ("MR", 80), ("PT", 80)):
        for number, data in enumerate(make_series(kind, 1, slices)):
            (folder / f"{kind}-{number:04d}.dcm").write_bytes(data)
    return folder


def compare_packing(folder: Path, root: Path) -> None:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"packing {total / 1e6:.0f} MB of files from {folder}")
    part, tar = root / "part", root / "peer.tar.xz"
    ours = measure([sys.executable, __file__, "--pack", str(folder), str(part)])
    theirs = measure(["tar", "cJf", str(tar), "-C", str(folder), "."])
    threads = measure(["tar", "-I", "xz -T0", "-cf", str(tar) + "2", "-C", str(folder), "."])
    sizes = [part.stat().st_size, tar.stat().st_size, Path(str(tar) + "2").stat().st_size]
    show("medhaul: check, pack, verify every block", ours, f"{sizes[0] / 1e6:.2f} MB, ratio {total / sizes[0]:.3f}")
    show("tar cJf", theirs, f"{sizes[1] / 1e6:.2f} MB, ratio {total / sizes[1]:.3f}")
    show("tar -I 'xz -T0'", threads, f"{sizes[2] / 1e6:.2f} MB, ratio {total / sizes[2]:.3f}")
    print(
        f"against tar cJf: {theirs.wall / ours.wall:.1f} times as fast by clock, {theirs.cpu / ours.cpu:.1f} by CPU,"
        f" size {sizes[0] / sizes[1] - 1:+.1%}"
    )


def pack(folder: Path, part: Path) -> None:
    """What a task does with files that are on scratch, without the network: one frame for each folder."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, part.open("wb") as out:
        for group in sorted({path.parent for path in folder.rglob("*") if path.is_file()}):
            members = [describe(path) for path in sorted(group.iterdir()) if path.is_file()]
            placed, _ = place_members(members)
            cuts = cut_frame(placed, BLOCK)
            pending = []
            for cut, data in zip(cuts, read_blocks(placed, cuts), strict=True):
                pending.append(pool.submit(encode_block, data, cut.chain, portable=False, verify=True))
                if len(pending) > 6:
                    out.write(pending.pop(0).result().data)
            for future in pending:
                out.write(future.result().data)


def describe(path: Path) -> Member:
    data = path.read_bytes()
    try:
        chain = choose_chain(check_dicom(path, series_uid=series_of(path)), path.suffix)
    except ItemError:
        chain = "A0"
    return Member(path.name, str(path), len(data), hashlib.sha256(data).hexdigest(), chain)


def series_of(path: Path) -> str:
    import pydicom

    tags = ["SeriesInstanceUID"]
    return str(pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=True, force=True).get(tags[0], ""))


def compare_joining(root: Path, size: int) -> None:
    """Join parts of `size` bytes in all, as reduce does, beside `cat`; with the proof, beside `cat` and `sha256sum`."""
    parts = [root / f"{number}.part" for number in range(4)]
    frames = []
    block = encode_block(os.urandom(BLOCK), "S", portable=False, verify=False)
    for path in parts:
        count = size // len(parts) // len(block.data)
        with path.open("wb") as out:
            for _ in range(count):
                out.write(block.data)
        data_hash = hashlib.sha256(block.data * count).hexdigest()
        frames.append((path, len(block.data) * count, data_hash, [tuple(block.size)] * count))
    total = sum(length for _, length, _, _ in frames)
    print(f"joining {total / 1e6:.0f} MB from {len(parts)} parts, best of 5")
    names = " ".join(path.name for path in parts)

    def shell(command: str) -> None:
        subprocess.run(["sh", "-c", command], cwd=root, check=True, capture_output=True)

    joined = root / "joined"
    ways = {
        "medhaul join": lambda: join(joined, frames, prove=False),
        "cat and sync": lambda: shell(f"cat {names} > joined && sync joined"),
        "medhaul join, read back, every frame hashed": lambda: join(joined, frames, prove=True),
        "cat, sync, sha256sum": lambda: shell(f"cat {names} > joined && sync joined && sha256sum joined"),
    }
    rates = dict.fromkeys(ways, 0.0)
    for _ in range(5):
        for name, way in ways.items():
            joined.unlink(missing_ok=True)
            begin = time.monotonic()
            way()
            rates[name] = max(rates[name], total / (time.monotonic() - begin))
    for name, rate in rates.items():
        print(f"  {name:<44} {rate / 1e6:7.0f} MB/s")
    first, second, third, fourth = rates.values()
    print(f"  against cat: {first / second:.2f}; with the proof: {third / fourth:.2f}")


def join(target: Path, frames: list[tuple[Path, int, str, list[tuple[int, int]]]], *, prove: bool) -> None:
    with target.open("wb", buffering=0) as out:
        writer = ArchiveWriter(out)
        for path, length, sha256, blocks in frames:
            with path.open("rb") as part:
                writer.copy_frame(part.fileno(), 0, length, sha256, blocks)
        with tempfile.TemporaryFile() as catalogue:
            catalogue.write(b"{}")
            catalogue.seek(0)
            writer.finish("bench", catalogue, 2)
        os.fsync(out.fileno())
    if prove:
        with target.open("rb", buffering=0) as file:
            assert read_back(file, writer.frames)[1] == []


if __name__ == "__main__":
    sys.exit(main())
