"""The inner loop in closed form: a last layer fitted to the support samples by ridge regression around its start.

Letters in this file: K tasks, T support samples, H features (the last hidden layer), Y outputs.

It is where gradient steps on the last layer with weight decay towards its start would end, at the price of one T × T
factorisation, and it differentiates like anything else.

Source: Bertinetto et al. 2019, arXiv:1805.08136 (R2-D2: ridge regression as the inner loop); Harrison et al. 2018,
arXiv:1807.08912 (ALPaCA: the same around a learned prior, for dynamics).
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_change(support_KTH: Tensor, residual_KTY: Tensor, precision: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return what the fit adds to the weights (K, H, Y) and the bias (K, 1, Y) of the last layer.

    With features φ (a one appended for the bias) and residual R of the layer before the fit, the change of its weights
    minimises |φ ΔW − R|² + precision |ΔW|²: it is φᵀ (φ φᵀ + precision)⁻¹ R.

    Args:
        residual_KTY: target minus prediction of the unfitted layer.
        precision: how strongly the weights are held where they start, > 0.
    """
    gram = 1 + support_KTH @ support_KTH.mT
    regular = gram + precision * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    fitted = torch.cholesky_solve(residual_KTY, torch.linalg.cholesky(regular))
    return support_KTH.mT @ fitted, fitted.sum(1, keepdim=True)
