"""Records -> examples -> samples: a picture or clip is opened once for all its regions that a step wants."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from dynrefer.data.chats import Chat
from dynrefer.data.clips import ClipRegion, read_clip
from dynrefer.data.example import Example, still
from dynrefer.data.features import FeatureStore
from dynrefer.data.image_groups import ImageGroups
from dynrefer.data.packing import Piece
from dynrefer.data.questions import Question
from dynrefer.data.records import RegionRecords
from dynrefer.images import open_image, read_image_hw
from dynrefer.models.family import Processor
from dynrefer.models.options import Options


class ExampleDataset:
    """Examples of records, and their samples. The same seed, epoch and record always give the same sample.

    records: of regions or of clips. processor, options: of a model family; None where it has no options. train: handed
    to the processor (augmentation, random views). seed: a non-negative integer. cache_bytes: room for decoded pictures
    kept from call to call, in each worker. draft: in training, decode a JPEG at a fraction of its size where all
    regions of the picture allow it, whichever of them are wanted: the sample of a region does not depend on the others
    in its batch. features: what frozen parts have made of the examples; pictures are not opened then. vocabulary,
    negatives: see `Example`.
    """

    def __init__(
        self,
        records: RegionRecords,
        processor: Processor,
        options: Options | None = None,
        *,
        train: bool,
        seed: int,
        cache_bytes: int = 0,
        draft: bool = False,
        features: FeatureStore | None = None,
        vocabulary: Sequence[str] | None = None,
        negatives: int | None = None,
    ):
        if seed < 0 or cache_bytes < 0:
            raise ValueError(f"seed {seed} and cache_bytes {cache_bytes}: expected numbers that are not negative")
        self.records, self.processor, self.options = records, processor, options
        self.train, self.seed, self.cache_bytes, self.draft = train, seed, cache_bytes, draft and train
        self.features, self.negatives = features, negatives
        self.vocabulary = None if vocabulary is None else tuple(vocabulary)
        self._cache: dict[str, np.ndarray] = {}
        self._cached_bytes = 0
        self._last: np.ndarray | None = None

    def __len__(self) -> int:
        """Regions."""
        return len(self.records)

    def __getstate__(self) -> dict:
        own = {"_cache": {}, "_cached_bytes": 0, "_last": None}  # a worker fills its own
        return {key: value for key, value in self.__dict__.items() if key != "_groups"} | own

    @cached_property
    def _groups(self) -> ImageGroups:
        return self.records.example_groups()

    @property
    def counts(self) -> np.ndarray:
        """Regions of every example, (N,)."""
        return self._groups.counts

    def example(self, piece: Piece) -> Example:
        """The whole example that a piece is of; nothing of it is opened yet."""
        members = self._groups.members(piece.number)
        paths, records = zip(*self.records.fetch(members), strict=True)
        records = [self._asked(record) if isinstance(record, Question) else record for record in records]
        # chats stand behind regions
        order = sorted(range(len(records)), key=lambda place: isinstance(records[place], Chat))
        records = [records[place] for place in order]
        regions = [record for record in records if not isinstance(record, Chat)]
        chats = records[len(regions) :]
        if chats and not self.processor.reads_chats:
            raise ValueError(
                f"record {chats[0].id}: a conversation, and this family describes regions; leave its file out, or "
                "take a family that reads conversations, such as omni_rgpt"
            )
        clip = isinstance(records[0], ClipRegion) or chats and chats[0].is_clip
        reader = partial(self._clip if clip else self._picture, paths[0], records)
        numbers = [members[place] for place in order]
        return self.told(Example(str(paths[0]), regions, reader, numbers, chats, self._reduction(records)))

    def _asked(self, question: Question) -> Chat:
        """The conversation that begins with a question of a benchmark."""
        if self.train:
            raise ValueError(
                f"question {question.id}: of a benchmark, without its answer in words; train on conversations, which "
                "`data_prep.answered` makes of such files"
            )
        return question.chat

    def told(self, example: Example) -> Example:
        """The example with what its data set knows: features, vocabulary, negatives."""
        example.vocabulary, example.negatives = self.vocabulary, self.negatives
        return example if self.features is None else self.features.of(example)

    def samples(self, example: Example, epoch: int) -> list[dict]:
        """Those of an example, or of a part of one."""
        options = Options() if self.options is None else self.options
        return self.processor.samples(example, options, example.generators(self.seed, epoch), self.train)

    def _reduction(self, regions: Sequence[Any]) -> int:
        return self.processor.reduction(regions) if self.draft else 1

    def _picture(
        self, source: Path | bytes, regions: Sequence[Any], indices: Sequence[int] | None, reduce: int, name: str = ""
    ) -> np.ndarray:
        """Frames (1, H, W, 3) of a picture. source: its path, or its file's bytes with a name for errors."""
        key = name or str(source)
        image = self._cache.get(key)
        if image is None:
            try:
                image = open_image(source, reduce)
            except ValueError as error:
                of = f" ({name})" if name else ""
                raise ValueError(
                    f"region {regions[0].id}{of}: {error}; `python -m data_prep.check FILE` finds all"
                ) from error
            if self._cached_bytes + image.nbytes <= self.cache_bytes:
                self._cache[key] = image
                self._cached_bytes += image.nbytes
        self._last = image  # were none kept, all memory would go back to the system and come again: half the speed
        image_hw = image.shape[:2] if reduce == 1 else read_image_hw(source)
        for region in regions:
            if region.image_hw != image_hw:
                raise ValueError(
                    f"region {region.id}: image_hw {region.image_hw} but {key} is {image_hw} (height, width); boxes "
                    "count in the recorded size: convert again, `python -m data_prep.check FILE` finds all"
                )
        return still(image, indices)

    @staticmethod
    def _clip(path: Path, clips: Sequence[Any], indices: Sequence[int] | None, reduce: int) -> np.ndarray:
        """Frames (T, H, W, 3) of a clip; of its prompt frame where no indices are given."""
        for clip in clips[1:]:
            if (clip.frame_hw, clip.num_frames) != (clips[0].frame_hw, clips[0].num_frames):
                raise ValueError(
                    f"clip {clip.id}: frame_hw {clip.frame_hw}, num_frames {clip.num_frames}, but {clips[0].frame_hw}, "
                    f"{clips[0].num_frames} in clip {clips[0].id} of the same video {path}; convert again"
                )
        return read_clip(path, clips[0], [clips[0].prompt_frame] if indices is None else indices)
