import numpy as np

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.graph import Constant
from tcomp.transform.flush_subnormals import FlushSubnormals


def test_a_broadcast_constant_stays_a_view() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (8, 64))
    weights = Constant.of(np.broadcast_to(np.full(1, 1e-40, np.float32), (64, 1 << 20)))
    graph = FlushSubnormals().run(builder.build(builder.op("matmul", x, weights)))
    flushed = graph.nodes[0].inputs[1]
    assert isinstance(flushed, Constant)
    assert flushed.data.strides == (0, 0)
    assert not flushed.data.any()
