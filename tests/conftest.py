"""What holds for every test: one torch thread, and no network."""

import atexit
import os
import shutil
import signal
import tempfile

# Before anything imports them: both are read once. Workers of pytest-xdist share the cores, and two
# torch threads in each are slower than one; a test that needs a Hub serves its own on loopback.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Baselines are kept between runs: those of the tests stay among themselves.
os.environ["TIGHTFIT_CACHE"] = tempfile.mkdtemp(prefix="tightfit-tests-")

import torch

# A shell that runs the suite in the background ignores Ctrl-C, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["TIGHTFIT_CACHE"], ignore_errors=True)
