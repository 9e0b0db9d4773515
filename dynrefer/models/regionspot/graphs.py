"""RegionSpot as graphs: CLIP and SAM's encoders once a picture, then all of its regions at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..graphs import Graph, Graphs
from ..saving import RegionModel
from .options import Options
from .sam import MEAN, STD, Prompts, Sam

Sizes = Mapping[str, int]


class PictureToMemory(nn.Module):
    """image (N, 3, H, W) uint8 -> memory (N, M, D): what the decoder reads of CLIP."""

    def __init__(self, model: RegionModel):
        super().__init__()
        config = model.config
        self.model, self.size, self.antialias = model, config.image_size, config.antialias
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, f"image_{name}"))[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        for axis in (2, 3):
            image = resized(image, axis, self.size, self.antialias)
        return self.model.as_read(self.model.clip.image_tokens((image / 255 - self.mean) / self.std))


def resized(pixels: Tensor, axis: int, size: int, antialias: bool) -> Tensor:
    """pixels (N, 3, H, W), bilinear along one axis: F.interpolate's numbers. Those of ONNX's Resize are off where a
    picture is large, since it multiplies by the inverse of what torch divides by."""
    length = torch.scalar_tensor(pixels.shape[axis], dtype=torch.float32, device=pixels.device)
    step = length / size
    centre = (torch.arange(size, device=pixels.device) + 0.5) * step
    if antialias:  # a triangle as wide as a pixel of the result, at least one of the picture's
        cells = torch.arange(pixels.shape[axis], device=pixels.device) + 0.5
        weights = (1 - (cells - centre[:, None]).abs() / step.clamp(min=1)).clamp(min=0)
        weights = weights / weights.sum(1, keepdim=True)  # (size, H or W)
        return weights @ pixels.float() if axis == 2 else pixels.float() @ weights.T
    where = (centre - 0.5).clamp(min=0)
    low = torch.minimum(where.floor(), length - 1)
    high = torch.minimum(low + 1, length - 1)
    share = (where - low).unflatten(0, (size, 1) if axis == 2 else (1, size))
    first, second = (pixels.index_select(axis, side.long()).float() for side in (low, high))
    return first * (1 - share) + second * share


class PictureToMaps(nn.Module):
    """picture (N, 3, S, S) uint8 and inner_hw (N, 2) -> maps, one or several: what SAM's decoder reads of it."""

    def __init__(self, sam: Sam):
        super().__init__()
        self.sam = sam

    def forward(self, picture: Tensor, inner_hw: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat(self.sam.maps(self.sam.normalize(picture, inner_hw))))


