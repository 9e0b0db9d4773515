"""How commands end: a line and an exit status, whatever went wrong."""

import argparse
import errno

import pytest

from dynrefer.errors import run_command


def ending(capsys, error: BaseException, **options) -> tuple[int, str]:
    def command(args):
        raise error

    return run_command("name", command, argparse.Namespace(), **options), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("box 3: empty"), "box 3: empty"),
        (OSError(errno.ENOSPC, "No space", "/a/b"), "/a/b: No space; make room, or write somewhere else"),
        (OSError(errno.EROFS, "Read-only", "/a/b"), "/a/b: Read-only; write somewhere else"),
        (PermissionError(errno.EACCES, "Denied", "/a"), "/a: Denied; change who may read and write there, or choose"),
        (FileExistsError(errno.EEXIST, "Exists", "/a"), "/a: Exists; a file stands where a folder is needed"),
        (OSError("model 'x' is no folder and no hub id"), "model 'x' is no folder and no hub id"),
        (OSError(errno.EFBIG, "File too large"), "File too large; raise the limit"),
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


def test_a_message_of_several_lines_is_one(capsys):
    assert ending(capsys, ValueError("two\n  lines")) == (2, "name: error: two lines\n")
