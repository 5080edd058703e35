"""The curvature diag(d) - S of F, however it is held: as a matrix, as one on a device, or by its products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, cg

from otlabel.sweep.pool import blas_on_one_thread

if TYPE_CHECKING:
    import torch

DENSE_CLASSES = 512  # up to here a K x K factorisation costs less than conjugate gradients
DENSE_PLAN = 0.1  # share of entries from which on a sampled plan is multiplied as a dense matrix


class Curvature(Protocol):
    """diag(d) - S, however it is held."""

    diagonal: np.ndarray

    def apply(self, y: np.ndarray) -> np.ndarray:
        """The product with y."""

    def solve(self, residual: np.ndarray, free: np.ndarray, near: np.ndarray) -> np.ndarray:
        """What gives the residual over the free classes, the others being held; it may be near to `near`."""


class DenseCurvature:
    """diag(d) - S as a matrix, in float64, since at a small epsilon it is nearly singular."""

    def __init__(self, plan: csr_array, scale: np.ndarray, diagonal: np.ndarray) -> None:
        self.diagonal = diagonal
        with blas_on_one_thread():
            if plan.nnz > DENSE_PLAN * plan.shape[0] * plan.shape[1]:
                rows = plan.toarray()
                products = (rows.T @ rows).astype(np.float64)
            else:
                products = (plan.T @ plan).toarray().astype(np.float64)
        self._matrix = -products * scale * scale[:, None]
        self._matrix[np.diag_indices_from(self._matrix)] += diagonal

    def apply(self, y: np.ndarray) -> np.ndarray:
        """The product with y."""
        return self._matrix @ y if y.any() else np.zeros_like(y)

    def solve(self, residual: np.ndarray, free: np.ndarray, near: np.ndarray) -> np.ndarray:
        """By Cholesky, over the free classes."""
        matrix = self._matrix if free.all() else self._matrix[np.ix_(free, free)]
        with blas_on_one_thread():
            try:
                return cho_solve(cho_factor(matrix, check_finite=False), residual, check_finite=False)
            except LinAlgError:  # rounding made it indefinite; its diagonal alone gives the Sinkhorn direction
                return residual / self.diagonal[free]


class DeviceCurvature:
    """The same on a device, where a matrix of a few thousand classes is no burden."""

    def __init__(self, products: torch.Tensor, scale: np.ndarray, diagonal: np.ndarray) -> None:
        self.diagonal, self._device = diagonal, products.device
        factors = self._there(scale)
        self._matrix = -products * factors * factors[:, None]
        self._matrix.diagonal().add_(self._there(diagonal))

    def apply(self, y: np.ndarray) -> np.ndarray:
        """The product with y."""
        return (self._matrix @ self._there(y)).cpu().numpy() if y.any() else np.zeros_like(y)

    def solve(self, residual: np.ndarray, free: np.ndarray, near: np.ndarray) -> np.ndarray:
        """By Cholesky, over the free classes."""
        import torch

        chosen = self._there(free)
        matrix = self._matrix if free.all() else self._matrix[chosen][:, chosen]
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):  # rounding made it indefinite, as above
            return residual / self.diagonal[free]
        return torch.cholesky_solve(self._there(residual)[:, None], factor)[:, 0].cpu().numpy()

    def _there(self, array: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self._device)


class SparseCurvature:
    """diag(d) - S by its products; for many classes."""

    def __init__(self, plan: csr_array, scale: np.ndarray, diagonal: np.ndarray) -> None:
        self.diagonal = diagonal
        self._plan, self._transposed, self._scale = plan, plan.T.tocsr(), scale

    def apply(self, y: np.ndarray) -> np.ndarray:
        """The product with y."""
        scaled = (self._scale * y).astype(np.float32)
        return self.diagonal * y - self._scale * (self._transposed @ (self._plan @ scaled))

    def solve(self, residual: np.ndarray, free: np.ndarray, near: np.ndarray) -> np.ndarray:
        """By conjugate gradients over the free classes; a rough solution will do, as the curvature is rough itself."""
        size, diagonal = len(residual), self.diagonal[free]

        def apply(part: np.ndarray) -> np.ndarray:
            y = np.zeros(len(free))
            y[free] = part
            return self.apply(y)[free]

        curvature = LinearOperator((size, size), matvec=apply, dtype=np.float64)
        jacobi = LinearOperator((size, size), matvec=lambda y: y / diagonal, dtype=np.float64)
        solution, _ = cg(curvature, residual, near, rtol=0.02, maxiter=200, M=jacobi)
        return solution
