"""Frozen features: what the frozen parts of a model make of every example, computed once and read at every step.

    folder/features.json              what they were made with; written last
    folder/index.safetensors          where each example lies
    folder/features-00000.safetensors rows of some hundred examples, below each other

`python -m train.extract` writes a folder, `data.features` names it in training. An example is found by its picture's
name, its size, and the ids and boxes of its regions; each one's bytes are compared with their hash when they are read.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynrefer.data.example import Example
from dynrefer.data.records import Region
from dynrefer.files import atomic_path
from dynrefer.models.folder_check import read_object

FEATURES_FILE, INDEX_FILE = "features.json", "index.safetensors"
FORMAT = 1
VARIANTS = ("plain", "mirrored")  # of a picture: as it is, and with left and right exchanged
MOST_OPEN = 64  # files that a store holds open
EXTRACT = "run `python -m train.extract` with the configuration of this run"


def example_key(regions: Sequence[Any], variant: str = "plain") -> int:
    """64 bits of what an example's features depend on, beside the model: picture, size, ids and boxes, and variant."""
    first = regions[0]
    digest = hashlib.blake2b(f"{variant}\n{first.example}\n{first.image_hw}\n".encode(), digest_size=8)
    for region in regions:
        digest.update(f"{region.id}\n".encode() + struct.pack("<4d", *region.box))
    return int.from_bytes(digest.digest(), "little", signed=True)


def rows_digest(rows: Mapping[str, Tensor]) -> int:
    """64 bits of an example's features: names, shapes, types and bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(rows):
        tensor = rows[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return int.from_bytes(digest.digest(), "little", signed=True)


def mirrored(example: Example) -> Example:
    """The same example with left and right exchanged, pixels and boxes; masks and texts of its regions are left out.
    ValueError for a clip."""
    if not isinstance(first := example.regions[0], Region):
        raise ValueError(f"region {first.id}: of a clip, which is not mirrored; set model.mirror=0")
    width = first.image_hw[1]

    def turned(region: Region) -> Region:
        x1, y1, x2, y2 = region.box
        return replace(region, box=(width - x2, y1, width - x1, y2), mask=None, captions=(), tags=None, attributes={})

    def read(indices: Sequence[int] | None, reduce: int) -> np.ndarray:
        return np.ascontiguousarray(example.read(indices, reduce)[:, :, ::-1])

    return replace(example, regions=[turned(region) for region in example.regions], read=read, _frames={})


def write_shard(path: Path, keys: Sequence[int], examples: Sequence[Mapping[str, Tensor]], made_with: str) -> None:
    """One file of examples. examples: of each {name: (rows, ...)}, the same names and trailing sizes in all.

    made_with: what `FeatureStore` compares, see `check_shard`.
    """
    names = sorted(examples[0])
    tensors = {"keys": torch.tensor(keys), "digests": torch.tensor([rows_digest(rows) for rows in examples])}
    for name in names:
        parts = [rows[name].cpu() for rows in examples]
        tensors[f"starts.{name}"] = torch.tensor([0, *map(len, parts)]).cumsum(0)
        tensors[f"rows.{name}"] = torch.cat(parts).contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"made_with": made_with})


def check_shard(path: Path, keys: Sequence[int], made_with: str) -> bool:
    """Whether a file holds just these examples, made with the same, every byte of them whole."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made_with") != made_with or file.get_tensor("keys").tolist() != list(keys):
                return False
            digests = file.get_tensor("digests").tolist()
            return all(rows_digest(_rows(file, row)) == digest for row, digest in enumerate(digests))
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return False


