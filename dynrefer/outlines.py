"""Masks as outlines: the polygons along the edges of their pixels, and several polygons as one."""

import numpy as np

from dynrefer.masks import to_mask

Ring = list[tuple[float, float]]  # corners (x, y)


def rings(mask: np.ndarray) -> list[Ring]:
    """The closed outlines along the pixels' edges of a mask, bool (H, W): outer ones clockwise as seen, those of holes
    the other way. Pixels that touch at a corner only are apart.

    >>> rings(np.array([[False, False], [False, True]]))
    [[(1, 1), (2, 1), (2, 2), (1, 2)]]
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}  # corner -> the directions that leave it
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # above is outside: to the right
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for beside, (right, down), direction in sides:
        for y, x in np.argwhere(inside & ~beside).tolist():
            edges.setdefault((x + right, y + down), []).append(direction)
    found = []
    while edges:
        start, directions = next(iter(edges.items()))
        place, before, ring = start, None, []
        while place in edges:
            directions = edges[place]
            turn = directions[0]
            if len(directions) > 1 and before is not None:  # two pixels touch here: turn right, and stay at this one
                turn = next(d for d in directions if d == (-before[1], before[0]))
            directions.remove(turn)
            if not directions:
                del edges[place]
            if turn != before:
                ring.append(place)
            place, before = (place[0] + turn[0], place[1] + turn[1]), turn
            if place == start and (len(ring) > 3):
                break
        found.append(ring)
    return found


def joined(parts: list[Ring]) -> Ring:
    """One outline of several: each hangs on the nearest corner of those before it, by a way there and back that covers
    nothing."""
    whole = list(parts[0])
    for ring in parts[1:]:
        ours, theirs = np.array(whole, np.float64), np.array(ring, np.float64)
        distances = ((ours[:, None] - theirs[None]) ** 2).sum(axis=2)
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        whole = [*whole[: i + 1], *ring[j:], *ring[: j + 1], *whole[i:]]
    return whole


def one_polygon(mask: dict | list, image_hw: tuple[int, int]) -> list[float]:
    """A record's mask as one polygon [x1, y1, x2, y2, ...] in pixels: itself where it is one, otherwise along its
    pixels' edges. ValueError for an empty or damaged mask."""
    if isinstance(mask, list) and len(mask) == 1:
        return [float(number) for number in mask[0]]
    if isinstance(mask, list) and mask and not isinstance(mask[0], list | tuple):
        return [float(number) for number in mask]
    return [float(number) for corner in joined(rings(to_mask(mask, image_hw))) for number in corner]


def polygon_area(polygon: list[float]) -> float:
    """
    >>> polygon_area([0, 0, 4, 0, 4, 3])
    6.0
    """
    x, y = np.array(polygon, np.float64).reshape(-1, 2).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
