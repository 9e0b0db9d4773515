"""A SAM of Transformers, asked where its objects are: at points, in boxes, or on a grid over the whole picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynrefer.masks import mask_to_rle

MASK_PIXELS = 2**27  # of masks that are brought to the picture's size together, half a gigabyte


class Segmenter:
    """SAM, SAM 2, SAM 3's tracker or any other model that Transformers generates masks with.

        segmenter = Segmenter("facebook/sam-vit-base")
        masks = segmenter.masks(image, [np.array([[120, 80, 1]])])     # one run-length mask a region
        found = segmenter.propose(image)                               # of everything in the picture

    name: folder or hub id. settings: of `propose`, under the names of Transformers' mask generation pipeline, such as
    points_per_crop=16; its own where not given. points_at_once: points that the mask decoder answers together.
    ValueError for a model of another kind or one that cannot be read.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        points_at_once: int = 64,
        device: str = "auto",
    ):
        from transformers import AutoConfig, AutoModelForMaskGeneration
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

        from dynrefer.models.auto import model_folder, pick_device
        from dynrefer.models.base_parts import check_source
        from dynrefer.models.fingerprint import model_fingerprint
        from dynrefer.models.folder_check import check_numbers, reading

        with reading(f"SAM {str(name)!r}", "no model folder or hub id that can be read"):
            check_source(model_folder(name))
            config = AutoConfig.from_pretrained(model_folder(name), trust_remote_code=False)
            if config.model_type not in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
                known = ", ".join(MODEL_FOR_MASK_GENERATION_MAPPING_NAMES)
                raise ValueError(f"of type {config.model_type!r}, which makes no masks; expected one of {known}")
            model = AutoModelForMaskGeneration.from_pretrained(
                model_folder(name), trust_remote_code=False, weights_only=True
            )
            self.processor = _image_processor(model_folder(name), config)
        check_numbers(model.named_parameters(), f"SAM {str(name)!r}")
        self.model = model.float().to(pick_device(device)).eval()
        self.fingerprint = model_fingerprint(self.model)
        self.pipeline = _pipeline(self.model, self.processor)
        self.settings, self.points_at_once = dict(settings or {}), points_at_once

    def masks(
        self, image: np.ndarray, points: Sequence[np.ndarray], boxes: np.ndarray | None = None
    ) -> list[dict[str, Any]]:
        """One mask a region, as COCO run lengths.

        image (H, W, 3) uint8; points: of each region (K, 3), x, y and 1 inside or 0 outside the object, in pixels;
        boxes (N, 4): beside them one box a region. A single point without a box may mean a part or the whole: of SAM's
        three masks the one that it trusts most is taken. ValueError names a region where SAM finds no pixel.
        """
        found = self._masks(image, points, boxes)
        for number, mask in enumerate(found):
            if mask is None:
                raise ValueError(f"points {number}: SAM finds nothing there; give more points, or a box as well")
        return found

    def box_masks(self, image: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any] | None]:
        """One mask a box (N, 4), as COCO run lengths, None where SAM finds no pixel. image (H, W, 3) uint8."""
        return self._masks(image, [np.zeros((0, 3))] * len(boxes), boxes)

    def _masks(
        self, image: np.ndarray, points: Sequence[np.ndarray], boxes: np.ndarray | None
    ) -> list[dict[str, Any] | None]:
        import torch
        from PIL import Image

        inputs = self.processor(images=Image.fromarray(image), return_tensors="pt")
        inner = inputs["reshaped_input_sizes"].tolist() if "reshaped_input_sizes" in inputs else None
        pixels = inputs["pixel_values"].to(self.model.device)
        height, width = inner[0] if inner else pixels.shape[-2:]
        scale = torch.tensor([width / image.shape[1], height / image.shape[0]])  # picture -> SAM's input
        chunk = max(1, min(self.points_at_once, MASK_PIXELS // (3 * image.shape[0] * image.shape[1])))
        found: list[dict[str, Any] | None] = [None] * len(points)
        with torch.inference_mode():
            maps = self.model.get_image_embeddings(pixels)
            names = (
                ("image_embeddings", "intermediate_embeddings") if isinstance(maps, tuple) else ("image_embeddings",)
            )
            maps = dict(zip(names, maps if isinstance(maps, tuple) else (maps,), strict=True))
            for numbers in _alike(points, chunk):
                rows = torch.from_numpy(np.stack([points[number] for number in numbers])).float()  # (N, K, 3)
                prompt = {}
                if rows.shape[1]:
                    prompt = {"input_points": rows[None, ..., :2] * scale, "input_labels": rows[None, ..., 2].long()}
                if boxes is not None:
                    prompt["input_boxes"] = torch.tensor(boxes[numbers])[None].float() * scale.repeat(2)
                prompt = {name: value.to(self.model.device) for name, value in prompt.items()}
                several = boxes is None and rows.shape[1] == 1
                output = self.model(**maps, **prompt, multimask_output=several)
                best = output.iou_scores[0].argmax(-1)  # (N,) of M masks
                logits = output.pred_masks[0, torch.arange(len(numbers)), best][None, :, None]
                sizes = {"reshaped_input_sizes": inner} if inner else {}
                whole = self.processor.post_process_masks(logits.cpu(), [image.shape[:2]], **sizes)[0]
                for number, mask in zip(numbers, whole[:, 0].bool().numpy(), strict=True):
                    if mask.any():
                        found[number] = mask_to_rle(mask)
        return found

    def propose(self, image: np.ndarray, masks: bool = True) -> dict[str, Any]:
        """image (H, W, 3) uint8 -> "boxes" (N, 4) and "scores" (N,), SAM's predicted IoU, the surest first, of what it
        finds from a grid of points; masks: also "masks", N run lengths."""
        from PIL import Image

        # each point has three masks, which are brought to the picture's size together
        points = min(self.points_at_once, max(1, MASK_PIXELS // (3 * image.shape[0] * image.shape[1])))
        found = self.pipeline(Image.fromarray(image), points_per_batch=points, **self.settings)
        boxes = found["boxes"] + [0, 0, 1, 1]  # of the last pixels -> of the edges behind them
        boxes = np.clip(boxes, 0, np.tile(image.shape[1::-1], 2))
        order = np.argsort(-found["scores"], kind="stable")
        proposed = {"boxes": boxes[order], "scores": found["scores"][order]}
        if masks:
            runs = [found["masks"][number] for number in order]
            proposed["masks"] = [{"size": list(map(int, run["size"])), "counts": run["counts"]} for run in runs]
        return proposed


def _alike(points: Sequence[np.ndarray], most: int) -> list[list[int]]:
    """Numbers of regions with equally many points, at most so many together."""
    kinds: dict[int, list[int]] = {}
    for number, rows in enumerate(points):
        kinds.setdefault(len(rows), []).append(number)
    return [own[start : start + most] for own in kinds.values() for start in range(0, len(own), most)]


def _pipeline(model: Any, processor: Any) -> Any:
    """Transformers' mask generation, which gives boxes (N, 4) of masks, scores (N,) and run lengths, and decodes no
    mask."""
    import torch
    from torchvision.ops import batched_nms
    from transformers import MaskGenerationPipeline

    class BoxGeneration(MaskGenerationPipeline):
        def postprocess(self, model_outputs: list[dict], crops_nms_thresh: float = 0.7) -> dict[str, Any]:
            boxes, scores = (
                torch.cat([each[key] for each in model_outputs]).float() for key in ("boxes", "iou_scores")
            )
            masks = [mask for each in model_outputs for mask in each["masks"]]  # run lengths
            filled = torch.tensor(
                [number for number, mask in enumerate(masks) if len(mask["counts"]) > 1], dtype=torch.long
            ).to(boxes.device)  # an empty mask has a box all the same
            boxes, scores = boxes[filled], scores[filled]
            kept = batched_nms(boxes, scores, torch.zeros_like(scores), crops_nms_thresh)
            return {
                "boxes": boxes[kept].double().cpu().numpy(),
                "scores": scores[kept].double().cpu().numpy(),
                "masks": [masks[number] for number in filled[kept].tolist()],
            }

    return BoxGeneration(model=model, image_processor=processor, device=model.device)


def _image_processor(folder: str, config: Any) -> Any:
    """The model's own; SAM's usual one at the model's size where its folder has none."""
    from transformers import AutoImageProcessor
    from transformers.utils.hub import cached_file

    missing = {"_raise_exceptions_for_missing_entries": False}
    if cached_file(folder, "preprocessor_config.json", **missing) or cached_file(
        folder, "processor_config.json", **missing
    ):
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    from transformers import Sam2ImageProcessor, SamImageProcessor

    side = config.prompt_encoder_config.image_size
    square = {"height": side, "width": side}
    if config.model_type in ("sam", "sam_hq"):
        return SamImageProcessor(size={"longest_edge": side}, pad_size=square)
    return Sam2ImageProcessor(size=square)
