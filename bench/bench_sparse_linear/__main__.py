"""``python -m bench.bench_sparse_linear``"""

import sys

from . import main

sys.exit(main())
