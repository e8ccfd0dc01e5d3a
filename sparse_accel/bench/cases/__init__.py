"""What is measured: one file per op or family, whose ``cases`` makes the contenders. Imports: :mod:`~sparse_accel.ops`
and everything else that is timed, its plain twins, and of ``bench`` the case and the workloads."""
