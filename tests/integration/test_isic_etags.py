"""The ETag of each image: beside the archive, where a later change of the image can be seen by it, and not inside."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import msgspec
import pytest
from haul import run_medhaul
from test_isic_haul_tables import IsicHaul

from pipeline.archive.index import FileLine, catalogue_path, content_only, read_lines
from pipeline.archive.reader import ArchiveReader
from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_data import build_isic
from pipeline.records import FileRecord, FrameRecord


def test_etags_stand_beside_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file has the ETag that storage stated, also in `ls --files --json`; the archive itself does not tell."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with IsicSite(build_isic(tmp_path / "isic").archive) as site:
        haul = IsicHaul(tmp_path / "haul", site, group_by="run", name="skin")
        haul.all()
    path = haul.run.archives / "skin.tar.xz"
    lines = {line.sha256: line for line in haul.lines() if isinstance(line, FileLine)}
    inside = {}
    with tarfile.open(path, "r:xz") as tar:
        for info in tar:
            data = tar.extractfile(info)
            assert data is not None
            inside[info.name] = data.read()
    catalogue = inside.pop(catalogue_path("skin"))
    assert len(inside) > 50
    for body in inside.values():
        line = lines[hashlib.sha256(body).hexdigest()]
        assert line.etag == hashlib.md5(body).hexdigest()
        assert "md5" in line.evidence
    told = run_medhaul("ls", "--files", "--json", path)
    rows = [msgspec.json.decode(row) for row in told.out.splitlines()]
    assert {row["sha256"]: row["etag"] for row in rows} == {line.sha256: line.etag for line in lines.values()}
    with ArchiveReader(str(path)) as reader:
        beside = list(reader.lines())
    within = list(read_lines(io.BytesIO(catalogue), "skin"))
    assert within == [content_only(line) for line in beside]
    assert not any(line.etag for line in within if isinstance(line, FileLine))


def test_records_from_before_there_were_etags() -> None:
    """A journal's file of seven values is read, and has no ETag; a line of an index without one is as it always was."""
    old = ["n", 1, "s", 512, "k", ["md5"], "r"]
    frame = {
        "frame": 0, "part": "p", "offset": 0, "length": 9, "sha256": "s", "tar_bytes": 0, "blocks": [],
        "pieces": [{"number": 0, "piece": 0, "files": [old, [*old, "e"]]}],
    }  # fmt: skip
    record = msgspec.json.decode(msgspec.json.encode(frame), type=FrameRecord)
    plain = FileRecord("n", 1, "s", 512, "k", ["md5"], "r")
    assert record.pieces[0].files == [plain, msgspec.structs.replace(plain, etag="e")]
    assert msgspec.json.encode(FileLine(name="n", size=1, sha256="s", offset=512)) == (
        b'{"type":"file","name":"n","size":1,"sha256":"s","offset":512}'
    )
