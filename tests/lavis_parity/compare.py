"""`make lavis`: the real LAVIS in its own environment against ours, with each other's weights.

python -m tests.lavis_parity.compare --lavis .venv-lavis/bin/python
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from dynrefer.convert import lavis
from dynrefer.convert.blip2 import BASE_NAMES
from dynrefer.convert.tensors import rename, rename_all
from dynrefer.models.tokenizer import train_tokenizer
from tests import tiny_dynrefer as small

from .tiny import HEADS, LANGUAGES, QFORMER, SIZES, VISION, pixels, randomize

TOLERANCE = 1e-5
PROMPTS = {"a red cup": [5, 6, 1], "two": [9, 1]}
CAPTIONS = {"cup on a table": [11, 7, 20, 31, 1], "lamps": [40, 8, 1]}


def our_model(vision: dict, qformer: dict, language: dict):
    """A DynRefer model whose vision encoder, Q-Former and language model have these configs."""
    model, processor = small.model(
        image_size=SIZES["image_size"],
        num_query_tokens=SIZES["queries"],
        vision={"config": vision},
        qformer=qformer,
        language={"config": language},
    )
    randomize(model)
    shared = model.language.model.shared.weight.data
    model.language.model.decoder.embed_tokens.weight.data = shared.clone()  # LAVIS has one for both
    model.language.control_memory.data.zero_()  # which BLIP-2 has not
    model.before_eval()
    return model, processor


def rows(texts: dict[str, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded with 0, and their mask."""
    width = max(map(len, texts.values()))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in texts.values()])
    return ids, (ids > 0).long()


@torch.no_grad()
def compute(model) -> dict[str, torch.Tensor]:
    """What BLIP-2's walk gives with the parts of our model: the picture itself is the only view."""
    prompts, captions = rows(PROMPTS), rows(CAPTIONS)
    tokens = model.vision(pixels())
    queries = model.query_tokens.expand(len(tokens), -1, -1)
    embeds = model.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
    loss = model.language.loss(embeds, *prompts, *captions) / captions[1].sum()
    caption, _ = model.language.generate(embeds, *prompts, num_beams=1, max_new_tokens=6, min_length=1)
    return {"vision_tokens": tokens, "query_output": embeds, "loss": loss, "caption": caption}


def prepare(folder: Path):
    """What LAVIS needs: our weights in its layout, the batch, and the sizes. Returns our model."""
    model, processor = our_model({"model_type": "blip_2_vision_model", **VISION}, QFORMER, LANGUAGES["t5"])
    model.save_pretrained(folder / "ours")
    processor.save_pretrained(folder / "ours")
    lavis.export(folder / "ours", folder / "ours.pth")
    save_file({"pixels": pixels()}, folder / "pixels.safetensors")
    batch = {
        "t5": {key: value for key, value in LANGUAGES["t5"].items() if key not in ("model_type", "dense_act_fn")},
        "texts": {"text_input": list(PROMPTS), "text_output": list(CAPTIONS)},
        "ids_of_texts": {**PROMPTS, **CAPTIONS},
    }
    (folder / "sizes.json").write_text(json.dumps({**SIZES, **batch}))
    return model


def read_lavis(folder: Path):
    """LAVIS's three files, as it saved them, in a model of ours."""
    train_tokenizer(["a red cup"], 40).save_pretrained(folder / "language")
    files = {"checkpoint": folder / "checkpoint_0.pth", "vision": folder / "vit.pth", "language": folder / "language"}
    lavis.convert(**files, output=folder / "hf", vision_layers=SIZES["vision_layers"], **HEADS)
    tensors, config = lavis.read_folder(folder / "hf")
    tensors = rename_all(tensors, lambda name: rename(name, BASE_NAMES), "hf")
    for part in ("encoder", "decoder"):
        tensors[f"language.model.{part}.embed_tokens.weight"] = tensors["language.model.shared.weight"]
    model, _ = our_model(*(c.to_dict() for c in (config.vision_config, config.qformer_config, config.text_config)))
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    parts = {name.split(".")[0] for name in model.state_dict().keys() - tensors.keys()}
    assert parts.isdisjoint({"vision", "qformer", "query_tokens"}), parts
    return model


def compare(direction: str, ours: dict, theirs: dict) -> float:
    """Prints a row for every quantity; returns the largest difference."""
    worst = 0.0
    for name, tensor in ours.items():
        expected = theirs[name]
        same_shape = tensor.shape == expected.shape
        difference = (tensor.double() - expected.double()).abs().max().item() if same_shape else float("inf")
        worst = max(worst, difference)
        size = "x".join(map(str, expected.shape)) or "-"
        print(f"{direction:<22} {name:<14} {size:>9} {expected.double().abs().max().item():>10.4g} {difference:>10.2e}")
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lavis", required=True, help="the Python of the environment that has salesforce-lavis")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported = prepare(folder)
        script = Path(__file__).with_name("reference.py")
        subprocess.run([arguments.lavis, "-W", "ignore", str(script), str(folder)], check=True)
        report = json.loads((folder / "report.json").read_text())
        print("LAVIS 1.0.2 with " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
        print(f"{'weights':<22} {'quantity':<14} {'shape':>9} {'largest':>10} {'max |d|':>10}")
        worst = max(
            compare("ours, in LAVIS", compute(exported), load_file(folder / "ours.safetensors")),
            compare("LAVIS's, in ours", compute(read_lavis(folder)), load_file(folder / "lavis.safetensors")),
        )
    if report["missing"] or report["unexpected"]:
        print(f"LAVIS misses {report['missing']} in our file, and does not know {report['unexpected']}")
        return 1
    print(f"largest difference {worst:.2e}, allowed {TOLERANCE:.0e}: {'equal' if worst <= TOLERANCE else 'NOT EQUAL'}")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
