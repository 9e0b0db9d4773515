"""Model families: the parts they share, and the table that names them.

Shape letters, used everywhere: R regions, V views, S view side, P patches, D vision width, Q query tokens,
E embedding width, T text tokens (or frames, where said), K tags, A attributes, C categories, N any other count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from inspect import getdoc

from dynrefer.errors import suggestion


@dataclass(frozen=True)
class FamilyModule:
    """Where a family lives; imported when it is used. build: (model section, training records) -> model, processor."""

    module: str
    config: str
    model: str
    processor: str

    def load(self, name: str):
        return getattr(import_module(self.module), getattr(self, name))

    @property
    def options(self) -> type:
        """The class of its options."""
        return self.load("model").Options

    def settings_text(self) -> str:
        """What the `model:` section of a YAML may say, for --help: keys of `build`, fields of the config and what those
        are where nothing is said."""
        config = self.load("config")
        own = [each for each in fields(config) if each.name in config.__annotations__]
        defaults = ", ".join(f"{each.name}={each.default!r}" for each in own if each.default is not MISSING)
        return "\n\n".join([getdoc(self.build), getdoc(config), f"Defaults: {defaults}"])

    @property
    def build(self) -> Callable:
        return import_module(self.module).build

    @property
    def adapt(self) -> Callable:
        return import_module(self.module).adapt


FAMILIES = {
    "dynrefer": FamilyModule("dynrefer.models.dynrefer", "DynReferConfig", "DynReferModel", "DynReferProcessor"),
    "regionspot": FamilyModule(
        "dynrefer.models.regionspot", "RegionSpotConfig", "RegionSpotModel", "RegionSpotProcessor"
    ),
    "omni_rgpt": FamilyModule("dynrefer.models.omni_rgpt", "OmniRgptConfig", "OmniRgptModel", "OmniRgptProcessor"),
}


def register_families() -> None:
    """Imports every family; each makes itself known to transformers' Auto classes when it is imported."""
    for row in FAMILIES.values():
        import_module(row.module)


def register_family(name: str, row: FamilyModule) -> None:
    """Makes a family that lives outside this package known: its config's `model_type` is `name`. ValueError where
    another family has this name."""
    if FAMILIES.setdefault(name, row) != row:
        raise ValueError(f"model family {name!r} is {FAMILIES[name].module} already; choose another model_type")


def find_family(name: str) -> FamilyModule:
    """A row of FAMILIES; ValueError with the nearest name for an unknown one."""
    if name not in FAMILIES:
        raise ValueError(f"model family {name!r}: expected one of {', '.join(FAMILIES)}.{suggestion(name, FAMILIES)}")
    return FAMILIES[name]


def build(section: Mapping, records: Sequence):
    """A new model and its processor from the `model:` section of a YAML. records: the training records, from which
    word lists and small tokenizers are made where the section names none."""
    section = dict(section)
    return find_family(section.pop("family", "dynrefer")).build(section, records)


def adapt(model, section: Mapping) -> None:
    """Training goes on from a saved model: what its YAML's `model:` section may change of it. ValueError where the
    section describes another model."""
    section = dict(section)
    kind = section.pop("family", model.config.model_type)
    if kind != model.config.model_type:
        raise ValueError(
            f"model.family is {kind!r}, but the model of `init` is of the family {model.config.model_type!r}"
        )
    find_family(kind).adapt(model, section)
