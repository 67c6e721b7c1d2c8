"""The embedded demo sites for queries: `--base-url demo`, or that word in the environment."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

DEMO = "demo"


class Place(NamedTuple):
    """Where a query goes, and where its answers are kept (None: as ever)."""

    base_url: str
    cache_dir: Path | None


@contextlib.contextmanager
def ask_demo(base_url: str, source: Literal["tcia", "isic"]) -> Iterator[Place]:
    """Yield where to ask: for `demo` a site in this process while the block lasts, else what was given.

    What it serves is made once, in the user's cache folder; answers are not kept, for its port is another each time.

    Raises
    ------
    StorageError
        When the demo's data cannot be written.
    """
    if base_url != DEMO:
        yield Place(base_url, None)
        return
    from platformdirs import user_cache_dir

    from pipeline.config import parse_config
    from pipeline.demo.embed import plan_demo

    root = Path(user_cache_dir("medhaul")) / "demo"
    wanted: dict[str, Any] = {"tcia": {"collections": ["x"]}, "isic": {"collections": ["x"]}}
    data = {
        "run": {"name": DEMO},
        "storage": {"root": str(root)},
        "select": {source: wanted[source]},
        "sources": {source: {"base_url": DEMO}},
    }
    with contextlib.ExitStack() as stack:
        config = stack.enter_context(plan_demo(parse_config(data, "the demo"), dry_run=False))
        cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="medhaul-demo-"))
        yield Place(getattr(config.sources, source).base_url, Path(cache))
