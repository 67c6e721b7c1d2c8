"""`python -m pipeline.demo ROOT`: the demo site as a process of its own."""

from __future__ import annotations

import sys

from pipeline.demo.process import main

sys.exit(main())
