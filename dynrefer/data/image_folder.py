"""Pictures in a folder, found by the names that annotations have for them: the one way for all readers.

A name counts from the folder on. Found are also: backslashes for slashes, an absolute path into the folder, other case
(.JPG for .jpg) where one file only differs so, and letters composed or decomposed (NFC, NFD). A name that begins in
another way, as on another machine, is not guessed: the error says the --image-prefix to remove.
"""

import os
import unicodedata
from pathlib import Path, PurePosixPath

from dynrefer.data.bad_entries import BadEntry, Undecided
from dynrefer.errors import suggestion
from dynrefer.images import read_image_hw, read_orientation

NUM_SIZES_CHECKED = 1000  # pictures of a folder whose headers are compared with the recorded size
NUM_FILES_LISTED = 100_000  # of the folders below, for what an error suggests
STORED_PIXELS = "boxes count in the pictures as stored, before their EXIF orientation turns them; they are turned too"
NOT_THERE, UNREADABLE, OTHER_SIZE = (
    "its image is not in the folder",
    "its image cannot be read",
    "its image has another size than recorded",
)


class ImageFolder:
    """Images on disk, each folder listed once, and their paths relative to the record file.

    prefix: what to remove where a name begins with it (a folder of another machine, "COCO_train2014_"). stored: sizes
    are those of the pictures as stored, before their EXIF orientation turns them. Raises
    ValueError when there is no such folder, and BadEntry for each image that is not in it.
    """

    def __init__(self, folder: Path, out: Path, prefix: str = "", stored: bool = False):
        if not folder.is_dir():
            raise ValueError(f"image folder {folder}: no such folder; name where the images were unpacked to")
        self.folder, self.prefix, self.stored = folder, prefix.replace("\\", "/"), stored
        self._prefix = os.path.relpath(folder.absolute(), out.absolute().parent)
        self._roots = [f"{root.as_posix()}/" for root in (folder, folder.absolute(), folder.resolve())]
        self._listed: dict[str, frozenset[str]] = {}
        self._alike: dict[str, dict[str, list[str]]] = {}
        self._unchecked: float = NUM_SIZES_CHECKED
        self._deeper: dict[str, list[str]] | None = None

    def path(self, name: str, where: str) -> str:
        """`name` as a record says it; `where` begins an error, which says what to do."""
        found = self.find(name)
        if found is None:
            raise BadEntry(f"{where}: {self._missing(name)}", NOT_THERE)
        return found

    def whole(self, name: str, where: str) -> str:
        """`path` for published data, which are whole or a part knowingly: a missing image is for the user to decide."""
        try:
            return self.path(name, where)
        except BadEntry as error:
            raise Undecided(f"{error} --subset leaves out images that are not on disk") from error

    def readable_hw(self, path: str, where: str) -> tuple[int, int]:
        """`image_hw`; BadEntry for a picture that cannot be read."""
        try:
            return self.image_hw(path)
        except ValueError as error:
            raise BadEntry(f"{where}: {error}", UNREADABLE) from error

    def find(self, *names: str) -> str | None:
        """The first of these names that is in the folder, as a record says it; None where none is."""
        inside = next(filter(None, map(self._exact, names)), None) or next(filter(None, map(self._like, names)), None)
        return inside and f"{self._prefix}/{inside}"

    def image_hw(self, path: str) -> tuple[int, int]:
        """The (height, width) of a picture, from its header. path: as `path` and `find` give it."""
        return picture_hw(self.file(path), self.stored)

    def file(self, path: str) -> Path:
        """Where a picture lies. path: as `path` and `find` give it."""
        return self.folder / path[len(self._prefix) + 1 :]

    def check_size(self, path: str, image_hw: tuple[int, int], where: str) -> None:
        """BadEntry where a picture has another size than recorded, or cannot be read. path: as `path` and `find` give
        it. Looks at the headers of the first pictures only, and at all from the first of another size on;
        `python -m data_prep.check` looks at all."""
        if self._unchecked <= 0:
            return
        self._unchecked -= 1
        true_hw = self.readable_hw(path, where)
        if true_hw != tuple(image_hw):
            self._unchecked = float("inf")
            raise BadEntry(f"{where}: image {path!r} {self.other_size(path, true_hw, image_hw)}", OTHER_SIZE)

    def other_size(self, path: str, true_hw: tuple[int, int], recorded_hw: tuple[int, int]) -> str:
        """What to say of a picture of another size than the annotations say, and what to do."""
        text = f"is {true_hw}, the annotation says {tuple(recorded_hw)}, both (height, width)"
        exchanged = tuple(recorded_hw) == true_hw[::-1]
        if not self.stored and exchanged and read_orientation(self.file(path)) >= 5:
            return (
                f"{text}: the boxes were drawn on the picture as stored, before its EXIF orientation turns it; say "
                "--stored-pixels, and boxes and masks are turned with it"
            )
        if exchanged:
            text += " (turned by an EXIF orientation that this copy has lost?)"
        return f"{text}; boxes count in the recorded size: give the images that were annotated, not resized ones"

    def _exact(self, name: str) -> str | None:
        parent, _, base = name.rpartition("/")
        if self.prefix or name.startswith("/") or ".." in parent.split("/") or "//" in name or "./" in name:
            return None
        return name if base in self._list(parent) else None

    def _like(self, name: str) -> str | None:
        """The name relative to the folder, as the folder spells it."""
        short = self._plain(name)
        return self._spelt(short) if short is not None else None

    def _plain(self, name: str) -> str | None:
        """A name without what stands before the folder; None where it leads out of it."""
        short = name.replace("\\", "/").removeprefix("file://")
        if self.prefix and short.startswith(self.prefix):
            short = short[len(self.prefix) :].lstrip("/")
        for root in self._roots:
            short = short.removeprefix(root)  # an absolute path of this machine
        path = PurePosixPath(short)
        return None if path.is_absolute() or ".." in path.parts or "://" in short else str(path)

    def _spelt(self, short: str) -> str | None:
        inside = ""
        for part in short.split("/"):
            parent = inside.rstrip("/")
            if part not in self._list(parent):
                alike = self._alike_in(parent).get(_key(part), [])
                if len(alike) != 1:
                    return None
                part = alike[0]
            inside += f"{part}/"
        inside = inside.rstrip("/")
        return inside if not (self.folder / inside).is_dir() else None

    def _list(self, parent: str) -> frozenset[str]:
        if parent not in self._listed:
            place = self.folder / parent
            self._listed[parent] = frozenset(os.listdir(place)) if place.is_dir() else frozenset()
        return self._listed[parent]

    def _alike_in(self, parent: str) -> dict[str, list[str]]:
        if parent not in self._alike:
            self._alike[parent] = {}
            for name in self._list(parent):
                self._alike[parent].setdefault(_key(name), []).append(name)
        return self._alike[parent]

    def _below(self) -> dict[str, list[str]]:
        """Files in folders of the folder by their names, of a large one the first."""
        if self._deeper is None:
            self._deeper, count = {}, 0
            for place, folders, files in os.walk(self.folder):
                folders.sort()
                for file in files:
                    inside = Path(place, file).relative_to(self.folder).as_posix()
                    self._deeper.setdefault(_key(file), []).append(inside)
                if (count := count + len(files)) > NUM_FILES_LISTED:
                    break
        return self._deeper

    def _missing(self, name: str) -> str:
        """What is wrong with a name that is not found, and what to do."""
        problem = f"image {name!r} does not lie in {self.folder}"
        plain = name.replace("\\", "/")
        parts = plain.split("/")
        for k in range(1, len(parts)):
            rest = "/".join(parts[k:])
            if rest and ".." not in parts[k:] and (there := self._spelt(rest)):
                return f"{problem}, but {there} does: say --image-prefix {plain.removesuffix(rest)!r}"
        short = self._plain(name)
        if short is None:
            return f"{problem}; remove the beginning of such names with --image-prefix"
        parent, _, base = short.rpartition("/")
        alike = self._alike_in(parent).get(_key(base), [])
        if len(alike) > 1:
            return f"image {name!r} is not in {self.folder}, but {' and '.join(sorted(alike))} are; name one of them"
        below = self._below().get(_key(base), [])
        if not parent and len(below) == 1:
            place = self.folder / below[0]
            return f"image {name!r} does not lie in {self.folder}, but {below[0]} does: say --images {place.parent}"
        close = suggestion(base, self._list(parent)) if len(self._list(parent)) <= 10_000 else ""
        return f"image {name!r} is not in {self.folder}; is it the folder of these images?{close}"


class AbsentImages(ImageFolder):
    """Images that need not be on disk, where names and recorded sizes are all that is asked for. folder: where they
    would lie."""

    def __init__(self, folder: Path, out: Path):
        self.folder, self.prefix, self.stored = folder, "", False
        self._prefix = os.path.relpath(folder.absolute(), out.absolute().parent)

    def find(self, *names: str) -> str | None:
        """The first name, as a record says it."""
        return f"{self._prefix}/{names[0]}"

    def check_size(self, path: str, image_hw: tuple[int, int], where: str) -> None:
        """The recorded size is believed."""


def picture_hw(file: Path, stored: bool = False) -> tuple[int, int]:
    """(height, width) from a picture's header: as shown, or as stored. ValueError for what is missing or no image."""
    image_hw = read_image_hw(file)
    return image_hw[::-1] if stored and read_orientation(file) >= 5 else image_hw


def _key(name: str) -> str:
    """What two spellings of a name share."""
    return unicodedata.normalize("NFC", name).casefold()
