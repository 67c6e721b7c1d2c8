"""Superpixels and masks of ISIC images, as the archive gave them out until 2022: decoded, measured, painted. Pure.

A superpixel image is a PNG of the image's size whose pixels are labels: red + 256 x green + 65,536 x blue. It needs
numpy and Pillow (the extra `superpixels`); they are imported when a function is called.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

# More than any superpixel image that the archive had: a larger one is refused before it is unpacked into memory.
MAX_PIXELS = 200_000_000
_DEPTH = 24  # place of the bit depth in a PNG, whose first chunk is IHDR (PNG specification, 11.2.2)
Colour = tuple[int, int, int]


class SuperpixelMap(msgspec.Struct, frozen=True):
    """Which pixels have which label: `order` has the flat indices of all pixels, label by label.

    Attributes
    ----------
    shape
        Rows and columns of the image.
    starts
        Where each label begins in `order`; one more at the end. Memory: 8 bytes for each pixel and label.
    """

    shape: tuple[int, int]
    starts: Any
    order: Any

    @property
    def labels(self) -> int:
        """Labels, 0 to the largest, those without pixels among them."""
        return len(self.starts) - 1

    def pixels(self, label: int) -> NDArray[np.int64]:
        """Flat indices (row x columns + column) of a label's pixels, ascending; none for a label that there is not."""
        if not 0 <= label < self.labels:
            return self.order[:0]  # type: ignore[no-any-return]
        return self.order[self.starts[label] : self.starts[label + 1]]  # type: ignore[no-any-return]

    def sizes(self) -> NDArray[np.int64]:
        """How many pixels each label has."""
        return self.starts[1:] - self.starts[:-1]  # type: ignore[no-any-return]


def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError:
        raise UsageError("superpixels need numpy and Pillow", hint="pip install 'medhaul[superpixels]'") from None
    return np


def _open_png(data: bytes, what: str, modes: Iterable[str]) -> Any:
    """The pixels of a PNG, as rows x columns (x channels); raises `ConfigError`."""
    np = _numpy()
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("superpixels need numpy and Pillow", hint="pip install 'medhaul[superpixels]'") from None
    problem = ""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        problem = "is no PNG"
    else:
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    problem = f"has {width} x {height} pixels, more than {MAX_PIXELS:,}"
                elif picture.mode not in modes:
                    problem = f"has pixels of the kind {picture.mode}, not {' or '.join(modes)}"
                elif picture.mode in {"RGB", "RGBA"} and data[_DEPTH] != 8:  # Pillow shortens them without a word
                    problem = f"has {data[_DEPTH]} bits a channel, not 8"
                else:
                    return np.asarray(picture)
        except (OSError, ValueError, SyntaxError, OverflowError, Image.DecompressionBombError) as error:
            problem = f"cannot be read: {str(error)[:100]}"
    raise ConfigError(f"the {what} {problem}", hint="download it again, or check which file it is")


def decode_superpixels(data: bytes) -> NDArray[np.int32]:
    """The labels (rows x columns) in a superpixel PNG of 8 bits a channel.

    Raises
    ------
    ConfigError
        When it is no such PNG, or damaged.
    UsageError
        When numpy or Pillow is missing.
    """
    pixels = _open_png(data, "superpixel image", ("RGB", "RGBA"))
    np = _numpy()
    labels = pixels[..., 0].astype(np.int32)
    labels |= pixels[..., 1].astype(np.int32) << 8
    labels |= pixels[..., 2].astype(np.int32) << 16
    return labels  # type: ignore[no-any-return]


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """A mask PNG as bytes (rows x columns): 0 outside and 255 inside; 128, in masks of features, for maybe.

    Raises
    ------
    ConfigError
        When it is no PNG in grey or black and white, or damaged.
    UsageError
        When numpy or Pillow is missing.
    """
    pixels = _open_png(data, "mask", ("L", "1"))
    np = _numpy()
    return pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels  # type: ignore[no-any-return]


def encode_superpixels(labels: ArrayLike) -> NDArray[np.uint8]:
    """Labels as the pixels (rows x columns x 3) that a superpixel image has for them; raises `UsageError`."""
    found = _labels(labels)
    np = _numpy()
    if found.size and found.max() >= 1 << 24:
        raise UsageError("labels go up to 16,777,215", hint="number them anew")
    return np.stack([found & 255, found >> 8 & 255, found >> 16], axis=-1).astype(np.uint8)  # type: ignore[no-any-return]


