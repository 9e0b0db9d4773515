"""The README and the pages of docs/ tell the truth: their commands and Python blocks run, their files and links exist.

Every line of a ```bash block is run on small data, or at least parsed. A command whose comment says `# hours`,
`# gigabytes` or `# real weights`, at the end of its line or on a line of its own above it (good until the next empty
line), is only parsed: its program must accept the arguments and its config must load. The others run in order in a
folder with the checkout, `runs/quickstart`, `data/world`, `photo.jpg`, `mask.png`. A ```python block is run after them;
one that begins with such a comment, or with `# sketch`, is only compiled.
"""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynrefer.config import load_config
from train.run import RunConfig

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
PAGES = {path.relative_to(REPOSITORY).as_posix(): path for path in (README, *sorted(REPOSITORY.glob("docs/*.md")))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items() if path.exists()}
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
COSTLY = re.compile(r"\b(hours|gigabytes|real weights|your own data)\b")
# what keeps a command of a page small; later arguments and settings win over earlier ones
SMALLER = {
    "data_prep.world": ["--train", "12", "--val", "4", "--test", "4"],
    "data_prep.moving_world": ["--train", "4", "--val", "2", "--test", "2"],
    "train.run": ["loop.steps=2", "loop.epochs=null", "loop.eval_every=0", "loop.overwrite=true", "data.num_workers=0"],
    "eval.run": ["--limit", "8"],
    "eval.sweep": ["--limit", "8"],
    "bench.run": ["--seconds", "0.01"],
    "docs/picture.py": ["--scenes", "3", "9", "--out", "picture.png"],
}
INSTALLING = (
    "git",
    "cd",
    "pip",
    "source",
    ".",
    "python -m venv",
    "python -m pip",
    "python3 -m venv",
    "apt-get",
    "docker",
)
LAUNCHERS = {  # programs that start a module: their own module
    "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
    "torchrun": ["-m", "torch.distributed.run"],
    "dynrefer": ["-m", "dynrefer.cli"],
    "pytest": ["-m", "pytest"],
    "ruff": ["-m", "ruff"],
}
OF_OTHERS = ("lmms_eval", "eval.harness.vlmevalkit")  # modules whose arguments are those of other programs


@dataclass(frozen=True)
class Command:
    line: int
    words: tuple[str, ...]
    costly: bool
    page: str = "README.md"

    def __str__(self):
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"

    @property
    def module(self) -> str | None:
        """The module of this project that the command runs, "eval.run" for instance; or a file, "docs/picture.py"."""
        if self.words[0] == "dynrefer":
            return "dynrefer.cli"
        if self.words[1:] and self.words[1].endswith(".py"):
            return self.words[1]
        if "-m" in self.words[:-1]:
            name = self.words[self.words.index("-m") + 1]
            return name if name.split(".")[0] in ("train", "eval", "data_prep", "bench", "dynrefer") else None
        return None

    @property
    def arguments(self) -> list[str]:
        """What the module itself gets."""
        if self.words[0] == "dynrefer":
            return list(self.words[1:])
        return list(self.words[2 if self.module == self.words[1] else self.words.index("-m") + 2 :])

    def option(self, name: str) -> str | None:
        return self.words[self.words.index(name) + 1] if name in self.words else None


def read_commands(text: str, page: str = "README.md") -> list[Command]:
    """Every command of the ```bash blocks; a backslash at the end of a line continues it. Programs of the quickstart's
    environment, .venv/bin/python for instance, count as what they are."""
    commands, lines, number = [], text.splitlines(), 0
    inside = costly_above = False
    while number < len(lines):
        line, first = lines[number].strip(), number + 1
        number += 1
        if line.startswith("```"):
            inside, costly_above = line == "```bash" and not inside, False
            continue
        if not inside:
            continue
        while line.endswith("\\") and number < len(lines):
            line = line[:-1] + lines[number].strip()
            number += 1
        if not line:
            costly_above = False
        elif line.startswith("#"):
            costly_above = costly_above or bool(COSTLY.search(line))
        else:
            words = shlex.split(line, comments=True)
            comment = line.rpartition(" #")[2] if " #" in line else ""
            for part in " ".join(shlex.quote(word) for word in words).split(" '&&' "):
                words = shlex.split(part)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # settings of the environment
                    words = words[1:]
                words[0] = words[0].removeprefix(".venv/bin/")
                commands.append(Command(first, tuple(words), costly_above or bool(COSTLY.search(comment)), page))
    return commands


