"""How good are generated images?  Distances between two sets of features, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

NEAREST = 3  # neighbours that make up the manifold, as in the paper


def frechet(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of two Gaussians fitted to features (N, D) and (M, D); the squared form that FID uses
    (arXiv 1706.08500): |mean a - mean b|^2 + tr(A + B - 2 (A B)^1/2)."""
    a, b = a.double(), b.double()
    of_a, of_b = torch.cov(a.T), torch.cov(b.T)
    root = square_root(of_a)
    both = torch.linalg.eigvalsh(root @ of_b @ root).clamp(min=0).sqrt().sum()  # tr (A B)^1/2, of a symmetric matrix
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return float(apart + of_a.trace() + of_b.trace() - 2 * both)


def square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def precision_recall(real: Tensor, samples: Tensor, nearest: int = NEAREST) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991) of features (N, D) and (M, D).

    Precision: the share of `made` that lies within the manifold of `real`, the balls around its points that reach
    their `nearest`-th neighbour.  Recall: the same with the roles swapped.
    """
    return covered(samples, real, nearest), covered(real, samples, nearest)


def covered(points: Tensor, manifold: Tensor, nearest: int) -> float:
    apart = torch.cdist(manifold, manifold)
    radius = apart.kthvalue(nearest + 1, dim=1).values  # each point is its own nearest
    return float((torch.cdist(points, manifold) <= radius).any(dim=1).double().mean())
