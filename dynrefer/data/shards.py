"""Shards: tar files in WebDataset's layout, for object stores and file systems that dislike many small files.

    data/vg_shards/shard-000000.tar     000000000.jpg  000000000.json  000000001.jpg  ...
    data/vg_shards/shard-000001.tar
    data/vg_shards/index.json           {"format", "shards": [{"name", "bytes", "regions", "licences"}, ...]}

One sample is one image: its file as it was, and its regions as JSON, {"regions": [record, ...]}. The index says how
many regions every image has, so that an epoch can be planned, split and resumed before a shard is opened, and how many
are of which source and licence.
"""

import contextlib
import glob
import io
import json
import os
import re
import shlex
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import orjson

from dynrefer.data.records import Region, RegionRecords, licences_of
from dynrefer.files import atomic_path

INDEX = "index.json"
FORMAT = "dynrefer-shards-1"
MAX_BYTES = 256 << 20  # of a shard
TRIES = 5  # of a remote shard, one after the other without a sample: a long download may break off
PAUSE = 0.1  # seconds before the second try; four times as long before each further one
REMOTE = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]+://")
REMOTE_NAME = re.compile(r"[^/\s'\"=&?]+\.tar\b")  # of a shard, in a URL or a command


@dataclass
class EncodedImage:
    """One sample as it stands in a shard. name: "URL:KEY"; image: the file's bytes; text: its regions as JSON."""

    name: str
    image: bytes
    text: bytes

    def regions(self, count: int) -> list[dict]:
        """The records as JSON types; ValueError where they are not `count`."""
        try:
            records = orjson.loads(self.text)["regions"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{self.name}.json: expected {{"regions": [...]}} ({error!r}); write the shards again'
            ) from None
        if not isinstance(records, list) or len(records) != count:
            raise ValueError(f"{self.name}.json: not the {count} regions of the index; write or copy the shards again")
        return records


class Shards:
    """Opened shards: where they are and what they hold. Iterating reads all of them and gives their regions.

    urls: of the shards; counts: of each, the regions of its images; licences: regions by source and licence.
    """

    def __init__(self, path: str, urls: Sequence[str], counts: Sequence[np.ndarray], licences: Counter):
        self.path, self.urls, self._licences = path, list(urls), licences
        self.first_image = np.cumsum([0, *map(len, counts)])  # of each shard, (S + 1,)
        self.counts = np.concatenate(counts)  # regions of every image, (G,)
        self.first_region = np.concatenate([[0], np.cumsum(self.counts)])  # of each image, (G + 1,)

    def __len__(self) -> int:
        """Regions."""
        return int(self.first_region[-1])

    def licences(self) -> Counter:
        """{(source, licence): number of its regions}, as RegionRecords has it."""
        return Counter(self._licences)

    def __iter__(self) -> Iterator[Region]:
        for image, encoded in self.read(range(len(self.counts))):
            for number, record in enumerate(encoded.regions(int(self.counts[image]))):
                yield Region.from_dict(record, f"{encoded.name}.json:{number}")

    def read(self, images: Iterable[int]) -> Iterator[tuple[int, EncodedImage]]:
        """(number, sample) of some images, whose order must be that within their shards; a shard is opened once for
        those of its images that follow each other in the list."""
        images = np.asarray(images, np.int64)
        shards = np.searchsorted(self.first_image, images, side="right") - 1
        for run in np.split(np.arange(len(images)), np.flatnonzero(np.diff(shards)) + 1):
            if len(run):
                shard = int(shards[run[0]])
                start = int(self.first_image[shard])
                for number, encoded in _read_shard(self.urls[shard], (images[run] - start).tolist()):
                    yield start + number, encoded


def is_shards(path: str | os.PathLike | Sequence) -> bool:
    """Whether `open_shards` is meant: a URL, a .tar or a pattern of them, an index, or a folder with one."""
    if not isinstance(path, (str, os.PathLike)):
        return len(path) > 0 and any(isinstance(one, (str, os.PathLike)) and is_shards(one) for one in path)
    path = os.fspath(path)
    if REMOTE.match(path) or path.endswith(".tar") or _is_index(path):
        return True
    return os.path.isfile(os.path.join(path, INDEX))


