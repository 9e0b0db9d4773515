"""Saving, loading and publishing a processor: what every family inherits whose processor has tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import PushToHubMixin

from .base_parts import check_source
from .family import FamilyProcessor

TEXT_TOKENIZER = "text_tokenizer"  # a folder within the model's


class SavedProcessor(FamilyProcessor, PushToHubMixin):
    """`config_class`: the config of its family's models. `TOKENIZERS`: {attribute: folder within the model's, "" for
    that one itself}, in the order in which they follow the config when it is made. All else is in the model's
    config.json.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    TOKENIZERS: ClassVar[dict[str, str]] = {"tokenizer": TEXT_TOKENIZER}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs) -> None:
        """Its tokenizers and its class name, and the model's config.json where there is none yet. push_to_hub: also
        uploads them, kwargs as `push_to_hub` has them."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
            self.config.save_pretrained(folder)
        for name, place in self.TOKENIZERS.items():
            getattr(self, name).save_pretrained(folder / place)
        content = json.dumps({"processor_class": type(self).__name__}, indent=2)
        (folder / "processor_config.json").write_text(content + "\n", encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None, **kwargs) -> SavedProcessor:
        """From a saved folder or a hub id."""
        config = kwargs.pop("config", None)
        hub = {k: v for k, v in kwargs.items() if k in ("token", "cache_dir", "local_files_only", "subfolder")}
        if not isinstance(config, cls.config_class):
            check_source(name, weights=False, revision=revision, **hub)
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False, **hub)
        tokenizers = []
        for place in cls.TOKENIZERS.values():
            inside = "/".join(filter(None, (hub.get("subfolder"), place)))
            own = hub | ({"subfolder": inside} if inside else {})
            tokenizers.append(AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **own))
        return cls(config, *tokenizers)
