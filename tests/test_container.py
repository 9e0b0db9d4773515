"""The files of the container and of GitHub: linted, and what they name is there. Building needs Docker."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
DOCKERFILE = REPOSITORY / "Dockerfile"


def steps():
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_passes_its_linter():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip('no hadolint; pip install -e ".[dev]"')
    done = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_the_image_copies_is_let_through_and_is_there():
    let = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {part for step, rest in steps() if step == "COPY" and "--from" not in rest for part in rest.split()[:-1]}
    assert copied >= {"setup.py", "README.md", "LICENSE", "dynrefer"}
    for part in copied:
        assert (REPOSITORY / part).exists() and part.split("/")[0] in let


def test_the_image_installs_what_setup_py_says(tmp_path):
    import setuptools

    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
        patch.chdir(REPOSITORY)
        exec((REPOSITORY / "setup.py").read_text(), {"__file__": str(REPOSITORY / "setup.py"), "__name__": "setup"})
    (tmp_path / "dynrefer").mkdir()
    shutil.copy(REPOSITORY / "setup.py", tmp_path)
    shutil.copy(REPOSITORY / "dynrefer/__init__.py", tmp_path / "dynrefer")
    (script,) = (rest for step, rest in steps() if step == "RUN" and "runpy" in rest)
    script = script.split("&&")[0].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(["sh", "-ec", script], check=True, cwd=tmp_path)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert lines == [*given["install_requires"], *given["extras_require"]["serve"], *given["extras_require"]["demo"]]


def test_the_image_runs_commands_that_there_are():
    import argparse

    from dynrefer.cli import _parser

    steps_of = dict(steps())
    assert eval(steps_of["ENTRYPOINT"]) == ["dynrefer"] and int(steps_of["USER"]) > 0
    commands = [eval(steps_of["CMD"])]
    for page in ("Dockerfile", "docs/serving.md"):
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        commands += [line.split() for line in re.findall(r"docker run .*? dynrefer(?::cuda)? (\w+ -.*)", text)]
    assert len(commands) >= 2
    for words in commands:
        assert isinstance(_parser().parse_args(words, argparse.Namespace(options=[])), argparse.Namespace)


def test_githubs_jobs_run_what_is_here():
    (path,) = (REPOSITORY / ".github/workflows").glob("*.yml")
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in runs and (REPOSITORY / ".ci/run").stat().st_mode & 0o100
    assert any(run.startswith("docker build") for run in runs)
    versions = jobs["tests"]["strategy"]["matrix"]["python"]
    assert all(isinstance(version, str) for version in versions)  # 3.10 would be the number 3.1
    uses = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert uses and all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in uses)
