"""Pictures that models are shown."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def picture_of(text: str, height: int) -> np.ndarray:
    """Black on white in Pillow's own font, `[height, W, 3]`."""
    font = ImageFont.load_default(size=height * 0.7)
    image = Image.new("RGB", (int(font.getlength(text)) + height // 2, height), "white")
    ImageDraw.Draw(image).text((height // 4, height // 2), text, "black", font, anchor="lm")
    return np.asarray(image)