def open_shards(source: str | os.PathLike | Sequence[str | os.PathLike]) -> Shards:
    """source: the folder of shards, its index.json, one shard, a pattern ("vg/shard-{000000..000059}.tar", "vg/*.tar"),
    or a list of any of these. Paths, and what WebDataset opens: http(s)://, s3:// (by `aws s3 cp`), gs://, hf://,
    "pipe:COMMAND". The index is looked for under the shards' own address, with index.json for the shard's name.

    Raises ValueError for an index that is missing or damaged, shards that it does not list, local shards of another
    size than it says.
    """
    urls, counts, indices, licences = [], [], {}, Counter()
    for one in [source] if isinstance(source, (str, os.PathLike)) else source:
        for place, chosen in _addresses(os.fspath(one)):
            known = indices[place] = indices.get(place) or _read_index(place)
            for name in known if chosen is None else [chosen]:
                if name not in known:
                    raise ValueError(f"{place} does not list {name}; name its shards, or copy their index beside them")
                num_bytes, regions, own = known[name]
                urls.append(_sibling(place, name))
                counts.append(regions)
                licences += own
                _check_size(urls[-1], num_bytes)
    if len(set(urls)) != len(urls):
        raise ValueError(f"{source}: a shard is named twice; name each once")
    if not urls:
        raise ValueError(f"{source}: no shards; `python -m data_prep.shard` writes them")
    return Shards(str(source), urls, counts, licences)


