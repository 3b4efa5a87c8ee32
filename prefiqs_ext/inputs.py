"""What a Scorer takes, turned into one batch: tensors, NumPy arrays, PIL images, paths of crops, and lists of these.

Tensors are NCHW or CHW. Arrays and PIL images are HWC or NHWC. What could be meant in two ways is refused, in one line
that says what to write instead; nothing is resized, converted or guessed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError, InputError, InputTypeError
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.utils.levels import OVERSHOOT
from prefiqs_ext.utils.pick_evenly import pick_evenly
from prefiqs_ext.utils.suffixes import refuse_archive_or_video, refuse_url
from prefiqs_ext.utils.text import describe_error, describe_wrong_size, escape_unprintable, format_path, name_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

SingleImage: TypeAlias = "Tensor | NDArray[np.uint8] | Image | str | os.PathLike[str]"
ImageInput: TypeAlias = "SingleImage | Sequence[SingleImage]"
Colour: TypeAlias = Literal["rgb", "bgr"]

LEAST_RECALIBRATING = 8
"""Images to recalibrate on, at least: with fewer, a deviation over rows is off by a quarter (one standard error)."""
MOST_RECALIBRATING = 128
"""Images to recalibrate on, at most: time and memory grow with them."""
_KINDS = "a tensor, a NumPy array, a PIL image, a path, or a list of these"


def make_batch(
    images: ImageInput, preset: Preset | None, *, device: torch.device, rank: int | None = None, colour: Colour = "rgb"
) -> Tensor:
    """Returns a batch for a scorer; an NCHW tensor in RGB is checked and returned itself.

    Args:
        images: a tensor NCHW or CHW on `device`; an array uint8 NHWC or HWC; a PIL image in mode RGB; the path of a
            crop; a list or tuple of single images of these kinds.
        preset: whose images they are. Without one only a tensor is taken, as it is.
        device: where the batch is needed. Anything but a tensor is copied there.
        rank: dimensions of the tensor without a preset.
        colour: the order of channels in tensors and arrays. PIL images and files say theirs.

    Returns:
        uint8 or floating ``[N, 3, H, W]`` RGB on `device`; without a preset the tensor that came.

    Raises:
        InputTypeError: another type of thing, or of numbers.
        InputError: another shape, size, device or colour.
        FileAccessError, FileFormatError: a path that gives no image.
    """
    if colour not in ("rgb", "bgr"):
        raise InputError(f"expected colour 'rgb' or 'bgr', got {colour!r}")
    if preset is None:
        if not isinstance(images, Tensor) or colour != "rgb":
            what = f"{type(images).__name__}" if colour == "rgb" else f"colour={colour!r}"
            raise InputTypeError(
                f"expected a tensor of the network's own input, got {what}: a scorer without a preset does not know "
                "how images are scaled; construct it with preset=... to give it images"
            )
        check_batch(images, None, rank)
        return _check_device(images, device)
    if isinstance(images, Tensor):
        if images.dim() == 3 and tuple(images.shape) == (3, *preset.size):
            images = images[None]
        check_batch(images, preset)
        batch = _check_device(images, device)
    elif isinstance(images, list | tuple):
        return _stack(images, preset, device, colour)
    else:
        batch = _convert(images, preset, colour).to(device)
    return batch.flip(1) if colour == "bgr" else batch


def _stack(images: Sequence[SingleImage], preset: Preset, device: torch.device, colour: Colour) -> Tensor:
    if not images:
        raise InputError(f"expected one image or more, got an empty {type(images).__name__}")
    batches = []
    for index, image in enumerate(images):
        try:
            if isinstance(image, list | tuple):
                raise InputTypeError(f"expected one image, got a {type(image).__name__}: give one flat list")
            batch = make_batch(image, preset, device=device, colour=colour)
            if isinstance(image, Tensor | np.ndarray) and image.ndim != 3:
                join = "torch.cat(batches)" if isinstance(image, Tensor) else "numpy.concatenate(batches)"
                raise InputError(f"expected one image, got shape {list(image.shape)}: batches are joined by {join}")
        except InputError as error:
            raise type(error)(f"image {index} of the list: {error}") from error
        batches.append(batch)
    kinds = dict.fromkeys(name_dtype(batch.dtype) for batch in batches)
    if len(kinds) > 1:
        raise InputTypeError(f"expected images of one type, got {' and '.join(kinds)}: make them all uint8 of 0-255")
    return torch.cat(batches)


def _convert(image: object, preset: Preset, colour: Colour) -> Tensor:
    """uint8 [N, 3, H, W] on the CPU of an array, a PIL image or a file, in its own order of colours."""
    if isinstance(image, np.ndarray):
        return _from_array(image, preset)
    if isinstance(image, str | os.PathLike) or is_pil(image):
        levels = read_image(image, colour)
        if levels.shape[:2] != preset.size:
            size = describe_wrong_size(levels.shape, preset.size, why=f"preset {preset.name!r}")
            name = repr(os.fspath(image)) if isinstance(image, str | os.PathLike) else "photo"
            raise InputError(f"{size}; a photo? prefiqs_ext.score_photo({name})")
        return torch.from_numpy(levels).permute(2, 0, 1)[None]
    raise InputTypeError(f"expected {_KINDS}, got {describe_other(image)}")


def describe_other(image: object) -> str:
    """Says of a thing that is no image what it is and, where there is one, the way to an image."""
    if isinstance(image, bytes | bytearray | memoryview):
        return f"{type(image).__name__}: decode a file's content with prefiqs_ext.faces.decode_rgb(data, name)"
    if isinstance(image, Iterator):
        return f"{type(image).__name__}: make a list of it"
    return "None" if image is None else type(image).__name__


def is_pil(image: object) -> TypeGuard[Image]:
    """Whether it is a PIL image; imports nothing."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(image, pil.Image)


