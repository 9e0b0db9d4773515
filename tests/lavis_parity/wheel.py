"""LAVIS's own Q-Former and EVA ViT in this process, from a wheel of 2023 installed without its dependencies:

    pip install --no-deps --target DIR salesforce-lavis==1.0.2        DYNREFER_LAVIS=DIR

Its packages' __init__ files want libraries that cannot be installed beside ours, and transformers has since lost names
that Qformer.py imports. Both are put in place here, and only here, while a test runs.
"""

import importlib
import os
import sys
import types
import warnings
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

WHEEL = os.environ.get("DYNREFER_LAVIS", "")
FOUND = bool(WHEEL) and (Path(WHEEL) / "lavis/models/eva_vit.py").is_file()
ABSENT = (
    f"no salesforce-lavis wheel (DYNREFER_LAVIS={WHEEL!r}): pip install --no-deps --target DIR "
    "salesforce-lavis==1.0.2, then set DYNREFER_LAVIS=DIR"
)
PACKAGES = ("lavis", "lavis.models", "lavis.common", "lavis.models.blip2_models")


@contextmanager
def lavis_modules():
    """(LAVIS's Qformer module, its eva_vit module); modules and transformers are as before afterwards."""
    from transformers import modeling_utils, pytorch_utils

    lost = {
        "apply_chunking_to_forward": pytorch_utils.apply_chunking_to_forward,
        "prune_linear_layer": pytorch_utils.prune_linear_layer,
        "find_pruneable_heads_and_indices": None,  # imported, and called only when heads are pruned
    }
    for name in PACKAGES:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(Path(WHEEL, *name.split(".")))]
    try:
        with mock.patch.multiple(modeling_utils, create=True, **lost):
            qformer = importlib.import_module("lavis.models.blip2_models.Qformer")
            base = qformer.BertPreTrainedModel  # what transformers 4 gave every model
            base.all_tied_weights_keys = {}
            base.get_head_mask = lambda self, mask, layers: [None] * layers
            base.invert_attention_mask = lambda self, mask: (1 - mask[:, None, None, :].float()) * -1e4
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of timm, about where it is imported from
                vit = importlib.import_module("lavis.models.eva_vit")
            yield qformer, vit
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "lavis"]:
            del sys.modules[name]
