"""dynrefer.load: a run folder, a saved model's folder or a hub id -> a model with its processor."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from . import FAMILIES

BEST = "best"  # the folder of a run's best checkpoint


def load(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
):
    """A model in eval mode, with `.processor`.

    name: a run folder (its best checkpoint), a folder that `save_pretrained` wrote, or a hub id; device: "auto" takes
    CUDA, then MPS, then CPU; dtype: such as "bfloat16", the saved one when None; revision: of a hub id.

    Raises ValueError when there is no model, it is of no known family, or its file lacks tensors or has others.
    """
    source = model_folder(name)
    for row in FAMILIES.values():
        row.load("config")  # makes its model type known to AutoConfig
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model {str(name)!r}: no run folder, model folder or hub id that can be read ({first_line(error)})"
        ) from error
    rows = [row for key, row in FAMILIES.items() if key == config.model_type]
    if not rows:
        raise ValueError(f"model {str(name)!r} is of type {config.model_type!r}; families here: {', '.join(FAMILIES)}")
    model_class, processor_class = rows[0].load("model"), rows[0].load("processor")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    try:
        model, info = model_class.from_pretrained(
            source, config=config, revision=revision, dtype=dtype, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"model {str(name)!r}: its weights do not fit its config.json ({first_line(error)})"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            names = sorted(str(key) for key in info[kind])
            raise ValueError(
                f"model {str(name)!r}: {kind.replace('_', ' ')} in its weights: {', '.join(names[:5])}"
                f"{' ...' if len(names) > 5 else ''} ({len(names)}); the file belongs to another config.json"
            )
    model.processor = processor_class.from_pretrained(source, revision=revision, config=config)
    model.check_text_bank()
    return model.to(pick_device(device)).eval()


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
    return str(name)


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto": CUDA, then MPS, then CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
