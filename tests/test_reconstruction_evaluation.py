"""Held-out reconstruction: both bottlenecks, grey and colour, volumes and images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medical_diffusion.bundle.reconstruction import ReconstructionEvaluation
from medical_diffusion.evaluation import reconstruction_metrics
from medical_diffusion.networks import Autoencoder, GaussianBottleneck, VectorQuantizer


class Images(torch.utils.data.Dataset):
    def __init__(self, channels: int, size: tuple[int, int, int]) -> None:
        self.items = torch.rand(3, channels, *size) * 2 - 1

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.items[index]}


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16, 8)), (3, (16, 16, 1)), (1, (16, 12, 1))])
@pytest.mark.parametrize("codes", [16, None])
def test_every_channel_counts_and_a_codebook_is_reported_where_there_is_one(
    channels: int, size: tuple[int, int, int], codes: int | None
) -> None:
    bottleneck = GaussianBottleneck(4) if codes is None else VectorQuantizer(codes, 4, init_batches=1)
    autoencoder = Autoencoder(
        size, channels, channels=8, compression=2, latent_channels=4, bottleneck=bottleneck,
        latent_normalization="standardize", architecture="medfusion", deep_supervision=True,
    )  # fmt: skip
    data = Images(channels, size)
    autoencoder.train()(data.items)
    evaluation = ReconstructionEvaluation(autoencoder, data, torch.device("cpu"))
    report = evaluation.run()
    assert autoencoder.training
    with torch.no_grad():
        reconstructions, out = autoencoder.eval().reconstruct(data.items)
    expected = reconstruction_metrics(reconstructions[0].clamp(-1, 1), data.items)
    for name, values in expected.items():
        assert report["reconstruction"][name]["mean"] == pytest.approx(values.mean().item(), rel=1e-4)
        assert report["reconstruction"][name]["std"] == pytest.approx(values.std().item(), rel=1e-2)
    assert set(report["trilinear_baseline"]) == set(expected)
    if codes is None:
        assert set(report) == {"volumes", "reconstruction", "trilinear_baseline"}
        assert set(evaluation()) == set(report["reconstruction"])
    else:
        used = out.indices.unique(return_counts=True)[1]
        share = used / used.sum()
        assert report["codebook"]["codes_used"] == pytest.approx(len(used) / codes)
        assert report["codebook"]["perplexity"] == pytest.approx((-(share * share.log()).sum()).exp().item(), rel=1e-4)
        assert set(evaluation()) == {*report["reconstruction"], "codes_used", "perplexity"}
    picture = evaluation.picture()
    assert picture.ndim == 3 and picture.shape[2] == 3
    coloured = (picture.max(2) != picture.min(2)).mean()
    assert (coloured > 0.1) == (channels == 3)