def read_image(source: str | os.PathLike[str] | Image, colour: Colour = "rgb") -> NDArray[np.uint8]:
    """Reads a PIL image or a file, upright.

    Returns:
        uint8 ``[H, W, 3]`` RGB, writable.

    Raises:
        InputError: a PIL image of another mode than RGB, a colour other than "rgb", a URL.
        MissingFileError, FileFormatError: a file that is not there, or is no image.
    """
    if colour != "rgb":
        what = "a PIL image" if is_pil(source) else "an image file"
        raise InputError(f"{what} says its colours itself, got colour={colour!r}: leave colour out; it is for arrays")
    return _read_file(os.fspath(source)) if isinstance(source, str | os.PathLike) else _from_pil(source)


def _from_pil(image: Image) -> NDArray[np.uint8]:
    from PIL import ImageOps

    if image.mode != "RGB":
        # Pillow clips levels of more than 8 bits instead of scaling them.
        deep = image.mode in ("I", "F") or image.mode.startswith("I;")
        remedy = "scale its levels to 0-255 in 8 bits first, for convert clips them" if deep else "image.convert('RGB')"
        raise InputError(f"expected a PIL image in mode 'RGB', got {image.mode!r}: {remedy}")
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF beside a good picture, or a file that is cut off: the next line tells
        upright = image
    try:
        return np.array(upright)
    except (OSError, SyntaxError, ValueError) as error:  # PIL reads files late
        raise FileFormatError(f"cannot read this PIL image: {escape_unprintable(describe_error(error))}") from error


def _read_file(path: str) -> NDArray[np.uint8]:
    from prefiqs_ext.faces.image import UnreadableImage, read_rgb

    refuse_url(path)
    if os.path.isdir(path):
        raise InputError(
            f"expected a file, got the folder {format_path(path)}: give a list of its files, or run `prefiqs score`"
        )
    try:
        return read_rgb(path)
    except UnreadableImage:
        refuse_archive_or_video(path)
        raise