def made_with_of(path: Path) -> str | None:
    """What a file says that it was made with; None for one that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("made_with")
    except (OSError, SafetensorError):
        return None


def _rows(file: Any, row: int) -> dict[str, Tensor]:
    rows = {}
    for key in file.keys():  # noqa: SIM118 - a file, not a dictionary
        if key.startswith("rows."):
            name = key.removeprefix("rows.")
            first, last = file.get_slice(f"starts.{name}")[row : row + 2].tolist()
            rows[name] = file.get_slice(key)[first:last]
    return rows


def write_index(folder: Path, shards: Sequence[str]) -> None:
    """Where each example lies, by its key: (file's number, row in it)."""
    keys, places = [], []
    for number, name in enumerate(shards):
        with safe_open(folder / name, "pt") as file:
            keys.append(file.get_tensor("keys"))
        places.append(torch.stack([torch.full_like(keys[-1], number), torch.arange(len(keys[-1]))], 1))
    keys, places = torch.cat(keys), torch.cat(places)
    order = keys.argsort(stable=True)
    with atomic_path(folder / INDEX_FILE) as temporary:
        save_file({"keys": keys[order], "places": places[order].int()}, temporary)


class FeatureStore:
    """A folder of features, opened. It can be sent to loader workers; files are opened where they are read.

    content: of features.json. ValueError for a folder that is missing, unfinished, damaged or of another version.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not (self.folder / FEATURES_FILE).is_file():
            state = "is unfinished" if self.folder.is_dir() else "does not exist"
            raise ValueError(f"features {str(folder)!r}: the folder {state} (no {FEATURES_FILE}); {EXTRACT}")
        self.content = read_object(self.folder / FEATURES_FILE)
        if self.content.get("format") != FORMAT:
            raise ValueError(
                f"features {str(folder)!r}: format {self.content.get('format')!r}, expected {FORMAT}; {EXTRACT}"
            )
        for name, size in self.content["shards"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                what = f"of {path.stat().st_size:,} bytes, expected {size:,}" if path.is_file() else "missing"
                raise ValueError(f"features file {str(path)!r}: {what}; {EXTRACT}, it makes what is not whole anew")
        try:
            with safe_open(self.folder / INDEX_FILE, "np") as file:
                self._keys, self._places = file.get_tensor("keys"), file.get_tensor("places")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"features file {str(self.folder / INDEX_FILE)!r}: {error}; {EXTRACT}") from error
        self._names = list(self.content["shards"])
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        """Examples, each counted once a variant."""
        return len(self._keys)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": OrderedDict()}

    @property
    def variants(self) -> list[str]:
        return self.content["variants"]

    def check_made_with(self, model: Any) -> None:
        """ValueError where another model's frozen parts have made them, or the same with other settings."""
        if (own := model.frozen_key()) != self.content["frozen_key"]:
            raise ValueError(
                f"features {str(self.folder)!r} were made by other frozen parts ({self.content['frozen_key']}) than "
                f"this model's ({own}); {EXTRACT}, into another folder"
            )

    def of(self, example: Example) -> Example:
        """The example with `stored`, which reads its features. ValueError where there are none of it."""
        return replace(example, stored=partial(self.read, list(example.regions)), variants=tuple(self.variants))

    def read(self, regions: Sequence[Any], variant: str = "plain") -> dict[str, Tensor]:
        """{name: (rows, ...)} of an example with these regions. ValueError where there is none, or it is damaged."""
        key = example_key(regions, variant)
        at = int(np.searchsorted(self._keys, key))
        if at == len(self._keys) or self._keys[at] != key:
            raise ValueError(
                f"features {str(self.folder)!r}: none of {regions[0].example!r} with its {len(regions)} regions, as "
                f"they stand in the records now ({variant}); {EXTRACT}"
            )
        number, row = self._places[at].tolist()
        path = self.folder / self._names[number]
        try:
            file = self._file(number, path)
            rows, digest = _rows(file, row), int(file.get_slice("digests")[row : row + 1])
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"features file {str(path)!r}: {error}; {EXTRACT}") from error
        if rows_digest(rows) != digest:
            raise ValueError(
                f"features file {str(path)!r}: those of {regions[0].example!r} are damaged (their hash differs); "
                f"{EXTRACT}, it makes what is not whole anew"
            )
        return rows

    def _file(self, number: int, path: Path) -> Any:
        if number not in self._open:
            self._open[number] = safe_open(path, "pt")
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]
