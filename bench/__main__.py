"""``python -m bench``: all benches."""

import sys

from . import main

sys.exit(main())