class RegionsToEmbeds(nn.Module):
    """boxes (R, 4) in SAM's pixels, memory (1, M, D) and SAM's maps of one picture -> region_embeds (R, E), mask_logits
    (R, h, w), mask_iou (R,). The regions see each other, as released."""

    def __init__(self, model: RegionModel, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, boxes: Tensor, memory: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decoded = self.model.sam.decode(nested(self.names, maps), Prompts(boxes=boxes))
        hidden = self.model.decoder(self.model.to_clip(decoded.tokens)[None], memory)
        return self.model.embed(hidden[0]), decoded.masks, decoded.quality


def flat(maps: Mapping[str, Tensor | Sequence[Tensor]]) -> list[Tensor]:
    return [level for value in maps.values() for level in (value if isinstance(value, list | tuple) else [value])]


def flat_names(maps: Mapping[str, Tensor | Sequence[Tensor]]) -> list[str]:
    """One name a tensor of `flat`: that of a list with ".0", ".1" and so on."""
    several = {name: len(value) for name, value in maps.items() if isinstance(value, list | tuple)}
    return [f"{name}.{n}" if name in several else name for name in maps for n in range(several.get(name, 1))]


def nested(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
    """What `flat` and `flat_names` took apart."""
    maps: dict = {}
    for name, tensor in zip(names, tensors, strict=True):
        name, dot, _ = name.partition(".")
        if dot:
            maps.setdefault(name, []).append(tensor)
        else:
            maps[name] = tensor
    return maps


def graphs(model: RegionModel, options: Options) -> Graphs:
    config, sam = model.config, model.sam
    names, size, side = model.names(options), sam.size, config.image_size

    def picture(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = torch.randint(0, 256, (sizes["N"], 3, size, size), generator=generator, dtype=torch.uint8)
        inner = torch.randint(1, size + 1, (sizes["N"], 2), generator=generator)
        return pixels, inner if sam.kind.letterbox else torch.full_like(inner, size)

    with torch.no_grad():
        maps = sam.maps(sam.normalize(*picture({"N": 1}, torch.Generator().manual_seed(0))))
    map_names = flat_names(maps)
    shapes = {name: tuple(level.shape[1:]) for name, level in zip(map_names, flat(maps), strict=True)}
    tokens = model.clip.grid**2 + int(config.class_token)

    def image(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor]:
        hw = 16 * sizes["H"], 16 * sizes["W"]
        return (torch.randint(0, 256, (sizes["N"], 3, *hw), generator=generator, dtype=torch.uint8),)

    def regions(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, ...]:
        corners = torch.rand(sizes["R"], 2, 2, generator=generator).sort(1).values * size
        memory = torch.randn(1, tokens, model.clip.width, generator=generator)
        with torch.no_grad():
            return corners.flatten(1), memory, *flat(sam.maps(sam.normalize(*picture({"N": 1}, generator))))

    clip_graph = Graph(
        "clip",
        PictureToMemory(model),
        {"image": ("N", 3, "H", "W")},
        {"memory": ("N", tokens, model.clip.width)},
        image,
        {"image": "the whole picture, RGB, 0..255, as it is"},
    )
    sam_graph = Graph(
        "sam",
        PictureToMaps(sam),
        {"picture": ("N", 3, size, size), "inner_hw": ("N", 2)},
        {name: ("N", *shape) for name, shape in shapes.items()},
        picture,
        {"picture": "RGB, 0..255, the image at the top left", "inner_hw": "height and width of the image in it"},
    )
    regions_graph = Graph(
        "regions",
        RegionsToEmbeds(model, map_names),
        {
            "boxes": ("R", 4),
            "memory": (1, tokens, model.clip.width),
            **{name: (1, *shape) for name, shape in shapes.items()},
        },
        {"region_embeds": ("R", model.clip.text_width), "mask_logits": ("R", *sam.mask_hw), "mask_iou": ("R",)},
        regions,
        {"boxes": "x1 y1 x2 y2 in pixels of `picture`; those of one call see each other"},
    )
    answers: dict = {
        "mask": {"graph": "regions", "output": "mask_logits", "above": 0.0},
        "mask_iou": {"graph": "regions", "output": "mask_iou"},
    }
    arrays = {}
    if names:
        arrays["categories"] = model.text_bank(names).cpu().numpy()
        scale, bias = (float(value) for value in model.clip.scale_and_bias())
        answers["categories"] = {
            "graph": "regions",
            "output": "region_embeds",
            "array": "categories",
            "scale": scale,
            "bias": bias,
            "score": options.scores,
            "most": options.top_k,
        }
    preprocessing = {
        "kind": "picture",
        "picture": "RGB uint8, turned upright as EXIF says",
        "sam_size": size,
        "letterbox": sam.kind.letterbox,
        "sam_resize": "bilinear with antialiasing (Pillow's BILINEAR): the longer side to sam_size, sides rounded, the "
        "rest zero; without letterbox squashed to sam_size x sam_size",
        "sam_mean": list(MEAN),
        "sam_std": list(STD),
        "boxes": "box * side of the image in `picture` / side of the image",
        "clip_size": side,
        "clip_resize": f"in the graph: squashed to {side} x {side}, bilinear, antialias={config.antialias}",
        "clip_mean": list(config.image_mean),
        "clip_std": list(config.image_std),
        "normalization": "in the graphs",
        "mask": "mask_logits bilinear to sam_size, cut to inner_hw, bilinear to the image, above 0",
    }
    return Graphs([clip_graph, sam_graph, regions_graph], preprocessing, answers, {"categories": names}, arrays)
