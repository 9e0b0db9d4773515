"""`python -m data_prep.video FILE` checks a clip file: the former name of `python -m data_prep.check FILE`."""

import sys

from .check import main

if __name__ == "__main__":
    sys.exit(main())
