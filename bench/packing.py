"""Texts about one image in training: one packed sequence, beside a row of its own for each."""

import numpy as np
import torch

from dynrefer.data.chats import Chat
from dynrefer.data.example import Example
from dynrefer.models import build

from .timing import Budget, Result, compare

TEXTS = 8
SIDE = 336  # of an image, which becomes 24 x 24 tokens
TEXT = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
VISION = {
    "model_type": "clip_vision_model",
    "image_size": SIDE,
    "patch_size": 14,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
WORDS = "a red cup stands behind the blue box and moves to its left while nobody looks at it".split()


def chats(num_words: int) -> list[Chat]:
    """Conversations about a region of an image each, with answers of so many words."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(TEXTS):
        x, y = (int(side) for side in generator.integers(0, SIDE - 100, 2))
        record = {
            "id": str(number),
            "image": "image",
            "image_hw": [SIDE, SIDE],
            "regions": [{"box": [x, y, x + 100, y + 80]}],
            "turns": [{"question": "What is <region0>?", "answer": " ".join(generator.choice(WORDS, num_words))}],
        }
        found.append(Chat.from_dict(record))
    return found


def packed_texts(budget: Budget) -> Result:
    """A step of training on 8 short texts an image of 576 tokens: forward and backward, float32, one thread"""
    return measured(8, budget)


def packed_long_texts(budget: Budget) -> Result:
    """A step of training on 8 long texts an image of 576 tokens: forward and backward, float32, one thread"""
    return measured(84, budget)


def measured(num_words: int, budget: Budget) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    records = chats(num_words)
    base = {"config": {"model_type": "llava", "text_config": TEXT, "vision_config": VISION}, "mode": "full"}
    model, processor = build({"family": "omni_rgpt", "base": base}, records)
    model.train()
    pixels = np.random.default_rng(0).integers(0, 255, (1, SIDE, SIDE, 3)).astype(np.uint8)
    example = Example("image", [], lambda indices, reduce: pixels, chats=records)
    samples = processor.samples(example, model.Options(), example.generators(0, 0), train=True)
    batch = processor.collate(samples)

    def way(packed: bool):
        def work() -> float:
            model.config.packed = packed
            model.zero_grad()
            sums = model(batch)
            sum(sums.values()).backward()
            losses[packed] = float(sums["captions"].detach())
            return TEXTS

        return work

    losses: dict[bool, float] = {}
    rates = compare({"a row for each text": way(False), "packed": way(True)}, budget)
    torch.set_num_threads(threads)
    frames = batch.tokens[0]
    text = float(batch.rows.attention.sum(1).float().mean()) - frames
    bound = TEXTS * (frames + text) / (frames + TEXTS * text)
    notes = [
        f"{frames} tokens of the image, {text:.0f} of a text; by tokens alone at most x{bound:.2f}",
        f"losses {losses[False]:.4f} and {losses[True]:.4f}",
    ]
    return Result(rates, "regions/s", notes)