def blocks(text: str, language: str) -> list[str]:
    """What stands between ```language and ```.

    >>> blocks("```python\\nimport dynrefer\\n```", "python")
    ['import dynrefer\\n']
    """
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


COMMANDS = [command for page, text in TEXTS.items() for command in read_commands(text, page)]
COSTLY_COMMANDS = [command for command in COMMANDS if command.costly]
RUN_PAGES = [name for name in TEXTS if any(not c.costly for c in COMMANDS if c.page == name)]
needs_readme = pytest.mark.skipif(not README.exists(), reason="there is no README.md")


def section(title: str) -> str:
    """The README's text below "## title"."""
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", TEXTS["README.md"], re.MULTILINE | re.DOTALL).group(1)


def is_installation(command: Command) -> bool:
    return shlex.join(command.words).startswith(tuple(f"{start} " for start in INSTALLING))


class Parsed(BaseException):  # no mistake that a command would tell in a line
    """The program has accepted its arguments."""


def parse_only(command: Command, monkeypatch) -> None:
    """Runs the module up to the end of its argument parsing; loads the YAML that it names."""

    def stop_after(parse):
        def parse_and_stop(*arguments, **options):
            parse(*arguments, **options)
            raise Parsed

        return parse_and_stop

    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stop_after(getattr(argparse.ArgumentParser, name)))
        patch.setattr(sys, "argv", [command.module, *command.arguments])
        patch.chdir(REPOSITORY)
        patch.delitem(sys.modules, command.module, raising=False)
        try:
            run = runpy.run_path if command.module.endswith(".py") else partial(runpy.run_module, alter_sys=False)
            run(command.module, run_name="__main__")
        except Parsed:
            pass
        except SystemExit as exit:
            pytest.fail(f"{command}: the program refuses its arguments ({exit})")
        else:
            pytest.fail(f"{command}: the program ended without parsing its arguments")
        if command.module == "train.run":
            start = command.arguments.index("--config")
            path, settings = command.arguments[start + 1], command.arguments[start + 2 :]
            load_config(RunConfig, path, settings)


def test_blocks_are_read_as_a_shell_would():
    text = """
```bash
make quickstart  # five minutes
python -m data_prep.world --out "data/my world" \\
    --train 20
# hours on eight GPUs
accelerate launch -m train.run --config a.yaml \\
    optim.lr=1e-4

CUDA_VISIBLE_DEVICES=0 dynrefer caption a.jpg --control "red # car"   # real weights
cd x && dynrefer info runs/quickstart
```
```python
import dynrefer
```
```
make nothing
```
"""
    commands = read_commands(text)
    assert [(command.line, command.costly, command.words[0]) for command in commands] == [
        (3, False, "make"),
        (4, False, "python"),
        (7, True, "accelerate"),
        (10, True, "dynrefer"),
        (11, False, "cd"),
        (11, False, "dynrefer"),
    ]
    assert commands[1].arguments == ["--out", "data/my world", "--train", "20"]
    assert commands[2].module == "train.run"
    assert commands[3].arguments == ["caption", "a.jpg", "--control", "red # car"]


def test_parsing_finds_wrong_options_and_settings(monkeypatch, capsys, tmp_path):
    def parse(line):
        parse_only(read_commands(f"```bash\n{line}\n```")[0], monkeypatch)

    config = tmp_path / "small.yaml"
    config.write_text("name: small\nloop: {steps: 3}\ndata: {train: nowhere.jsonl}\n")
    parse("dynrefer caption photo.jpg --model org/name --box 1 2 3 4")
    parse("python -m data_prep.world --out data/world")
    parse("python -m eval.run --model runs/quickstart --task world num_beams=5")
    parse(f"accelerate launch -m train.run --config {config} loop.steps=5")
    with pytest.raises(pytest.fail.Exception, match="refuses its arguments"):
        parse("dynrefer caption photo.jpg --modle org/name")
    with pytest.raises(pytest.fail.Exception, match="refuses its arguments"):
        parse("python -m data_prep.world --outt data/world")
    with pytest.raises(ValueError, match="unknown key 'step'"):
        parse(f"accelerate launch -m train.run --config {config} loop.step=5")


@needs_readme
def test_the_readme_has_commands():
    assert len(COMMANDS) >= 5
    assert {("make", "quickstart"), ("make", "test")} <= {command.words for command in COMMANDS}
    assert {command.module for command in COMMANDS} >= {"train.run", "eval.run", "dynrefer.cli"}


