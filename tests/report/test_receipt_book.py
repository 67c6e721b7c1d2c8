"""What receipts prove: damaged ones prove nothing and are named, and a new attempt gets exactly what is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.receipts import ReceiptBook, choose_todo, find_archives, read_part_sizes, read_todo
from tests.schedulers.fake_run import SHA, make_index, receipt_of, write_archive, write_part, write_run

SHARD = st.fixed_dictionaries(
    {
        "receipt": st.sampled_from(["none", "complete", "partial", "damaged"]),
        "part": st.sampled_from([None, 0, 99, 100, 101]),
        "index": st.booleans(),
    }
)


@given(shards=st.lists(SHARD, min_size=1, max_size=12), built=st.booleans(), archives=st.integers(1, 3))
def test_resume_takes_exactly_what_lacks_proof(shards, built, archives):
    """A shard is left out only with a complete receipt and all that it names, or with its archive complete."""
    archives = min(archives, len(shards))
    index = make_index(len(shards), 1 if len(shards) % archives else archives)
    receipts, damaged, sizes = {}, {}, {}
    for number, shard in enumerate(shards):
        if shard["receipt"] == "damaged":
            damaged[number] = "torn"
        elif shard["receipt"] != "none":
            receipts[number] = receipt_of(number, state=shard["receipt"], failed=int(shard["receipt"] == "partial"))
        if shard["part"] is not None:
            sizes[f"{number:06d}.0.part"] = shard["part"]
        if shard["index"]:
            sizes[f"{number:06d}.0.index.zst"] = 1
    done = {index.archives[0].name} if built else set()
    todo = choose_todo(index, receipts, damaged, sizes, done)
    for number, shard in enumerate(shards):
        there = shard["part"] is not None and shard["part"] >= 100
        good = index.shards[number].archive in done or (shard["receipt"] == "complete" and there and shard["index"])
        assert (number in todo.shards) is not good
        assert todo.shards.get(number) != ""
    if todo.shards:
        assert todo.reduce


def test_reduce_is_due_until_parts_are_gone():
    """With all shards good a reduce is due while an archive is missing or parts are left, and then no more."""
    index = make_index(2, 2)
    receipts = {shard: receipt_of(shard) for shard in range(2)}
    sizes = {f"{shard:06d}.0.{suffix}": 100 for shard in range(2) for suffix in ("part", "index.zst")}
    for finished in (set(), {"a0"}, {"a0", "a1"}):
        todo = choose_todo(index, receipts, {}, sizes, finished)
        assert (todo.shards, todo.reduce) == ({}, True)
    assert not choose_todo(index, receipts, {}, {}, {"a0", "a1"}).reduce
    assert choose_todo(index, receipts, {}, {}, {"a0"}).shards.keys() == {1}


def test_damaged_receipts_are_named(tmp_path):
    """Receipts that are torn, of another shard or of another manifest count as missing; each is named with its file."""
    run = write_run(tmp_path, 5)
    for shard in range(4):
        run.write_receipt(receipt_of(shard))
        write_part(run, shard)
    run.receipt(0).write_bytes(run.receipt(0).read_bytes()[:-20])
    run.receipt(1).write_bytes(run.receipt(2).read_bytes())
    run.write_receipt(receipt_of(3, manifest_sha256="6" * 64))
    run.receipt(4).write_bytes(b"\xff\x00")
    book = ReceiptBook(run, SHA)
    book.refresh()
    assert set(book.receipts) == {2}
    assert set(book.damaged) == {0, 1, 3, 4}
    assert all(str(run.receipt(shard)) in text for shard, text in book.damaged.items())
    todo = read_todo(run, run.read_manifest_index(), book)
    assert set(todo.shards) == {0, 1, 3, 4}
    assert all(why.startswith("damaged") for why in todo.shards.values())


def test_book_follows_changes(tmp_path):
    """A partial or damaged receipt is read again, a removed one is forgotten."""
    run = write_run(tmp_path, 3)
    run.write_receipt(receipt_of(0, state="partial", failed=1))
    run.receipt(1).write_bytes(b"{")
    run.write_receipt(receipt_of(2))
    book = ReceiptBook(run, SHA)
    book.refresh()
    run.write_receipt(receipt_of(0))
    run.write_receipt(receipt_of(1))
    run.receipt(2).unlink()
    book.refresh()
    assert {shard: receipt.state for shard, receipt in book.receipts.items()} == {0: "complete", 1: "complete"}
    assert book.damaged == {}


def test_part_and_archive_files(tmp_path):
    """Part sizes and archives are what stands in the folders; an archive counts only as its index states it."""
    run = write_run(tmp_path, 4, archives=4)
    index = run.read_manifest_index()
    assert read_part_sizes(run) == {}
    assert find_archives(run, index) == {}
    write_part(run, 1, 77)
    (run.path / "parts" / "note").touch()
    write_archive(run, "a0")
    write_archive(run, "a1", "partial")
    write_archive(run, "a2")
    (run.archives / "a2.tar.xz").write_bytes(b"cut")
    (run.archives / "a3.tar.xz").write_bytes(b"archive")
    assert read_part_sizes(run) == {"000001.0.part": 77, "000001.0.index.zst": 0}
    assert {name: found.state for name, found in find_archives(run, index).items()} == {
        "a0": "complete",
        "a1": "partial",
    }


def test_partial_archive_is_not_the_end(tmp_path):
    """Once what was missing is done, an archive that was joined without it is joined again."""
    run = write_run(tmp_path, 2)
    for shard in range(2):
        run.write_receipt(receipt_of(shard))
        write_part(run, shard)
    write_archive(run, "a0", "partial")
    book = ReceiptBook(run, SHA)
    book.refresh()
    todo = read_todo(run, run.read_manifest_index(), book)
    assert (todo.shards, todo.reduce) == ({}, True)
