"""Matrix products on GPUs by plain instructions; see `tcomp.tensor.gpu.simt_product`."""

from __future__ import annotations

from tcomp.target.target import Target
from tcomp.tensor.anchored import Anchored
from tcomp.tensor.gpu.block_tile import BlockTile
from tcomp.tensor.gpu.matrices import ProductMatrices
from tcomp.tensor.gpu.simt_product import SimtProduct
from tcomp.tensor.gpu.simt_space import cycles, problem_of, shares_of, simt_space
from tcomp.tensor.kernel import Kernel
from tcomp.tensor.knobs import Config, Space
from tcomp.tensor.product import Product, fits
from tcomp.tensor.template import TEMPLATES, Cycles, Scheduled, Template


class MatmulCuda(Template):
    """One template for plain and batched products of any type; knobs as in `BlockTile`."""

    name = "matmul_cuda"
    family = "cuda"

    def accepts(self, kernel: Kernel, target: Target) -> bool:
        return fits(kernel)

    def space(self, kernel: Kernel, target: Target) -> Space:
        return simt_space(problem_of(kernel), target)

    def cycles(self, kernel: Kernel, target: Target) -> Cycles:
        problem = problem_of(kernel)
        return lambda config: cycles(problem, BlockTile.of(config), target)

    def apply(self, kernel: Kernel, target: Target, config: Config) -> Scheduled:
        assert kernel.anchor is not None
        matrices = ProductMatrices(Anchored(kernel), Product.of(kernel.anchor))
        tile = BlockTile.of(config)
        return SimtProduct(matrices, tile, shares_of(problem_of(kernel), tile, target)).scheduled()


TEMPLATES.register(MatmulCuda.name, MatmulCuda())
