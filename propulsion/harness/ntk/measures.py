"""How close two kernels are, and what a kernel's spectrum is: pure functions of symmetric matrices."""

from __future__ import annotations

import torch


def cosine(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The Frobenius inner product over both norms: 1 where one is a positive multiple of the other."""
    norms = ours.norm() * theirs.norm()
    return float((ours * theirs).sum() / norms) if norms > 0 else 0.0


def best_scale(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The number c for which `c * ours` is nearest to `theirs`."""
    square = (ours * ours).sum()
    return float((ours * theirs).sum() / square) if square > 0 else 0.0


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """`|c * ours - theirs| / |theirs|` in the Frobenius norm with the best c; it is the sine to `cosine`."""
    return float((best_scale(ours, theirs) * ours - theirs).norm() / theirs.norm())


def centred(kernel: torch.Tensor) -> torch.Tensor:
    """The kernel of features whose mean over the rows is taken away, `H K H`."""
    rows = kernel - kernel.mean(dim=0, keepdim=True)
    return rows - rows.mean(dim=1, keepdim=True)


def alignment(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Centred kernel alignment (Cortes, Mohri and Rostamizadeh 2012): the cosine of the centred kernels."""
    return cosine(centred(ours), centred(theirs))


def spectrum(kernel: torch.Tensor) -> list[float]:
    """The eigenvalues as shares of their sum, largest first; rounding below zero is zero."""
    values = torch.linalg.eigvalsh(kernel).flip(0).clamp_min(0)
    total = values.sum()
    return [float(value) for value in (values / total if total > 0 else values)]


def effective_rank(shares: list[float]) -> float:
    """The exponential of the spectrum's entropy (Roy and Vetterli 2007): between 1 and the number of rows."""
    values = torch.tensor([share for share in shares if share > 0], dtype=torch.float64)
    return float(torch.exp(-(values * values.log()).sum())) if len(values) else 0.0


def random_directions(gram: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """The kernel of `number` random directions in the space of all parameters, drawn exactly.

    With J the whole Jacobian and R a matrix of `number` standard normal columns, the kernel of the parameters that
    move theta along R is `J R R' J' / number`. The columns of `J R` are independent draws from N(0, J J'), so that
    the product is a Wishart matrix of the Gram matrix alone: R, which may have 10^12 entries, is never needed.
    """
    values, vectors = torch.linalg.eigh(gram)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(len(gram), number, generator=generator, dtype=gram.dtype)
    features = vectors @ (values.clamp_min(0).sqrt()[:, None] * draws)
    return features @ features.T / number
