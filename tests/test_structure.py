"""The shape of the repository: imports point one way, public names exist, every setting file loads."""

import ast
import importlib.util
from pathlib import Path

import pytest

import dynrefer

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("train", "eval", "data_prep", "dynrefer", "bench", "tests")
MAY_IMPORT = {
    "dynrefer": {"dynrefer"},
    "data_prep": {"data_prep", "dynrefer"},
    "eval": {"eval", "dynrefer"},
    "train": {"train", "eval", "dynrefer"},
}
SLOW_AT_HOME = ("transformers", "datasets", "pycocoevalcap", "matplotlib", "deepspeed", "open_clip", "timm")
LIGHT = ("dynrefer/__init__.py", "dynrefer/cli.py", "dynrefer/config.py", "dynrefer/predictor.py")


def python_files(room):
    files = sorted((REPOSITORY / room).rglob("*.py"))
    assert files, f"no Python file in {room}/: the test looks in the wrong place"
    return files


def imports(tree, top_level_only=False):
    """(line, module) of every import statement; relative ones as they stand in their own package, so left out."""
    nodes = ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    if room != "dynrefer" and not (REPOSITORY / room).exists():
        pytest.skip(f"{room}/ is not part of an installed package")
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {module}"
        for path in python_files(room)
        for line, module in imports(ast.parse(path.read_text(encoding="utf-8")))
        if module.split(".")[0] in set(ROOMS) - MAY_IMPORT[room]
    ]
    assert not wrong


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_slow(name):
    tree = ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))
    assert not [module for _, module in imports(tree, top_level_only=True) if module.split(".")[0] in SLOW_AT_HOME]


def test_every_public_name_exists():
    for name in dynrefer.__all__:
        assert getattr(dynrefer, name) is not None
        assert name in dir(dynrefer)
    with pytest.raises(AttributeError, match="has no attribute 'RegionPredicter'; public names: load, "):
        dynrefer.RegionPredicter  # noqa: B018


def test_the_package_installs_dynrefer_and_nothing_else(monkeypatch):
    given = {}
    import setuptools

    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    monkeypatch.chdir(REPOSITORY)
    spec = importlib.util.spec_from_file_location("setup_script", REPOSITORY / "setup.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    folders = {path.parent.relative_to(REPOSITORY).as_posix().replace("/", ".") for path in python_files("dynrefer")}
    assert set(given["packages"]) == folders  # a folder without __init__.py would be left out of the wheel
    assert given["version"] == dynrefer.__version__
    extras = {"train", "data", "eval", "vision", "quant", "serve", "demo", "onnx", "dev", "all"}
    assert set(given["extras_require"]) == extras


def test_the_changelog_names_the_version():
    assert f"## {dynrefer.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_command_ends_by_the_one_place():
    commands = [
        path for room in (*MAY_IMPORT, "bench") for path in python_files(room) if "__main__" in path.read_text("utf-8")
    ]
    assert len(commands) > 30
    wrong = []
    for path in commands:
        text = path.read_text(encoding="utf-8")
        renamed = "import main\n" in text and "argparse" not in text
        if "run_command(" not in text and not renamed and path.parts[-2:] != ("harness", "vlmevalkit.py"):
            wrong.append(str(path.relative_to(REPOSITORY)))
    files = [path for room in (*MAY_IMPORT, "bench", "docs") for path in python_files(room)]
    files = [path for path in files if path.name != "run_onnx.py"]  # which runs where this package is not installed
    wrong += [str(path) for path in files if "argparse.ArgumentParser(" in path.read_text("utf-8")]  # errors.Parser
    assert not wrong


# --- no circles, and no families outside their room ---


def file_of(module):
    """The file of a module of ours, or None."""
    place = REPOSITORY.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def imported(path, tree):
    """(line, module) of all imports of a file, also within functions and for types only; relative names resolved."""
    package = path.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}" if file_of(f"{start}.{alias.name}") else start


def circles(arrows):
    """Every set of nodes that lead to each other; arrows: node -> nodes."""

    def reached(start):
        seen, waiting = set(), [start]
        while waiting:
            for node in arrows[waiting.pop()] - seen:
                seen.add(node)
                waiting.append(node)
        return seen

    ways = {node: reached(node) for node in arrows}
    return {frozenset(other for other in way if node in ways[other]) for node, way in ways.items() if node in way}


def test_circles_are_found():
    assert circles({1: {2}, 2: {3}, 3: {2, 4}, 4: {4}, 5: {1}}) == {frozenset({2, 3}), frozenset({4})}


def test_no_files_import_each_other_in_a_circle():
    arrows = {}
    rooms = (*MAY_IMPORT, "bench")
    for path in (path for room in rooms for path in python_files(room)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {file_of(module) for _, module in imported(path, tree) if module.split(".")[0] in rooms}
        arrows[path] = named - {path, None}
    assert sum(map(len, arrows.values())) > 300, "files of ours import each other"
    found = [sorted(str(path.relative_to(REPOSITORY)) for path in circle) for circle in circles(arrows)]
    assert not found


MODELS = REPOSITORY / "dynrefer" / "models"
FAMILIES = sorted(path.parent.name for path in MODELS.glob("*/configuration.py"))
EXEMPT = (REPOSITORY / "dynrefer" / "__init__.py",)  # the public names


def classes(paths):
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def family_uses(path, own):
    """What a file knows of a family: imports from its folder, names of its classes, its name in a comparison."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for line, module in imported(path, tree):
        if any(f"{module}.".startswith(f"dynrefer.models.{family}.") for family in FAMILIES):
            yield f"{path.relative_to(REPOSITORY)}:{line} imports {module}"
    for node in ast.walk(tree):
        name = getattr(node, {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name"}.get(type(node), ""), None)
        if name in own:
            yield f"{path.relative_to(REPOSITORY)}:{node.lineno} uses {name}"
        if isinstance(node, ast.Compare | ast.MatchValue):
            texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            for text in sorted(texts & {*own, *FAMILIES}, key=str):
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno} compares with {text!r}"


def test_no_file_outside_models_knows_a_family():
    files = [path for room in (*MAY_IMPORT, "bench") for path in python_files(room)]
    outside = [path for path in files if not path.is_relative_to(MODELS) and path not in EXEMPT]
    inside = [path for path in files if any(path.is_relative_to(MODELS / family) for family in FAMILIES)]
    own = classes(inside) - classes(set(files) - set(inside)) - {"Options"}  # what the interface calls each family's
    assert {"DynReferModel", "DynReferConfig", "DynReferProcessor"} <= own
    assert not sorted({use for path in outside for use in family_uses(path, own)})
