"""Run medhaul in this process, and say at the end how much memory it held at most: `peak N` on standard error."""

from __future__ import annotations

import sys

from pipeline.cli.main import run_cli
from pipeline.task.resources import peak_memory

if __name__ == "__main__":
    code = run_cli(sys.argv[1:])
    print(f"peak {peak_memory()}", file=sys.stderr)
    sys.exit(code)