def _labels(labels: ArrayLike) -> Any:
    np = _numpy()
    found = np.asarray(labels)
    if found.ndim != 2 or found.dtype.kind not in "iu" or (found.size and found.min() < 0):
        raise UsageError("labels are an array of rows x columns with whole numbers from 0", hint="decode_superpixels")
    return found


def map_superpixels(labels: ArrayLike) -> SuperpixelMap:
    """Find the pixels of every label. Raises `UsageError` for what are no labels."""
    np = _numpy()
    found = _labels(labels)
    flat = found.ravel()
    counts = np.bincount(flat)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return SuperpixelMap(found.shape, starts, np.argsort(flat, kind="stable"))


def outline_superpixels(labels: ArrayLike, only: Iterable[int] | None = None) -> NDArray[np.bool_]:
    """Where labels end: pixels whose right or lower neighbour has another label.

    Parameters
    ----------
    only
        Outline these labels alone, with their own outermost pixels all around, at the image's edge as well.
    """
    np = _numpy()
    found = _labels(labels)
    edges = np.zeros(found.shape, bool)
    if only is None:
        edges[:, :-1] |= found[:, :-1] != found[:, 1:]
        edges[:-1] |= found[:-1] != found[1:]
        return edges  # type: ignore[no-any-return]
    ring = np.pad(found.astype(np.int64), 1, constant_values=-1)
    for neighbour in (ring[:-2, 1:-1], ring[2:, 1:-1], ring[1:-1, :-2], ring[1:-1, 2:]):
        edges |= neighbour != found
    return edges & np.isin(found, list(only))  # type: ignore[no-any-return]


def select_superpixels(labels: ArrayLike, mask: ArrayLike, share: float = 0.5) -> list[int]:
    """Labels of which at least that share of pixels is in a mask (not 0). Raises `UsageError` for another size."""
    np = _numpy()
    found, inside = _labels(labels), np.asarray(mask) != 0
    if inside.shape != found.shape:
        raise UsageError(f"the mask is {inside.shape}, the labels are {found.shape}", hint="take those of one image")
    total = np.bincount(found.ravel())
    hit = np.bincount(found.ravel()[inside.ravel()], minlength=len(total))
    return [int(label) for label in np.flatnonzero((hit >= share * total) & (total > 0) & (hit > 0))]


def mask_superpixels(labels: ArrayLike, weights: Mapping[int, float] | ArrayLike) -> NDArray[np.uint8]:
    """A mask of labels: 255 times a label's weight, as annotations have them (0, 0.5 for maybe, 1), 0 for others.

    Parameters
    ----------
    weights
        By label, or a list with one for each label from 0.
    """
    np = _numpy()
    found = _labels(labels)
    pairs = weights.items() if isinstance(weights, Mapping) else enumerate(np.asarray(weights, float).ravel().tolist())
    table = np.zeros(int(found.max()) + 1 if found.size else 1, np.uint8)
    for label, weight in pairs:
        if not 0 <= weight <= 1:
            raise UsageError(f"label {label} has the weight {weight}", hint="weights are from 0 to 1")
        if 0 <= label < len(table):
            table[label] = int(255 * weight + 0.5)
    return table[found]  # type: ignore[no-any-return]


def paint_superpixels(
    image: ArrayLike, labels: ArrayLike, colours: Mapping[int, Colour], opacity: float = 0.5
) -> NDArray[np.uint8]:
    """A copy of an image (rows x columns x 3, or grey) in which labels have colours.

    Parameters
    ----------
    opacity
        Of the colour: 0 leaves the image as it is, 1 hides it.

    Raises
    ------
    UsageError
        When image and labels have other sizes, or a colour or the opacity is none.
    """
    np = _numpy()
    found, picture = _labels(labels), np.asarray(image)
    picture = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture
    if picture.dtype != np.uint8 or picture.shape != (*found.shape, 3):
        raise UsageError(f"the image is {picture.shape}, the labels are {found.shape}", hint="take those of one image")
    if not 0 <= opacity <= 1 or any(len(c) != 3 or not all(0 <= x <= 255 for x in c) for c in colours.values()):
        raise UsageError("colours are three numbers from 0 to 255, the opacity is from 0 to 1", hint="(255, 0, 0)")
    size = int(found.max()) + 1 if found.size else 1
    chosen, table = np.zeros(size, bool), np.zeros((size, 3))
    for label, colour in colours.items():
        if 0 <= label < size:
            chosen[label], table[label] = True, colour
    inside = chosen[found]
    painted = picture.copy()
    mixed = painted[inside] * (1 - opacity) + table[found[inside]] * opacity
    painted[inside] = (mixed + 0.5).astype(np.uint8)
    return painted  # type: ignore[no-any-return]
