"""What every converter needs: a file's tensors, their new names, whether they fit a model, and a folder to write."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dynrefer.files import atomic_path
from dynrefer.models.folder_check import check_file, check_numbers, read_state, reading

# What a file is -> how names of its tensors begin.
KINDS = {
    "a DynRefer checkpoint (--checkpoint)": ("cvem_", "tag_head.", "attr_head."),
    "a CLIP text encoder (--text-encoder)": ("text.", "token_embedding.", "transformer.resblocks.", "visual."),
    "a BLIP-2 of transformers (--base, as a folder)": ("vision_model.", "language_model.", "qformer."),
    "a BLIP-2 of LAVIS (see `dynrefer convert lavis`)": ("visual_encoder.", "ln_vision."),
}


def seems(names: Iterable[str]) -> str:
    """ "; it looks like ..." for the names of a file's tensors, "" where they tell nothing."""
    counts = {kind: sum(name.startswith(starts) for name in names) for kind, starts in KINDS.items()}
    kind = max(counts, key=lambda kind: counts[kind])
    return f"; it looks like {kind}" if counts[kind] else ""


def read_torch(path: str | Path) -> dict[str, Tensor]:
    """A .pth, .pt or .safetensors file's tensors by name, without running code; {"model": {...}} is unpacked."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    # a training checkpoint holds the optimizer's numbers, too, which are never looked at
    content = read_state(path, "checkpoint", mapped=True)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {str(path)!r}: expected names and tensors, found {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"checkpoint {str(path)!r}: {name!r} is a {type(value).__name__}; expected tensors only")
    check_numbers(content.items(), f"checkpoint {str(path)!r}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    check_file(path, "checkpoint")
    with reading(f"checkpoint {str(path)!r}", "truncated, damaged or not safetensors"):
        tensors = load_file(path)
    check_numbers(tensors.items(), f"checkpoint {str(path)!r}")
    return tensors


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """The name under the longest matching prefix of a table; None when no row fits.

    >>> rename("blocks.7.mlp.fc1.bias", {"blocks.{i}.": "layers.{i}.", "blocks.{i}.mlp.": "layers.{i}."})
    'layers.7.fc1.bias'
    """
    for old, new in sorted(table.items(), key=lambda row: -len(row[0])):
        pattern = re.escape(old).replace(r"\{i\}", r"(\d+)")
        if match := re.match(pattern + ("" if old.endswith(".") else "$"), name):
            return new.replace("{i}", match.group(1) if match.groups() else "") + name[match.end() :]
    return None


def rename_all(
    tensors: Mapping[str, Tensor], rename_one: Callable[[str], str | None], source: str
) -> dict[str, Tensor]:
    """Every tensor under our name; ValueError naming those that no row of the tables knows, or that share a name."""
    renamed = {name: rename_one(name) for name in tensors}
    unknown = sorted(name for name, ours in renamed.items() if ours is None)
    if unknown:
        raise ValueError(
            f"{source}: {len(unknown)} unknown tensors, such as {', '.join(unknown[:5])}; is it a file of this kind?"
        )
    result: dict[str, Tensor] = {}
    for name, ours in renamed.items():
        if ours in result:
            first = next(other for other in renamed if renamed[other] == ours)
            raise ValueError(f"{source}: {first} and {name} are both {ours}; expected one of them")
        result[ours] = tensors[name]
    return result


def check_fit(model, tensors: Mapping[str, Tensor], computed: Collection[str] = (), source: object = "") -> None:
    """ValueError unless there is a tensor of its shape for everything in the model, and nothing else. One of two tied
    tensors is enough. computed: names that the model fills itself. source: the file that they are of, for errors."""
    state = model.state_dict()
    tied = {name for name, original in model.all_tied_weights_keys.items() if original in tensors}
    wanted = state.keys() - set(computed)
    problems = [f"missing {name}" for name in sorted(wanted - tied - tensors.keys())]
    problems += [f"unused {name}" for name in sorted(tensors.keys() - wanted)]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(state[name].shape)}"
        for name in sorted(wanted & tensors.keys())
        if tensors[name].shape != state[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"{f'{source}: ' if source else ''}tensors and config do not fit: {'; '.join(problems[:8])}{more}; is each "
            "file whole, and are all of one model?"
        )


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its name when all is written; nothing is left of it after an error."""
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"output {str(path)!r} exists and is not an empty folder; give another, or remove it")
    with atomic_path(path) as part:
        part.mkdir()
        yield part


def save_torch(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes {"model": tensors}, the layout of released files and of LAVIS, whole or not at all."""
    with atomic_path(path) as part:
        torch.save({"model": dict(tensors)}, part)


def check_new(path: str | Path) -> None:
    """ValueError where there is a file of this name."""
    if Path(path).exists():
        raise ValueError(f"output {str(path)!r} exists; give another name, or remove it")
