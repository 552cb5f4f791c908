"""Labels on their way: latent cache, loader, trainer, label dropout, validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion.bundle.reconstruction import NoiseEvaluation
from medical_diffusion.data import LatentDataset, StepLoader
from medical_diffusion.diffusion import DDPMSampler
from medical_diffusion.errors import UserError
from medical_diffusion.networks import Autoencoder, GaussianBottleneck, UNet
from medical_diffusion.training import DiffusionStep, StageCheckpoint, StepTrainer

SIZE = (8, 8, 1)


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= len(self):
            raise IndexError
        return {"image": torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(index))}


def make_codec() -> Autoencoder:
    torch.manual_seed(0)
    codec = Autoencoder(
        SIZE, channels=8, compression=2, latent_channels=2, bottleneck=GaussianBottleneck(2),
        latent_normalization="standardize",
    ).eval()  # fmt: skip
    with torch.no_grad():
        codec.set_latent_statistics(codec.encode(item["image"][None]) for item in Images())
    return codec


def make_step(num_classes: int | None = 3, **options: Any) -> DiffusionStep:
    torch.manual_seed(0)
    network = UNet(
        2, width=8, channel_multipliers=(1, 2), blocks_per_level=1, skip="add", spatial_attention="none",
        depth_attention=False, num_classes=num_classes,
    )  # fmt: skip
    return DiffusionStep(network, torch.optim.SGD(network.parameters(), lr=1.0), DDPMSampler(10), **options)


def seen_labels(step: DiffusionStep) -> list[Tensor]:
    """Labels that the network is called with from now on."""
    seen: list[Tensor] = []
    step.network.register_forward_pre_hook(
        lambda module, inputs, options: seen.append(options["class_labels"].clone()), with_kwargs=True
    )
    return seen


def test_the_cache_hands_out_labels_and_does_not_depend_on_them(tmp_path: Path) -> None:
    codec, labels = make_codec(), [2, 0, 1, 0]
    options = {"cache_dir": tmp_path, "data_key": "key", "flip_axes": (0, 1)}
    plain = LatentDataset(Images(), codec, **options)
    labelled = LatentDataset(Images(), codec, labels=labels, **options)
    assert plain.path() == labelled.path() == LatentDataset(Images(), codec, labels=[0] * 4, **options).path()
    assert len(plain) == 16
    for n in range(16):
        assert set(plain[n]) == {"image"}
        assert torch.equal(plain[n]["image"], labelled[n]["image"])
        assert labelled[n]["class_label"].dtype == torch.int64
        assert labelled[n]["class_label"] == labels[n // 4]
    batch = next(iter(StepLoader(labelled, batch_size=3)))
    assert batch["class_label"].shape == (3,)
    with pytest.raises(UserError, match=r"one number for each of the 4 volumes.*Received: 3 labels"):
        LatentDataset(Images(), codec, labels=[0, 1, 2], **options)


def test_the_trainer_passes_each_item_its_own_label(tmp_path: Path) -> None:
    latents = LatentDataset(Images(), make_codec(), tmp_path, "key", labels=[2, 0, 1, 0])
    step = make_step()
    seen = seen_labels(step)
    checkpoint = StageCheckpoint(tmp_path, "model", "a", {"image_size": [8, 8, 1]})
    loader = StepLoader(latents, batch_size=3, seed=1)
    StepTrainer("cpu", step, loader, epoch_length=4, checkpoint=checkpoint).run()
    wanted = [[int(latents[i]["class_label"]) for i in loader.steps.batch(n)] for n in range(4)]
    assert [labels.tolist() for labels in seen] == wanted


def test_labels_are_dropped_one_by_one_with_their_probability() -> None:
    step = make_step(label_dropout=0.3)
    labels = torch.arange(3).repeat(2000)
    dropped = step.drop_labels(labels)
    assert dropped is not None
    null = dropped == 3
    assert null.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(dropped[~null], labels[~null])
    assert all(null[labels == c].float().mean().item() == pytest.approx(0.3, abs=0.05) for c in range(3))
    assert labels.max() == 2  # the batch itself is left alone
    torch.manual_seed(5)
    first = step.drop_labels(labels)
    torch.manual_seed(5)
    assert torch.equal(step.drop_labels(labels), first)
    assert torch.equal(make_step(label_dropout=1.0).drop_labels(labels), torch.full_like(labels, 3))
    assert make_step().drop_labels(labels) is labels
    assert step.drop_labels(None) is None


@pytest.mark.parametrize("accumulation", [1, 3])
def test_dropped_labels_reach_the_network_and_train_the_null_class(accumulation: int) -> None:
    step = make_step(label_dropout=0.5, accumulation=accumulation)
    for parameter in step.network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    seen = seen_labels(step)
    before = step.network.class_embedding.weight.detach().clone()  # type: ignore[union-attr]
    step(torch.randn(8, 2, 4, 4, 1), 0, torch.tensor([0, 1] * 4))
    used = torch.cat(seen)
    assert len(used) == 8 and 3 in used and used.min() < 2
    moved = (step.network.class_embedding.weight.detach() != before).any(1)  # type: ignore[union-attr]
    assert moved.nonzero().flatten().tolist() == sorted(set(used.tolist()))


def test_validation_uses_the_labels_as_they_are(tmp_path: Path) -> None:
    step = make_step(label_dropout=1.0)
    for parameter in step.ema.network.parameters():
        nn.init.normal_(parameter, std=0.2)
    latents = torch.randn(4, 2, 4, 4, 1)
    figures = [step.validate(latents, 1, torch.full((4,), c)) for c in range(4)]
    assert len(set(figures)) == 4
    assert step.validate(latents, 1) == figures[3]  # without labels: no class
    assert step.validate(latents, 1, torch.full((4,), 2)) == figures[2]
    labelled, plain = (
        LatentDataset(Images(), make_codec(), tmp_path, "key", labels=labels) for labels in ([1, 0, 2, 1], None)
    )
    losses = [NoiseEvaluation(step, data, torch.device("cpu"))()["loss"] for data in (labelled, plain)]
    one_by_one = [
        step.validate(labelled[n]["image"][None].repeat(4, 1, 1, 1, 1), n, labelled[n]["class_label"].repeat(4))
        for n in range(4)
    ]
    assert losses[0] == pytest.approx(sum(one_by_one) / 4)
    assert losses[0] != losses[1]


def test_errors() -> None:
    with pytest.raises(UserError, match=r"label_dropout must lie in \[0, 1\].*1.5"):
        make_step(label_dropout=1.5)
    with pytest.raises(UserError, match=r"label_dropout needs a network with classes.*num_classes"):
        make_step(num_classes=None, label_dropout=0.5)
    with pytest.raises(UserError, match=r"class_labels need a network with classes"):
        make_step(num_classes=None)(torch.randn(2, 2, 4, 4, 1), 0, torch.tensor([0, 1]))
