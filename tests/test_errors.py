"""How commands end: a line and an exit status, whatever went wrong."""

import argparse
import errno
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynrefer.errors import Parser, run_command

REPOSITORY = Path(__file__).resolve().parents[1]


def ending(capsys, error: BaseException, **options) -> tuple[int, str]:
    def command(args):
        raise error

    return run_command("name", command, argparse.Namespace(), **options), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("box 3: empty"), "box 3: empty"),
        (OSError(errno.ENOSPC, "No space", "/a/b"), "/a/b: disk full; make room, or write somewhere else"),
        (OSError(errno.EROFS, "Read-only", "/a/b"), "/a/b: Read-only; write somewhere else"),
        (PermissionError(errno.EACCES, "Denied", "/a"), "/a: Denied; change who may read and write there, or choose"),
        (FileExistsError(errno.EEXIST, "Exists", "/a"), "/a: Exists; a file stands where a folder is needed"),
        (OSError("model 'x' is no folder and no hub id"), "model 'x' is no folder and no hub id"),
        (OSError(errno.EFBIG, "File too large"), "disk full or at its limit of a file's size; make room, raise the"),
        (OSError(errno.EDQUOT, "Quota", "/a"), "/a: disk full for this user (quota); make room"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk full (I/O error: No space left"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file"), "disk full ([enforce fail]"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 4000), "xxx...xxx"),
        (EOFError(), "EOFError"),
    ],
)
def test_an_error_is_one_line_with_the_file_and_the_next_step(capsys, error, said):
    status, line = ending(capsys, error)
    assert status == 2 and line.startswith("name: error: ") and said in line and line.count("\n") == 1


class Spoiled:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise ValueError(f"region {index}: no image: none")


def test_an_error_of_a_worker_process_reads_as_of_this_one(capsys):
    from torch.utils.data import DataLoader

    with pytest.raises(ValueError, match="Original Traceback") as error:
        list(DataLoader(Spoiled(), num_workers=1))
    assert ending(capsys, error.value) == (2, "name: error: region 0: no image: none\n")


def test_an_interrupted_command_says_so_in_a_line(capsys):
    assert ending(capsys, KeyboardInterrupt()) == (130, "name: stopped\n")
    assert ending(capsys, KeyboardInterrupt(), stopped="stopped; go on") == (130, "name: stopped; go on\n")


def test_a_command_without_mistakes_has_its_own_status():
    assert run_command("name", lambda args: None, argparse.Namespace()) == 0
    assert run_command("name", lambda args: 3, argparse.Namespace()) == 3


@pytest.mark.parametrize("mistake", [TypeError("x"), KeyError("x"), AssertionError("x"), AttributeError("x")])
def test_a_mistake_of_the_program_itself_keeps_its_traceback(mistake):
    def command(args):
        raise mistake

    with pytest.raises(type(mistake)):
        run_command("name", command, argparse.Namespace())


