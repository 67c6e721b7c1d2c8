"""What it costs to start a task: multiplied by thousands, so imports are kept few.

python benchmarks/start.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measure import measure, medhaul, median, show

from pipeline.cli.plan import make_plan
from pipeline.config import read_config
from pipeline.demo.data import build_demo
from pipeline.demo.process import start_site

CONFIG = """
[run]
name = "start"
[storage]
root = "runs"
[select.idc]
content = "both"
modalities = ["SR"]
collections = ["demo_ct_mr"]
[sources.idc]
index = "data/idc_index.parquet"
s3_endpoint = "{url}"
mirror_endpoint = ""
[task]
allow_shared_scratch = true
start_jitter = 0
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="medhaul-bench-") as folder:
        root = Path(folder)
        data = build_demo(root / "data", "tiny")
        with start_site(data.site_root) as site:
            (root / "c.toml").write_text(CONFIG.format(url=site.url))
            plan = make_plan(read_config(root / "c.toml"))
            assert plan.run is not None
            run = str(plan.run.path)
            rows = {
                "python -c pass": [sys.executable, "-c", "pass"],
                "import requests, requests_cache, pydicom": [
                    sys.executable, "-c", "import requests, requests_cache, pydicom",
                ],
                "medhaul task --help": medhaul("task", "--help"),
                "medhaul task, one small series": medhaul("task", run, "--shard", "0"),
                "medhaul task, nothing left to do": medhaul("task", run, "--shard", "0"),
            }  # fmt: skip
            for name, command in rows.items():
                show(name, median([measure(command) for _ in range(1 if "small" in name else 5)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
