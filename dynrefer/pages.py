"""What the HTML pages share: escaped text, pictures inside the page, boxes drawn over them."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image


def text(value: Any) -> str:
    """A value as text of a page, whatever characters it has."""
    return html.escape(str(value))


def picture_uri(picture: Image.Image, kind: str = "jpeg", **options: Any) -> str:
    """A picture as a data: address. kind: "jpeg" or "png"; options: of Pillow's save."""
    data = io.BytesIO()
    quality = {"quality": 84} if kind == "jpeg" else {}
    picture.save(data, kind, optimize=True, **quality, **options)
    return f"data:image/{kind};base64," + base64.b64encode(data.getvalue()).decode()


def outline(box: Sequence[float], image_hw: tuple[int, int], kind: str, label: str = "") -> str:
    """A box (xyxy pixels) of class `kind` over its image, in per cent of the image's (height, width)."""
    height, width = image_hw
    inset = (box[1] / height, 1 - box[2] / width, 1 - box[3] / height, box[0] / width)
    place = " ".join(f"{100 * side:.2f}%" for side in inset)
    return f'<i class="{kind}" style="inset:{place}">{f"<small>{label}</small>" if label else ""}</i>'
