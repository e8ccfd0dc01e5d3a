"""The run on a GPU machine (``bench/run_on_gpu.sh``). Standard library only: it starts before anything is built."""
