"""How far a candidate's numbers may be from the evaluator's."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.relay.builder import GraphBuilder
from tcomp.relay.types import FLOAT8, numpy_dtype
from tcomp.tensor.kernel import Kernel
from tcomp.tuner.trial_data import TrialData, compare, is_wrong, trial_data


@pytest.mark.parametrize("dtype", FLOAT8)
def test_what_is_rounded_to_8_bits_may_be_a_step_off(dtype: str) -> None:
    builder = GraphBuilder()
    cast = builder.op("cast", builder.input("x", (64,)), dtype=dtype)
    data = trial_data(Kernel(builder.build(cast)), 0)
    (expected,) = data.expected
    for steps, wrong in ((0, False), (1, False), (3, True)):
        bits = expected.view(np.uint8).copy()
        bits[np.argmax(np.abs(expected.astype(np.float32)))] -= steps
        assert is_wrong(compare(data, [bits.view(numpy_dtype(dtype))])) == wrong


def test_not_a_number_of_8_bits_must_be_where_it_is_expected() -> None:
    expected = np.array([1, np.nan, 2]).astype(numpy_dtype("float8_e4m3fn"))
    data = TrialData((), (expected,), 1e-2)
    assert not is_wrong(compare(data, [expected]))
    assert is_wrong(compare(data, [np.nan_to_num(expected.astype("float32")).astype(expected.dtype)]))