def write_shards(
    out: str | os.PathLike, records: RegionRecords, max_bytes: int = MAX_BYTES, seed: int | None = None
) -> dict[str, int]:
    """Writes a folder of shards with its index; what was written is counted. The folder appears whole or not at all.

    max_bytes: of a shard, a single larger image excepted. seed: images in a random order, None = in the records' order;
    a streamed epoch shuffles the shards and what is near each other in them, not the whole.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes {max_bytes}: expected at least 1")
    groups = records.image_groups()
    order = np.arange(len(groups)) if seed is None else np.random.default_rng(seed).permutation(len(groups))
    with atomic_path(out) as folder:
        folder.mkdir()
        samples = ((number, _sample(records, groups.members(image))) for number, image in enumerate(order))
        shards = list(_write_all(folder, samples, max_bytes))
        text = json.dumps({"format": FORMAT, "shards": shards}, separators=(",", ":"))
        with open(folder / INDEX, "w", encoding="utf-8") as file:  # last: a folder without it does not look whole
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    return {
        "regions": sum(sum(shard["regions"]) for shard in shards),
        "images": sum(len(shard["regions"]) for shard in shards),
        "shards": len(shards),
        "bytes": sum(shard["bytes"] for shard in shards),
    }


# ---------------------------------------------------------------------------------------------- writing


def _sample(records: RegionRecords, members: np.ndarray) -> tuple[str, bytes, list[Region]]:
    """(ending of the image's name, its bytes, its regions) of one image."""
    found = records.fetch(members)
    path = found[0][0]
    if others := [record for _, record in found if not isinstance(record, Region)]:
        raise ValueError(
            f"record {others[0].id}: shards hold regions of pictures; leave clips and conversations in a file of their "
            "own"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"region {found[0][1].id}: image {path}: {error.strerror or error}") from error
    if not data:
        raise ValueError(f"region {found[0][1].id}: image {path}: the file is empty; download or write it again")
    ending = path.suffix[1:].lower()
    return (
        ending if re.fullmatch("[a-z0-9]{1,5}", ending) and ending != "json" else "image",
        data,
        [r for _, r in found],
    )


def _write_all(folder: Path, samples: Iterable[tuple[int, tuple]], max_bytes: int) -> Iterator[dict]:
    """Fills one shard after the other; gives its entry in the index."""
    samples = iter(samples)
    waiting = next(samples, None)
    for shard in range(10**6):
        if waiting is None:
            return
        name, counts, licences = f"shard-{shard:06d}.tar", [], Counter()
        with open(folder / name, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                while waiting is not None:
                    number, (ending, image, regions) = waiting
                    key = f"{number:09d}"
                    records = [{**region.to_dict(), "image": f"{key}.{ending}"} for region in regions]
                    text = orjson.dumps({"regions": records})
                    size = tar.offset + _in_tar(image) + _in_tar(text) + 2 * tarfile.BLOCKSIZE  # that mark the end
                    if counts and _rounded(size, tarfile.RECORDSIZE) > max_bytes:
                        break
                    for suffix, data in ((ending, image), ("json", text)):
                        info = tarfile.TarInfo(f"{key}.{suffix}")
                        info.size, info.mode = len(data), 0o644
                        tar.addfile(info, io.BytesIO(data))
                    tar.members = []  # it would keep all names
                    counts.append(len(regions))
                    licences += licences_of((region.source, region.licence) for region in regions)
                    waiting = next(samples, None)
            file.flush()
            os.fsync(file.fileno())
        rows = [[source, licence, count] for (source, licence), count in licences.most_common()]
        yield {"name": name, "bytes": (folder / name).stat().st_size, "regions": counts, "licences": rows}


def _in_tar(data: bytes) -> int:
    return tarfile.BLOCKSIZE + _rounded(len(data), tarfile.BLOCKSIZE)


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step


# ---------------------------------------------------------------------------------------------- reading


def _read_shard(url: str, wanted: list[int]) -> Iterator[tuple[int, EncodedImage]]:
    """(number in the shard, sample) of those wanted, in ascending order. A download that breaks off starts again."""
    left, tries = wanted, 0
    while left:
        try:
            with contextlib.closing(_tar_samples(url, set(left), last=left[-1])) as samples:
                for number, encoded in samples:
                    yield number, encoded
                    left, tries = left[1:], 0
            if left:
                raise EOFError(f"it ends before sample {left[0]}, which its index lists")
        except (tarfile.TarError, OSError, EOFError) as error:
            tries += 1
            if tries >= TRIES or not REMOTE.match(url):
                raise ValueError(
                    f"shard {url}: truncated, damaged or out of reach ({error}); copy or write it again"
                ) from error
            time.sleep(PAUSE * 4**tries)


def _tar_samples(url: str, wanted: set[int], last: int) -> Iterator[tuple[int, EncodedImage]]:
    """The wanted samples of a tar, up to the last one; the others are skipped, without reading them where it can be."""
    number, key, files = -1, None, {}
    stream = _open(url)
    try:
        with tarfile.open(fileobj=stream, mode="r|" if REMOTE.match(url) else "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                name = PurePosixPath(member.name)
                plain = member.isreg() and not member.issparse()  # which would be as long as it says
                if name.is_absolute() or ".." in name.parts or not plain:
                    kind = "" if plain else ", a link or another special file"
                    raise ValueError(f"shard {url}: {member.name!r}{kind}; expected plain files with relative names")
                stem, _, ending = name.name.partition(".")
                if (found := str(name.parent / stem)) != key:
                    if files:
                        yield number, _encoded(url, key, files)
                    if number == last:
                        return
                    number, key, files = number + 1, found, {}
                if number in wanted:
                    files[ending] = tar.extractfile(member).read()
                tar.members = []  # it would keep all of them
            if files and not _whole(files):  # a cut between two files looks like the end
                raise EOFError(f"it ends within sample {key!r} with {sorted(files)}, not an image and a .json")
            if files:
                yield number, _encoded(url, key, files)
    finally:
        with contextlib.suppress(OSError):  # a command that is cut short calls that a mistake
            stream.close()


def _encoded(url: str, key: str, files: dict[str, bytes]) -> EncodedImage:
    if not _whole(files):
        raise ValueError(
            f"shard {url}: sample {key!r} has {sorted(files)}; expected an image and a .json with its regions"
        )
    (image,) = files.keys() - {"json"}
    return EncodedImage(f"{url}:{key}", files[image], files["json"])


def _whole(files: dict[str, bytes]) -> bool:
    return len(files) == 2 and "json" in files


def _open(url: str):
    if not REMOTE.match(url):
        return open(url, "rb")
    try:
        from webdataset.gopen import gopen, gopen_schemes
    except ImportError as error:
        raise ValueError(f"{url}: addresses need webdataset; pip install webdataset") from error
    if url.startswith("s3://") and "s3" not in gopen_schemes:
        url = f"pipe:aws s3 cp {shlex.quote(url)} -"
    return gopen(url)


# ---------------------------------------------------------------------------------------------- addresses and the index


def _addresses(source: str) -> Iterator[tuple[str, str | None]]:
    """(address of the index, name of a shard, None for all that it lists)."""
    if not REMOTE.match(source) and os.path.isdir(source):
        source = os.path.join(source, INDEX)
    if _is_index(source):
        yield source, None
    else:
        yield from ((_sibling(url, INDEX), _shard_name(url)) for url in _expand(source))


def _is_index(url: str) -> bool:
    return INDEX in url if REMOTE.match(url) else os.path.basename(url) == INDEX


def _expand(pattern: str) -> list[str]:
    if "{" in pattern:
        try:
            from braceexpand import braceexpand
        except ImportError as error:
            raise ValueError(f"{pattern}: patterns with braces need webdataset; pip install webdataset") from error
        return [url for one in braceexpand(pattern) for url in _expand(one)]
    if REMOTE.match(pattern) or not glob.has_magic(pattern) or os.path.exists(pattern):
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        raise ValueError(f"shards {pattern}: no such file")
    return found


def _shard_name(url: str) -> str:
    names = REMOTE_NAME.findall(url) if REMOTE.match(url) else [os.path.basename(url)]
    if not names or not names[-1].endswith(".tar"):
        raise ValueError(f"shard {url}: no NAME.tar in it; name shards, their folder or its {INDEX}")
    return names[-1]


def _sibling(url: str, name: str) -> str:
    """The address of another file in the folder of a shard or an index."""
    old = INDEX if _is_index(url) else _shard_name(url)
    start, _, end = url.rpartition(old)
    return f"{start}{name}{end}"


def _read_index(url: str) -> dict[str, tuple[int, np.ndarray, Counter]]:
    """{shard name: (bytes, regions of its images, regions by source and licence)}."""
    try:
        with contextlib.closing(_open(url)) as stream:
            content = json.loads(stream.read())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
        result = {}
        for shard in content["shards"]:
            name, num_bytes, regions = shard["name"], shard["bytes"], np.asarray(shard["regions"])
            if name != os.path.basename(name) or not name.endswith(".tar") or type(num_bytes) is not int:
                raise ValueError(f"shard {name!r} of {num_bytes!r} bytes, expected NAME.tar and a whole number")
            if regions.ndim != 1 or regions.dtype.kind != "i" or not regions.size or (regions < 1).any():
                raise ValueError(f"regions of {name}: expected whole numbers of at least 1")
            licences = Counter({(source, licence): count for source, licence, count in shard["licences"]})
            result[name] = num_bytes, regions.astype(np.int64), licences
        return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{url}: no index of shards ({error!r}); `python -m data_prep.shard` writes it with the shards"
        ) from error


def _check_size(url: str, num_bytes: int) -> None:
    if REMOTE.match(url):
        return
    if not os.path.isfile(url):
        raise ValueError(f"shard {url}: no such file, but its index lists it; copy it too")
    if (found := os.path.getsize(url)) != num_bytes:
        raise ValueError(f"shard {url}: {found} bytes, its index says {num_bytes}; copy or write it again")
