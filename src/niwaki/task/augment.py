"""Augmentation of image batches as tensors: every random number is drawn from the generator that is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from niwaki.task.images import DataError, Images

FLIP_SIDE = 24  # smaller colour images are more often signs and symbols than scenes
TINY_SIDE = 16  # below it a whole pixel is a large step


@dataclass(frozen=True)
class Augment:
    """How training images vary. Everything is drawn per image and uniform; 0 means not at all."""

    shift: float = 0.0  # up to this share of the side, both ways, on both axes
    rotate: float = 0.0  # up to this many degrees, both ways
    scale: float = 0.0  # from 1 - scale to 1 + scale
    shear: float = 0.0  # horizontal, up to this many pixels per pixel of height
    flip: bool = False  # left to right, every second image
    erase: float = 0.0  # a square of this share of the smaller side becomes the mean; it may hang over the edge

    def __post_init__(self) -> None:
        limits = {"shift": 1, "rotate": 180, "scale": 0.9, "shear": 1, "erase": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in limits and not 0 <= value <= limits[field.name]:
                raise DataError(f"augmentation: {field.name}={value} is out of range; it lies between 0 and {limits[field.name]}")


def augment_for(images: Images) -> Augment:
    """What suits most sets of such images.

    Shifts of whole pixels; flips for colour images that are not tiny; for images under 16 pixels, where a whole pixel is a coarse step,
    shifts, turns and scales by fractions of one. Nothing stronger by itself: a network this small, trained this briefly, soon fits less
    than it is shown.
    """
    channels, height, width = images.image_shape
    if min(height, width) < TINY_SIDE:
        return Augment(shift=0.125, rotate=10, scale=0.1)
    return Augment(shift=0.06, flip=channels >= 3 and min(height, width) >= FLIP_SIDE)


def augment_images(images: Tensor, augment: Augment, background: Tensor, generator: torch.Generator) -> Tensor:
    """The images (B, C, H, W), normalised, each changed in its own way.

    background: (C,), what lies beyond the edges. generator: on the CPU, so that every device draws the same numbers.
    """
    count, _, height, width = images.shape
    draws = torch.rand(8, count, generator=generator).to(images.device, non_blocking=True)
    signed = draws * 2 - 1
    if augment != Augment(erase=augment.erase):
        # the output pixel p shows the input at A p + t, in the coordinates of `affine_grid`: -1..1 on both axes
        angle, zoom = signed[0] * math.radians(augment.rotate), 1 + signed[1] * augment.scale
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        shear, mirror = signed[2] * augment.shear, (1 - 2 * (draws[3] < 0.5)) if augment.flip else 1
        shift_y, shift_x = signed[4] * augment.shift * height, signed[5] * augment.shift * width  # pixels
        if augment == Augment(shift=augment.shift, flip=augment.flip):
            shift_y, shift_x = shift_y.round(), shift_x.round()  # nothing is blurred where nothing turns or stretches
        rows = (
            mirror * cos, mirror * (shear * cos - sin) * height / width, shift_x * 2 / width,
            sin * width / height, cos + shear * sin, shift_y * 2 / height,
        )  # fmt: skip
        theta = torch.stack([row.expand(count) for row in rows], dim=-1).view(count, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        beyond = background.view(1, -1, 1, 1)
        images = F.grid_sample(images - beyond, grid, padding_mode="zeros", align_corners=False) + beyond
    if augment.erase:
        side = augment.erase * min(height, width)
        y, x = torch.arange(height, device=images.device) + 0.5, torch.arange(width, device=images.device) + 0.5
        inside_y = (y - draws[6, :, None] * height).abs() < side / 2  # (B, H)
        inside_x = (x - draws[7, :, None] * width).abs() < side / 2  # (B, W)
        images = images.masked_fill((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0.0)
    return images
