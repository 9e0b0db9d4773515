"""Parts that were taken from elsewhere and not trained: where from, with which content, and fetching them again.

A saved model may leave such tensors out (`save_trainable_only`). `base_parts.json` beside its weights then says which,
from what source, and the hash of the source's content, which is checked whenever it is read.
"""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.hub import cached_file, get_checkpoint_shard_files, resolve_revision

from dynrefer.convert.clip_text import read_text_encoder, text_tensors

from .folder_check import check_file, check_folder, check_numbers, read_object, reading

FILE = "base_parts.json"
LOOKUP_OPTIONS = ("token", "cache_dir", "local_files_only")
HUB_OPTIONS = (*LOOKUP_OPTIONS, "force_download", "proxies")
LORA = "lora_"


@dataclass(frozen=True)
class Origin:
    """Where a part's tensors can be read.

    kind: a row of READERS; name: hub id, folder or file; revision: commit of a hub id; sha256: `content_hash` of the
    part there; changed: the model's part began as this and is no longer.
    """

    kind: str
    name: str
    revision: str | None = None
    sha256: str | None = None
    changed: bool = False

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @classmethod
    def of(cls, record: Mapping) -> Origin:
        """From a record of base_parts.json or of the config. Version 0.3.0 wrote "dynrefer" for "ours"."""
        values = {key: value for key, value in record.items() if key != "tensors"}
        return cls(**values | ({"kind": "ours"} if values.get("kind") == "dynrefer" else {}))

    @property
    def is_local(self) -> bool:
        return os.path.isabs(self.name)


