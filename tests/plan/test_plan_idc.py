"""Items that the database makes are those that the records would make."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pipeline.config import parse_config
from pipeline.demo.data import build_demo
from pipeline.demo.hostile import build_hostile
from pipeline.model import IdcLocation, Item
from pipeline.plan.idc import IdcPlanSource
from pipeline.plan.source import EncodedItem
from pipeline.settings import Config
from pipeline.sources.idc_index import IdcIndex


def config_for(index: Path, group_by: str) -> Config:
    """Everything of an index."""
    tables = {
        "run": {"name": "r"},
        "storage": {"root": "runs"},
        "select": {"idc": {"content": "both"}},
        "sources": {"idc": {"index": str(index)}},
        "archive": {"group_by": group_by, "name": "all" if group_by == "run" else "{group}"},
    }
    return parse_config(tables, "c.toml")


@pytest.mark.parametrize("group_by", ["collection", "licence", "run"])
@pytest.mark.parametrize("build", [build_demo, build_hostile])
def test_items_are_those_of_the_index_in_order_of_group_and_path(build: object, group_by: str, tmp_path: Path) -> None:
    """Whatever stands in the index, every item decodes to what its row says, groups are together, paths ascend."""
    data = build(tmp_path, "tiny") if build is build_demo else build(tmp_path)  # type: ignore[operator]
    config = config_for(data.index, group_by)
    found = list(IdcPlanSource(config).select())
    with IdcIndex.open(config.sources.idc) as index:
        selection = index.select(config.select.idc)
        rows = {row.crdc_series_uuid: row for row in selection.ordered((n, f"p{n:09}") for (n,) in selection.scan([]))}
    assert len(found) == len(rows)
    for group, item in found:
        assert isinstance(item, EncodedItem)
        decoded = msgspec.json.decode(item.json, type=Item)
        row = rows[decoded.location.uuid]
        assert decoded == Item(
            id=row.SeriesInstanceUID,
            path=item.path,
            files=row.instanceCount,
            bytes=row.size_bytes,
            location=IdcLocation(row.aws_bucket, row.crdc_series_uuid),
            licence=row.license_short_name,
            meta=msgspec.Raw(row.meta.encode()),
        )
        assert item[:5] == (decoded.id, decoded.path, decoded.files, decoded.bytes, decoded.licence)
        wanted = {"collection": row.collection_id, "licence": row.license_short_name, "run": "r"}[group_by]
        assert group == (wanted or "unknown")
    groups = [group for group, _ in found]
    assert len(set(groups)) == sum(a != b for a, b in zip(groups, [None, *groups], strict=False))
    for group in set(groups):
        paths = [item.path for each, item in found if each == group]
        assert paths == sorted(paths)
