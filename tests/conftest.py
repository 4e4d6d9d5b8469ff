"""One thread per process: tests are small, and two busy processes on two cores stall each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
