"""Cutting: in order, complete, as even as can be, and frames that know nothing of shards."""

from __future__ import annotations

import itertools
from array import array

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.plan.cut import Piece, count_pieces, count_shards, cut_frames, cut_shards, cut_volumes
from pipeline.plan.planner import Group, frame_costs, plan_layouts
from pipeline.settings import Archive, Shards
from pipeline.sources.base import cut_files
from pipeline.units import ByteSize

# What an index may state: nothing (-1), nonsense (0), small, large, huge.
stated_bytes = st.integers(-1, 12) | st.integers(-1, 300) | st.just(2**40)
stated_files = st.integers(-1, 5) | st.just(60)
stated = st.lists(st.tuples(stated_bytes, stated_files), max_size=40)
group_sizes = st.integers(0, 100)
costs_lists = st.lists(st.integers(0, 30), min_size=1, max_size=9)


def by_frame(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces, frame by frame."""
    return [list(group) for _, group in itertools.groupby(pieces, key=lambda piece: piece.frame)]


@given(stated, group_sizes, st.integers(0, 200), st.integers(1, 70))
def test_frames_hold_every_item_once_and_in_order(
    sizes: list[tuple[int, int]], group: int, more: int, most: int
) -> None:
    """Pieces are the items in order, each with all its pieces, and frames are numbered without a gap."""
    pieces = cut_frames(sizes, group, group + more + 1, most)
    whole = [(item, piece, pieces) for item, piece, pieces, _ in pieces]
    counts = {item: total for item, _, total in whole}
    assert whole == [(item, piece, counts[item]) for item in range(len(sizes)) for piece in range(counts[item])]
    frames = [piece.frame for piece in pieces]
    assert [frame for frame, _ in itertools.groupby(frames)] == list(range(len(set(frames))))


@given(stated, st.integers(1, 100), st.integers(0, 200), st.integers(1, 70))
def test_a_frame_is_a_group_of_small_items_or_belongs_to_one_item(
    sizes: list[tuple[int, int]], group: int, more: int, most: int
) -> None:
    """Items of `group_bytes` or too many files are alone; a group never holds more, and is never needlessly small."""
    frames = by_frame(cut_frames(sizes, group, group + more, most))
    held = [sum(max(1, sizes[piece.item][0]) for piece in frame) for frame in frames]
    files = [sum(max(1, sizes[piece.item][1]) for piece in frame) for frame in frames]

    def small(piece: Piece) -> bool:
        return sizes[piece.item][0] < group and sizes[piece.item][1] <= most

    for number, frame in enumerate(frames):
        if len(frame) > 1:
            assert held[number] <= group
            assert files[number] <= most
            assert all(piece.pieces == 1 and small(piece) for piece in frame)
        if number and all(map(small, frames[number - 1] + frame)):
            size, count = sizes[frame[0].item]
            assert held[number - 1] + max(1, size) > group or files[number - 1] + max(1, count) > most


@given(stated_bytes, stated_files, st.integers(1, 100), st.integers(1, 70))
def test_a_huge_item_is_cut_as_often_as_its_bytes_and_files_allow(size: int, files: int, cut: int, most: int) -> None:
    """No piece is above `cut_bytes` or `cut_files` as planned unless there are too few files; none is without one."""
    pieces = count_pieces(size, files, cut, most)
    assert 1 <= pieces <= max(1, files)
    assert files <= pieces * most
    if pieces < files:
        assert size <= pieces * cut
    assert pieces == 1 or (pieces - 1) * cut < size or (pieces - 1) * most < files


def test_an_item_of_many_small_files_is_cut_by_files() -> None:
    """20,001 files of a byte or so are three frames at 10,000 files each, and their neighbours are not among them."""
    cut = cut_frames([(5, 1), (30_000, 20_001), (5, 1)], 1 << 20, 1 << 30, 10_000)
    assert list(cut) == [Piece(0, 0, 1, 0), *(Piece(1, n, 3, n + 1) for n in range(3)), Piece(2, 0, 1, 4)]


@given(stated, st.integers(0, 500))
def test_volumes_hold_all_items_within_the_bound(sizes: list[tuple[int, int]], bound: int) -> None:
    """Archives are as full as the bound lets them be; an item beyond it is an archive of its own."""
    plain = [size for size, _ in sizes]
    volumes = cut_volumes(plain, bound)
    assert sum(volumes) == len(plain)
    assert all(count > 0 for count in volumes)
    ends = list(itertools.accumulate(volumes))
    for start, end in zip([0, *ends], ends, strict=False):
        held = [max(1, size) for size in plain[start:end]]
        assert bound == 0 or len(held) == 1 or sum(held) <= bound
        if bound and end < len(plain):
            assert sum(held) + max(1, plain[end]) > bound
    if bound == 0:
        assert len(volumes) <= 1


def best_largest(costs: list[int], count: int) -> int:
    """The dearest shard of the best cut, found by trying all."""
    cuts = itertools.combinations(range(1, len(costs)), min(count, len(costs)) - 1)
    return min(max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cut, len(costs)))) for cut in cuts)


@example([0, 0, 0, 0], 3)
@example([30, 0, 0, 0, 0], 5)
@given(costs_lists, st.integers(1, 12))
def test_shards_are_as_even_as_any_cut_can_be(costs: list[int], count: int) -> None:
    """Exactly as many shards as asked for (or as there are frames), none empty, the dearest as cheap as possible."""
    shards = cut_shards(costs, count)
    assert len(shards) == min(count, len(costs))
    assert all(frames > 0 for frames in shards)
    assert sum(shards) == len(costs)
    ends = [0, *itertools.accumulate(shards)]
    assert max(sum(costs[a:b]) for a, b in itertools.pairwise(ends)) == best_largest(costs, count)


def test_no_frames_no_shards() -> None:
    """Nothing is cut into nothing."""
    assert cut_shards([], 5) == []
    assert cut_frames([], 1, 1, 1) == []
    assert cut_volumes([], 1) == []


@given(costs_lists, st.integers(0, 50), st.integers(1, 100), st.integers(0, 1000))
def test_the_number_of_shards_is_possible(costs: list[int], wanted: int, target: int, others: int) -> None:
    """At least one shard, at most one for each frame; automatic: none dearer than the target on average."""
    count = count_shards(costs, wanted, sum(costs) + others, target)
    assert 1 <= count <= len(costs)
    if not wanted and count < len(costs):
        assert sum(costs) <= count * target


@example([100, 100, 1000], 3)
@example([1, 1, 1, 10**12], 4)
@example([10**12, 1, 1, 1], 4)
@example([0, 0, 0], 3)
@given(st.lists(st.integers(0, 50) | st.just(10**12), min_size=1, max_size=30), st.integers(1, 10))
def test_files_of_a_cut_item_are_spread_so_that_no_piece_is_empty(sizes: list[int], pieces: int) -> None:
    """Every file falls into one piece; with as many files as pieces or more, every piece has one."""
    counts = cut_files(sizes, pieces)
    assert len(counts) == pieces
    assert sum(counts) == len(sizes)
    if len(sizes) >= pieces:
        assert min(counts) >= 1


@given(st.integers(1, 1000), st.integers(1, 40), st.integers(1, 10**9))
def test_files_of_one_size_are_spread_evenly(files: int, pieces: int, size: int) -> None:
    """Slices of a CT, all of one size: pieces differ by one file at most."""
    counts = cut_files([size] * files, pieces)
    assert max(counts) - min(counts) <= 1


shard_settings = st.builds(
    lambda count, target, cost: Shards(count=count, target_bytes=ByteSize(target), file_cost=ByteSize(cost)),
    st.integers(0, 30),
    st.integers(1, 2000),
    st.integers(0, 100),
)


@given(
    st.lists(st.lists(st.tuples(stated_bytes, stated_files), min_size=1, max_size=15), min_size=1, max_size=4),
    st.integers(0, 400),
    shard_settings,
    shard_settings,
)
def test_frames_do_not_depend_on_the_settings_of_shards(
    groups: list[list[tuple[int, int]]], max_bytes: int, one: Shards, two: Shards
) -> None:
    """However the work is divided, archives and frames are cut the same; shards cover all frames, in order."""
    sizes = array("q", [size for group in groups for size, _ in group])
    files = array("q", [count for group in groups for _, count in group])
    firsts = [0, *itertools.accumulate(map(len, groups))]
    spans = [Group(f"g{n}", firsts[n], len(group)) for n, group in enumerate(groups)]
    archive = Archive(max_bytes=ByteSize(max_bytes), group_bytes=ByteSize(40), cut_bytes=ByteSize(100))
    layouts = plan_layouts(spans, sizes, files, archive, one)
    others = plan_layouts(spans, sizes, files, archive, two)
    assert [layout[:4] for layout in layouts] == [layout[:4] for layout in others]
    assert len({layout.name for layout in layouts}) == len(layouts)
    position = 0
    for layout in layouts:
        assert layout.first_item == position
        position += layout.items
        assert sum(layout.shard_frames) == layout.pieces[-1].frame + 1
        assert {piece.item for piece in layout.pieces} == set(range(layout.items))
    assert position == len(sizes)


@given(stated.filter(bool), st.integers(0, 1000))
def test_the_cost_of_frames_is_the_cost_of_their_items(sizes: list[tuple[int, int]], file_cost: int) -> None:
    """Bytes and files are counted once, however an item is cut, and every entry costs something."""
    pieces = cut_frames(sizes, 50, 100, 20)
    total = sum(max(0, size) + max(0, files) * file_cost for size, files in sizes)
    assert total - len(pieces) <= sum(frame_costs(pieces, sizes, file_cost)) - len(pieces) <= total


@pytest.mark.parametrize(("count", "names"), [(1, ["x"]), (3, ["x-0001", "x-0002", "x-0003"])])
def test_volumes_of_a_group_are_numbered(count: int, names: list[str]) -> None:
    """A group that fits one archive has its plain name."""
    sizes, files = array("q", [100] * count), array("q", [1] * count)
    layouts = plan_layouts([Group("x", 0, count)], sizes, files, Archive(max_bytes=ByteSize(100)), Shards())
    assert [layout.name for layout in layouts] == names