def _from_array(array: NDArray[np.generic], preset: Preset) -> Tensor:
    height, width = preset.size
    shape = list(array.shape)
    if shape[-3:] != [height, width, 3] or array.ndim > 4:
        raise InputError(
            f"expected an array [{height}, {width}, 3] or [N, {height}, {width}, 3] (preset {preset.name!r}), "
            f"got {shape}; {_array_remedy(shape, [height, width])}"
        )
    if array.dtype != np.uint8:
        raise InputTypeError(f"expected a uint8 array of levels 0-255, got {array.dtype}: {_dtype_remedy(array.dtype)}")
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch would warn of the first and cannot have the second
    batch: Tensor = torch.from_numpy(array)
    return (batch if array.ndim == 4 else batch[None]).permute(0, 3, 1, 2)


def _dtype_remedy(dtype: np.dtype[np.generic]) -> str:
    """What to do with an array of this dtype where uint8 is expected."""
    if dtype == np.uint16:
        return "of 16-bit levels (array // 257).astype('uint8'), of levels 0-255 array.astype('uint8')"
    if dtype == np.bool_:
        return "array.astype('uint8') * 255"
    if np.issubdtype(dtype, np.integer):
        return "array.astype('uint8') if its levels are 0-255"
    if np.issubdtype(dtype, np.floating):
        return "(array * 255).round().astype('uint8') if it is in [0, 1], array.round().astype('uint8') if in 0-255"
    return "give levels as numbers"


def _array_remedy(shape: list[int], size: list[int]) -> str:
    """What to do with an array of this shape where [H, W, 3] is expected."""
    if shape == [3, *size]:
        return "channels come last: array.transpose(1, 2, 0)"
    if len(shape) == 4 and shape[1:] == [3, *size]:
        return "channels come last: array.transpose(0, 2, 3, 1), or give torch.from_numpy(array)"
    if shape == size or (len(shape) == 3 and shape[1:] == size):
        return "repeat the grey channel: array[..., None].repeat(3, axis=-1)"
    if len(shape) in (3, 4) and shape[-3:] == [*size, 1]:
        return "repeat the grey channel: array.repeat(3, axis=-1)"
    if len(shape) in (3, 4) and shape[-3:] == [*size, 4]:
        return "leave the fourth channel out: array[..., :3]"
    return "align and crop to that size first; a photo? prefiqs_ext.score_photo(photo)"


def _check_device(batch: Tensor, device: torch.device) -> Tensor:
    if batch.device != device:
        raise InputError(f"expected a batch on the scorer's device {device}, got {batch.device}")
    return batch


def check_batch(batch: Tensor, preset: Preset | None, rank: int | None = None) -> None:
    """Raises an error unless a tensor has the type and shape of the preset's images.

    Without a preset it must be float32 or uint8, of `rank` dimensions.

    Raises:
        InputTypeError: another type.
        InputError: another shape; the message says what to do.
    """
    if not isinstance(batch, Tensor):
        raise InputTypeError(f"expected a torch.Tensor, got {type(batch).__name__}")
    if preset is None:
        if batch.dtype not in (torch.float32, torch.uint8):
            raise InputTypeError(f"expected a float32 or uint8 batch, got {batch.dtype}")
        if rank is not None and batch.dim() != rank:
            remedy = ": add a first dimension, batch[None]" if batch.dim() == rank - 1 else ""
            raise InputError(f"expected a batch of {rank} dimensions, got shape {list(batch.shape)}{remedy}")
        return
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise InputTypeError(f"expected uint8 images of 0-255 or floating ones of [0, 1], got {batch.dtype}")
    height, width = preset.size
    if batch.dim() != 4 or tuple(batch.shape[1:]) != (3, height, width):
        raise InputError(
            f"expected images [N, 3, {height}, {width}] (preset {preset.name!r}), got {list(batch.shape)}; "
            f"{_layout_remedy(list(batch.shape), height, width)}"
        )


