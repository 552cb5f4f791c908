"""The loss of stage 2: whose optimum is the mean, and whose the median."""

from __future__ import annotations

import pytest
import torch

from medical_diffusion.errors import UserError
from medical_diffusion.losses import prediction_loss


@pytest.mark.parametrize(("kind", "best"), [("mse", 2.5), ("l1", 1.0)])
def test_a_constant_prediction_becomes_the_mean_or_the_median(kind, best):
    targets = torch.tensor([1.0, 1.0, 1.0, 7.0])
    candidates = torch.linspace(0, 8, 321)
    losses = torch.stack([prediction_loss(kind)(c.expand(4), targets) for c in candidates])
    assert candidates[losses.argmin()] == pytest.approx(best, abs=0.03)


def test_an_unknown_loss_is_refused():
    with pytest.raises(UserError, match=r"diffusion_loss must be l1 or mse\. Received: mae"):
        prediction_loss("mae")
