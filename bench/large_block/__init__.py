"""One block of a model of billions of weights under a memory limit: ``python -m bench.large_block``."""