def shell(line: str, **changes) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a bash command in which PRINT is a command of ours that prints many lines."""
    program = (
        "import sys; from dynrefer.errors import Parser, run_command; "
        "sys.exit(run_command('name', lambda n: [print('line', i) for i in range(n)] and None, int(sys.argv[1])))"
    )
    line = line.replace("PRINT", f'{shlex.quote(sys.executable)} -c "{program}"')
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=REPOSITORY, **changes)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("lines", [3, 100_000])
def test_a_reader_that_stops_ends_it_with_0_and_silence(lines):
    status, out, err = shell(f"PRINT {lines} | true; exit ${{PIPESTATUS[0]}}")
    assert (status, out, err) == (0, "", "")
    assert shell(f"PRINT {lines} | head -1; exit ${{PIPESTATUS[0]}}") == (0, "line 0\n", "")


@pytest.mark.parametrize("lines", [3, 100_000])
def test_output_that_cannot_be_written_is_one_line(lines):
    assert shell(f"PRINT {lines} >&-")[::2] == (
        2,
        "name: error: standard output is closed; send it to a file, or to /dev/null\n",
    )
    status, _, err = shell(f"PRINT {lines} > /dev/full")
    assert status == 2 and "disk full; make room" in err and err.count("\n") == 1
    assert shell(f"PRINT {lines} > /dev/full 2>&-")[0] == 2


def test_a_broken_pipe_to_a_server_is_no_end_of_the_reader(capfd):
    def command(args):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run_command("name", command, argparse.Namespace()) == 2
    assert "name: error: [Errno 32] Broken pipe" in capfd.readouterr().err


def test_ctrl_c_once_and_twice_is_a_line_and_130():
    program = (
        "import atexit, sys, time; from dynrefer.errors import Parser, run_command; atexit.register(time.sleep, 20)\n"
        "def command(args):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "sys.exit(run_command('name', command, None))"
    )
    python = [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler)\n{program}"]
    with subprocess.Popen(python, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "name: stopped\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(15), process.stderr.read()) == (130, "")


def test_a_message_of_several_lines_is_one(capsys):
    assert ending(capsys, ValueError("two\n  lines")) == (2, "name: error: two lines\n")


def parser() -> Parser:
    parser = Parser(prog="python -m data_prep.name", description="A command.")
    parser.add_argument("--train", type=int)
    parser.add_argument("--share", type=float)
    parser.add_argument("--to", choices=("coco", "yolo"))
    parser.add_argument("--out", required=True)
    return parser


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--out x --train five", "--train 'five': expected a whole number;"),
        ("--out x --train=", "--train '': expected a whole number;"),
        ("--out x --share half", "--share 'half': expected a number;"),
        ("--out x --to cocoo", "--to: invalid choice: 'cocoo' (choose from 'coco', 'yolo');"),
        ("--train 5", "the following arguments are required: --out;"),
        ("--uot x", "unknown option '--uot'. Did you mean '--out'?"),
        ("--out x --trian=5", "unknown option '--trian'. Did you mean '--train'?"),
        ("--out x -q 3", "unknown option '-q';"),
        ("--out x one two", "unknown argument 'one two';"),
        ("--out", "--out: expected one argument;"),
        (f"--out x --train {'9x' * 5000}", "--train '9x9x"),
    ],
)
def test_a_wrong_argument_is_one_line_with_the_option_its_value_and_the_rule(capsys, arguments, said):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(arguments.split())
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1) and len(err) < 300
    assert err.startswith(f"data_prep.name: error: {said}")
    assert err.endswith(" `python -m data_prep.name --help` shows the options\n")


@pytest.mark.parametrize("arguments", [["--out", "a\nb", "--x\ny"], ["--out", "x", "--\udcff"]])
def test_a_wrong_argument_of_odd_characters_is_one_line_too(capsys, arguments):
    with pytest.raises(SystemExit):
        parser().parse_args(arguments)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "data_prep.world --train five",
        "data_prep.coco own --anotations x",
        "eval.run --task coco-captions --limit ten",
        "eval.run --model",
        "train.run --confg x",
        "dynrefer.cli info model --devise cpu",
        "dynrefer.cli convert lavis --bas x",
    ],
)
def test_a_wrong_argument_of_a_command_is_one_line(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert "--help` shows the options" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_cannot_be_written_is_one_line_and_one_that_is_read_in_part_is_silent(option, unbuffered):
    shown = f"PYTHONUNBUFFERED={unbuffered} {shlex.quote(sys.executable)} -m dynrefer.cli {option}"
    ends = [
        (">/dev/full", 2, "disk full"),
        (">&-", 2, "standard output is closed"),
        ("| true; exit ${PIPESTATUS[0]}", 0, ""),
    ]
    for end, status, said in ends:
        done = subprocess.run(["bash", "-c", f"{shown} {end}"], capture_output=True, text=True, cwd=REPOSITORY)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("dynrefer 0")]
        assert (done.returncode, len(lines)) == (status, bool(said)) and said in done.stderr, done.stderr
