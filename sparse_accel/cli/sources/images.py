"""Folders of images: resized, cropped and normalized as the model's preprocessor_config.json or the options say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_accel.cli.errors import UserError
from sparse_accel.cli.sources.arrays import chosen
from sparse_accel.cli.sources.models import Source

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
CONFIG = "preprocessor_config.json"
BILINEAR = 2  # of PIL
WARPED = 384  # sides from which on crop_pct does not count


@dataclass(frozen=True)
class ImageOptions:
    """What the user says of images; None leaves it to the model's folder.

    Attributes:
        size: height and width.
        mean, std: of every channel, or one for all, of pixels in [0, 1].
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @staticmethod
    def of(size: str | None, mean: str | None, std: str | None) -> ImageOptions:
        """From options as they are typed.

        Raises:
            UserError: one cannot be read.

        Example:
            >>> ImageOptions.of("224", ".5", None)
            ImageOptions(size=(224, 224), mean=(0.5,), std=None)
        """
        sides = None if size is None else size.lower().split("x")
        if sides is not None and not (1 <= len(sides) <= 2 and all(s.isdecimal() and int(s) for s in sides)):
            raise UserError(f"--image-size: expected 224 or 224x320 (height x width), got {size!r}")
        pair = None if sides is None else (int(sides[0]), int(sides[-1]))
        return ImageOptions(pair, _numbers("--image-mean", mean), _numbers("--image-std", std))


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option}: expected numbers with commas between them, got {text!r}") from error


@dataclass(frozen=True)
class _Recipe:
    """How an image becomes a tensor: resized, cropped at the centre, scaled to [0, 1], normalized."""

    resize: tuple[int, int] | int | None  # height and width, or the shorter side
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    resample: int = BILINEAR

    def apply(self, path: Path) -> Tensor:
        """One image, float32 [channels, height, width]."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as opened:
                image = opened.convert("L" if self.channels == 1 else "RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"--calibration: {path}: not an image: {error}") from error
        if isinstance(self.resize, tuple):
            image = image.resize(self.resize[::-1], self.resample)
        elif self.resize is not None:
            factor = self.resize / min(image.size)
            width, height = (max(self.resize, int(side * factor)) for side in image.size)
            image = image.resize((width, height), self.resample)
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black where the image is smaller
        pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1).permute(2, 0, 1)
        mean, std = (torch.tensor(values, device="cpu").view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() * self.scale - mean) / std


def read_images(
    folder: Path, source: Source, options: ImageOptions, samples: int, seed: int
) -> tuple[dict[str, Tensor] | Tensor, str]:
    """Images of a folder and of all folders in it.

    Args:
        folder: with images.
        source: whose folder may say how they are prepared.
        options: what the user says.
        samples: at most so many, chosen at random.
        seed: of the choice.

    Returns:
        float32 ``[samples, channels, height, width]``, by the name of the model's input where it has one; and what
        they are, in words.

    Raises:
        UserError: there are none, PIL is missing, or nobody says how large they have to be.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UserError("--calibration: images need Pillow: pip install pillow") from error
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not paths:
        raise UserError(f"--calibration: {folder}: expected images ({', '.join(ENDINGS)}), found none")
    name = getattr(source.model, "main_input_name", None)
    if name == "input_ids":
        raise UserError(
            f"--calibration: {folder} is a folder of images, and {type(source.model).__name__} takes tokens"
        )
    recipe = _recipe(source, options)
    rows = chosen(len(paths), samples, seed).tolist()
    tensors = [recipe.apply(paths[row]) for row in rows]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise UserError(f"--calibration: {folder}: images of several sizes, {sorted(shapes)[:3]}: --image-size HxW")
    images = torch.stack(tensors)
    size = "x".join(map(str, images.shape[2:]))
    what = f"{len(rows)} of {len(paths)} images of {folder.name}, {size}"
    return ({name: images} if isinstance(name, str) else images), what


def _recipe(source: Source, options: ImageOptions) -> _Recipe:
    own: dict[str, Any] = {}
    path = None if source.folder is None else source.folder / CONFIG
    if path is not None and path.is_file():
        try:
            own = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not JSON: {error}") from error
    config: Any = getattr(source.model, "config", None)
    channels = getattr(config, "num_channels", None)
    resize: tuple[int, int] | int | None = None
    crop = None
    if options.size is not None:
        resize, crop = min(options.size), options.size  # the middle, not stretched
        if options.size[0] != options.size[1]:
            resize = options.size
    elif own:
        size = own.get("size") if own.get("do_resize", True) else None
        resize = _size(size, path)
        crop = _pair(own.get("crop_size")) if own.get("do_center_crop", False) else None
        if own.get("crop_pct") and isinstance(resize, int):  # ConvNeXt: the middle of small images, large ones whole
            square = (resize, resize)
            resize, crop = (int(resize / own["crop_pct"]), square) if resize < WARPED else (square, None)
    elif isinstance(getattr(config, "image_size", None), int):
        resize = crop = (config.image_size, config.image_size)
    normalized = bool(own.get("do_normalize", True)) if own else False
    mean = options.mean or (tuple(own.get("image_mean", ())) if normalized else ()) or (0.0,)
    std = options.std or (tuple(own.get("image_std", ())) if normalized else ()) or (1.0,)
    if channels is None:
        channels = max(len(mean), len(std)) if max(len(mean), len(std)) > 1 else _channels(source)
    if any(len(values) not in (1, channels) for values in (mean, std)) or not all(std):
        raise UserError(f"--image-mean, --image-std: expected one number or {channels}, not 0, got {mean} and {std}")
    scale = float(own.get("rescale_factor", 1 / 255)) if own.get("do_rescale", True) else 1.0
    return _Recipe(resize, crop, scale, mean, std, channels, int(own.get("resample", BILINEAR)))


def _channels(source: Source) -> int:
    """Input channels of the first convolution: 1 for gray images, else 3."""
    for module in source.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            return 1 if module.in_channels == 1 else 3
    return 3


def _size(size: Any, path: Path | None) -> tuple[int, int] | int | None:
    """``size`` of a preprocessor: height and width, or the shorter side."""
    if size is None:
        return None
    if isinstance(size, int):
        return size
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"])
    pair = _pair(size)
    if pair is None:
        raise UserError(f"{path}: size: expected height and width or shortest_edge, got {size}: --image-size HxW")
    return pair


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    return None
