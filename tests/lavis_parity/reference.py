"""Runs in LAVIS's own environment (`make lavis`), beside nothing of ours: python reference.py FOLDER.

A tiny Blip2T5 by the real LAVIS, once with the weights in FOLDER/ours.pth and once with random ones that LAVIS's runner
saves; what both compute for the same batch goes into FOLDER/ours.safetensors and FOLDER/lavis.safetensors. Only what
LAVIS would download is replaced: BERT's and T5's configs and weights, the ViT's file, the tokenizers.
"""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from lavis.models import eva_vit
from lavis.models.blip2_models import blip2, blip2_t5
from lavis.runners.runner_base import RunnerBase
from safetensors.torch import load_file, save_file
from tiny import randomize


class Words:
    """A tokenizer of the batch's texts alone."""

    pad_token_id = 0

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, texts, **_):
        rows = [self.ids[text] for text in texts]
        width = max(map(len, rows))
        padded = {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        }
        return transformers.BatchEncoding(padded)

    def batch_decode(self, ids, **_):
        return ids


def instead(make):
    """An object whose from_pretrained makes a thing instead of fetching it."""
    return SimpleNamespace(from_pretrained=lambda *args, **kwargs: make(kwargs.get("config")))


def replace_downloads(sizes):
    """In LAVIS's modules: everything that would be fetched is made in the given sizes."""
    blip2.create_eva_vit_g = lambda *_: eva_vit.VisionTransformer(
        img_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["vision_width"],
        depth=sizes["vision_layers"],
        num_heads=sizes["vision_heads"],
        mlp_ratio=4.3637,
        qkv_bias=True,
        use_mean_pooling=False,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )
    bert = {
        "hidden_size": sizes["qformer_width"],
        "num_hidden_layers": sizes["qformer_layers"],
        "num_attention_heads": sizes["qformer_heads"],
        "intermediate_size": sizes["qformer_mlp"],
        "vocab_size": sizes["words"],
        "max_position_embeddings": sizes["positions"],
    }
    blip2.Blip2Base.init_tokenizer = classmethod(lambda cls: None)  # T5's alone is used
    blip2.BertConfig = instead(lambda _: transformers.BertConfig(**bert))
    blip2.BertLMHeadModel = instead(blip2.BertLMHeadModel)
    blip2_t5.T5TokenizerFast = instead(lambda _: Words(sizes["ids_of_texts"]))
    blip2_t5.T5Config = instead(lambda _: transformers.T5Config(**sizes["t5"]))
    blip2_t5.T5ForConditionalGeneration = instead(blip2_t5.T5ForConditionalGeneration)


def build(sizes):
    """LAVIS's Blip2T5, in float32: it keeps T5 in bfloat16, to which it adds float32 embeddings, on GPUs only."""
    model = blip2_t5.Blip2T5(img_size=sizes["image_size"], vit_precision="fp32", num_query_token=sizes["queries"])
    return model.float().eval()


def compute(model, batch):
    """What Blip2T5.forward and generate give, and what passes inside."""
    seen = {}
    hooks = [
        model.ln_vision.register_forward_hook(lambda *call: seen.update(vision_tokens=call[2])),
        model.Qformer.bert.register_forward_hook(lambda *call: seen.update(query_output=call[2].last_hidden_state)),
    ]
    with torch.no_grad():
        loss = model({"image": batch["pixels"], **batch["texts"]})["loss"]
    for hook in hooks:
        hook.remove()
    prompted = {"image": batch["pixels"], "prompt": batch["texts"]["text_input"]}
    caption = model.generate(prompted, num_beams=1, max_length=6, min_length=1)
    return {**{name: tensor.contiguous() for name, tensor in seen.items()}, "loss": loss, "caption": caption}


def save_as_lavis_does(model, folder):
    """The checkpoint by LAVIS's runner, which leaves frozen parameters out; the ViT's file with the end of the tower
    that LAVIS does not use; the language model by transformers."""
    runner = SimpleNamespace(
        model=model,
        unwrap_dist_model=lambda model: model,
        optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]),
        config=SimpleNamespace(to_dict=lambda: {"run": {"task": "captioning"}}),
        scaler=None,
        output_dir=str(folder),
    )
    RunnerBase._save_checkpoint(runner, cur_epoch=0)
    tower = dict(model.visual_encoder.state_dict())
    last = len(model.visual_encoder.blocks) - 1
    end = {n.replace(f"blocks.{last}.", f"blocks.{last + 1}."): t for n, t in tower.items() if f"blocks.{last}." in n}
    width = tower["cls_token"].shape[-1]
    torch.save(
        {**tower, **end, "norm.weight": torch.ones(width), "head.weight": torch.ones(2, width)}, folder / "vit.pth"
    )
    model.t5_model.config.dense_act_fn = "gelu_new"  # as flan-t5's own config; LAVIS computes with exact GELU
    model.t5_model.save_pretrained(folder / "language")


def main(folder):
    sizes = json.loads((folder / "sizes.json").read_text())
    batch = {"pixels": load_file(folder / "pixels.safetensors")["pixels"], "texts": sizes["texts"]}
    replace_downloads(sizes)
    model = build(sizes)
    message = model.load_checkpoint(str(folder / "ours.pth"))
    save_file(compute(model, batch), folder / "ours.safetensors")

    model = build(sizes)
    randomize(model, seed=7)
    save_as_lavis_does(model, folder)
    save_file(compute(model, batch), folder / "lavis.safetensors")

    keys = {"missing": message.missing_keys, "unexpected": message.unexpected_keys}
    versions = {package.__name__: package.__version__ for package in (torch, transformers)}
    (folder / "report.json").write_text(json.dumps({**keys, "versions": versions}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
