"""The picture on which regions are drawn: a component of Gradio, whose layer in the browser is canvas.js."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from dynrefer.paint import colour_of

HERE = Path(__file__).parent
SCRIPTS = ("masks.js", "canvas.js", "opening.js")
NUM_COLOURS = 200


def canvas(prepare: Callable[[dict], dict], clips: bool, max_file: int) -> gr.HTML:
    """Its value: {"picture": {"path", "name", "frame"} or None, "regions": [{"box"} or {"mask"}, ...]}, masks as run
    lengths, of any size. Its properties `labels`: a text a region, shown beside it; `answered`: another number with
    each answer. prepare: see `opened.prepare`; clips: whether they can be opened;
    max_file: of an upload, in MB."""
    colours = [f"rgb{colour_of(number)}" for number in range(NUM_COLOURS)]
    options: dict[str, Any] = {"clips": clips, "max_file": max_file, "labels": [], "answered": 0, "colours": colours}
    return gr.HTML(
        value={"picture": None, "regions": []},
        html_template=(HERE / "canvas.html").read_text("utf-8"),
        js_on_load="\n".join((HERE / name).read_text("utf-8") for name in SCRIPTS),
        apply_default_css=False,
        server_functions=[prepare],
        **options,
    )
