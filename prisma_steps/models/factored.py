"""Matrices of low rank, kept as the two factors that make them: the circuits of an attention head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor


@dataclass(frozen=True)
class FactoredMatrix:
    """The product ``left @ right``, of a rank far below its size, which is never formed unless asked for.

    Elhage et al. 2021 (transformer-circuits.pub/2021/framework) read a head's circuits so. Dims in front of
    the last two are a batch. Gradients flow.

    Attributes:
        left: [*batch, row, rank].
        right: [*batch, rank, column].
    """

    left: Float[Tensor, "*batch row rank"]
    right: Float[Tensor, "*batch rank column"]

    def __post_init__(self) -> None:
        """Refuse factors that do not fit.

        Raises:
            ValueError: naming both shapes.
        """
        if self.left.shape[-1] != self.right.shape[-2]:
            raise ValueError(
                f"no product: left is {tuple(self.left.shape)} and right {tuple(self.right.shape)}; the "
                "last size of left must be the second last of right"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the product."""
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def rank(self) -> int:
        """The width between the factors, which the product's rank cannot exceed."""
        return self.left.shape[-1]

    @property
    def mT(self) -> FactoredMatrix:  # noqa: N802  as torch spells it
        """The product transposed."""
        return FactoredMatrix(self.right.mT, self.left.mT)

    def product(self) -> Float[Tensor, "*batch row column"]:
        """The matrix itself."""
        return self.left @ self.right

    def __matmul__(self, other: Tensor | FactoredMatrix) -> FactoredMatrix:
        """The product with what stands to its right, still factored.

        Of two factored matrices the narrower rank is kept.
        """
        if isinstance(other, Tensor):
            return FactoredMatrix(self.left, self.right @ other)
        between = self.right @ other.left
        if self.rank <= other.rank:
            return FactoredMatrix(self.left, between @ other.right)
        return FactoredMatrix(self.left @ between, other.right)

    def __rmatmul__(self, other: Tensor) -> FactoredMatrix:
        """The product with what stands to its left, still factored."""
        return FactoredMatrix(other @ self.left, self.right)

    def _core(self) -> tuple[Tensor, Tensor, Tensor]:
        """Orthonormal bases of the factors' outer spaces, and the small matrix between these."""
        outer_left, inner_left = torch.linalg.qr(self.left)
        outer_right, inner_right = torch.linalg.qr(self.right.mT)
        return outer_left, inner_left @ inner_right.mT, outer_right

    def svd(
        self,
    ) -> tuple[
        Float[Tensor, "*batch row rank"], Float[Tensor, "*batch rank"], Float[Tensor, "*batch rank column"]
    ]:
        """U, S, Vᵀ with product = U diag(S) Vᵀ, S falling: by the factors' QR and an SVD of rank × rank."""
        outer_left, core, outer_right = self._core()
        u, s, vt = torch.linalg.svd(core, full_matrices=False)
        return outer_left @ u, s, vt @ outer_right.mT

    def norm(self) -> Float[Tensor, "*batch"]:
        """The Frobenius norm."""
        return torch.linalg.matrix_norm(self._core()[1])

    def eigenvalues(self) -> Complex[Tensor, "*batch rank"]:
        """Eigenvalues of a square product, of which all others are 0: those of ``right @ left``.

        In no order. Positive ones mean that a head copies (Elhage et al. 2021).

        Raises:
            ValueError: when the product is not square.
        """
        if self.shape[-1] != self.shape[-2]:
            raise ValueError(f"only a square matrix has eigenvalues, and this one is {self.shape}")
        return torch.linalg.eigvals(self.right @ self.left)
