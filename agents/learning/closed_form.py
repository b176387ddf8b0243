"""The inner loop in closed form: a last layer fitted to the support samples by ridge regression around its start.

Letters in this file: K tasks, T support samples, Q query samples, H features (the last hidden layer), Y outputs.

It is where gradient steps on the last layer with weight decay towards its start would end, at the price of one T × T
factorisation, and it differentiates like anything else.

Source: Bertinetto et al. 2019, arXiv:1805.08136 (R2-D2: ridge regression as the inner loop); Harrison et al. 2018,
arXiv:1807.08912 (ALPaCA: the same around a learned prior, for dynamics).
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_correction(support_KTH: Tensor, residual_KTY: Tensor, query_KQH: Tensor, precision: Tensor | float) -> Tensor:
    """Return what the fitted last layer adds to the predictions of the query samples, (K, Q, Y).

    With features φ (a one appended for the bias) and residual R of the layer before the fit, the change of its weights
    minimises |φ ΔW − R|² + precision |ΔW|²; its effect on the query is φ_q φᵀ (φ φᵀ + precision)⁻¹ R.

    Args:
        residual_KTY: target minus prediction of the unfitted layer.
        precision: how strongly the weights are held where they start, > 0.
    """
    gram = 1 + support_KTH @ support_KTH.mT
    regular = gram + precision * torch.eye(gram.shape[-1], dtype=gram.dtype)
    fitted = torch.cholesky_solve(residual_KTY, torch.linalg.cholesky(regular))
    return (1 + query_KQH @ support_KTH.mT) @ fitted
