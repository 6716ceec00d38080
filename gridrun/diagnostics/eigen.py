"""The largest eigenvalues of a symmetric operator that can only be applied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gridrun.diagnostics.arrays import Floats, as_array
from gridrun.diagnostics.context import NotApplicable

Apply = Callable[[Tensor], Tensor]
CHECK_TOLERANCE = 0.1  # of the search for an eigenvalue that was missed
N_SPARE = 10  # vectors of the subspace beside twice those wanted


@dataclasses.dataclass(frozen=True)
class Eigenvalues:
    """Approximate eigenvalues of a symmetric operator A.

    Args:
        values: (k,), signed, largest magnitude first.
        residuals: (k,), |Av − λv| of the unit vectors found: each value is at most so
            far from an eigenvalue.
        n_converged: Those whose residual is within the tolerance.
        is_complete: Whether a second search, outside what was found, met none larger.
        n_steps: Times that A was applied.
    """

    values: Floats
    residuals: Floats
    n_converged: int
    is_complete: bool
    n_steps: int


def largest_eigenvalues(
    apply: Apply, draw: Callable[[], Tensor], k: int, n_steps: int, tolerance: float
) -> Eigenvalues:
    """The k eigenvalues of largest magnitude, multiple ones as often as they occur.

    Lanczos with full orthogonalisation and thick restarts: the space grows by the
    residual of the first wanted vector that is not yet good, and shrinks to the best
    vectors when it is full (Wu and Simon 2000, SIAM J. Matrix Anal. Appl. 22). From
    one start a multiple eigenvalue is found once only, so a second search follows,
    from another start outside what was found, until it brings nothing larger.

    Args:
        apply: (P,) to (P,), linear and symmetric.
        draw: A random vector (P,).
        k: How many, at most P.
        n_steps: Applications at most.
        tolerance: Residual at which a value is good, as a share of its magnitude.

    Raises:
        NotApplicable: If the operator's values are not finite.
    """
    space = Subspace(apply, draw())
    k = min(k, space.size)
    tolerances = np.array([*[tolerance] * k, CHECK_TOLERANCE])
    n_wanted, known = k, np.empty(0)
    while True:
        ritz = space.ritz(n_wanted)
        is_good = ritz.are_good(tolerances)
        is_settled = len(is_good) == n_wanted and bool(is_good.all())
        is_complete = space.n == space.size or (
            is_settled and ritz.has(known, tolerance)
        )
        if is_complete or space.n_steps >= n_steps:
            break
        if is_settled:
            space.shrink(ritz.mix[:, :k])
            n_wanted, known = min(k + 1, space.size), ritz.values[:k]
        elif not is_good.all():
            if space.n == 2 * k + N_SPARE:
                space.shrink(ritz.mix[:, : k + N_SPARE // 2])
            if space.add(ritz.residuals[int(is_good.argmin())]):
                continue
        space.add(draw())
    return Eigenvalues(
        ritz.values[:k],
        ritz.sizes[:k],
        int(is_good[:k].sum()),
        is_complete,
        space.n_steps,
    )


@dataclasses.dataclass(frozen=True)
class Ritz:
    """What a subspace of dimension n tells of an operator's eigenvalues.

    Args:
        values: (n,), largest magnitude first.
        mix: (n, n), a column for each: its unit vector in terms of the subspace's.
        residuals: (m, P), Av − λv of the first m.
        eps: Relative rounding of the operator's type.
    """

    values: Floats
    mix: Floats
    residuals: Tensor
    eps: float

    @property
    def sizes(self) -> Floats:
        """Norms of the residuals, (m,)."""
        return as_array(self.residuals.norm(dim=1))

    @property
    def rounding(self) -> float:
        """How exact values can be at best."""
        return float(100 * self.eps * np.abs(self.values).max())

    def are_good(self, tolerances: Floats) -> NDArray[np.bool_]:
        """Whether each residual is within a share of its value, (m,)."""
        m = len(self.residuals)
        allowed = tolerances[:m] * np.abs(self.values[:m])
        found: NDArray[np.bool_] = self.sizes <= np.maximum(allowed, self.rounding)
        return found

    def has(self, known: Floats, tolerance: float) -> bool:
        """Whether the first values are known ones, of which there are some."""
        now = np.sort(self.values[: len(known)])
        is_near = np.allclose(now, np.sort(known), rtol=tolerance, atol=self.rounding)
        return len(known) > 0 and is_near


class Subspace:
    """Orthonormal vectors (n, P) and their images under an operator.

    Args:
        apply: The operator.
        start: (P,), not 0.
    """

    def __init__(self, apply: Apply, start: Tensor) -> None:
        self.apply = apply
        self.size = len(start)
        self.n_steps = 0
        self.eps = torch.finfo(start.dtype).eps
        self.vectors = start.new_empty(0, self.size)
        self.images = start.new_empty(0, self.size)
        self.add(start)

    @property
    def n(self) -> int:
        """Its dimension."""
        return len(self.vectors)

    def add(self, vector: Tensor) -> bool:
        """Widen the space by what of a vector (P,) lies outside; False: nothing."""
        before = vector.norm()
        for _ in range(2):  # once leaves rounding errors of the large components
            vector = vector - self.vectors.T @ (self.vectors @ vector)
        size = vector.norm()
        if not size > 100 * self.eps * before:
            return False
        vector = vector / size
        image = self.apply(vector)
        if not image.isfinite().all():
            raise NotApplicable("the derivatives are not finite")
        self.vectors = torch.cat([self.vectors, vector[None]])
        self.images = torch.cat([self.images, image[None]])
        self.n_steps += 1
        return True

    def ritz(self, n_wanted: int) -> Ritz:
        """The best that this space gives, with the residuals of so many, or of all."""
        projected = as_array(self.vectors @ self.images.T)
        values, mix = np.linalg.eigh((projected + projected.T) / 2)
        order = np.argsort(-np.abs(values), kind="stable")
        values, mix = values[order], mix[:, order]
        weights = self._weights(mix[:, :n_wanted])
        scale = torch.from_numpy(values[:n_wanted]).to(weights)[:, None]
        residuals = weights @ self.images - scale * (weights @ self.vectors)
        return Ritz(values, mix, residuals, self.eps)

    def shrink(self, mix: Floats) -> None:
        """Keep the span of mixes (n, m) only."""
        weights = self._weights(mix)
        self.vectors, self.images = weights @ self.vectors, weights @ self.images

    def _weights(self, mix: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(mix.T)).to(self.vectors)
