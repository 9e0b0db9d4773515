"""`python -m eval.views`, the name that `python -m eval.sweep` had."""

import sys

from .sweep import main

if __name__ == "__main__":
    sys.exit(main())