@pytest.mark.parametrize("command", COSTLY_COMMANDS, ids=str)
@pytest.mark.timeout(120)
def test_a_costly_command_is_accepted_by_its_program(command, monkeypatch, capsys):
    if is_installation(command):
        return
    if command.words[0] == "make":
        subprocess.run(["make", "-n", *command.words[1:]], cwd=REPOSITORY, check=True, capture_output=True)
        return
    if command.words[2].startswith(OF_OTHERS):
        return
    assert command.module, f"{command}: this test knows no such program; teach it, or use another block than bash"
    parse_only(command, monkeypatch)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.timeout(120)
def test_the_commands_in_a_configurations_comments_are_accepted(path, monkeypatch, capsys):
    lines = [line[4:] for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"#   \S", line)]
    commands = read_commands("\n".join(["```bash", *lines, "```"]), f"configs/{path.name}")
    assert commands, f"{path.name}: a YAML's first comment is its command"
    for command in commands:
        parse_only(command, monkeypatch)


def test_a_configuration_starts_from_what_a_documented_command_makes():
    made = {command.option("--output") for command in COMMANDS} | {f"runs/{path.stem}" for path in CONFIGS}
    records = {command.option("--out") for command in COMMANDS} | {"data/world", "data/mine"}
    assert CONFIGS
    for path in CONFIGS:
        config = load_config(RunConfig, str(path), [])
        assert config.init is None or config.init in made, (
            f"{path.name}: no page has a command that makes {config.init}"
        )
        trains = [config.data.train] if isinstance(config.data.train, str) else [one.path for one in config.data.train]
        for file in filter(None, (*trains, config.data.val)):
            written = {str(file), str(Path(file).parent)} & records
            assert written, f"{path.name}: no page has a command that writes {file}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like the checkout after `make quickstart`, with a small world and a hardly trained model."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("train", "eval", "data_prep", "dynrefer", "configs", "bench", "tests", "docs", "Makefile", "setup.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    run(["make", "quickstart-steps", "SMALL=1", "NAME=quickstart", "WORLD=data/world", f"PY={sys.executable}"], folder)
    assert (folder / "runs/quickstart/report.html").stat().st_size > 10_000
    scene = np.asarray(Image.open(next((folder / "data/world/images").rglob("*.png"))).convert("RGB"))
    Image.fromarray(scene).save(folder / "photo.jpg")
    mask = np.zeros(scene.shape[:2], dtype=np.uint8)
    mask[40:120, 60:160] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def run(words: list[str], folder: Path) -> str:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(folder)}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=env, timeout=300, check=False)
    tail = (done.stdout + done.stderr)[-3000:]
    assert done.returncode == 0, f"status {done.returncode} of {shlex.join(words)}\n{tail}"
    return done.stdout


RUN_BEFORE: set[tuple[str, ...]] = set()  # commands that stand in several pages are run once


@needs_readme
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_other_commands_run_in_their_order(workplace, page):
    for command in COMMANDS:
        if command.page != page or command.costly or is_installation(command) or command.words in RUN_BEFORE:
            continue
        RUN_BEFORE.add(command.words)
        words = list(command.words)
        if words[0] == "make":  # the environments are there and the tests are running: only that the target exists
            run(["make", "-n", *words[1:]], workplace)
            continue
        if words[0] in LAUNCHERS:
            words[:1] = [sys.executable, *LAUNCHERS[words[0]]]
        elif words[0] in ("python", "python3"):
            words[0] = sys.executable
        else:
            pytest.fail(f"{command}: this test knows no such program; teach it, or use another block than bash")
        if command.module is None:
            assert command.words[0] in ("pytest", "ruff"), f"{command}: none of this project's modules"
            words = [sys.executable, "-m", command.words[0], "--version"]
        try:
            run([*words, *SMALLER.get(command.module, [])], workplace)
        except AssertionError as error:
            raise AssertionError(f"{command}\n{error}") from None


@needs_readme
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_python_blocks_run(workplace, page):
    for number, block in enumerate(blocks(TEXTS[page], "python"), 1):
        compile(block, f"{page}, Python block {number}", "exec")
        first = block.splitlines()[0]
        if not (first.startswith("#") and (COSTLY.search(first) or "sketch" in first)):
            run([sys.executable, "-c", block], workplace)


