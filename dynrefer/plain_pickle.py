"""Pickles of plain data, read without running code from them.

A pickle is a program: whoever loads one of others runs it. Here only lists, dicts, tuples, sets, texts, bytes, numbers,
True, False and None come out; a pickle that names anything else is refused with that name.
"""

import os
import pickle
from pathlib import Path
from typing import Any

PLAIN = {
    (module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)
}  # what plain data may name; all other kinds have opcodes of their own
DAMAGED = (  # what a cut off or foreign file makes the unpickler raise
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in PLAIN:
            raise _Refused(f"{module}.{name}")
        return PLAIN[module, name]


class _Refused(Exception):
    pass


def read_plain_pickle(path: str | os.PathLike) -> Any:
    """The value in a pickle of plain data, of any protocol; texts that Python 2 wrote as bytes are read as UTF-8.

    Raises ValueError for a pickle that names a class or a function, one that is cut off, and what is not a pickle.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="utf-8").load()
    except _Refused as error:
        raise ValueError(
            f"{path}: the pickle names {error}, which would run code on loading; expected plain lists and dicts. Do "
            "not load it elsewhere; download the official file"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a text in it is not UTF-8 ({error}); download it again") from error
    except DAMAGED as error:
        raise ValueError(
            f"{path}: not a pickle from its first to its last byte ({type(error).__name__}: {error}); download it again"
        ) from error
