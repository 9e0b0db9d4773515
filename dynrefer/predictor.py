"""Images and regions in, structured results out: the one call that the command line, a server or a notebook makes."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from typing import Any

from dynrefer.clip_example import clip_example
from dynrefer.data.example import Example
from dynrefer.data.records import Region, RegionResult
from dynrefer.fetch import fetch, is_address
from dynrefer.images import open_image, open_with_alpha
from dynrefer.models.options import Options, make_options
from dynrefer.regions import Asked, asked_regions, check_prompts
from dynrefer.results import Results

STAGES = ("read", "prepare", "model")  # of the time that a picture takes
ASKED = tuple(each.name for each in fields_of(Asked))


class RegionPredictor:
    """Describes regions of images with a model from `dynrefer.load`, of any family.

        predictor = RegionPredictor(model)
        results = predictor("photo.jpg", boxes=[[40, 30, 180, 200]])      # one result a region, in order
        results = predictor([image1, image2], boxes=[[...], [...]])       # a list of such lists, one an image
        for results in predictor.stream(paths, regions="alpha"): ...      # any number of images, few of them open

    sam: a SAM of Transformers, as a folder, a hub id or a `dynrefer.segment.Segmenter`. It makes masks of points and
    scribbles, which the model's family may not take, and finds the regions of regions="all".
    allow_hosts: hosts from which pictures given by an address are fetched; none: no address is fetched.
    max_regions: regions that go through the model together. Images fill such a chunk one after another, so memory is
    the same for one image with 10,000 regions and for 10,000 images with one; the regions of an image that influence
    each other (a joint family) stay together. crop_on_device: cut views on the model's device, of a family that has
    views, see the option `crop_on`. batch_size: another name of max_regions; "auto": max_regions at first, and half as
    many from there on whenever memory runs out.
    """

    def __init__(
        self,
        model: Any,
        max_regions: int = 64,
        crop_on_device: bool = False,
        *,
        batch_size: int | str | None = None,
        sam: Any = None,
        allow_hosts: Sequence[str] = (),
    ):
        if isinstance(allow_hosts, str):
            raise ValueError(f"allow_hosts: {allow_hosts!r}; give a list of hosts, [{allow_hosts!r}]")
        self.backs_off = batch_size == "auto"
        if isinstance(batch_size, str) and not self.backs_off:
            raise ValueError(f"batch_size: {batch_size!r}; expected a number of regions, or 'auto'")
        self.max_regions = max_regions if batch_size is None or self.backs_off else batch_size
        if self.max_regions < 1:
            name = "max_regions" if batch_size is None else "batch_size"
            raise ValueError(f"{name}: {self.max_regions}; at least one region must fit into a chunk")
        self.model, self.allow_hosts = model, tuple(allow_hosts)
        self.sam = _segmenter(sam, model)
        own = {"crop_on": str(model.device)} if crop_on_device else {}
        self.options = make_options(model.Options, own)

    def __call__(
        self,
        image: Any,
        boxes: Any = None,
        box_format: str = "xyxy",
        masks: Any = None,
        ids: Any = None,
        options: Options | None = None,
        points: Any = None,
        *,
        scribbles: Any = None,
        regions: Any = None,
        timings: bool = False,
        **fields: Any,
    ) -> Results | list[Results]:
        """One result a region, in the order given; for a list of images one such list an image.

        image: path, address on one of the allowed hosts, an encoded file's bytes, PIL image, RGB uint8 array (H, W, 3)
          or uint8 tensor (3, H, W), or a list of them. With a list, `boxes`, `masks`, `points`, `scribbles`, `regions`
          and `ids` hold one entry an image; an entry may be None where another way to point is given.
        boxes: (N, 4) numbers in `box_format` (one of `dynrefer.boxes.BOX_FORMATS`), counted in the upright picture.
          A box partly outside the image is clipped.
        masks: N of array (H, W), path of a PNG or its bytes, COCO run lengths or polygons. Masks give the boxes where
          `boxes` is None; where both are given there must be N of each.
        ids: N names for the results; "IMAGE:REGION", both counted from 0, where None.
        options, fields: the model's options (`model.Options`), as an object, one by one, or both; for DynRefer for
          instance num_beams=5, categories=["cup", "plate"], view_strategy="phash", and control, the words that captions
          build on: "red,car" or ["red", "car"]; None takes the predicted tags, "" none, "red,<tags>" both, and a list
          with one list of words (or None) a region gives each its own.
        points: N of [x, y] or of [[x, y, 1], [x, y, 0], ...], 1 inside and 0 outside the object; alone, or with a box
          each. A family that takes none has the mask that `sam` makes of them.
        scribbles: N lines [[x, y], [x, y], ...] over the objects, or masks of what was painted over them.
        regions: instead of the others, "image" (the whole picture), "all" (what `sam` finds, the surest first), "alpha"
          (the picture's alpha channel is a mask), supervision's Detections, or a list of COCO annotations, whose ids
          the results have; for a list of images also one word for all.
        timings: the results' `timings` say what took how long; what `sam` does is part of "read".

        Raises ValueError for an option that the model does not have, and one that names the image and the box or mask:
        not finite, inverted, empty or wholly outside the image, a mask of another size, unequal counts, an unreadable
        image. All images are looked at in turn, so the regions before a bad one have been predicted by then.
        """
        chosen = make_options(self.model.Options, fields, self.options if options is None else options)
        self.model.check_options(chosen)
        self._check_prompts(points, scribbles)
        several = isinstance(image, (list, tuple))
        images = list(image) if several else [image]
        given = {"boxes": boxes, "masks": masks, "points": points, "ids": ids, "scribbles": scribbles}
        given |= {"regions": regions}
        if several:
            given = {name: _one_per_image(value, name, len(images)) for name, value in given.items()}
        else:
            given = {name: [value] for name, value in given.items()}

        def asked() -> Iterator[tuple[dict, Options]]:
            for number, source in enumerate(images):
                own = chosen.for_image(number, len(images)) if several else chosen
                parts = {name: values[number] for name, values in given.items()}
                yield {"image": source, "box_format": box_format, **parts}, own

        results = list(self._results(asked(), several, timings))
        return results if several else results[0]

    def clip(
        self,
        video: str | os.PathLike,
        boxes: Any = (),
        box_format: str = "xyxy",
        masks: Any = None,
        ids: Any = None,
        *,
        prompt_frame: int = 0,
        end_frame: int | None = None,
        options: Options | None = None,
        timings: bool = False,
        **fields: Any,
    ) -> Results:
        """One result a region of a clip, or one of a question about a clip without regions.

            predictor.clip("clip.mp4", boxes=[[40, 30, 180, 200]], question="What does <region0> do?")

        video: a file, or a folder of frames. boxes, masks: in the frame `prompt_frame`, with which the clip begins; it
        goes on to the one before `end_frame`, None: to the end. The others as a call has them for one picture.
        """
        if not self.model.clips:
            raise ValueError(f"{video}: this model's family reads no clips; take a picture out of it")
        chosen = make_options(self.model.Options, fields, self.options if options is None else options)
        self.model.check_options(chosen)
        turns = [] if chosen.question is None else [*map(tuple, chosen.history or ()), (chosen.question, None)]
        given = {"boxes": None if masks is not None and len(boxes) == 0 else boxes, "masks": masks, "ids": ids}
        span = {"prompt_frame": prompt_frame, "end_frame": end_frame}
        example = clip_example(video, box_format=box_format, **given, **span, turns=turns)
        (answer,) = self._answers([(example, chosen)])
        regions = [Region(r.id, str(video), r.frame_hw, r.box, r.mask) for r in example.records]
        image_hw = example.image.shape[:2]
        return Results(answer.results, regions, image_hw, str(video), answer.seconds if timings else None)

    def stream(
        self,
        items: Iterable[Any],
        *,
        max_images: int = 16,
        options: Options | None = None,
        timings: bool = False,
        **fields: Any,
    ) -> Iterator[Results]:
        """The results of one image after another, in order; for any number of images.

        items: images, or {"image": image, "boxes": ..., ...} with what a call takes for one image to point at its
        regions; the same names among `fields` are for all images. Other fields are the model's options. An item is
        taken when it is needed: at most max_images images are held, and one more that is being read. An error comes
        behind the results of the images before it.
        """
        if max_images < 1:
            raise ValueError(f"max_images: {max_images}; at least one image must be held")
        common = {name: fields.pop(name) for name in ASKED if name in fields}
        chosen = make_options(self.model.Options, fields, self.options if options is None else options)
        self.model.check_options(chosen)
        self._check_prompts(common.get("points"), common.get("scribbles"))

        def asked() -> Iterator[tuple[dict, Options]]:
            for number, item in enumerate(items):
                parts = dict(item) if isinstance(item, Mapping) else {"image": item}
                if "image" not in parts or (unknown := parts.keys() - {"image", *ASKED}):
                    what = f"unknown key {sorted(map(str, unknown))[0]!r}" if "image" in parts else "no key 'image'"
                    raise ValueError(f"item {number}: {what}; expected an image, or {{'image': image, 'boxes': ...}}")
                yield common | parts, chosen

        yield from self._results(asked(), True, timings, max_images)

    def describe(self, examples: Iterable[tuple[Example, Options]]) -> list[list[RegionResult]]:
        """One list of results an example, of examples with their options: one a region; one of a question about a
        picture without regions, of a family that answers such."""
        return [answer.results for answer in self._answers(examples)]

    def _check_prompts(self, points: Any, scribbles: Any) -> None:
        check_prompts("points" in self.model.prompts, self.sam, points, scribbles)

    def _results(
        self, asked: Iterable[tuple[dict, Options]], several: bool, timings: bool, max_images: int | None = None
    ) -> Iterator[Results]:
        """asked: of every picture the source under "image" and fields of `Asked`, with the options."""
        notes: deque[tuple] = deque()  # of the pictures that are read and not answered: all but the pixels

        def read() -> Iterator[tuple[Example, Options]]:
            for number, (parts, options) in enumerate(asked):
                source = parts.pop("image")
                example = self._example(source, Asked(**parts), options, number, several)
                path = str(source) if isinstance(source, (str, os.PathLike)) else None
                notes.append((example.regions, example.image.shape[:2], path))
                yield example, options
                del source, parts, example  # nothing here holds a picture while the next one is read

        for answer in self._answers(read(), max_images):
            regions, image_hw, path = notes.popleft()
            yield Results(answer.results, regions, image_hw, path, answer.seconds if timings else None)

    def _example(self, source: Any, asked: Asked, options: Options, number: int, several: bool) -> Example:
        """One picture with its regions, checked."""
        name = f"image {number} ({source})" if isinstance(source, (str, os.PathLike)) else f"image {number}"
        try:
            with_alpha = asked.kind() == "alpha"
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        try:
            if is_address(source):
                source = self._fetched(source)
            pixels, alpha = open_with_alpha(source) if with_alpha else (open_image(source), None)
        except ValueError as error:
            raise ValueError(f"image {number}: {error}" if several else str(error)) from error
        try:
            takes_points = "points" in self.model.prompts
            given = {"alpha": alpha, "sam": self.sam, "takes_points": takes_points}
            regions, prompts = asked_regions(asked, pixels, number, **given)
            options.for_regions(range(len(regions)), len(regions))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return Example.of_picture(pixels, regions, name, prompts)

    def _fetched(self, address: str) -> bytes:
        if not self.allow_hosts:
            raise ValueError(
                f"image {address}: addresses are not fetched; download it, or allow its host, "
                "RegionPredictor(model, allow_hosts=[HOST])"
            )
        return fetch(address, f"image {address}", self.allow_hosts)

    def _answers(
        self, examples: Iterable[tuple[Example, Options]], max_images: int | None = None
    ) -> "Iterator[_Answer]":
        """One answer an example, in order, as soon as it is whole. A ValueError of the examples comes behind the
        answers to those before."""
        waiting: deque[_Answer] = deque()
        chunk = _Chunk()
        examples, failed = iter(examples), None
        while True:
            began = time.perf_counter()
            try:
                example, options = next(examples)
            except StopIteration:
                break
            except ValueError as error:
                failed = error
                break
            answer = _Answer(self.model.processor.results(example, options))
            answer.seconds["read"] += time.perf_counter() - began
            waiting.append(answer)
            chunk.options = options  # what differs from example to example is in the samples
            start, count = 0, answer.count
            while start < count:
                if chunk.owners and len(chunk.owners) + (count if self.model.joint else 1) > self.max_regions:
                    self._predict(chunk)
                room = self.max_regions - len(chunk.owners)
                stop = count if self.model.joint else min(start + room, count)
                began = time.perf_counter()
                positions = range(start, min(stop, len(example)))
                part, of_part = example.part(positions), options.for_regions(positions, len(example))
                chunk.samples += self.model.processor.samples(part, of_part, part.generators(0, 0), train=False)
                chunk.owners += [answer] * (stop - start)
                answer.seconds["prepare"] += time.perf_counter() - began
                start = stop
            if max_images is not None and len(set(map(id, chunk.owners))) >= max_images:
                self._predict(chunk)
            example = part = None
            while waiting and waiting[0].is_whole():
                yield waiting.popleft()
        if chunk.owners:
            self._predict(chunk)
        yield from waiting
        if failed is not None:
            raise failed

    def _predict(self, chunk: "_Chunk") -> None:
        """Answers a chunk's regions, and empties it."""
        began = time.perf_counter()
        results = self._predicted(chunk.samples, chunk.options)
        share = (time.perf_counter() - began) / max(len(results), 1)
        for answer, result in zip(chunk.owners, results, strict=True):
            answer.results.append(result)
            answer.seconds["model"] += share
        chunk.samples.clear()
        chunk.owners.clear()

    def _predicted(self, samples: list[dict], options: Options | None) -> list[RegionResult]:
        """Results of samples, where memory may run out in halves of them, and of halves."""
        try:
            batch = self.model.processor.collate(samples).to(self.model.device)
            return self.model.predict(batch, options)
        except (RuntimeError, MemoryError) as error:
            if not self.backs_off or len(samples) < 2 or not _out_of_memory(error):
                raise
        # outside of the handler, whose error holds the memory of what failed
        _free_memory()
        self.max_regions = max(1, min(self.max_regions, len(samples)) // 2)
        half = len(samples) // 2
        return self._predicted(samples[:half], options) + self._predicted(samples[half:], options)


@dataclass
class _Answer:
    """To one example: its results so far, of so many, and the seconds of STAGES."""

    count: int
    results: list[RegionResult] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def is_whole(self) -> bool:
        return len(self.results) == self.count


@dataclass
class _Chunk:
    """Samples that go through the model together, and for each of their regions the answer that it belongs to."""

    samples: list[dict] = field(default_factory=list)
    owners: list[_Answer] = field(default_factory=list)
    options: Options | None = None


def _segmenter(sam: Any, model: Any) -> Any:
    """A SAM that is named, loaded on the model's device."""
    if not isinstance(sam, str | os.PathLike):
        return sam
    from dynrefer.segment import Segmenter

    return Segmenter(str(sam), device=str(model.device))


def _out_of_memory(error: BaseException) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def _free_memory() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def _one_per_image(value: Any, name: str, num_images: int) -> list:
    """`value` as a list with one entry an image; None stands for none anywhere, a word for regions of every image."""
    if value is None or (name == "regions" and isinstance(value, str)):
        return [value] * num_images
    if isinstance(value, (str, dict)) or not hasattr(value, "__len__"):
        raise ValueError(f"{name}: a {type(value).__name__} for a list of images; give a list with one entry an image")
    if len(value) != num_images:
        raise ValueError(
            f"{name}: {len(value)} entries for {num_images} images; give one entry an image, in their order"
        )
    return list(value)
