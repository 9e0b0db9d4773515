"""What all commands share: a mistake in input or settings is one line and exit status 2, not a traceback."""

import argparse
import os
import sys
from collections.abc import Callable


def run_command(name: str, command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """The exit status of a command: its own (None = 0), or 2 after a mistake, which is printed in a line
    (DYNREFER_DEBUG=1 shows where it came from)."""
    try:
        return command(args) or 0
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if os.environ.get("DYNREFER_DEBUG"):
            raise
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
