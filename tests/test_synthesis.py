"""Seeds to classes, to samples, to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medical_diffusion.data import IntensityScaling
from medical_diffusion.diffusion import create_sampler
from medical_diffusion.errors import UserError
from medical_diffusion.pictures import read_png, volume_grid, write_png
from medical_diffusion.synthesis import ClassLabels, LatentSampler, SampleWriter

NAMES = ("normal", "cardiomegaly")


# ---- classes of seeds ----


def test_classes_follow_the_training_frequencies() -> None:
    labels = ClassLabels(NAMES, [0.8, 0.2])
    drawn = [labels.of(seed) for seed in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.2, abs=0.03)
    assert [labels.of(seed) for seed in range(2000)] == drawn
    assert labels.name_of(3) == NAMES[drawn[3]]  # type: ignore[index]


def test_the_asked_class_is_the_class_of_every_seed() -> None:
    labels = ClassLabels(NAMES, [1.0, 0.0], asked="cardiomegaly")
    assert {labels.of(seed) for seed in range(50)} == {1}


def test_without_classes_there_is_no_label() -> None:
    assert ClassLabels().of(0) is None
    assert ClassLabels().name_of(0) is None


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (NAMES, "cardiomegali", r"--label must be one of normal, cardiomegaly.*cardiomegali.*cardiomegaly"),
        ((), "normal", r"only where the network was trained with labels.*normal"),
    ],
)
def test_a_class_that_is_not_there(names: tuple[str, ...], asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassLabels(names, asked=asked)


# ---- sampling ----


class Codec(nn.Module):
    def decode_latents(self, z: Tensor) -> Tensor:
        return z


class Conditional(nn.Module):
    """A network whose clean image is the value of its class, 0 without one."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([-0.5, 0.25, 0.0]))
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        self.seen.append(class_labels.tolist())
        return self.values[class_labels].view(-1, 1, 1, 1, 1).expand_as(x)


def sampler(scale: float = 1.0, labels: ClassLabels | None = None, name: str = "ddim") -> LatentSampler:
    diffusion = create_sampler(name, prediction_type="sample")
    return LatentSampler(
        Codec(), diffusion, (1, 4, 4, 1), 5, class_labels=labels or ClassLabels(NAMES), guidance_scale=scale
    )


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp"])
def test_each_seed_gets_its_class_in_any_batch(name: str) -> None:
    draw, network = sampler(labels=ClassLabels(NAMES, [0.5, 0.5]), name=name), Conditional()
    together = draw(range(8), network)
    for seed in range(8):
        torch.testing.assert_close(draw([seed], network)[0], together[seed])
        assert together[seed].mean().item() == pytest.approx([-0.5, 0.25][draw.class_labels.of(seed)])  # type: ignore[index]


def test_guidance_exaggerates_and_a_class_can_be_asked_for() -> None:
    network = Conditional()
    assert sampler(2.0)([0, 1], network, class_label=1).mean().item() == pytest.approx(0.5)
    assert network.seen[-1] == [1, 1, 2, 2]


def test_guidance_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"guidance needs a network that was trained with labels.*guidance_scale 2"):
        LatentSampler(Codec(), create_sampler("ddim"), (1, 4, 4, 1), guidance_scale=2.0)


# ---- files ----


def writer(folder: Path, **options: Any) -> SampleWriter:
    return SampleWriter(folder, IntensityScaling("stored"), (1.0, 1.0, 1.0), {"sampler": "ddim"}, **options)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_use_the_whole_range_of_their_bits(tmp_path: Path, bits: int, channels: int) -> None:
    image = torch.linspace(-1, 1, channels * 15).view(channels, 5, 3, 1)
    out = writer(tmp_path, png_bits=bits, class_labels=ClassLabels(NAMES, asked="normal"))
    path = out.write(7, image)
    assert path.name == "sample_7.png" and out.is_written(7)
    stored = read_png(path)
    assert stored.shape == ((5, 3) if channels == 1 else (5, 3, 3))
    assert (stored.min(), stored.max()) == (0, 2**bits - 1)
    values = out.read(7) / (2**bits - 1) * 2 - 1
    expected = image[0].numpy() if channels == 1 else np.moveaxis(image.numpy(), 0, -1)
    np.testing.assert_allclose(values, expected, atol=1.01 / (2**bits - 1))
    sidecar = json.loads(out.sidecar_path(7).read_text(encoding="utf-8"))
    assert sidecar["class_name"] == "normal" and sidecar["seed"] == 7 and str(2**bits - 1) in sidecar["unit"]


def test_volumes_stay_nifti(tmp_path: Path) -> None:
    out = writer(tmp_path)
    assert out.write(0, torch.zeros(1, 4, 4, 4)).name == "sample_0.nii.gz"
    assert "class_name" not in json.loads(out.sidecar_path(0).read_text(encoding="utf-8"))


@pytest.mark.parametrize("orientation", ["RAS", "ASR", "PIL"])
def test_the_affine_says_where_the_axes_run(tmp_path: Path, orientation: str) -> None:
    out = SampleWriter(tmp_path, IntensityScaling("minmax"), (1.0, 2.0, 3.0), {}, orientation=orientation)
    affine = nibabel.load(out.write(0, torch.zeros(1, 4, 6, 3))).affine
    assert nibabel.aff2axcodes(affine) == tuple(orientation)
    assert nibabel.affines.voxel_sizes(affine).tolist() == [1.0, 2.0, 3.0]
    assert (affine @ [1.5, 2.5, 1.0, 1.0])[:3].tolist() == [0.0, 0.0, 0.0]


def test_other_bit_depths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"8 or 16 bits.*12"):
        writer(tmp_path, png_bits=12)


# ---- pictures ----


def test_images_are_shown_upright_and_in_colour() -> None:
    grey = np.zeros((64, 128, 1), dtype=np.float32)
    grey[:8, :16] = 1.0
    colour = np.zeros((64, 128, 1, 3), dtype=np.float32)
    colour[-8:, -16:, :, 2] = 1.0
    picture = volume_grid([("grey", [grey]), ("colour", [colour])], (0.0, 1.0))
    bright, blue = np.argwhere((picture == 255).all(-1)), np.argwhere((picture == (0, 0, 255)).all(-1))
    assert bright[0].tolist()[1] == 0 and len(bright) >= 8 * 16
    assert len(blue) == 8 * 16 and blue[:, 0].min() > bright[:, 0].max() and blue[:, 1].min() == 128 - 16


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3)])
def test_png_files_come_back_as_they_were(tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    again = read_png(write_png(tmp_path / "x.png", picture))
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, picture)
