import numpy as np
import pytest

from tcomp.relay.builder import GraphBuilder, make_node
from tcomp.relay.dims import symbol
from tcomp.relay.evaluate import evaluate
from tcomp.relay.graph import Graph
from tcomp.relay.op import OPS, Sample
from tcomp.relay.types import numpy_dtype
from tcomp.transform.lower_resize import LowerResize


def _graph(sample: Sample) -> Graph:
    builder = GraphBuilder()
    x = builder.input("x", sample.types[0].shape, sample.types[0].dtype)
    node = builder.add(make_node("resize", [x], sample.attrs))
    return builder.build(node.output)


@pytest.mark.parametrize("gather_limit", [0, 4])
@pytest.mark.parametrize("sample", OPS["resize"].samples, ids=lambda s: "-".join(map(str, s.attrs.values())))
def test_lowered_resize_equals_the_reference(sample: Sample, gather_limit: int) -> None:
    graph = _graph(sample)
    lowered = LowerResize(gather_limit).run(graph)
    assert not any(node.op == "resize" for node in lowered.nodes)
    x = np.random.default_rng(0).uniform(0, 9, sample.types[0].static_shape)
    x = x.astype(numpy_dtype(sample.types[0].dtype))
    (expected,), (found,) = evaluate(graph, [x]), evaluate(lowered, [x])
    slack = 1 if "int" in sample.types[0].dtype else 0
    np.testing.assert_allclose(found, expected, rtol=sample.rtol, atol=max(sample.atol * 10, slack))


def test_an_axis_that_keeps_its_size_is_left_alone() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (symbol("batch"), 3, 4, 4))
    sizes = (x.shape[0], 3, 8, 8)
    y = builder.op("resize", x, sizes=sizes, scales=(1.0, 1.0, 2.0, 2.0), coordinate_mode="asymmetric")
    lowered = LowerResize().run(builder.build(y))
    assert [node.op for node in lowered.nodes] == ["gather", "gather"]
