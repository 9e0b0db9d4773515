"""Transformers' Auto classes find our families after `import dynrefer`, which imports neither transformers nor torch.

Transformers looks a model type up by names: `model_type` -> class name, which it expects in the module
`transformers.models.MODEL_TYPE`. Ours are added to its lists as soon as it has read them, and a stand-in for that
module imports the family when one of its classes is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module, util
from types import ModuleType

from . import FAMILIES, Family

LISTS = "transformers.models.auto.auto_mappings"
COPIES = "transformers.models.auto.configuration_auto"  # keeps the list of configs as a copy


class FamilyModule(ModuleType):
    """`transformers.models.MODEL_TYPE`, with the classes of our family."""

    def __init__(self, name: str, family: Family):
        super().__init__(name, f"The classes of {family.module}.")
        self._family = family

    def __getattr__(self, name: str):
        family = self.__dict__["_family"]
        if name not in (family.config, family.model, family.processor):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(family.module), name)


class AfterImport:
    """Adds our names to transformers' lists when they are imported: a finder of `sys.meta_path`."""

    def find_spec(self, name, path, target=None):
        if name != LISTS:
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            add_names(module)

        spec.loader.exec_module = execute_and_add
        return spec


def add_names(module: ModuleType) -> None:
    """Our families in the lists of a module."""
    for model_type, family in FAMILIES.items():
        module.CONFIG_MAPPING_NAMES[model_type] = family.config
        if hasattr(module, "PROCESSOR_MAPPING_NAMES"):
            module.PROCESSOR_MAPPING_NAMES[model_type] = family.processor


def register_families() -> None:
    """To be called once. The families register their model classes themselves, when they are imported."""
    for model_type, family in FAMILIES.items():
        name = f"transformers.models.{model_type}"
        sys.modules[name] = FamilyModule(name, family)
    loaded = [sys.modules[name] for name in (LISTS, COPIES) if name in sys.modules]
    for module in loaded:
        add_names(module)
    if not loaded:
        sys.meta_path.insert(0, AfterImport())
