"""Whether the files of a model are what they should be, looked at before anything is loaded from them.

A file of a model may be a pointer of Git LFS, cut off, empty or a web page; a folder may name files outside of itself,
or bring code. Each is told in one line with the file, what it is and what to do. Code is never run.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import orjson
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor

from dynrefer.errors import cut, first_line

logger = logging.getLogger(__name__)

AGAIN = "copy or download it again"
POINTER = b"version https://git-lfs.github.com/spec/"
ANNEX = re.compile(rb"\s*(\.\./)*/?(\.git/)?annex/objects/")
LARGEST_HEADER = 100_000_000  # of a safetensors file, as the library has it
DAMAGED = (  # what libraries raise for damaged files, beside ValueError
    SafetensorError,
    StrictDataclassError,
    OSError,
    RuntimeError,
    ImportError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
)
PICKLES = (".bin", ".pt", ".pth")
# What loading reads beside the weights, where it is there.
OBJECTS = (
    "config.json",
    "generation_config.json",
    "base_parts.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    "adapter_config.json",
    "sentence_bert_config.json",
)
TEXTS = ("vocab.txt", "merges.txt", "*.jinja", "*.model", "*.tiktoken")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FILE_KEYS = ("transformers_weights", "fast_tokenizer_files", "configuration_files")  # values that name files to read
KERNEL = re.compile(r"_?(attn|experts)_implementation(_internal)?$")  # a value with a slash is code on the hub

# ------------------------------------------------------------------------------------------------ one file


def check_file(path: str | Path, kind: str = "file") -> None:
    """ValueError in one line where a file is missing or is not what its name says. kind: what to call it."""
    path = Path(path)
    if not path.is_file():
        said = " (it is a folder); name a file" if path.is_dir() else "; check the path, or download it again"
        raise ValueError(f"{kind} {str(path)!r}: no such file{said}")
    if (fault := fault_of(path)) is not None:
        raise ValueError(f"{kind} {str(path)!r}: {fault}")


def fault_of(path: Path) -> str | None:
    """What is wrong with a file, and what to do; None where nothing is seen. Only its ends and headers are read, of
    JSON all."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(512)
    if not size:
        return f"empty; {AGAIN}"
    if start.startswith(POINTER) or ANNEX.match(start):
        tool = "git lfs pull" if start.startswith(POINTER) else "git annex get"
        name = "Git LFS" if start.startswith(POINTER) else "git-annex"
        return f"a pointer of {name} ({size} bytes), not the file itself; fetch it with `{tool}`, or download it again"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), not the file; download the file itself, not the page that shows it"
    if not start.strip(b"\0"):
        if _all_zero(path):
            return f"nothing but zeros ({size:,} bytes), as an interrupted copy leaves them; {AGAIN}"
    if path.suffix == ".safetensors":
        return safetensors_fault(path, size)
    if path.suffix == ".json":
        return _json_fault(path)
    if path.suffix in PICKLES and start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return f"cut off ({size:,} bytes without the end); {AGAIN}"
    return None


def _all_zero(path: Path) -> bool:
    with open(path, "rb") as file:
        return not any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b""))


