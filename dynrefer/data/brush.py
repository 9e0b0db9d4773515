"""Label Studio's packed brushes: a picture of four channels as a stream of bits."""

import numpy as np

WORD = 8  # bits of a value
SIZES = (3, 4, 8, 16)  # bits of a run's length, less 1: the four that there are


def pack_brush(mask: np.ndarray) -> list[int]:
    """The bytes of a brush for a mask, bool (H, W): all four channels are 255 inside and 0 outside.

    A stream of bits, high first: 32 bits the number of values, 5 the bits of a value less 1, four times 4 the bits of a
    length less 1; then runs: 1 bit that says the value repeats, 2 bits which of the lengths, the length less 1, the
    value.
    """
    flat = np.asarray(mask, bool).reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], changes, [flat.size]])
    bits = [f"{4 * flat.size:032b}{WORD - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    longest = 1 << SIZES[-1]
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        value = "1" * WORD if flat[start] else "0" * WORD
        length = 4 * (stop - start)
        while length > 0:
            part = min(length, longest)
            which = next(k for k, size in enumerate(SIZES) if part <= 1 << size)
            bits.append(f"1{which:02b}{part - 1:0{SIZES[which]}b}{value}")
            length -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
