"""The page: the picture on the left, what was said on the right; two models, or two settings of one, side by side."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.utils import get_upload_folder

from dynrefer.draw import label_of
from dynrefer.errors import first_line

from .asking import Asker, read_regions
from .canvas import HERE, canvas
from .cards import cards, waiting
from .controls import Control, controls, given
from .downloads import write_files
from .opened import open_uploaded, prepare

HINT = "Draw regions, then press Describe (Ctrl and Enter)."
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]  # of the machine
MONO = ["ui-monospace", "Consolas", "Liberation Mono", "monospace"]
FILES = ("↓ JSON", "↓ COCO", "↓ Picture")
MAX_FILE = 256  # MB
KEPT = 24 * 60 * 60  # seconds for which uploads and files stay
log = logging.getLogger(__name__)


class Side:
    """One column of answers: a model with its controls."""

    def __init__(self, asker: Asker, shown: bool):
        self.asker = asker
        with gr.Column(visible=shown, min_width=300) as self.column:
            with gr.Row(visible=False) as self.row:
                self.files = [gr.DownloadButton(name, size="sm", min_width=80) for name in FILES]
            self.answers = gr.HTML(waiting(HINT), apply_default_css=False)

    def show_controls(self, letter: str, title: str | None) -> None:
        with gr.Column(visible=self.column.visible, min_width=280) as self.settings:
            if title:
                gr.Markdown(f"**{escape(title)}**")
            self.controls: list[Control] = controls(self.asker.options, letter)

    @property
    def inputs(self) -> list[Any]:
        return [one.component for one in self.controls]

    @property
    def outputs(self) -> list[Any]:
        return [self.answers, self.row, *self.files]

    def nothing(self) -> list[Any]:
        """Outputs that change nothing."""
        return [gr.skip() for _ in self.outputs]


def build(askers: Sequence[Asker]) -> gr.Blocks:
    """The page of one or two models."""
    two, clips = len(askers) == 2, any(asker.clips for asker in askers)
    with gr.Blocks(title="dynrefer", analytics_enabled=False, delete_cache=(3600, KEPT), fill_width=True) as page:
        names = " and ".join(escape(asker.name) for asker in askers)
        gr.HTML(f'<div class="dr-head"><h1>dynrefer</h1><span>{names}</span></div>', apply_default_css=False)
        with gr.Row(elem_classes="dr-main"):
            with gr.Column(scale=5, min_width=300, elem_classes="dr-left"):
                drawing = canvas(_preparer(clips), clips, MAX_FILE)
                error = gr.HTML("", apply_default_css=False, elem_id="dr-error")
                describe = gr.Button("Describe", variant="primary", elem_id="dr-describe")
                compare = gr.Checkbox(
                    two, label="Compare two settings", visible=not two, container=False, elem_id="dr-compare"
                )
                settings = gr.Row(elem_classes="dr-settings")
            with gr.Column(scale=6, min_width=300):
                with gr.Row():
                    sides = [Side(askers[0], True), Side(askers[-1], two)]
        with settings:
            for side, letter in zip(sides, "AB", strict=True):
                side.show_controls(
                    letter, side.asker.name if two else None if letter == "A" else "B: the other settings"
                )
        describe.click(
            partial(_describe, sides),
            [drawing, compare, *(one for side in sides for one in side.inputs)],
            [error, drawing, *(one for side in sides for one in side.outputs)],
            concurrency_limit=1,
            show_progress_on=[side.answers for side in sides],
            api_visibility="private",
        )
        compare.change(
            lambda both: [gr.Column(visible=both)] * 2,
            compare,
            [sides[1].column, sides[1].settings],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def application(page: gr.Blocks, folder: str) -> FastAPI:
    """The page as a web application. folder: where what visitors open is kept."""
    os.environ["GRADIO_TEMP_DIR"] = folder
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page.queue(default_concurrency_limit=4, max_size=64),
        path="/",
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        max_file_size=f"{MAX_FILE}mb",
        theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO),
        css=(HERE / "page.css").read_text("utf-8"),
    )


class Server(uvicorn.Server):
    """Of the page, on a socket from `bind`; `run()` ends with Ctrl-C. ready: called with the address when it listens.

    Gradio's own launch asks the network whether it can be reached.
    """

    def __init__(self, app: FastAPI, sock: socket.socket, ready: Callable[[str], None]):
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        self.sock, self.ready = sock, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.sock.getsockname()[:2]
        self.ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run([self.sock])


def _folder() -> Path:
    return Path(get_upload_folder())


def _preparer(clips: bool) -> Callable[[Any], dict[str, Any]]:
    """What canvas.js calls as server.prepare."""

    def bound(record: Any) -> dict[str, Any]:
        return prepare(record, _folder(), clips)

    bound.__name__ = "prepare"
    return bound


def _describe(sides: Sequence[Side], drawn: Any, both: bool, *values: Any) -> list[Any]:
    """Values of the outputs: the error's line or none, labels on the picture, answers and files of each side."""
    nothing = [gr.skip(), *(one for side in sides for one in side.nothing())]
    try:
        drawn = drawn if isinstance(drawn, dict) else {}
        opened = open_uploaded(drawn.get("picture"), _folder(), any(side.asker.clips for side in sides))
        regions, prompts = read_regions(drawn.get("regions"), opened.image_hw)
        outputs, labels, start = [], [], 0
        for number, side in enumerate(sides):
            own = values[start : start + len(side.controls)]
            start += len(side.controls)
            if number and not both:
                outputs += side.nothing()
                continue
            changed = given(side.controls, own, side.asker.options)
            answer = side.asker(opened, regions, prompts, changed)
            labels = labels or [label_of(result) for result in answer.results]
            title = side.asker.name if len({one.asker.name for one in sides}) > 1 else "AB"[number] if both else ""
            paths = write_files(answer, opened, _folder())
            outputs += [cards(answer, opened, title, changed), gr.Row(visible=True), *paths]
        return ["", gr.HTML(labels=labels, answered=time.time()), *outputs]
    except ValueError as problem:
        return [_line(" ".join(str(problem).split())), *nothing]
    except Exception as problem:  # whatever fails in a model: the page stays, and says so
        log.exception("the model failed")
        return [_line(f"The model failed: {first_line(problem)}"), *nothing]


def _line(text: str) -> str:
    return f'<p class="dr-error" role="alert">{escape(text)}</p>'
