"""``python -m bench.large_block``."""

from .block import main

raise SystemExit(main())
