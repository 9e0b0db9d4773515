"""Ratios between our way and a plain one, measured in one run. One thread each, so that they do not depend on cores."""

import os

for library in ("OMP", "OPENBLAS", "MKL"):  # before the first import of numpy
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
