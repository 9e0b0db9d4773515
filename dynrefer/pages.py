"""What the HTML pages share: templates filled with values that are text and never markup, pictures inside the page, the
places of boxes over them.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def render(template: str | Path, **values: Any) -> str:
    """A jinja2 template, which may include files beside it, with these values; a name without a value is an error. In
    templates, `inset` is the function below."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    path = Path(template)
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(path.parent), **options)
    environment.globals["inset"] = inset
    return environment.get_template(path.name).render(values)


def picture_uri(picture: Image.Image, kind: str = "jpeg", **options: Any) -> str:
    """A picture as a data: address. kind: "jpeg" or "png"; options: of Pillow's save."""
    data = io.BytesIO()
    quality = {"quality": 84} if kind == "jpeg" else {}
    picture.save(data, kind, optimize=True, **quality, **options)
    return f"data:image/{kind};base64," + base64.b64encode(data.getvalue()).decode()


def inset(box: Sequence[float], image_hw: tuple[int, int]) -> str:
    """Where a box (xyxy pixels) lies over its image, as CSS's inset in per cent of the image's (height, width).

    >>> inset((0, 0, 8, 8), (8, 16))
    '0.00% 50.00% 0.00% 0.00%'
    """
    height, width = image_hw
    sides = (box[1] / height, 1 - box[2] / width, 1 - box[3] / height, box[0] / width)
    return " ".join(f"{100 * side:.2f}%" for side in sides)
