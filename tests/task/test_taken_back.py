"""Salvage: what a frame with failures has is taken back from its part, unless it is not what the journal says."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_kit import DONE, KILLED, MadeRun, refuse, run_and_kill

from pipeline.archive.decode import Piece, TarStream
from pipeline.errors import InterruptedRunError, StorageError
from pipeline.manifest import Manifest
from pipeline.model import Entry, RawFile
from pipeline.records import FileRecord, FrameRecord, PieceRecord
from pipeline.task import salvage
from pipeline.task.pack import Packer
from pipeline.task.part import FrameFact, adopt_frames, read_frames
from pipeline.task.salvage import Salvage, choose_pieces, raw_file

TOGETHER = {"group_bytes": 1 << 30, "cut_bytes": 1 << 30, "block_bytes": 65536}
DOWN = refuse("unavailable", transient=True)


def once(fault: Callable[..., Any]) -> Callable[..., None]:
    """A fault that passes after its first time."""
    left = [fault]

    def strike(*arguments: object) -> None:
        if left:
            left.pop()(*arguments)

    return strike


def watch(made: MadeRun) -> Counter[str]:
    """Count the listings of each item."""
    listed: Counter[str] = Counter()
    for item in made.items:
        fault = made.fetcher.list_faults.get(item.id, lambda: None)

        def counted(uid: str = item.id, fault: Callable[[], None] = fault) -> None:
            listed[uid] += 1
            fault()

        made.fetcher.list_faults[item.id] = counted
    return listed


def facts_of(made: MadeRun) -> dict[int, FrameFact]:
    """What a later life takes over."""
    manifest = Manifest(made.run)
    return adopt_frames(made.run, 0, manifest.sha256, range(manifest.shards[0].frames)).frames


def frames_of(made: MadeRun) -> list[tuple[str, list[PieceRecord]]]:
    """Hash and pieces of each frame of the shard."""
    facts = facts_of(made)
    return [(record.sha256, record.pieces) for record in read_frames(made.run, 0, (facts[f] for f in sorted(facts)))]


def make_runs(root: Path, counts: list[int], **options: Any) -> tuple[MadeRun, MadeRun]:
    """The same run twice: one done without faults, and one to be done."""
    options = {"shards": {"count": 1}, "archive": TOGETHER, **options}
    made = []
    for name in ("calm", "struck"):
        (root / name).mkdir()
        made.append(MadeRun(root / name, counts, **options))
    assert made[0].do(0)[0].state == "complete"
    return made[0], made[1]


@contextmanager
def no_bound(_: threading.Event) -> Iterator[None]:
    """Room for any number of blocks."""
    yield


def salvage_of(made: MadeRun, stop: threading.Event | None = None) -> tuple[Salvage, FrameFact, list[Entry]]:
    """A salvage of a run's first frame, and the frame's entries."""
    facts = facts_of(made)
    entries = [entry for entry in Manifest(made.run).entries(0) if entry.frame == 0]
    return Salvage(made.run, 0, facts, room=no_bound, stop=stop or threading.Event()), facts[0], entries


def test_a_second_round_asks_for_what_failed_and_for_nothing_else(tmp_path: Path) -> None:
    """An item that fails once is fetched in the second round; the others are neither listed nor fetched again."""
    calm, made = make_runs(tmp_path, [3, 1, 2, 5, 1])
    made.fetcher.list_faults[made.items[2].id] = once(DOWN)
    listed = watch(made)
    (receipt,) = made.do(0)
    assert receipt.state == "complete"
    assert sorted(made.fetcher.fetched) == sorted(calm.fetcher.fetched)
    assert listed == {item.id: 1 + (item == made.items[2]) for item in made.items}
    assert frames_of(made) == frames_of(calm)
    assert receipt.downloaded_bytes == sum(len(body) for bodies in made.fetcher.bodies.values() for body in bodies)


@given(
    counts=st.lists(st.integers(1, 4), min_size=2, max_size=8),
    bad=st.sets(st.integers(0, 7), min_size=1, max_size=4),
    still=st.sets(st.integers(0, 7), max_size=2),
    group=st.sampled_from([3000, 9000, 1 << 30]),
)
@settings(max_examples=12, deadline=None)
def test_whatever_failed_the_frames_end_the_same(counts: list[int], bad: set[int], still: set[int], group: int) -> None:
    """Some items fail in a first life, some of them in a second: in the end bytes and records are those of no fault."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        calm, made = make_runs(root, counts, pixels=200, archive={**TOGETHER, "group_bytes": group})
        bad = {number % len(counts) for number in bad}
        if len(bad) == len(counts):
            bad.pop()
        for failing in (bad, {number for number in still if number in bad}, set()):
            made.fetcher.list_faults = {made.items[number].id: refuse("withdrawn") for number in failing}
            (receipt,) = made.do(0)
            assert {item.number for item in receipt.failed} == failing
        assert frames_of(made) == frames_of(calm)
        assert sorted(made.fetcher.fetched) == sorted(calm.fetcher.fetched)


