"""Region-level vision-language models: image + boxes or masks in, captions, tags, attributes and categories out.

    import dynrefer

    model = dynrefer.load("runs/quickstart")
    results = dynrefer.RegionPredictor(model)("photo.jpg", boxes=[[40, 30, 180, 200]])
    print(results[0].caption)

Public names are imported when they are first used, so that `import dynrefer` costs milliseconds. Transformers'
`AutoModel`, `AutoConfig` and `AutoProcessor` know our models after `import dynrefer.auto`.
"""

import importlib

__version__ = "0.3.0"

_PUBLIC = {
    "load": "dynrefer.models.auto",
    "RegionPredictor": "dynrefer.predictor",
    "draw_results": "dynrefer.draw",
    "Region": "dynrefer.data.records",
    "RegionResult": "dynrefer.data.records",
    "open_records": "dynrefer.data.record_files",
    "write_records": "dynrefer.data.record_files",
    "DynReferConfig": "dynrefer.models.dynrefer.configuration",
    "DynReferModel": "dynrefer.models.dynrefer.modeling",
    "DynReferProcessor": "dynrefer.models.dynrefer.processor",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dynrefer' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