def _layout_remedy(shape: list[int], height: int, width: int) -> str:
    """What to do with a batch of this shape where [N, 3, height, width] is expected."""
    size = [height, width]
    if shape[1:] == [*size, 3]:
        return "channels come second: batch.permute(0, 3, 1, 2)"
    if shape == [3, *size]:
        return "add a first dimension: batch[None]"
    if shape == [*size, 3]:
        return "channels come second, behind a first dimension: batch.permute(2, 0, 1)[None]"
    if shape[1:] == [1, *size]:
        return "repeat the grey channel: batch.expand(-1, 3, -1, -1)"
    if len(shape) == 3 and shape[1:] == size:
        return "repeat the grey channel: batch[:, None].expand(-1, 3, -1, -1)"
    if shape == size:
        return "repeat the grey channel behind a first dimension: batch.expand(1, 3, -1, -1)"
    if shape[1:] == [4, *size]:
        return "leave the fourth channel out: batch[:, :3]"
    return "align and crop them to that size first; a photo? prefiqs_ext.score_photo(photo)"


def check_values(batch: Tensor, preset: Preset | None, least: float, most: float) -> None:
    """Raises an error unless the extremes of a floating batch are finite and, with a preset, in [0, 1].

    Args:
        batch: floating ``[N, ...]``; only read to name the rows that are not finite.
        preset: whose images they are.
        least: the smallest value of the batch.
        most: the largest value.

    Raises:
        InputError: values outside; the message says what to do.
    """
    if not (isfinite(least) and isfinite(most)):
        rows = name_rows(~batch.isfinite().flatten(1).all(dim=1))
        raise InputError(f"expected finite values, got NaN or infinity in {rows}")
    if preset is not None and (least < -OVERSHOOT or most > 1 + OVERSHOOT):
        if least < -OVERSHOOT:
            remedy = "they look normalised already, which the preset does itself: pass levels of 0-255 as uint8"
        else:
            remedy = "divide levels of 0-255 by 255, or pass them as uint8"
        raise InputError(f"expected floating images in [0, 1], got values from {least:g} to {most:g}; {remedy}")


def check_images(batch: Tensor, preset: Preset | None) -> None:
    """Checks type, shape and values at once, as :func:`check_batch` and :func:`check_values`; it waits for a device."""
    check_batch(batch, preset)
    if batch.is_floating_point() and batch.numel():
        check_values(batch, preset, *(float(extreme) for extreme in batch.aminmax()))


def scale_to_levels(batch: Tensor, preset: Preset | None) -> Tensor:
    """Scales a batch to what the normalisation of a preset reads: levels of 0-255. Without a preset it stays."""
    if preset is None or batch.dtype == torch.uint8:
        return batch
    return batch.float().clamp(0, 1) * 255


def make_recalibration_inputs(
    images: ImageInput, preset: Preset | None, *, device: torch.device, rank: int | None = None
) -> Tensor:
    """Returns what a network takes of the images that it is recalibrated on: ``[N, ...]`` on the CPU, N of 8 to 128.

    Of more than 128, as many are drawn at even distances, so that of images in order each part has its share.

    Args:
        images: as :func:`make_batch` takes them.
        preset: whose images they are.
        device: where a tensor must be.
        rank: dimensions of the tensor without a preset.

    Raises:
        InputError: fewer than 8 images, or all equal; also what :func:`make_batch` and :func:`check_values` refuse.
    """
    batch = make_batch(images, preset, device=device, rank=rank)
    batch = batch[pick_evenly(len(batch), MOST_RECALIBRATING)]
    check_images(batch, preset)
    count = len(batch)
    if count < LEAST_RECALIBRATING or bool((batch == batch[:1]).all()):
        got = "equal ones" if count >= LEAST_RECALIBRATING else count
        raise InputError(f"expected {LEAST_RECALIBRATING} or more different images to recalibrate on, got {got}")
    levels = scale_to_levels(batch, preset).cpu()
    return levels if preset is None else preset.normalize()(levels)


def make_example_images(preset: Preset) -> Tensor:
    """Makes one seeded random image of the preset's size, uint8 ``[1, 3, H, W]``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, *preset.size), dtype=torch.uint8, generator=generator)


def name_rows(chosen: Tensor, most: int = 8) -> str:
    """Returns "rows 3, 7" for a bool tensor ``[N]`` that is True there; no more than `most` are named."""
    rows = chosen.nonzero().flatten().tolist()
    return f"row{'s' * (len(rows) > 1)} " + ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")
