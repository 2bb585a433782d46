"""How often whole models launch, by default configs: each launch takes about 3 microseconds."""

from __future__ import annotations

import pytest
from zoo import MODELS, model_path

from tcomp import api
from tcomp.target.parse import parse_target
from tcomp.tensor.gpu.threads import launches_of
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.selection import schedule

LAUNCHES = {
    "resnet50": (77, 68),
    "mobilenetv2_100": (58, 58),
    "bert_base": (100, 100),
    "vit_small_patch16_224": (102, 102),
}
"""Under `--precision fast`, on sm_80 and on sm_90a, as in docs/design/cuda.md."""


@pytest.mark.zoo
@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(name: str) -> None:
    graph = api.load_model(model_path(name), MODELS[name].input_shapes)
    found: list[int] = []
    for arch in ("sm_80", "sm_90a"):
        target = parse_target(f"cuda:{arch}")
        nodes = [n for n in api.static_kernels(graph, target, "fast").nodes if n.op == "fused"]
        found.append(sum(len(launches_of(schedule(Kernel.of(n), target).function)) for n in nodes))
    assert tuple(found) == LAUNCHES[name]