@needs_readme
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_answer_in_the_readme_has_the_form_that_the_command_prints(workplace):
    """The words are those of the whole quickstart; here the model is hardly trained."""
    command = next(c for c in COMMANDS if c.page == "README.md" and c.module == "dynrefer.cli" and "--box" in c.words)
    printed = run([sys.executable, "-m", "dynrefer.cli", *command.arguments], workplace)
    answer = blocks(section("Quick start"), "")[0]

    def heads(text: str) -> list[str]:
        return re.findall(r"^\d+:|\(score|box [\d., ]+", text, re.MULTILINE)

    assert heads(answer) == heads(printed) != []
    assert answer.count("\n") == printed.count("\n") or "tags" in answer  # without a predicted tag the line is left out


# --- files, links, numbers -------------------------------------------------------------------------------------------


def tree() -> list[str]:
    """Paths of the README's tree: an indented line stands in the folder above it; names end at two blanks.

    Names of one line are all files or folders of the same folder.
    """
    paths, parents = [], {}
    for line in blocks(section("Tree"), "")[0].splitlines():
        depth = len(line) - len(line.lstrip())
        names = re.split(r" {2,}", line.strip())[0].split(" ")
        parent = next((folder for start, folder in sorted(parents.items(), reverse=True) if start < depth), "")
        parents = {start: folder for start, folder in parents.items() if start < depth}
        paths += [parent + name for name in names]
        if names[-1].endswith("/"):
            parents[depth] = parent + names[-1]
    return paths


@needs_readme
def test_the_tree_is_the_repositorys():
    paths = tree()
    assert len(paths) > 50 and len(set(paths)) == len(paths)
    missing = [path for path in paths if not (REPOSITORY / path).exists()]
    assert not missing, f"the README's tree names what is not there: {missing}"


@needs_readme
@pytest.mark.parametrize("page", TEXTS)
def test_links_and_named_files_exist(page):
    text = TEXTS[page]
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((REPOSITORY / page).parent / target).exists(), f"{page}: the link {target} leads nowhere"
    for name in re.findall(r"`((?:dynrefer|train|eval|data_prep|configs|tests|docs|bench)/[\w./*-]+)`", text):
        assert name == "docs/log.md" or list(REPOSITORY.glob(name)), f"{page}: there is no {name}"


@needs_readme
def test_the_walk_names_files_that_exist():
    names = re.findall(r"[\w/]+\.py", section("The walk"))
    rooms = (REPOSITORY, REPOSITORY / "dynrefer")
    assert len(names) > 5
    assert not [name for name in names if not any((room / name).exists() for room in rooms)]


NUMBERS = ("docs/results.md", "docs/performance.md", "docs/log.md")  # the pages where measured numbers stand
METRIC = re.compile(r"\b(CIDEr|METEOR|BLEU|ROUGE|SPICE|mAP|accuracy)\b")
SCORE = re.compile(r"(?<![\w.])(\d?\.\d{2,}|\d{2,3}\.\d)(?![\w.]*\w)")
MEASURE = re.compile(r"\b\d[\d.,]* ?(seconds?|minutes?|hours?|min|ms|s|MB|GB|regions/s|captions/s|M parameters)\b")


def measured(text: str) -> list[str]:
    """Lines that give a score, a time or a size."""
    return [line for line in text.splitlines() if (METRIC.search(line) and SCORE.search(line)) or MEASURE.search(line)]


def test_scores_times_and_sizes_are_recognized():
    assert measured("# CIDEr 2.62\nMETEOR 21.2\nabout 25 minutes\n1,379 captions/s\n6.7 GB of disk") != []
    assert len(measured("CIDEr 2.62\nMETEOR 21.2\nabout 25 minutes\n1,379 captions/s\n6.7 GB of disk")) == 5
    assert not measured("METEOR 1.5, CIDEr\nthe released 4.2B recipe: 8 GPUs\nlr: 1.2e-3\nwithin 1e-5\n480 x 640")


@pytest.mark.parametrize("name", [*TEXTS, "Makefile", *(f"configs/{path.name}" for path in CONFIGS)])
def test_measured_numbers_stand_in_their_own_pages(name):
    if name not in NUMBERS:
        found = measured((REPOSITORY / name).read_text(encoding="utf-8"))
        assert not found, f"{name}: measured numbers belong into {NUMBERS[0]} or {NUMBERS[1]}: {found}"
