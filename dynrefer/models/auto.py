"""dynrefer.load: a run folder, a saved model's folder or a hub id -> a model with its processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging
from transformers.utils.hub import resolve_revision

from dynrefer.errors import first_line, shown

from . import FAMILIES, FamilyModule, register_families
from .base_parts import HUB_OPTIONS, LOOKUP_OPTIONS, check_source
from .family import align
from .folder_check import check_complete, check_numbers, reading

BEST = "best"  # the folder of a run's best checkpoint


def load(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    **options,
):
    """A model in eval mode, with `.processor`.

    name: a run folder (its best checkpoint), a folder that `save_pretrained` wrote, or a hub id; device: "auto" takes
    CUDA, then MPS, then CPU; dtype: such as "bfloat16"; as it was saved when None or "auto"; revision: branch, tag or
    commit of a hub id; options: of transformers' from_pretrained, such as device_map (then `device` stays "auto"),
    quantization_config (of the language model), token or cache_dir.

    Raises ValueError when there is no model, it is of no known family, a file of it is damaged or no such file (see
    folder_check.py), its weights lack tensors, have others or are no numbers, or a part that it left out cannot be
    fetched or has changed. Code that comes with a model is never run.
    """
    place_on = pick_device(device)
    source = model_folder(name)
    register_families()
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    dtype = check_dtype(dtype)
    if options.get("device_map") is not None and str(device) != "auto":
        raise ValueError(f"device {str(device)!r} and device_map {options['device_map']!r}: give one of them")
    if not Path(source).exists():  # once for all files
        revision = resolve_revision(source, revision, **{k: v for k, v in hub.items() if k in LOOKUP_OPTIONS})
    place = {"revision": revision, **hub, **({"subfolder": s} if (s := options.get("subfolder")) else {})}
    row = family_of(name, **place)
    if Path(source).is_dir() and "subfolder" not in place:
        check_complete(Path(source))
    with reading(f"model {str(name)!r}", "its config.json cannot be read"):
        config = row.load("config").from_pretrained(source, **place)
    if options.get("quantization_config") or getattr(config, "quantization_config", None):
        options.setdefault("device_map", {"": place_on})  # a quantized model is not moved
    options.setdefault("ignore_mismatched_sizes", True)  # they are named below
    with reading(f"model {str(name)!r}", "its weights do not fit its config.json"), _without_report():
        model, info = row.load("model").from_pretrained(
            source, config=config, revision=revision, dtype=dtype, output_loading_info=True, **options
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            names = sorted(map(_shown_key, info[kind]))
            raise ValueError(
                f"model {str(name)!r}: {kind.replace('_', ' ')} in its weights: {', '.join(names[:5])}"
                f"{' ...' if len(names) > 5 else ''} ({len(names)}); the file belongs to another config.json"
            )
    saved = model.state_dict().keys()  # a buffer that no file holds, such as a mask, may be infinite
    buffers = [row for row in model.named_buffers() if row[0] in saved]
    check_numbers([*model.named_parameters(), *buffers], f"model {str(name)!r}")
    with reading(f"model {str(name)!r}", "its processor cannot be read"):
        model.processor = row.load("processor").from_pretrained(source, config=model.config, **place)
    align(model)
    model.after_load()
    return model.eval() if options.get("device_map") is not None else model.to(place_on).eval()


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers' table of tensors that do not fit is not printed: the error names them."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _shown_key(key: str | tuple) -> str:
    """A tensor's name; of a mismatched one (name, shape in the file, shape in the model) all three."""
    return key if isinstance(key, str) else f"{key[0]} {tuple(key[1])}, not {tuple(key[2])}"


def family_of(name: str | Path, revision: str | None = None, **hub) -> FamilyModule:
    """The family of a model, told by its config.json; ValueError where there is none or of no known family."""
    check_source(model_folder(name), weights=False, revision=revision, **hub)
    try:
        config, _ = PreTrainedConfig.get_config_dict(model_folder(name), revision=revision, **hub)
        if not config:
            there = (Path(model_folder(name)) / "config.json").is_file()
            raise OSError("its config.json is empty" if there else "no config.json there")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model {str(name)!r}: no run folder, model folder or hub id that can be read ({first_line(error)})"
        ) from error
    row = FAMILIES.get(config.get("model_type"))
    if row is None:
        kind = config.get("model_type")
        raise ValueError(f"model {str(name)!r} is of type {kind!r}; families here: {', '.join(FAMILIES)}")
    return row


def check_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """None for "auto"; ValueError for what is no floating-point type of torch."""
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f'dtype {dtype!r}: expected a floating-point type of torch, such as "bfloat16", or "auto"')
    return found


def model_folder(name: str | Path) -> str:
    """The folder with the weights: a run's best/ where there is one; a hub id stays as it is."""
    path = Path(name)
    if (path / BEST / "config.json").is_file():
        return str(path / BEST)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(
            f"model folder {str(path)!r}: neither config.json nor {BEST}/config.json in it; has the run "
            "saved a checkpoint yet?"
        )
    if path.suffix in (".json", ".safetensors") and path.is_file():
        raise ValueError(f"model {str(name)!r}: a file of a model; name its folder, {str(path.parent)!r}")
    return str(name)


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto": CUDA, then MPS, then CPU. ValueError for a device that torch does not know or this machine lacks."""
    if str(device) == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind)
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        known = "auto, cpu, cuda, cuda:1 and mps"
        raise ValueError(f"device {shown(device)}: torch knows none of that name; there are {known}") from None
    own = getattr(torch, chosen.type, None)
    count = own.device_count() if hasattr(own, "device_count") else 0  # "meta" and others hold no numbers
    if (chosen.index or 0) >= count:
        there = f"only {count} of them" if count else f"no {chosen.type} device that torch can use"
        raise ValueError(f"device {str(device)!r}: this machine has {there}; give auto or cpu")
    return chosen
