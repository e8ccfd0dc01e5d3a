"""What is measured from a checkout alone: ``python -m bench.bench_layerwise``, ``run_on_gpu.sh``. All the rest is
``sparse-accel bench`` (``sparse_accel/bench``)."""
