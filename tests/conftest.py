"""Tests that run side by side (`pytest -n 2 --dist loadfile`) have a core each.

Engines and OpenMP start a thread for each core that they see; in two processes they would spend their time waiting for
each other.
"""

import os

_WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if _WORKER is not None and hasattr(os, "sched_setaffinity"):
    _CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_CORES[int(_WORKER.removeprefix("gw")) % len(_CORES)]})
    os.environ["OMP_NUM_THREADS"] = "1"
