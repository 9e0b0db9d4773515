"""The embedded world: scenes drawn on the spot, with exact boxes, masks, captions, tags, attributes and categories.

    from data_prep import world

    drawn = world.scene(seed=0, split="train")
    drawn.image                                   # RGB uint8 (288, 384, 3)
    drawn.regions("images/0.png")[0].captions     # ("a red cup with white stripes left of the blue boat", ...)
    world.write("data/world", num_scenes=2000, split="train", seed=0, workers=2)

Its purpose is to show what each view is good for: patterns, letters and numbers are a few pixels wide, so only a view
close to the box (t near 0) shows them; neighbours and sides need a view with surroundings. See `scenes.py`.
"""

from data_prep.world.facts import WorldObject
from data_prep.world.grammar import ATTRIBUTE_LIST, ATTRIBUTES, CATEGORIES, TAGS, template_caption
from data_prep.world.objects import COLOURS, COMBINATIONS, PATTERNS, SPLITS
from data_prep.world.scenes import IMAGE_HW, Scene, scene
from data_prep.world.writer import write

__all__ = [
    "ATTRIBUTES",
    "ATTRIBUTE_LIST",
    "CATEGORIES",
    "COLOURS",
    "COMBINATIONS",
    "IMAGE_HW",
    "PATTERNS",
    "SPLITS",
    "TAGS",
    "Scene",
    "WorldObject",
    "scene",
    "template_caption",
    "write",
]
