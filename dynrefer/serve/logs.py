"""One JSON object a line: what happened, for programs that collect logs. Never a body, a picture or a key."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any, TextIO

NAME = "dynrefer.serve"
FIELDS = "fields"  # attribute of a log record


class Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """This server's log, and uvicorn's and Python's warnings, as such lines; stderr where no stream is given."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines())
    for name in (NAME, "uvicorn", "uvicorn.error", "asyncio", "py.warnings"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = ([] if name == "uvicorn.error" else [handler]), name == "uvicorn.error"
        log.setLevel(level if name == NAME else logging.WARNING)
    logging.captureWarnings(True)


def log(event: str, error: BaseException | None = None, level: int | None = None, **fields: Any) -> None:
    """error: whose traceback goes into the line."""
    level = level or (logging.ERROR if error else logging.INFO)
    logging.getLogger(NAME).log(level, event, exc_info=error, extra={FIELDS: fields})
