"""What the released program computed with tiny random weights, small enough for the repository.

`fixtures/dynrefer` holds recorded outputs for two of four pictures and all the weights that made them:

    python -m tests.released VECTORS    makes it from the folder with everything (../shared/vectors/dynrefer)

Nothing is rounded: tensors are stored as halves where they are halves, recorded pixels as the grey levels they came
from, and the bytes of all tensors are sorted by place before they are compressed, since only the high ones compress.
Rows of the text encoder's word embedding that no text of the word lists and captions reads are zeros.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynrefer.convert.clip_text import clip_tokenizer
from dynrefer.vocabulary import attribute_texts, category_texts, read_attributes, read_words

FIXTURE = Path(__file__).parent / "fixtures/dynrefer"
SCENES = ("scene1", "scene3")  # a portrait, and a picture of 97 x 97
CHECKPOINT, BASE, TEXT, RECORDED = "vg1.2_5e.pth", "blip2_hf", "eva_clip_psz14.pt", "vectors.safetensors"
LISTS = ("tags.txt", "attributes.json", "classes.json", "sizes.json")
EMBEDDING = "text.token_embedding.weight"
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "pb": 0, "dict_size": 2**25}]


def unpack(target: Path) -> Path:
    """The fixture -> the files that it was made of, in an empty folder."""
    left_out = shutil.ignore_patterns("*.xz")
    shutil.copytree(FIXTURE, target, dirs_exist_ok=True, ignore=left_out, copy_function=shutil.copyfile)
    header, _, content = lzma.decompress((FIXTURE / "tensors.xz").read_bytes()).partition(b"\n")
    files: dict[str, dict[str, Tensor]] = {}
    start = 0
    for file, name, shape, dtype, stored in json.loads(header):
        stored, count = getattr(torch, stored), int(np.prod(shape, dtype=int))
        planes = np.frombuffer(content, np.uint8, count * stored.itemsize, start).reshape(stored.itemsize, count)
        start += planes.size
        tensor = torch.from_numpy(planes.T.copy()).view(stored).reshape(shape)
        tensor = pixel_values(tensor) if stored == torch.uint8 else tensor.to(getattr(torch, dtype))
        files.setdefault(file, {})[name] = tensor
    torch.save({"model": files[CHECKPOINT], "epoch": 4, "config": {}}, target / CHECKPOINT)
    torch.save(files[TEXT], target / TEXT)
    save_file(files[BASE], target / BASE / "model.safetensors", metadata={"format": "pt"})
    save_file(files[RECORDED], target / RECORDED)
    return target


def pack(source: Path) -> None:
    """A folder with everything -> the fixture."""
    shutil.rmtree(FIXTURE, ignore_errors=True)
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(source / BASE, FIXTURE / BASE, ignore=weights, copy_function=shutil.copyfile)
    (FIXTURE / "images").mkdir()
    for name in (*LISTS, *(f"images/{scene}.png" for scene in SCENES)):
        shutil.copyfile(source / name, FIXTURE / name)
    for name in ("views.json", "captions.json", "losses.json"):
        rows = [row for row in json.loads((source / name).read_text()) if Path(row["image"]).stem in SCENES]
        (FIXTURE / name).write_text(json.dumps(rows) + "\n")
    files = {
        CHECKPOINT: torch.load(source / CHECKPOINT, weights_only=True)["model"],
        BASE: load_file(source / BASE / "model.safetensors"),
        TEXT: torch.load(source / TEXT, weights_only=True),
        RECORDED: load_file(source / RECORDED),
    }
    unread = torch.ones(len(files[TEXT][EMBEDDING]), dtype=torch.bool)
    unread[list(token_ids(source, len(unread)))] = False
    files[TEXT][EMBEDDING][unread] = 0
    header, content = [], []
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if file != RECORDED or name.startswith(("text_", *SCENES)):
                stored = smallest(tensor, name)
                header.append([file, name, list(tensor.shape), *(str(t.dtype)[6:] for t in (tensor, stored))])
                content.append(stored.contiguous().reshape(-1, 1).view(torch.uint8).T.contiguous().numpy().tobytes())
    text = json.dumps(header).encode() + b"\n" + b"".join(content)
    (FIXTURE / "tensors.xz").write_bytes(lzma.compress(text, filters=FILTERS))


def smallest(tensor: Tensor, name: str) -> Tensor:
    """The same values in fewer bytes."""
    if name.endswith("pixel_values"):
        levels = ((tensor * STD + MEAN) * 255).round().byte()
        assert torch.equal(pixel_values(levels), tensor)
        return levels
    exact = tensor.is_floating_point() and torch.equal(tensor.half().to(tensor.dtype), tensor)
    return tensor.half() if exact else tensor


def pixel_values(levels: Tensor) -> Tensor:
    """Grey levels (..., 3, S, S) as torchvision scales and normalizes them, to the last bit."""
    return (levels.float() * (1 / 255) - MEAN) / STD


def token_ids(source: Path, vocab_size: int) -> set[int]:
    """Tokens of all texts that the recorded numbers were made from."""
    attributes, _ = attribute_texts(read_attributes(source / "attributes.json"))
    texts = [*read_words(source / "tags.txt"), *attributes, *category_texts(read_words(source / "classes.json"))]
    for row in json.loads((source / "losses.json").read_text()):
        texts += row["captions"]
    return {i for ids in clip_tokenizer(vocab_size)(texts)["input_ids"] for i in ids}


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
