"""Graphs as files: ONNX, arrays, and export.json, which says what goes in and what comes out.

Every graph is run by onnxruntime before it is kept, on inputs of other sizes than those that it was made with.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dynrefer
from dynrefer.files import write_json
from dynrefer.models.graphs import Graph, Graphs

DESCRIPTION = "export.json"
OPSET = 20  # RoiAlign as torchvision has it since 16, Resize and ScatterElements with "max" since 18, Gelu since 20
TOLERANCE = 1e-4  # of outputs, in units of 1 or of the largest
MADE_WITH, CHECKED_WITH = 3, (1, 2)  # sizes that may be any, when graphs are made and checked


def need_onnx() -> None:
    """ImportError that says what to install."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{error.name} is not installed; `pip install -e ".[onnx]"`') from error


def write_graphs(graphs: Graphs, folder: Path, family: str) -> dict[str, float]:
    """Writes graphs, arrays and description into a folder; {graph: largest difference}. ValueError where onnxruntime
    gives something else than PyTorch."""
    differences = {}
    for graph in graphs.graphs:
        write_graph(graph, folder / f"{graph.name}.onnx")
        differences[graph.name] = max(difference(graph, folder / f"{graph.name}.onnx", size) for size in CHECKED_WITH)
    for name, array in graphs.arrays.items():
        np.save(folder / f"{name}.npy", array)
    content = {
        "family": family,
        "dynrefer": dynrefer.__version__,
        "opset": OPSET,
        "graphs": [described(graph, folder / f"{graph.name}.onnx") for graph in graphs.graphs],
        "arrays": {name: {"file": f"{name}.npy", "shape": list(array.shape)} for name, array in graphs.arrays.items()},
        "preprocessing": dict(graphs.preprocessing),
        "answers": dict(graphs.answers),
        "words": {name: list(words) for name, words in graphs.words.items()},
    }
    write_json(folder / DESCRIPTION, content)
    return differences


def write_graph(graph: Graph, path: Path) -> None:
    """One .onnx file; above 2 GB its weights lie beside it.

    torch.onnx.export makes a graph of fixed sizes, without a word, where it cannot make one of any: so the program is
    traced first, which is an error then. What fixes a size is mostly len(tensor); tensor.shape[0] does not.
    """
    names = {size: torch.export.Dim(size, min=1) for size in graph.free}
    free = [{axis: names[size] for axis, size in enumerate(shape) if size in names} for shape in graph.inputs.values()]
    own = list(inspect.signature(graph.module.forward).parameters.values())
    if own[-1].kind is inspect.Parameter.VAR_POSITIONAL:  # *arguments are one tuple to torch.export
        free = [*free[: len(own) - 1], tuple(free[len(own) - 1 :])]
    given = graph.example(sizes(graph, MADE_WITH), torch.Generator().manual_seed(0))
    with torch.no_grad(), quiet(), slow_attention():
        program = torch.export.export(graph.module.eval(), given, dynamic_shapes=tuple(free), strict=False)
        drop_checks(program.graph)
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
        tidy(made.model, graph)
        made.save(path)


def drop_checks(graph: torch.fx.Graph) -> None:
    """Takes out checks of values, and what only they read: ONNX has no operator for some of it."""
    read: set[torch.fx.Node] = set()  # by what was taken out
    for node in reversed(graph.nodes):
        unread = node in read and not node.users and node.op == "call_function"
        changes = getattr(getattr(node.target, "_schema", None), "is_mutable", False)  # something in place
        if "_assert" in str(node.target) or (unread and not changes):
            read.update(node.all_input_nodes)
            graph.erase_node(node)


def tidy(model: Any, graph: Graph) -> None:
    """Sizes that may be any get the family's names for them, not the tracer's; where nodes come from, with the paths of
    this machine, is left out. model: of onnx_ir."""
    import onnx_ir

    for values, shapes in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value, shape in zip(values, shapes.values(), strict=True):
            value.shape = onnx_ir.Shape(shape)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()


def difference(graph: Graph, path: Path, size: int) -> float:
    """The largest difference of onnxruntime's outputs from PyTorch's; ValueError above TOLERANCE."""
    given = graph.example(sizes(graph, size), torch.Generator().manual_seed(size))
    with torch.no_grad():
        expected = graph.module(*given)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session(path).run(None, {name: value.numpy() for name, value in zip(graph.inputs, given, strict=True)})
    largest = 0.0
    for name, one, other in zip(graph.outputs, found, expected, strict=True):
        other = other.numpy()
        apart = float(np.abs(one - other).max()) if other.size else 0.0
        if not apart <= TOLERANCE * max(1.0, float(np.abs(other).max(initial=0))):
            raise ValueError(
                f"graph {graph.name}: onnxruntime's {name} differs from PyTorch's by {apart:.2g}; the installed "
                "versions disagree on one of its operators, try others of torch and onnxruntime"
            )
        largest = max(largest, apart)
    return largest


def sizes(graph: Graph, first: int) -> dict[str, int]:
    """Each size that may be any, one larger than the one before: equal ones would be taken for the same."""
    return {size: first + place for place, size in enumerate(graph.free)}


def session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def described(graph: Graph, path: Path) -> dict[str, Any]:
    running = session(path)

    def each(values: list, shapes: Mapping) -> list[dict[str, Any]]:
        kinds = {value.name: value.type.removeprefix("tensor(").removesuffix(")") for value in values}
        texts = {name: {"about": graph.about[name]} if name in graph.about else {} for name in shapes}
        return [
            {"name": name, "type": kinds[name], "shape": list(shape), **texts[name]} for name, shape in shapes.items()
        ]

    inputs, outputs = each(running.get_inputs(), graph.inputs), each(running.get_outputs(), graph.outputs)
    return {"name": graph.name, "file": path.name, "inputs": inputs, "outputs": outputs}


@contextlib.contextmanager
def slow_attention() -> Iterator[None]:
    """nn.MultiheadAttention without its shortcut of one kernel, which ONNX does not have."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter tells its steps on standard output and in warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
