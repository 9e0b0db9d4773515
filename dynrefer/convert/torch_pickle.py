"""Tensors out of a training checkpoint that holds more than tensors, without running code from it.

A checkpoint of torch is a zip file with a pickle of names and objects, and the tensors' numbers beside it. Here the
pickle makes plain values and tensors only. Whatever else it names, hooks, settings or code, becomes an empty stand-in.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynrefer.models.folder_check import check_file, reading

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Skipped:
    """Stands for an object of another kind: it takes everything and keeps nothing."""

    def __new__(cls, *arguments, **keywords) -> Skipped:
        return object.__new__(cls)

    def __init__(self, *arguments, **keywords):
        pass

    def __setstate__(self, state) -> None:
        pass

    def __setitem__(self, key, value) -> None:
        pass

    def __call__(self, *arguments, **keywords) -> Skipped:
        return self

    def append(self, value) -> None:
        pass

    def extend(self, values) -> None:
        pass

    def add(self, value) -> None:
        pass


@dataclass(frozen=True)
class Storage:
    """The numbers of one file in the zip."""

    dtype: torch.dtype
    name: str


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose numbers are still in the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> LazyTensor | Skipped:
    if not isinstance(storage, Storage):
        return Skipped()
    return LazyTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def rebuild_parameter(tensor: Any, *others: Any) -> Any:
    return tensor


KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch", "Size"): tuple,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get((module, name), Skipped)

    def persistent_load(self, what: Any) -> Any:
        if isinstance(what, tuple) and len(what) == 5 and what[0] == "storage" and isinstance(what[1], torch.dtype):
            return Storage(what[1], str(what[2]))
        return Skipped()


class TorchFile:
    """A file of torch.save in its zip format: `content` holds LazyTensors, `read` gives one's numbers."""

    def __init__(self, path: str | Path):
        """ValueError in one line for a file that is missing, damaged, or of another format."""
        self.path = Path(path)
        check_file(path, "checkpoint")
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f"checkpoint {str(path)!r}: not in the zip format that torch.save has written since PyTorch 1.6; save "
                "its tensors as .safetensors"
            )
        with reading(f"checkpoint {str(path)!r}", "damaged, or not PyTorch's"), zipfile.ZipFile(path) as file:
            name = next((name for name in file.namelist() if name.endswith("data.pkl")), None)
            if name is None:
                raise ValueError(f"checkpoint {str(path)!r}: no data.pkl in it, so torch.save has not written it")
            self.folder = name.removesuffix("data.pkl")
            order = f"{self.folder}byteorder"
            if order in file.namelist() and file.read(order) != b"little":
                raise ValueError(f"checkpoint {str(path)!r}: written with other byte order; save it anew")
            with file.open(name) as data:
                self.content = _Reader(data).load()

    def read(self, tensors: Mapping[str, LazyTensor]) -> dict[str, Tensor]:
        """Each with numbers of its own."""
        found = {}
        with reading(f"checkpoint {str(self.path)!r}", "damaged"), zipfile.ZipFile(self.path) as file:
            for name, lazy in tensors.items():
                numbers = bytearray(file.read(f"{self.folder}data/{lazy.storage.name}"))
                flat = torch.frombuffer(numbers, dtype=lazy.storage.dtype) if numbers else torch.empty(0)
                if math.prod(lazy.shape) > len(flat):
                    raise ValueError(
                        f"checkpoint {str(self.path)!r}: {name} is {lazy.shape}, of {len(flat):,} numbers in the file; "
                        "it is damaged, copy or download it again"
                    )
                found[name] = flat.as_strided(lazy.shape, lazy.stride, lazy.offset).clone()
        return found


def tensors_in(content: Any, keys: Sequence[str] = ("model", "state_dict")) -> dict[str, LazyTensor]:
    """The tensors by name of a checkpoint's content, bare or under one of these keys; what is no tensor is left out."""
    for key in keys:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, LazyTensor)}
