"""The README's commands work: every line of its ```bash blocks is run on small data, or at least parsed.

A command whose comment says `# hours`, `# gigabytes` or `# real weights`, at the end of its line or on a line of its
own above it (good until the next empty line), is only parsed: its program must accept the arguments and its config must
load. The others run in order in a folder with the checkout, `runs/quickstart`, `data/world`, `photo.jpg`, `mask.png`.
"""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
COSTLY = re.compile(r"\b(hours|gigabytes|real weights)\b")
# what keeps a command of the README small; later arguments and settings win over earlier ones
SMALLER = {
    "data_prep.world": ["--train", "12", "--val", "4", "--test", "4"],
    "train.run": ["loop.steps=2", "loop.epochs=null", "loop.eval_every=0", "loop.overwrite=true", "data.num_workers=0"],
    "eval.run": ["--limit", "8"],
    "eval.sweep": ["--limit", "8"],
    "bench.run": ["--seconds", "0.01"],
}
INSTALLING = ("git", "cd", "pip", "source", ".", "python -m venv", "python -m pip", "python3 -m venv", "apt-get")
LAUNCHERS = {  # programs that start a module: their own module
    "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
    "torchrun": ["-m", "torch.distributed.run"],
    "dynrefer": ["-m", "dynrefer.cli"],
    "pytest": ["-m", "pytest"],
    "ruff": ["-m", "ruff"],
}


@dataclass(frozen=True)
class Command:
    line: int
    words: tuple[str, ...]
    costly: bool

    def __str__(self):
        return f"README.md:{self.line}: {shlex.join(self.words)}"

    @property
    def module(self) -> str | None:
        """The module of this project that the command runs, "eval.run" for instance."""
        if self.words[0] == "dynrefer":
            return "dynrefer.cli"
        if "-m" in self.words[:-1]:
            name = self.words[self.words.index("-m") + 1]
            return name if name.split(".")[0] in ("train", "eval", "data_prep", "bench", "dynrefer") else None
        return None

    @property
    def arguments(self) -> list[str]:
        """What the module itself gets."""
        start = 1 if self.words[0] == "dynrefer" else self.words.index("-m") + 2
        return list(self.words[start:])


def read_commands(text: str) -> list[Command]:
    """Every command of the ```bash blocks; a backslash at the end of a line continues it."""
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
                commands.append(Command(first, tuple(words), costly_above or bool(COSTLY.search(comment))))
    return commands


COMMANDS = read_commands(README.read_text(encoding="utf-8")) if README.exists() else []
COSTLY_COMMANDS = [command for command in COMMANDS if command.costly]
needs_readme = pytest.mark.skipif(not README.exists(), reason="there is no README.md")


def is_installation(command: Command) -> bool:
    return shlex.join(command.words).startswith(tuple(f"{start} " for start in INSTALLING))


class Parsed(Exception):
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
            runpy.run_module(command.module, run_name="__main__", alter_sys=False)
        except Parsed:
            pass
        except SystemExit as exit:
            pytest.fail(f"{command}: the program refuses its arguments ({exit})")
        else:
            pytest.fail(f"{command}: the program ended without parsing its arguments")
        if command.module == "train.run":
            from dynrefer.config import load_config
            from train.run import RunConfig

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
    assert command.module, f"{command}: this test knows no such program; teach it, or use another block than bash"
    parse_only(command, monkeypatch)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like the checkout after `make quickstart`, with a small world and a hardly trained model."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("train", "eval", "data_prep", "dynrefer", "configs", "bench", "tests", "Makefile", "setup.py"):
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


@needs_readme
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_other_commands_run_in_their_order(workplace):
    cheap = [command for command in COMMANDS if not command.costly and not is_installation(command)]
    assert cheap
    for command in cheap:
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
