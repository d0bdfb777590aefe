"""Small images for the page, as PNG text."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from niwaki.report.record import RecordError

SHOWN = 64  # pixels of the longer side: smaller images are enlarged by a whole factor, larger ones reduced


def png_text(image: NDArray) -> str:
    """Base64 of a PNG of `image`: H x W, or H x W x C with 1, 3 or 4 channels; uint8, or numbers that are scaled from black to white."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or not pixels.size:
        raise RecordError(f"an image to show has the shape H x W or H x W x C with 1, 3 or 4 channels, not {np.shape(image)}")
    if pixels.dtype != np.uint8:
        numbers = np.nan_to_num(pixels.astype(np.float64))
        low, high = float(numbers.min()), float(numbers.max())
        pixels = np.round((numbers - low) * (255 / (high - low or 1.0))).astype(np.uint8)
    picture = Image.fromarray(pixels)
    longer = max(picture.size)
    if longer > SHOWN:
        smaller = max(1, picture.width * SHOWN // longer), max(1, picture.height * SHOWN // longer)
        picture = picture.resize(smaller, Image.Resampling.LANCZOS)
    elif (factor := SHOWN // longer) > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    stream = BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
