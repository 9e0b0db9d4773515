"""An answer as files: JSON, COCO and the drawn picture."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path

from dynrefer.data.export import coco_document, write_coco
from dynrefer.draw import save_picture
from dynrefer.files import write_json

from .asking import Answer
from .opened import Opened


def write_files(answer: Answer, opened: Opened, folder: Path) -> list[str]:
    """Paths of NAME.json, NAME.coco.json and NAME.png in a new folder."""
    place, stem = Path(tempfile.mkdtemp(dir=folder)), re.sub(r"[^\w.-]+", "_", Path(opened.name).stem)[:80]
    stem = stem.strip(".") or "picture"
    paths = [place / f"{stem}.json", place / f"{stem}.coco.json"]
    options = {name: value for name, value in dataclasses.asdict(answer.options).items() if value not in (None, {})}
    content = {"model": answer.name, "options": options}
    content |= {} if opened.video is None else {"frame": opened.frame}
    write_json(paths[0], content | json.loads(answer.results.to_json()))
    write_coco(paths[1], coco_document(answer.results.exported()))
    return [str(path) for path in (*paths, save_picture(place, stem, answer.results.draw(opened.pixels)))]
