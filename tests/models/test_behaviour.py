"""Compiled models do what they were trained for: name file types, read text, compare sentences."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from pictures import picture_of
from zoo import MODELS, CompiledModel, model_path

from preprocessing import WordPiece, ctc_text, line_of_text, magika_features

Compile = Callable[..., CompiledModel]

FILES = {
    "python": '''"""Count words."""

import sys
from collections import Counter


def main() -> None:
    counts = Counter(word for line in sys.stdin for word in line.split())
    for word, count in counts.most_common(10):
        print(f"{count:6} {word}")


if __name__ == "__main__":
    main()
''',
    "c": """#include <stdio.h>
#include <stdlib.h>

static int compare(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

int main(int argc, char **argv) {
    int *values = malloc(sizeof(int) * argc);
    for (int i = 1; i < argc; i++) values[i - 1] = atoi(argv[i]);
    qsort(values, argc - 1, sizeof(int), compare);
    for (int i = 0; i < argc - 1; i++) printf("%d\\n", values[i]);
    free(values);
    return 0;
}
""",
    "json": json.dumps(
        {"name": "kettle", "price": 24.5, "tags": ["kitchen", "steel"], "stock": None}, indent=2
    ),
    "markdown": """# Kettle

A **kettle** boils water. See [the manual](https://example.org/manual).

## Steps

1. Fill it up to the mark.
2. Press `on`.

- It switches itself off.
- Descale it *once a month*.
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("label", FILES)
def test_magika_names_the_type_of_a_file(label: str, compiled: Compile) -> None:
    labels = json.loads(model_path("magika", ".config.json").read_text())["target_labels_space"]
    (scores,) = compiled("magika").model(magika_features(FILES[label].encode()))
    assert labels[int(scores[0].argmax())] == label


LINES = ("Tensor 2026", "compile, run")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("text", LINES)
def test_ocr_reads_a_line_of_text(text: str, precision: str, compiled: Compile) -> None:
    """Fewer bits are checked on a line, too: on noise, where no character is likely, none would be taken."""
    _, _, height, width = MODELS["ocr_rec"].input_shapes["x"]
    metadata = onnx.load(model_path("ocr_rec"), load_external_data=False).metadata_props
    characters = next(entry.value for entry in metadata if entry.key == "character")
    first, line = (line_of_text(picture_of(one, height), width) for one in (LINES[0], text))
    reader = compiled("ocr_rec", precision, inputs={"x": first})
    (scores,) = reader.model(line)
    assert "kept in float32" not in reader.precision
    assert ctc_text(scores[0], characters) == text


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_minilm_finds_related_sentences(precision: str, compiled: Compile) -> None:
    """The scalar product of the unit vectors is the similarity."""
    tokenizer = WordPiece(model_path("minilm", ".vocab.txt"))
    _, length = MODELS["minilm"].input_shapes["input_ids"]

    def embedding(sentence: str) -> np.ndarray:
        (result,) = compiled("minilm", precision).model(*tokenizer.encode(sentence, length))
        return result[0]

    query = embedding("A man is playing a guitar.")
    related = float(query @ embedding("Someone plays music on a string instrument."))
    unrelated = float(query @ embedding("The stock market fell sharply on Monday."))
    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-4)
    assert related > 0.4 > 0.2 > unrelated