def safetensors_fault(path: Path, size: int) -> str | None:
    """By its header, which says how long the file is."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > LARGEST_HEADER:
            return f"no safetensors file, or damaged at its start; {AGAIN}"
        if 8 + length > size:
            return f"cut off, or no safetensors file ({size:,} bytes, its header alone has {8 + length:,}); {AGAIN}"
        header = file.read(length)
    try:
        rows = orjson.loads(header)
        ends = [row["data_offsets"][1] for name, row in rows.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"no safetensors file, or its header is damaged; {AGAIN}"
    if size != whole:
        return f"{'cut off' if size < whole else 'too long'} ({size:,} of {whole:,} bytes); {AGAIN}"
    return None


def _json_fault(path: Path) -> str | None:
    try:
        _parsed(path)
    except (ValueError, RecursionError) as error:
        if path.read_bytes()[:3].startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            return "begins with a byte order mark, as editors write it; save it as UTF-8 without one"
        return f"damaged or cut off, no JSON ({error}); {AGAIN}"
    return None


def _parsed(path: Path) -> Any:
    content = path.read_bytes()
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content.decode("utf-8"))  # which reads NaN, too; transformers reads no other encoding


def read_object(path: str | Path, kind: str = "file") -> dict[str, Any]:
    """A JSON object; ValueError in one line for a file that is missing, damaged, or something else."""
    check_file(path, kind)
    content = _parsed(Path(path))
    if not isinstance(content, dict):
        found = cut(repr(content), 40)
        raise ValueError(f"{kind} {str(path)!r}: holds {found} where names and values are expected; {AGAIN}")
    return content


def read_state(path: str | Path, kind: str = "file", mapped: bool = False) -> Any:
    """What torch.save wrote, of tensors and plain values only, on the CPU; code in it is never run. mapped: tensors
    stay in the file until they are looked at, where the format allows it. ValueError in one line for anything else."""
    path = Path(path)
    check_file(path, kind)
    with reading(f"{kind} {str(path)!r}", "truncated, damaged or not PyTorch's"):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))


@contextmanager
def reading(what: str, said: str = "missing, damaged or in no known format") -> Iterator[None]:
    """Whatever goes wrong within it while files of others are read is a ValueError in one line that begins with
    `what`. None of it advises to run code."""
    try:
        yield
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{what}: {'damaged, or ' * (not name)}it holds more than tensors, such as code, which is never run"
            f"{f' (it names {name[1]})' if name else ''}; get it as .safetensors, or from its source"
        ) from error
    except ValueError as error:
        raise never_run(error, what) from error
    except DAMAGED as error:
        raise ValueError(f"{what}: {said} ({first_line(error)})") from error


def never_run(error: ValueError, what: str) -> ValueError:
    """The error as it is, or another one where it advises to run code of others."""
    if "trust_remote_code=True" not in str(error):
        return error
    return ValueError(
        f"{what}: needs code of its own, which is never run; take one that the installed transformers knows"
    )


# ------------------------------------------------------------------------------------------------ a folder


def check_folder(folder: str | Path, whole: bool = True, weights: bool = True, pickled: bool = True) -> None:
    """Looks at all that loading reads from a model's folder; nothing where there is no such folder.

    whole: shards that an index names must be there (a cache fetches them later); weights: whether those are read;
    pickled: whether weights in torch's own format are, as tensors only.

    Raises ValueError in one line. Code in the folder is told of in a line, see `tell_code`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    found = {}
    for place in places(folder):
        for name in OBJECTS:
            if (path := place / name).is_file():
                found[path] = read_object(path, "model file")
        for path in (path for pattern in TEXTS for path in sorted(place.glob(pattern))):
            if path.is_file():
                check_file(path, "model file")
    for path, content in found.items():
        check_values(path, content)
    tell_code(folder, found)
    if weights:
        check_weights(folder, whole, pickled)


def check_complete(folder: Path) -> None:
    """ValueError where a model's folder lacks what save_pretrained writes: weights, or half of a tokenizer."""
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ValueError(f"model folder {str(folder)!r}: no weights in it ({WEIGHTS[0]} or its shards); {AGAIN}")
    for place in places(folder):
        config, words = place / "tokenizer_config.json", [*map(place.glob, VOCABULARIES)]
        missing = [] if config.is_file() else [config.name]
        missing += [] if any(any(found) for found in words) else ["tokenizer.json"]
        if len(missing) == 1 and (config.is_file() or (place / "tokenizer.json").is_file()):
            raise ValueError(f"model folder {str(place)!r}: a tokenizer without its {missing[0]}; {AGAIN}")


def places(folder: Path) -> list[Path]:
    """The folder and those in it with files that loading reads: tokenizers, adapters."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return [folder, *(path for path in inner if any((path / name).is_file() for name in OBJECTS))]


def check_weights(folder: Path, whole: bool, pickled: bool) -> None:
    """Those that loading would take, and an adapter's."""
    for path in sorted(folder.glob(f"*/{ADAPTER_WEIGHTS}")):
        check_file(path, "model file")
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        return
    if not pickled and name.startswith("pytorch_model"):
        raise ValueError(
            f"model file {str(folder / name)!r}: weights in a pickle, which may hold code; a model of ours is read "
            "from model.safetensors, which save_pretrained writes"
        )
    if not name.endswith(".index.json"):
        check_file(folder / name, "model file")
        return
    table = read_object(folder / name, "model file").get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise ValueError(f"model file {str(folder / name)!r}: no weight_map of tensors and files; {AGAIN}")
    for file in sorted(set(table.values())):
        check_inside(folder / name, "weight_map", file)
        if whole or (folder / file).is_file():
            check_file(folder / file, f"model file of {name}:")


def check_inside(path: Path, key: str, name: str) -> None:
    """ValueError where a file names one that is not in its folder."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(name).is_absolute() or kind(name).anchor or ".." in kind(name).parts:
            raise ValueError(
                f"model file {str(path)!r}: {key} names {cut(name)!r}, which is not in the model's folder; nothing is "
                "read from there. Get the model from its source"
            )


def check_values(path: Path, content: Mapping[str, Any]) -> None:
    """ValueError where a config names a file outside of its folder, or code that would be fetched from the hub."""
    for key, value in values_of(content):
        if key in FILE_KEYS or (key.endswith("_file") and ".." in PurePosixPath(value).parts):
            check_inside(path, key, value)
        if KERNEL.match(key) and "/" in value:
            raise ValueError(
                f"model file {str(path)!r}: {key} is {cut(value)!r}, which is code on the hub; it is never fetched or "
                "run. Remove the key"
            )


def values_of(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of all texts in a JSON value, however deep; those of a list have the list's key."""
    waiting = [(key, content)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, Mapping):
            waiting += [(str(name) or key, item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]


_told: set[str] = set()


def tell_code(folder: Path, files: Mapping[Path, Mapping[str, Any]]) -> None:
    """One line where a folder brings code, the first time: it is never run."""
    holds = [f"auto_map in {path.relative_to(folder)}" for path, content in files.items() if names_code(content)]
    holds += [str(path.relative_to(folder)) for path in sorted((*folder.glob("*.py"), *folder.glob("*/*.py")))]
    line = f"{folder}: brings code ({', '.join(holds[:3])}{', ...' if len(holds) > 3 else ''}), which is never run"
    if holds and line not in _told:
        _told.add(line)
        logger.warning(line)


def names_code(content: Any) -> bool:
    """Whether there is an "auto_map" somewhere in a JSON value."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            if "auto_map" in value:
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


# ------------------------------------------------------------------------------------------------ numbers


def check_numbers(tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
    """ValueError that names tensors of floating-point numbers with NaN or infinite values in them."""
    bad = []
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or tensor.itemsize < 2 or not tensor.numel():
            continue
        if not torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all():
            bad.append(name)
    if bad:
        raise ValueError(
            f"{what}: {len(bad)} weights hold NaN or infinite numbers, such as {', '.join(bad[:3])}; the file is "
            "damaged or its training went wrong: take another checkpoint"
        )


def check_types(tensors: Mapping[str, torch.dtype], model: Mapping[str, Tensor], what: str) -> None:
    """ValueError where a file has whole numbers (or other) for a tensor that is of floating-point numbers."""
    wrong = [
        f"{name} ({str(dtype).removeprefix('torch.')})"
        for name, dtype in tensors.items()
        if name in model and model[name].is_floating_point() and not dtype.is_floating_point
    ]
    if wrong:
        raise ValueError(
            f"{what}: {len(wrong)} weights are of a type that holds no fractions, such as {', '.join(wrong[:3])}; "
            "expected a floating-point type. Save the model anew"
        )
