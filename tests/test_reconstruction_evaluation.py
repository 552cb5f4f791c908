"""Held-out reconstruction: both bottlenecks, grey and colour, volumes and images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medical_diffusion.bundle.reconstruction import ReconstructionEvaluation
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation import reconstruction_metrics
from medical_diffusion.evaluation.spectrum import high_frequency_ratio
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
    channels: int, size: tuple[int, int, int], codes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(download: bool) -> None:
        assert not download, "an evaluation does not wait for a download"
        raise UserError("LPIPS needs its weights")

    monkeypatch.setattr("medical_diffusion.bundle.reconstruction.load_lpips", refuse)
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
    sharpness = report["reconstruction"]["high_frequency_ratio"]
    ratio = high_frequency_ratio(reconstructions[0].clamp(-1, 1), data.items)
    assert sharpness == {"mean": pytest.approx(ratio, rel=1e-4), "std": None}
    assert set(report["trilinear_baseline"]) == {*expected, "high_frequency_ratio"}
    wanted = "LPIPS needs its weights" if min(size[:2]) >= 16 else "16 x 12 pixels are below LPIPS's 16 x 16"
    assert wanted in report["absent"]["lpips"]
    if codes is None:
        assert set(report) == {"volumes", "reconstruction", "trilinear_baseline", "absent"}
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


class PlaneDistance(torch.nn.Module):
    """Stands for LPIPS."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert x.shape[1] == 3
        return (x - y).abs().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 20, 8)), (3, (16, 16, 1))])
def test_lpips_is_part_of_the_report_where_it_can_be_had_and_not_of_every_validation(
    channels: int, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medical_diffusion.bundle.reconstruction.load_lpips", lambda download: PlaneDistance())
    autoencoder = Autoencoder(
        size, channels, channels=8, compression=2, latent_channels=4, bottleneck=GaussianBottleneck(4),
        latent_normalization="standardize", architecture="medfusion",
    )  # fmt: skip
    autoencoder.train()(Images(channels, size).items)
    evaluation = ReconstructionEvaluation(autoencoder, Images(channels, size), torch.device("cpu"))
    report = evaluation.run()
    assert report["reconstruction"]["lpips"]["mean"] > 0
    assert report["trilinear_baseline"]["lpips"]["std"] > 0
    assert "absent" not in report
    assert "lpips" not in evaluation()
