"""From bytes, pictures and sentences to the tensors that the real models take, and back to text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

MAGIKA_PADDING, MAGIKA_BLOCK = 256, 1024
"""Magika reads the first and the last kilobyte; positions beyond the end hold 256."""

_BLANK = ""


def magika_features(content: bytes) -> Array:
    """`[1, 2048]` int32: 1,024 bytes from the start and 1,024 from the end, white space stripped."""
    block = MAGIKA_BLOCK
    head = list(content[: 4 * block].lstrip()[:block])
    tail = list(content[-4 * block :].rstrip()[-block:])
    padding = [MAGIKA_PADDING]
    row = head + padding * (block - len(head)) + padding * (block - len(tail)) + tail
    return np.array([row], np.int32)


def line_of_text(picture: Array, width: int) -> Array:
    """`[1, 3, H, width]` float32 in -1..1 for a text recogniser, from 8-bit `[H, W, 3]`; zeros on the right.

    Raises ValueError when the picture is wider than `width`.
    """
    if picture.shape[1] > width:
        raise ValueError(f"the picture is {picture.shape[1]} pixels wide; the model takes {width}")
    pixels = (picture.astype(np.float32) / 255 - 0.5) / 0.5
    line = np.zeros((1, 3, picture.shape[0], width), np.float32)
    line[0, :, :, : picture.shape[1]] = pixels.transpose(2, 0, 1)
    return line


def ctc_text(scores: Array, characters: str) -> str:
    """The text that `[T, classes]` scores say: the best class of each step, repetitions and blanks removed.

    `characters` has one entry a line; class 0 is the blank and the last class a space.
    """
    classes = [_BLANK, *characters.splitlines(), " "]
    if scores.shape[1] != len(classes):
        raise ValueError(f"{scores.shape[1]} scores a step for {len(classes)} characters")
    best = scores.argmax(axis=1)
    changed = np.concatenate([[True], best[1:] != best[:-1]])
    return "".join(classes[int(c)] for c in best[changed])


class WordPiece:
    """The uncased tokenizer of BERT models for plain English: words cut greedily into the longest pieces."""

    def __init__(self, vocabulary: Path) -> None:
        entries = vocabulary.read_text(encoding="utf-8").splitlines()
        self._ids = {piece: i for i, piece in enumerate(entries)}

    def encode(self, sentence: str, length: int) -> tuple[Array, Array]:
        """Token ids and attention mask, both `[1, length]` int64, padded with zeros."""
        words = re.findall(r"\w+|[^\w\s]", sentence.lower())
        pieces = ["[CLS]", *(piece for word in words for piece in self._pieces(word)), "[SEP]"]
        if len(pieces) > length:
            raise ValueError(f"the sentence has {len(pieces)} tokens; the model takes {length}")
        ids, mask = np.zeros((2, 1, length), np.int64)
        ids[0, : len(pieces)] = [self._ids[piece] for piece in pieces]
        mask[0, : len(pieces)] = 1
        return ids, mask

    def _pieces(self, word: str) -> Sequence[str]:
        pieces: list[str] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self._ids), None)
            if end is None:
                return ["[UNK]"]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces
