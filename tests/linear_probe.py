"""Logistic regression, the smallest classifier: can the label of a phantom be learnt from its picture?"""

from __future__ import annotations

import torch
from torch import Tensor

from medical_diffusion.evaluation.agreement import area_under_roc


def unseen_auroc(features: Tensor, positive: Tensor, trained: int, penalty: float = 0.02) -> float:
    """Area under the ROC curve on all but the first ``trained`` rows, which the weights were fitted to.

    Args:
        features: (N, F).
        positive: (N,) booleans.
        trained: number of rows to fit.
        penalty: of the squared weights.
    """
    weight = torch.zeros(features.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=40)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features[:trained] @ weight[1:] + weight[0]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, positive[:trained].float())
        value = value + penalty * weight[1:].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    scores = (features[trained:] @ weight[1:] + weight[0]).detach().numpy()
    return area_under_roc(scores, positive[trained:].numpy())
