"""Names -> one text vector each: sentences with the name in them, embedded and averaged; kept in memory and on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dynrefer.errors import shown
from dynrefer.files import atomic_path

TEXTS_AT_ONCE = 1024
ON_DISK = 256  # lists of so many names are kept in a file
IN_MEMORY = 8  # lists
ENDINGS = ("-other", "-merged", "-stuff")  # of COCO's names, which say nothing
CACHE = "DYNREFER_CACHE"


def openai81() -> list[str]:
    """OpenAI's 80 sentences for ImageNet, and the bare name."""
    from dynrefer.convert.clip_text import import_open_clip

    return [*(template("{}") for template in import_open_clip().OPENAI_IMAGENET_TEMPLATES), "{}."]


TEMPLATES: dict[str, Callable[[], list[str]]] = {"openai81": openai81, "one": lambda: ["a photo of a {}."]}


def template_list(templates: str | Sequence[str]) -> list[str]:
    """Sentences with {} for the name, from a row of TEMPLATES or a list. ValueError for others."""
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise ValueError(f"templates {templates!r}: expected one of {', '.join(TEMPLATES)}, or a list of sentences")
        return TEMPLATES[templates]()
    if not templates or not all(isinstance(text, str) and text.count("{}") == 1 for text in templates):
        raise ValueError(f"templates {shown(templates)}: expected sentences with one {{}} each, for the name")
    return list(templates)


def clean(name: str) -> str:
    """The name as it stands in the sentences: as it is, but for endings that COCO gives it.

    >>> clean("tree-merged"), clean("yoke_(animal_equipment)")
    ('tree', 'yoke_(animal_equipment)')
    """
    for ending in ENDINGS:
        name = name.replace(ending, "")
    return name


class TextBanks:
    """Text banks of one CLIP.

    embed: texts -> (N, E), not normalized; templates: sentences; mark: changes when CLIP does.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Tensor], templates: Sequence[str], mark: str):
        self.embed, self.templates, self.mark = embed, list(templates), mark
        self.kept: dict[str, Tensor] = {}

    def key(self, names: Sequence[str]) -> str:
        """A hash of everything that a bank depends on."""
        digest = hashlib.sha256(self.mark.encode())
        for part in (*self.templates, "", *map(clean, names)):
            digest.update(f"\0{part}".encode())
        return digest.hexdigest()

    def __contains__(self, names: Sequence[str]) -> bool:
        """Whether the bank of a list is at hand in memory."""
        return self.key(names) in self.kept

    def bank(self, names: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """(C, E) float32 of length 1, on a device. Made once a word list; long lists are kept in `cache_folder()`
        too."""
        key = self.key(names)
        if key not in self.kept:
            path = cache_folder() / "text_banks" / f"{key}.safetensors" if len(names) >= ON_DISK else None
            bank = None if path is None else read_bank(path, len(names))
            if bank is None:
                bank = self.make(names)
                if path is not None:
                    write_bank(path, bank)
            self.kept[key] = bank.to(device)
            while len(self.kept) > IN_MEMORY:
                del self.kept[next(iter(self.kept))]
        return self.kept[key]

    def make(self, names: Sequence[str]) -> Tensor:
        """The mean of a name's embeddings, of which none is normalized, and then normalized."""
        at_once = max(1, TEXTS_AT_ONCE // len(self.templates))
        rows = []
        quiet = True if len(names) < ON_DISK else None  # None: a bar where people look
        for start in tqdm(range(0, len(names), at_once), "names", unit_scale=at_once, disable=quiet):
            some = names[start : start + at_once]
            texts = [template.replace("{}", clean(name)) for name in some for template in self.templates]
            rows.append(self.embed(texts).float().unflatten(0, (len(some), -1)).mean(1))  # (n, E)
        return F.normalize(torch.cat(rows), dim=-1)


def cache_folder() -> Path:
    """Where what can be made anew is kept: $DYNREFER_CACHE, or dynrefer/ in the user's cache folder."""
    if folder := os.environ.get(CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynrefer"


def read_bank(path: Path, num_names: int) -> Tensor | None:
    """A bank of so many names; None where there is none, or none that can be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        bank = load_file(path)["bank"]
    except (OSError, SafetensorError, KeyError):
        return None
    return bank if bank.dim() == 2 and len(bank) == num_names and torch.isfinite(bank).all() else None


def write_bank(path: Path, bank: Tensor) -> None:
    """Whole or not at all. A disk that is full or not ours costs time later, and nothing else."""
    from safetensors.torch import save_file

    try:
        with atomic_path(path) as temporary:
            save_file({"bank": bank.cpu().contiguous()}, temporary)
    except OSError:
        pass
