"""Saving, loading and publishing a model: what every family inherits.

FOLDER/
  config.json  model.safetensors (or shards)   as transformers writes them
  processor files, text_tokenizer/             where the model has its processor
  adapter/                                     LoRA layers, as PEFT reads them
  base_parts.json                              with `save_trainable_only`: what was left out, and where it is
  README.md                                    the model card
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.utils.hub import cached_file, resolve_revision

from dynrefer.files import write_json

from . import base_parts
from .base_parts import HUB_OPTIONS, LOOKUP_OPTIONS, LORA, locate, plain, read_tensors, weight_files
from .card import CARD, About, is_somebodys, public_name, write_card
from .family import FamilyModel
from .folder_check import check_types

ADAPTER = "adapter"
ADAPTER_FILE = f"{ADAPTER}/adapter_model.safetensors"
ADAPTERS = ("separate", "merged")
# Leftovers of an earlier save or push, deleted first: they would be read instead of, or beside, the new files.
STALE = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    ADAPTER_FILE,
    f"{ADAPTER}/adapter_config.json",
    base_parts.FILE,
)


class RegionModel(FamilyModel, PreTrainedModel):
    """A model made of parts that others trained and its own layers.

    `BASE_PARTS`: {part: its module}; the part's config is `config.PART_config`. `LANGUAGE_PART`: the one of them that
    is a language model: it alone is quantized, and it may carry LoRA layers (`config.PART_mode`, `config.PART_lora`).
    `CARD`: what a model card says of the family, see card.py. `processor` is set by `dynrefer.load` and by training.
    `loaded_from`: (name, revision) of the model that was loaded, from which frozen parts can be fetched again.
    """

    BASE_PARTS: dict[str, str] = {}
    LANGUAGE_PART: str | None = None
    CARD = About()

    def __init__(self, config, dtypes: Mapping[str, torch.dtype] | None = None):
        """dtypes: of single tensors, where they differ from the model's (a saved model's, while it is loaded)."""
        super().__init__(config)
        self.processor = None
        self.loaded_from: tuple[str, str | None] | None = None
        self.copies_of: set[tuple[base_parts.Origin, str]] = set()  # see base_parts.leave_out
        self._dtypes = dtypes

    def post_init(self) -> None:
        super().post_init()
        # transformers asks direct children only, and the parts stand inside their adapters
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                self._no_split_modules |= set(module._no_split_modules or ())
                self._skip_keys_device_placement |= set(module._skip_keys_device_placement or ())
                self._keep_in_fp32_modules |= set(module._keep_in_fp32_modules or ())
        for name, tensor in self.state_dict(keep_vars=True).items() if self._dtypes else ():
            dtype = self._saved_dtype(name) or tensor.dtype
            if dtype != tensor.dtype and dtype.is_floating_point and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)

    def _saved_dtype(self, name: str) -> torch.dtype | None:
        """That of the tensor in the file, or where files have older names, the only one of its part."""
        dtypes = self._dtypes
        name = self.all_tied_weights_keys.get(name, name)
        if name in dtypes:
            return dtypes[name]
        path = next((f"{path}." for path in self.BASE_PARTS.values() if name.startswith(f"{path}.")), None)
        found = {dtype for other, dtype in dtypes.items() if path and other.startswith(path) and LORA not in other}
        return found.pop() if len(found) == 1 else None

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict:
        return {} if self._dtypes is not None else super()._get_dtype_plan(dtype)

    @property
    def device(self) -> torch.device:
        """Of the first tensor that is in memory: offloaded ones are on no device."""
        return next((tensor.device for tensor in self.parameters() if not tensor.is_meta), torch.device("cpu"))

    def freeze(self) -> None:
        """Only what the config trains asks for gradients."""

    def after_load(self) -> None:
        """Checks or fills what a loaded model needs beyond its tensors, its processor included; raises ValueError."""

    # ------------------------------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """transformers' from_pretrained, for a folder or a hub id, with these differences:

        - Without `dtype` (or with "auto") every tensor has the number type it was saved in.
        - Parts that were left out are fetched from their sources and checked (base_parts.py), adapters read.
        - `quantization_config` quantizes the language model only, unless it names modules to skip itself.
        - Frozen parts are frozen again, which loading forgets.
        - Code that comes with the model is never run: weights are safetensors, `trust_remote_code` must not be set.
        """
        name = pretrained_model_name_or_path
        if kwargs.pop("trust_remote_code", None):
            raise ValueError(
                f"model {str(name)!r}: trust_remote_code is set, and code of a model is never run; leave it out"
            )
        kwargs |= {"trust_remote_code": False, "weights_only": True, "use_safetensors": True}
        if name is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(name, *args, **kwargs)
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        place = {key: kwargs[key] for key in ("revision", "subfolder") if kwargs.get(key)}
        if not Path(name).exists():  # all files of one commit
            lookup = {key: value for key, value in hub.items() if key in LOOKUP_OPTIONS}
            place["revision"] = resolve_revision(name, place.get("revision"), **lookup)
        kwargs |= place
        other_kind = kwargs.get("variant") or kwargs.get("gguf_file")
        base_parts.check_source(name, weights=not other_kind, pickled=False, **hub, **place)
        own = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype", "quantization_config") if key in kwargs}
        wants_info = kwargs.pop("output_loading_info", False)
        config = kwargs.pop("config", None)
        if not isinstance(config, cls.config_class):
            config, kwargs = cls.config_class.from_pretrained(
                config or name, return_unused_kwargs=True, **{**kwargs, **hub, **place}
            )
            kwargs = {**kwargs, **hub, **place}
        records = base_parts.read_records(name, **hub, **place)
        adapter = cached_file(name, ADAPTER_FILE, _raise_exceptions_for_missing_entries=False, **hub, **place)
        skeleton = cls.skeleton(config) if records or adapter or own.get("quantization_config") else None
        if own.get("quantization_config") is not None:
            own["quantization_config"] = language_only(own["quantization_config"], skeleton)
        tensors = {} if other_kind else read_tensors(weight_files(name, **hub, **place))
        if adapter:
            tensors |= skeleton.read_adapter(adapter)
        if own.get("dtype", own.get("torch_dtype")) in (None, "auto"):
            left_out = {key: getattr(torch, t) for row in records.values() for key, t in row["tensors"].items()}
            own["dtypes"] = {key: tensor.dtype for key, tensor in tensors.items()} | left_out
        if records or adapter:
            tensors |= base_parts.fetch(skeleton, records, **hub)
            # a tied copy is found by name when it is offloaded
            tied = skeleton.all_tied_weights_keys.items()
            tensors = {copy: tensors[name] for copy, name in tied if name in tensors} | tensors
            kwargs = {key: value for key, value in kwargs.items() if key not in (*hub, *place)}
            source = {"pretrained_model_name_or_path": None, "state_dict": tensors}
        else:
            source = {"pretrained_model_name_or_path": name}
        model, info = super().from_pretrained(*args, **source, config=config, output_loading_info=True, **own, **kwargs)
        model.config.name_or_path = str(name)
        if own.get("quantization_config") is None and getattr(config, "quantization_config", None) is None:
            check_types({key: t.dtype for key, t in tensors.items()}, model.state_dict(), f"model {str(name)!r}")
        if records:
            sources = {part: asdict(base_parts.Origin.of(row)) for part, row in records.items()}
            model.config.base_parts = {**(model.config.base_parts or {}), **sources}
        if not place.get("subfolder"):
            model.loaded_from = locate(name, place.get("revision"), **hub)
        model.keep_loose_tensors()
        model.freeze()
        return (model, info) if wants_info else model

    @classmethod
    def skeleton(cls, config) -> RegionModel:
        """The model without memory for its tensors."""
        with torch.device("meta"):
            return cls(copy.deepcopy(config))

    def keep_loose_tensors(self) -> None:
        """Tensors of a module that has modules inside stay in memory when the rest is offloaded: accelerate's hooks
        fetch a module's tensors while it is called, and these are used without a call too."""
        for path, module in self.named_modules():
            own = {name: parameter for name, parameter in module.named_parameters(recurse=False) if parameter.is_meta}
            if not own or next(module.children(), None) is None:
                continue
            from accelerate.hooks import remove_hook_from_module

            values = {name: load_offloaded_parameter(self, f"{path}.{name}" if path else name) for name in own}
            remove_hook_from_module(module)
            for name, parameter in own.items():
                value = values[name].to(self.device, parameter.dtype)
                setattr(module, name, torch.nn.Parameter(value, requires_grad=parameter.requires_grad))

    # ------------------------------------------------------------------------------------------ saving

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        save_trainable_only: bool = False,
        adapters: str = "separate",
        max_shard_size: int | str = "50GB",
        repo_id: str | None = None,
        **kwargs,
    ) -> None:
        """transformers' save_pretrained, with the processor and a model card, and two more options.

        save_trainable_only: leaves out what was not trained and can be fetched from where it came; see base_parts.py.
        adapters: LoRA layers "separate", in `adapter/` as PEFT reads them, or "merged" into the language model.
        """
        options = {"save_trainable_only": save_trainable_only, "adapters": adapters, "max_shard_size": max_shard_size}
        if not is_main_process:
            return
        own = {key: kwargs.pop(key) for key in ("variant", "save_original_format") if key in kwargs}
        self._save(Path(save_directory), state_dict, **options, **own)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, **options, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        save_trainable_only: bool = False,
        adapters: str = "separate",
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
        **kwargs,
    ):
        """Saves the model with its processor and card as `save_pretrained` does, and uploads it.

        kwargs: commit_message, commit_description, private, token, revision, create_pr. Returns huggingface_hub's
        CommitInfo. Raises ValueError where a part is left out that only this machine has.
        """
        if tags:
            self.add_model_tags(tags)
        options = {"save_trainable_only": save_trainable_only, "adapters": adapters, "max_shard_size": max_shard_size}
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), None, repo_id=repo_id, **options)
            return upload(Path(folder), repo_id, **kwargs)

    def _save(
        self,
        folder: Path,
        state_dict: Mapping[str, Tensor] | None,
        *,
        save_trainable_only: bool,
        adapters: str,
        repo_id: str | None = None,
        **options,
    ) -> None:
        """repo_id: the folder will be that model on the hub, so it must not refer to files of this machine."""
        if adapters not in ADAPTERS:
            raise ValueError(f"adapters {adapters!r}: expected one of {', '.join(ADAPTERS)}")
        quantized = getattr(self, "hf_quantizer", None) is not None
        offloaded = any(parameter.is_meta for parameter in self.parameters())
        lora = self.has_adapter and not quantized
        if (quantized or offloaded) and (save_trainable_only or adapters == "merged"):
            raise ValueError(
                f"save_trainable_only and adapters='merged' need the whole model in memory as it is; this one is "
                f"{'quantized' if quantized else 'offloaded'}: load it without quantization_config and device_map"
            )
        config = copy.deepcopy(self.config)
        state = dict(self.state_dict() if state_dict is None else state_dict)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        adapter = self.adapter_names() if lora and adapters == "separate" else {}
        if lora and adapters == "merged":
            state = self.merged(state)
            trained |= {name for name in state if name.startswith(f"{self.language_path}.")}
            setattr(config, f"{self.LANGUAGE_PART}_mode", "frozen")
            setattr(config, f"{self.LANGUAGE_PART}_lora", None)
        records = base_parts.leave_out(self, state, trained, folder) if save_trainable_only else {}
        config.base_parts = base_parts.sources_to_save(self, lora and adapters == "merged", repo_id is not None)
        if repo_id and config.training:
            config.training = [{**run, "init": run["init"] and public_name(run["init"])} for run in config.training]
        for part, row in records.items() if repo_id else ():
            if base_parts.Origin.of(row).is_local:
                raise ValueError(
                    f"push_to_hub: the {part} part is left out and its source {row['name']!r} is on this machine only; "
                    "push the model whole, or push the source first and fine-tune from its hub id"
                )

        folder.mkdir(parents=True, exist_ok=True)
        for pattern in () if options.get("variant") else STALE:
            for path in folder.glob(pattern):
                path.unlink()
        if adapter:
            layers = {
                name: load_offloaded_parameter(self, ours) if state[ours].is_meta else state[ours]
                for name, ours in adapter.items()
            }
            language = (config.base_parts or {}).get(self.LANGUAGE_PART)
            self.write_adapter(folder / ADAPTER, layers, base_parts.Origin.of(language) if language else None)
        elsewhere = {name for row in records.values() for name in row["tensors"]}.union(adapter.values())
        tied = self.all_tied_weights_keys
        kept = {k: v for k, v in state.items() if k not in elsewhere and tied.get(k) not in elsewhere}
        own_config, self.config = self.config, config
        try:
            super().save_pretrained(folder, state_dict=kept, **options)
        finally:
            self.config = own_config
        for path in (*folder.glob("model*.safetensors"), *folder.glob(ADAPTER_FILE)):
            path.chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read them
        if records:
            write_json(folder / base_parts.FILE, records)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        write_card(folder, self, config, records, repo_id)

    # ------------------------------------------------------------------------------------------ adapters

    @property
    def language_path(self) -> str | None:
        """Of the language model's module; None where there is none."""
        return None if self.LANGUAGE_PART is None else self.BASE_PARTS[self.LANGUAGE_PART]

    @property
    def has_adapter(self) -> bool:
        """Whether the language model carries LoRA layers."""
        return self.language_path is not None and hasattr(self.get_submodule(self.language_path), "peft_config")

    def adapter_names(self) -> dict[str, str]:
        """{name in PEFT's file: our name} of the LoRA layers."""
        from peft import get_peft_model_state_dict

        language = self.get_submodule(self.language_path)
        state = {name: tensor for name, tensor in language.state_dict(keep_vars=True).items() if LORA in name}
        ours = {id(tensor): f"{self.language_path}.{name}" for name, tensor in state.items()}
        found = get_peft_model_state_dict(language, state_dict=state, save_embedding_layers=False)
        return {f"base_model.model.{name}": ours[id(tensor)] for name, tensor in found.items()}

    def write_adapter(self, folder: Path, tensors: Mapping[str, Tensor], source: base_parts.Origin | None) -> None:
        """tensors: under PEFT's names; source: of the language model that they belong to."""
        from safetensors.torch import save_file

        config = copy.deepcopy(self.get_submodule(self.language_path).peft_config["default"])
        if source and not source.changed:
            config.base_model_name_or_path, config.revision = source.name, source.revision
        language = getattr(self.config, f"{self.LANGUAGE_PART}_config")
        config.task_type = "SEQ_2_SEQ_LM" if language.is_encoder_decoder else "CAUSAL_LM"
        config.inference_mode = True
        config.save_pretrained(folder)
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / Path(ADAPTER_FILE).name, metadata={"format": "pt"})

    def read_adapter(self, path: str | Path) -> dict[str, Tensor]:
        """The LoRA layers of an adapter file under our names; ValueError where they do not fit the config."""
        tensors = read_tensors([path])
        names = self.adapter_names() if self.has_adapter else {}
        if different := sorted(names.keys() ^ tensors.keys()):
            raise ValueError(
                f"{path}: {len(different)} LoRA tensors do not fit config.json's {self.LANGUAGE_PART}_lora, such as "
                f"{different[0]}"
            )
        return {names[name]: tensor for name, tensor in tensors.items()}

    @torch.no_grad()
    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of the model with the adapters added to the language model's weights; the state as it is where there
        are none. The model stays as it is."""
        if not self.has_adapter:
            return dict(state)
        from peft.tuners.tuners_utils import BaseTunerLayer

        prefix = f"{self.language_path}."
        others = {k: v for k, v in state.items() if not k.startswith(prefix)}
        merged = {plain(k): v for k, v in state.items() if k.startswith(prefix) and LORA not in k}
        for name, layer in self.get_submodule(self.language_path).named_modules():
            if isinstance(layer, BaseTunerLayer):
                weight = layer.get_base_layer().weight
                before = weight.data.clone()
                layer.merge(safe_merge=True)
                merged[f"{prefix}{name}.weight"] = weight.data.clone()
                layer.unmerge()
                weight.data.copy_(before)  # adding and subtracting rounds
        return others | merged


def language_only(quantization_config, model: RegionModel):
    """The user's quantization settings; where they name no modules to skip, all but the language model's layers are.

    Its output layer and its LoRA layers stay as they are too. A model without a language model: the settings as given.
    """
    if model.language_path is None:
        return quantization_config
    keep, module, prefix = [], model, ""
    for step in model.language_path.split("."):
        keep += [f"{prefix}{name}" for name, _ in module.named_children() if name != step]
        module, prefix = module.get_submodule(step), f"{prefix}{step}."
    output = module.get_output_embeddings()
    keep += [name for name, module in model.named_modules() if module is output]
    keep.append(r".*\.lora_.*")
    settings = copy.deepcopy(quantization_config)
    if isinstance(settings, dict):
        bitsandbytes = {"load_in_4bit", "load_in_8bit"} & settings.keys()
        settings.setdefault("llm_int8_skip_modules" if bitsandbytes else "modules_to_not_convert", keep)
    else:
        for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
            if getattr(settings, name, keep) is None:
                setattr(settings, name, keep)
    return settings


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
):
    """A saved folder to the hub, in one commit that also removes weights of an earlier push. A card that somebody wrote
    there stays."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="dynrefer", token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    except HfHubHTTPError.__bases__ as error:  # a hub out of reach is another library's error, no OSError
        if isinstance(error, OSError):
            raise
        raise ConnectionError(f"push_to_hub: {api.endpoint} cannot be reached ({error})") from error
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    card = None
    if api.file_exists(repo_id, CARD, revision=revision):
        card = api.hf_hub_download(repo_id, CARD, revision=revision)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message or "Upload model",
        commit_description=commit_description,
        create_pr=create_pr,
        ignore_patterns=[CARD] if card and is_somebodys(Path(card)) else None,
        delete_patterns=list(STALE),
    )