def harm_block(part: Path, _: Path, record: FrameRecord) -> None:
    """One bit of the middle block is wrong."""
    sizes = [(unpadded + 3) & ~3 for unpadded, _ in record.blocks]
    middle = len(sizes) // 2
    flip(part, record.offset + sum(sizes[:middle]) + sizes[middle] // 2)


def harm_end(part: Path, _: Path, record: FrameRecord) -> None:
    """The part ends within the frame."""
    with part.open("rb+") as file:
        file.truncate(record.offset + record.length * 2 // 3)


def harm_part(part: Path, _: Path, record: FrameRecord) -> None:
    """There is no part any more."""
    part.unlink()


def harm_line(_: Path, journal: Path, record: FrameRecord) -> None:
    """The frame's line in the journal is torn."""
    flip(journal, journal.stat().st_size - 40)


def harm_journal(_: Path, journal: Path, record: FrameRecord) -> None:
    """There is no journal any more."""
    journal.unlink()


def flip(path: Path, at: int) -> None:
    """Change a bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "kept"),
    [(harm_block, True), (harm_end, True), (harm_part, False), (harm_line, False), (harm_journal, False)],
)
def test_what_is_damaged_is_fetched(tmp_path: Path, harm: Callable[..., None], *, kept: bool) -> None:
    """A part or journal that is damaged after it was taken over costs downloads, and only where it is damaged."""
    calm, made = make_runs(tmp_path, [1] * 60, pixels=4000)
    bad = made.items[33].id
    made.fetcher.list_faults[bad] = refuse("withdrawn")
    made.do(0)
    (record,) = read_frames(made.run, 0, facts_of(made).values())
    assert len(record.blocks) > 4
    part = made.run.parts_folder(0) / made.run.part_name(0, 0)
    made.fetcher.list_faults[bad] = lambda: harm(part, made.run.journal(0, 0), record)
    made.fetcher.fetched.clear()
    assert made.do(0)[0].state == "complete"
    assert (len(made.fetcher.fetched) < 45) == kept
    assert len(made.fetcher.fetched) > 2
    (fact,) = [fact for fact in facts_of(made).values() if not fact.failed]
    (again,) = read_frames(made.run, 0, [fact])
    (expected,) = read_frames(calm.run, 0, facts_of(calm).values())
    assert (again.sha256, again.pieces) == (expected.sha256, expected.pieces)


def test_a_file_that_is_not_what_the_journal_says_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong SHA-256 costs its whole entry a download, and leaves nothing of it on scratch."""
    _, made = make_runs(tmp_path, [3, 3, 3])
    made.fetcher.list_faults[made.items[0].id] = refuse("withdrawn")
    made.do(0)
    taker, fact, entries = salvage_of(made)
    (record,) = read_frames(made.run, 0, [fact])
    wrong = msgspec.structs.replace(record.pieces[1].files[2], sha256="0" * 64)
    piece = msgspec.structs.replace(record.pieces[1], files=[*record.pieces[1].files[:2], wrong])
    changed = msgspec.structs.replace(record, pieces=[record.pieces[0], piece, record.pieces[2]])
    monkeypatch.setattr(salvage, "read_frames", lambda *_: iter([changed]))
    folder = tmp_path / "raw"
    folder.mkdir()
    ((entry, files),) = taker.take(fact, entries, folder)
    assert entry == entries[2]
    assert sorted(folder.iterdir()) == sorted(Path(file.local) for file in files)


@pytest.mark.parametrize("error", [refuse("malformed"), lambda *_, **__: 1 / 0])
def test_a_file_that_passes_no_check_any_more_is_fetched_and_judged_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[..., Any]
) -> None:
    """Neither a stricter check of a later version nor a fault in one ends the task."""
    calm, made = make_runs(tmp_path, [2, 1, 1])
    made.fetcher.list_faults[made.items[1].id] = refuse("withdrawn")
    made.do(0)
    made.fetcher.list_faults.clear()
    made.fetcher.fetched.clear()
    monkeypatch.setattr(salvage, "judge_file", error)
    assert made.do(0)[0].state == "complete"
    assert len(made.fetcher.fetched) == 4
    assert frames_of(made) == frames_of(calm)


def test_a_full_scratch_ends_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is nobody's fault among the items: no download would fit either."""
    _, made = make_runs(tmp_path, [2, 1, 1])
    made.fetcher.list_faults[made.items[1].id] = refuse("withdrawn")
    made.do(0)
    made.fetcher.list_faults.clear()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(salvage, "write_all", full)
    with pytest.raises(StorageError, match="No space left"):
        made.do(0)
    monkeypatch.undo()
    assert made.do(0)[0].state == "complete"


def test_a_stop_ends_it_and_the_next_life_goes_on(tmp_path: Path) -> None:
    """Told to stop while a frame is taken back, the caller hears of it before the next block."""
    calm, made = make_runs(tmp_path, [1] * 40, pixels=4000)
    made.fetcher.list_faults[made.items[0].id] = refuse("withdrawn")
    made.do(0)
    stop = threading.Event()
    taker, fact, entries = salvage_of(made, stop)
    folder = tmp_path / "raw"
    folder.mkdir()
    taken = taker.take(fact, entries, folder)
    next(taken)
    stop.set()
    with pytest.raises(InterruptedRunError):
        list(taken)
    assert 0 < len(list(folder.iterdir())) < 20
    made.fetcher.list_faults.clear()
    assert made.do(0)[0].state == "complete"
    assert sorted(made.fetcher.fetched) == sorted(calm.fetcher.fetched)


def test_a_kill_at_any_line_spoils_nothing(tmp_path: Path) -> None:
    """A life that dies anywhere in it leaves the packed frame as it was, and raw files that are in nobody's way."""
    calm, made = make_runs(tmp_path, [2, 1, 1], pixels=40)
    made.fetcher.list_faults[made.items[1].id] = refuse("withdrawn")
    made.do(0)
    before = frames_of(made)
    # Where the next life puts them.
    folder = made.root / "scratch" / "shard-0" / "frame-0"

    def action() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        taker, fact, entries = salvage_of(made)
        assert len(list(taker.take(fact, entries, folder))) == 2

    code, lines = run_and_kill(action, 0)
    assert code == DONE
    for at in range(1, lines, max(1, lines // 40)):
        assert run_and_kill(action, at)[0] == KILLED
        assert frames_of(made) == before
    made.fetcher.list_faults.clear()
    assert made.do(0)[0].state == "complete"
    assert sorted(made.fetcher.fetched) == sorted(calm.fetcher.fetched)
    assert frames_of(made)[0] == frames_of(calm)[0]
    assert not (made.root / "scratch" / "shard-0").exists()


def test_a_raw_file_that_changes_is_taken_back_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What scratch spoils of a packed frame costs no more than a second look at the frame."""
    calm, made = make_runs(tmp_path, [2, 1, 1])
    made.fetcher.list_faults[made.items[1].id] = refuse("withdrawn")
    made.do(0)
    made.fetcher.list_faults.clear()
    made.fetcher.fetched.clear()
    real, spoiled = Packer.pack, []

    def spoil(self: Packer, job: Any) -> None:
        if not spoiled:
            spoiled.append(path := Path(job.pieces[2].files[0].local))
            flip(path, 200)
        real(self, job)

    monkeypatch.setattr(Packer, "pack", spoil)
    assert made.do(0)[0].state == "complete"
    assert set(made.fetcher.fetched) == {"uuid-00001/00000.dcm"}
    assert frames_of(made)[0] == frames_of(calm)[0]


def test_all_that_was_proved_of_a_file_is_kept(tmp_path: Path) -> None:
    """Evidence, route and every other thing that records and raw files share are those of the first time."""
    record = FileRecord("1.dcm", 3, "a" * 64, 512, "k/1.dcm", ["md5", "size"], "idc:http://there", "e")
    file = raw_file(record, tmp_path / "x", "b" * 32, "A2")
    for name in set(FileRecord.__struct_fields__) & set(RawFile.__struct_fields__):
        kept = getattr(file, name)
        assert kept
        assert (list(kept) if name == "evidence" else kept) == getattr(record, name)
    assert (file.local, file.md5, file.chain) == (str(tmp_path / "x"), "b" * 32, "A2")
    assert file.evidence == ("md5", "size")


@st.composite
def records(draw: st.DrawFn) -> FrameRecord:
    """Records of frames that may say anything."""
    small = st.integers(-3, 40)
    files = st.builds(FileRecord, st.just("n"), small, st.just(""), small, st.just("k"), st.just([]), st.just("r"))
    pieces = [PieceRecord(n, 0, draw(st.lists(files, max_size=3))) for n in range(draw(st.integers(0, 3)))]
    blocks = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=3))
    held = sum(size for _, size in blocks)
    return FrameRecord(0, "p", 0, 0, "", draw(st.sampled_from([held, held, 7])), blocks, pieces)


@given(record=records(), wanted=st.sets(st.integers(0, 3)))
def test_a_record_that_contradicts_itself_gives_nothing(record: FrameRecord, wanted: set[int]) -> None:
    """What is chosen can be walked, forward, within the blocks of the frame; it is wanted, and has files."""
    chosen = choose_pieces(record, {(number, 0) for number in wanted})
    assert all(piece.number in wanted and piece.files for piece in chosen)
    stream = TarStream((Piece(size, bytes(size)) for _, size in record.blocks), 0)
    for file in (file for piece in chosen for file in piece.files):
        stream.skip_to(file.offset)
        assert sum(len(data or b"") for data in stream.take(file.size)) == file.size


def test_blocks_in_memory_are_counted_with_those_that_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one block, one is in memory at a time: it is let go before the next is asked for."""
    calm, made = make_runs(tmp_path, [1] * 40, pixels=4000)
    made.fetcher.list_faults[made.items[5].id] = once(DOWN)
    real, held, most = Packer.borrow_room, [0], [0]

    @contextmanager
    def counted(self: Packer, stop: threading.Event) -> Iterator[None]:
        with real(self, stop):
            held[0] += 1
            most[0] = max(most[0], held[0])
            assert self._room._value == 0
            try:
                yield
            finally:
                held[0] -= 1

    monkeypatch.setattr(Packer, "borrow_room", counted)
    assert made.do(0, blocks=1)[0].state == "complete"
    assert (held, most) == ([0], [1])
    assert frames_of(made) == frames_of(calm)


def test_nothing_is_taken_from_a_frame_that_has_nothing(tmp_path: Path) -> None:
    """A frame without a record, one of failures alone, and one whose wanted entries failed are asked of the site."""
    _, made = make_runs(tmp_path, [1, 1, 1])
    made.fetcher.list_faults[made.items[1].id] = refuse("withdrawn")
    made.do(0)
    taker, fact, entries = salvage_of(made)
    assert taker.find(0, entries) == fact
    assert taker.find(0, entries[:1]) == fact
    assert taker.find(0, entries[1:2]) is None
    assert taker.find(1, entries) is None
    none = msgspec.structs.replace(fact, pieces=1)
    assert Salvage(made.run, 0, {0: none}, room=no_bound, stop=threading.Event()).find(0, entries) is None
