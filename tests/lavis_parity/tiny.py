"""Tiny BLIP-2 models with random weights, in Transformers' layout, and the sizes that LAVIS needs to build the same."""

import re

import torch

SIZES = {
    "image_size": 28,
    "patch_size": 14,
    "vision_width": 32,
    "vision_layers": 3,
    "vision_heads": 4,
    "vision_mlp": 139,  # int(32 * 4.3637), as EVA-CLIP ViT-g
    "qformer_width": 24,
    "qformer_layers": 3,
    "qformer_heads": 3,
    "qformer_mlp": 40,
    "queries": 4,
    "words": 50,  # of the Q-Former's text branch
    "positions": 16,
}
HEADS = {"vision_heads": SIZES["vision_heads"], "qformer_heads": SIZES["qformer_heads"]}
VISION = {
    "hidden_size": SIZES["vision_width"],
    "intermediate_size": SIZES["vision_mlp"],
    "num_hidden_layers": SIZES["vision_layers"],
    "num_attention_heads": SIZES["vision_heads"],
    "image_size": SIZES["image_size"],
    "patch_size": SIZES["patch_size"],
}
QFORMER = {
    "hidden_size": SIZES["qformer_width"],
    "intermediate_size": SIZES["qformer_mlp"],
    "num_hidden_layers": SIZES["qformer_layers"],
    "num_attention_heads": SIZES["qformer_heads"],
    "encoder_hidden_size": SIZES["vision_width"],
    "vocab_size": SIZES["words"],
    "max_position_embeddings": SIZES["positions"],
}
LANGUAGES = {
    "t5": {
        "model_type": "t5",
        "d_model": 16,
        "d_ff": 32,
        "d_kv": 8,
        "num_heads": 2,
        "num_layers": 2,
        "vocab_size": 64,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
    },
    "opt": {
        "model_type": "opt",
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 32,
        "dropout": 0.0,
    },
    "llama": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 32,
    },
}
LANGUAGES["tied t5"] = {**LANGUAGES["t5"], "tie_word_embeddings": True}


# what a vision encoder adds to its residual stream, by either name; small, so that the norms' eps shows
STREAM = re.compile(
    r"(vision|vision_model|vision\.model|visual_encoder)\."
    r"(embeddings|cls_token|pos_embed|patch_embed|.*\.projection\.|.*\.attn\.proj\.|.*\.fc2\.)"
)


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Every number of every parameter matters: no zero bias, no norm of one. Keys have no bias, as in LAVIS."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        norm = parameter.dim() == 1 and name.endswith("weight")
        scale = 0.002 if STREAM.match(name) else 0.2
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale + float(norm)
        if name.endswith("self_attn.qkv.bias"):
            parameter.data.view(3, -1)[1] = 0


def blip2(kind: str = "blip2", language: str = "t5"):
    """kind: see dynrefer.convert.lavis_layout.KINDS; language: a key of LANGUAGES, of no use to "retrieval"."""
    import transformers

    from dynrefer.convert.lavis_layout import KINDS

    model_class, config_class, _ = KINDS[kind]
    config = getattr(transformers, config_class)(
        vision_config=dict(VISION),
        qformer_config={**QFORMER, **({"use_qformer_text_input": True} if kind == "retrieval" else {})},
        text_config=dict(LANGUAGES["opt" if kind == "retrieval" else language]),
        num_query_tokens=SIZES["queries"],
        image_text_hidden_size=10,
    )
    model = getattr(transformers, model_class)(config).eval()
    if kind != "retrieval" and language == "t5":  # transformers ties them whatever the config says
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    randomize(model)
    return model


def save_language(model, folder) -> None:
    """The language model of a BLIP-2 model with a tokenizer, as one finds it on the hub."""
    from dynrefer.models.tokenizer import train_tokenizer

    model.language_model.save_pretrained(folder)
    train_tokenizer(["a red cup", "the blue lamp"], 40).save_pretrained(folder)


def pixels(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 3, SIZES["image_size"], SIZES["image_size"], generator=torch.Generator().manual_seed(1))