def locate(name: str | Path, revision: str | None = None, **hub) -> tuple[str, str | None]:
    """(absolute path, None) of what lies here, (hub id, commit hash) of the rest."""
    if Path(name).exists():
        return str(Path(name).resolve()), None
    hub = {key: hub[key] for key in LOOKUP_OPTIONS if key in hub}
    found = resolve_revision(str(name), revision, **hub)
    return str(name), getattr(found, "resolved", found)


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and values. Halves count as float32: a part has one hash in all types that hold it."""

    def line(name: str) -> str:
        tensor = tensors[name].detach().cpu()
        if tensor.is_floating_point() and tensor.itemsize < 4:
            tensor = tensor.float()
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}\n"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256("".join(pool.map(line, sorted(tensors))).encode()).hexdigest()


def part_names(model, part: str) -> dict[str, str]:
    """{name in the part's own model: name in ours}. LoRA layers and copies of tied tensors are left out."""
    prefix = f"{model.BASE_PARTS[part]}."
    state = model.get_submodule(prefix[:-1]).state_dict()
    return {
        plain(name): prefix + name
        for name in state
        if LORA not in name and prefix + name not in model.all_tied_weights_keys
    }


def plain(name: str) -> str:
    """The name that a tensor had before LoRA wrapped its layer."""
    return name.replace(".base_layer.", ".")


# ------------------------------------------------------------------------------------------------ files


def local_folder(name: str | Path, subfolder: str | None = None, **hub) -> Path | None:
    """A folder, or what the cache holds of a hub id; None where nothing is there yet."""
    place = Path(name, subfolder or "")
    if Path(name).exists():
        return place if place.is_dir() else None
    hub = {key: hub[key] for key in ("cache_dir", "revision") if hub.get(key)}
    try:
        path = cached_file(name, "config.json", subfolder=subfolder or "", local_files_only=True, **hub)
    except OSError:
        return None
    return None if path is None else Path(path).parent


def check_source(name: str | Path, weights: bool = True, pickled: bool = True, **hub) -> None:
    """`folder_check.check_folder` of a folder, or of what the cache holds of a hub id. hub: as for `cached_file`."""
    folder = local_folder(name, **hub)
    if folder is not None:
        check_folder(folder, whole=Path(name).exists(), weights=weights, pickled=pickled)


def weight_files(name: str | Path, **hub) -> list[str]:
    """The safetensors files of a saved model, fetched where it is a hub id; [] where it has none."""
    for file in ("model.safetensors", "model.safetensors.index.json"):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None:
            return [path] if file.endswith(".safetensors") else get_checkpoint_shard_files(name, path, **hub)[0]
    return []


def read_tensors(files: Iterable[str]) -> dict[str, Tensor]:
    """Memory-mapped: a tensor costs memory when it is looked at. ValueError for complex numbers, which torch would
    make real ones of."""
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    for path in files:
        check_file(path, "model file")
        with reading(f"model file {str(path)!r}"), safe_open(path, "pt") as file:
            own = {name: file.get_tensor(name) for name in file.keys()}
        if wrong := [name for name, tensor in own.items() if tensor.is_complex()]:
            raise ValueError(
                f"model file {str(path)!r}: {len(wrong)} weights are complex numbers, such as {', '.join(wrong[:3])}; "
                "expected a floating-point type. Save the model anew"
            )
        tensors |= own
    return tensors


# ------------------------------------------------------------------------------------------------ reading a part

Reader = Callable[[object, str, Origin, Mapping], dict[str, Tensor]]


def read_pretrained(model, part: str, source: Origin, hub: Mapping) -> dict[str, Tensor]:
    """The part in a model of transformers: as its own checkpoint, or inside one made of several, such as BLIP-2."""
    module, names = model.get_submodule(model.BASE_PARTS[part]), part_names(model, part)
    check_source(source.name, revision=source.revision, **hub)
    tensors = read_tensors(weight_files(source.name, revision=source.revision, **hub))
    if (prefix := prefix_of(names, tensors)) is not None:
        return {name: tensors[prefix + name] for name in names}
    types = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    with reading(f"{part}: its tensors come from {source}, which cannot be read"):
        loaded, info = type(module).from_pretrained(  # knows older names and other file formats
            source.name,
            revision=source.revision,
            config=copy.deepcopy(module.config),
            dtype=types.pop() if len(types) == 1 else torch.float32,  # as it is there: nothing is rounded
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
            **hub,
        )
    state = loaded.state_dict()
    return {name: state[name] for name in names if name not in info["missing_keys"]}


def prefix_of(names: Collection[str], found: Collection[str]) -> str | None:
    """What stands before all of these names among those found, such as "language_model."; None where some are missing.

    >>> prefix_of(["a.weight", "b.weight"], ["x.a.weight", "y.a.weight", "y.b.weight"])
    'y.'
    """
    first = min(names)
    prefixes = sorted((name.removesuffix(first) for name in found if name.endswith(first)), key=len)
    return next((prefix for prefix in prefixes if all(prefix + name in found for name in names)), None)


def read_saved(model, part: str, source: Origin, hub: Mapping) -> dict[str, Tensor]:
    """The part in a saved model of ours."""
    names = part_names(model, part)
    check_source(source.name, revision=source.revision, **hub)
    tensors = read_tensors(weight_files(source.name, revision=source.revision, **hub))
    prefix = f"{model.BASE_PARTS[part]}."
    found = {plain(name.removeprefix(prefix)): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if names.keys() <= found.keys() or read_records(source.name, revision=source.revision, **hub):
        return found
    whole = type(model).from_pretrained(  # knows a file's older names
        source.name, revision=source.revision, trust_remote_code=False, **hub
    )
    state = whole.state_dict()
    return {name: state[ours] for name, ours in part_names(whole, part).items()}


def read_clip_text(model, part: str, source: Origin, hub: Mapping) -> dict[str, Tensor]:
    """The text tower of an EVA-CLIP file or of an open_clip model."""
    return text_tensors(read_text_encoder(source.name))


def read_open_clip(model, part: str, source: Origin, hub: Mapping) -> dict[str, Tensor]:
    """The weights of an open_clip model: a file, or a tag that open_clip knows. The part's own module reads them."""
    return model.get_submodule(model.BASE_PARTS[part].rpartition(".")[0]).read_weights(source.name)


ON_HUB = ("transformers", "ours")  # kinds whose names may be hub ids
READERS: dict[str, Reader] = {
    "transformers": read_pretrained,
    "ours": read_saved,
    "clip_text": read_clip_text,
    "open_clip": read_open_clip,
}


def read_part(model, part: str, source: Origin, **hub) -> tuple[dict[str, Tensor], str]:
    """{name in the part's own model: tensor} of the whole part, and its content hash.

    model: one of our models, on any device, with the part's class and config. Raises ValueError where the source cannot
    be read, lacks tensors, or has another content hash than the one recorded.
    """
    if source.kind not in READERS:
        raise ValueError(f"{part}: source of kind {source.kind!r}; expected one of {', '.join(READERS)}")
    try:
        found = READERS[source.kind](model, part, source, hub)
    except (OSError, ImportError) as error:
        raise ValueError(f"{part}: its tensors come from {source}, which cannot be read ({error})") from error
    names = part_names(model, part)
    if missing := sorted(names.keys() - found.keys()):
        kind = model.get_submodule(model.BASE_PARTS[part]).config.model_type
        raise ValueError(
            f"{source}: lacks {len(missing)} tensors of the {part} part, such as {missing[0]}; is it a {kind} "
            "checkpoint?"
        )
    tensors = {name: found[name] for name in names}
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    for name, ours in names.items():
        shape = getattr(own[ours], "ds_shape", own[ours].shape)  # ZeRO-3 keeps only a piece of each here
        if tensors[name].shape != shape:
            raise ValueError(
                f"{source}: {name} of the {part} part is {tuple(tensors[name].shape)}, the config wants {tuple(shape)}"
            )
    check_numbers(tensors.items(), f"{part}: {source}")
    digest = content_hash(tensors)
    if source.sha256 not in (None, digest):
        raise ValueError(
            f"{part}: {source} has content hash {digest} and this model was made with {source.sha256}: it has changed "
            "since. Put the old content back, or use a folder that was saved whole"
        )
    return tensors, digest


def fill_part(model, part: str, source: Origin, **hub) -> None:
    """Reads a part into the model and records its source in the config. Errors as `read_part`."""
    tensors, digest = read_part(model, part, source, **hub)
    names = part_names(model, part)
    problems = model.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, strict=False)
    assert not problems.unexpected_keys, problems.unexpected_keys
    record(model, part, replace(source, sha256=digest))


def record(model, part: str, source: Origin, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Notes in the config where a part was taken from. tensors: under our names, to hash its content."""
    if tensors is not None:
        content = {name: tensors[ours] for name, ours in part_names(model, part).items()}
        source = replace(source, sha256=content_hash(content))
    model.config.base_parts = {**(model.config.base_parts or {}), part: asdict(source)}


# ------------------------------------------------------------------------------------------------ leaving out


def source_of(model, part: str, folder: Path) -> Origin | None:
    """Where the part was taken from, or else the model that was loaded; never the folder about to be written."""
    candidates = [Origin.of(row) for name, row in (model.config.base_parts or {}).items() if name == part]
    if model.loaded_from:
        candidates.append(Origin("ours", *model.loaded_from))
    for source in candidates:
        here = Path(source.name)
        if not source.changed and (not source.is_local or here.exists() and here != folder.resolve()):
            return source
    return None


def sources_to_save(model, merged: bool = False, public: bool = False) -> dict[str, dict] | None:
    """The config's sources, those of parts that are trained whole marked as changed. merged: the language model too,
    LoRA was added to it; public: only sources that others can reach."""
    rows = {}
    for part, row in (model.config.base_parts or {}).items():
        source = Origin.of(row)
        trained = all(p.requires_grad for p in model.get_submodule(model.BASE_PARTS[part]).parameters())
        if not (public and source.is_local):
            rows[part] = asdict(
                replace(source, changed=source.changed or trained or merged and part == model.LANGUAGE_PART)
            )
    return rows or None


def leave_out(model, state: Mapping[str, Tensor], trained: Collection[str], folder: Path) -> dict[str, dict]:
    """What need not be saved of a state: {part: its source and "tensors", our names with their number types}.

    Only tensors that are not trained and equal the source's, bit by bit in the model's number type; a warning names
    the parts where others are not trained. The source is read only where the hash of what is in memory does not tell.
    """
    records = {}
    for part, path in model.BASE_PARTS.items():
        if all(parameter.requires_grad for parameter in model.get_submodule(path).parameters()):
            continue
        names = part_names(model, part)
        names = {name: ours if ours in state else f"{path}.{name}" for name, ours in names.items()}  # LoRA merged
        frozen = {name: ours for name, ours in names.items() if ours not in trained}
        source = source_of(model, part, folder)
        if source is None:
            warnings.warn(f"{part}: not trained, but of no known source, so it is saved", stacklevel=3)
            continue
        # what is in memory hashes like the source, or is known to be its rounded copy: no need to read it again
        digest = content_hash({name: state[ours] for name, ours in names.items()}) if frozen == names else None
        if digest is not None and (digest == source.sha256 or (source, digest) in model.copies_of):
            same = frozen
        else:
            try:
                base, source_digest = read_part(model, part, source)
            except ValueError as error:  # nothing may be lost for it, least of all in the middle of a training run
                warnings.warn(f"{error}. {part} is saved", stacklevel=3)
                continue
            source = replace(source, sha256=source_digest)
            same = {name: ours for name, ours in frozen.items() if same_tensor(state[ours], base[name])}
            if same == names:
                model.copies_of.add((source, digest))
                record(model, part, source)
        if len(same) < len(frozen):
            warnings.warn(
                f"{part}: {len(frozen) - len(same)} of {len(frozen)} tensors that are not trained differ from those of "
                f"{source}, so they are saved",
                stacklevel=3,
            )
        if same:
            types = {ours: str(state[ours].dtype).removeprefix("torch.") for ours in same.values()}
            records[part] = {**asdict(source), "tensors": types}
    return records


def same_tensor(one: Tensor, base: Tensor) -> bool:
    return one.shape == base.shape and torch.equal(one, base.to(one.device, one.dtype))


def read_records(name: str | Path, **hub) -> dict[str, dict]:
    """What a saved model leaves out; {} where it is whole. ValueError for a damaged record."""
    path = cached_file(name, FILE, _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        return {}
    try:
        records = read_object(path, "model file")
        for row in records.values():
            if ".." in Path(Origin.of(row).name).parts:
                raise ValueError(f"{row['name']!r} is neither a hub id nor a whole path")
            if not isinstance(row["sha256"], str) or not all(hasattr(torch, d) for d in row["tensors"].values()):
                raise ValueError("no hash or no number types")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name}: {FILE} is damaged ({error}); save the model anew") from error
    return records


def fetch(model, records: Mapping[str, dict], **hub) -> dict[str, Tensor]:
    """The left-out tensors under our names. Errors as `read_part`, and for tensors that the part does not have."""
    tensors = {}
    for part, row in records.items():
        if part not in model.BASE_PARTS:
            raise ValueError(f"{FILE}: part {part!r}; this model has {', '.join(model.BASE_PARTS)}")
        wanted = row["tensors"]
        found, _ = read_part(model, part, Origin.of(row), **hub)
        ours = {ours: found[name] for name, ours in part_names(model, part).items()}
        if unknown := sorted(wanted.keys() - ours.keys()):
            raise ValueError(f"{FILE}: {part} has no tensor {unknown[0]!r}; it belongs to another config.json")
        tensors |= {name: ours[name] for name in wanted}
    return tensors
