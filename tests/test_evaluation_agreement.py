"""Class agreement: the classifier learns a visible class, doubts an invisible one, and counts as its intervals say."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import class_agreement
import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc
from PIL import Image

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation import ClassAgreement
from medical_diffusion.evaluation.agreement import (
    Agreement,
    area_under_roc,
    augmented,
    small_resnet,
    wilson_interval,
)

CLASSES = ("small", "large")


def blobs(count: int, size: tuple[int, int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright balls in noise, of two sizes: (B, 1, *size) in [-1, 1] and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    radius = torch.where(labels == 0, 0.25, 0.5).view(-1, 1, 1, 1)
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in size]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    images = torch.where(distance < radius, 0.8, -0.6)[:, None]
    return (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(-1, 1), labels


@pytest.fixture(scope="module")
def judge() -> ClassAgreement:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ClassAgreement(CLASSES, steps=40).fit(*blobs(40, (16, 16, 1)))


@pytest.mark.parametrize("size", [(16, 16, 1), (13, 18, 1), (12, 10, 7)])
def test_a_visible_class_is_learnt_in_images_and_volumes(size):
    images, labels = blobs(40, size)
    judge = ClassAgreement(CLASSES, steps=30).fit(images, labels)
    unseen, truth = blobs(30, size, seed=1)
    assert judge.auroc(unseen, truth) > 0.95
    report = judge.agreement(unseen, [CLASSES[n] for n in truth])
    assert report.overall.share > 0.9
    assert report.overall.count == sum(part.count for part in report.by_class.values()) == 30


def test_colour_and_more_than_two_classes():
    images, _ = blobs(45, (12, 12, 1))
    labels = torch.arange(45) % 3
    images = images.repeat(1, 3, 1, 1, 1) * 0.3
    images[torch.arange(45), labels] += 0.6
    judge = ClassAgreement("abc", steps=40).fit(images, labels)
    assert judge.probabilities(images).sum(1) == pytest.approx(1)
    assert judge.auroc(images, labels) > 0.95


def test_labels_without_meaning_are_not_learnt():
    images, _ = blobs(60, (16, 16, 1))
    labels = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(3))
    judge = ClassAgreement(CLASSES, steps=30).fit(images, labels)
    unseen, _ = blobs(60, (16, 16, 1), seed=1)
    other = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(4))
    assert 0.2 < judge.auroc(unseen, other) < 0.8


def test_samples_of_the_other_class_do_not_agree(judge):
    images, labels = blobs(20, (16, 16, 1), seed=2)
    report = judge.agreement(images, 1 - labels)
    assert report.overall.share < 0.1
    one_sided = judge.agreement(images[labels == 1], ["large"] * 10)
    assert one_sided.by_class["small"].count == 0
    assert one_sided.by_class["large"].agreed == one_sided.overall.agreed >= 9


def test_the_same_seed_gives_the_same_classifier_and_leaves_the_global_generator_alone(judge):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = ClassAgreement(CLASSES, steps=40).fit(*blobs(40, (16, 16, 1)))
    assert torch.equal(torch.get_rng_state(), before)
    images, _ = blobs(8, (16, 16, 1), seed=3)
    assert torch.equal(again.probabilities(images), judge.probabilities(images))


def test_one_by_one_equals_a_batch(judge):
    images, _ = blobs(5, (16, 16, 1), seed=4)
    alone = torch.cat([judge.probabilities(image[None]) for image in images])
    assert torch.allclose(alone, judge.probabilities(images), atol=1e-5)


def test_gradients_reach_every_parameter():
    network = small_resnet((16, 12, 5), 2, 3)
    network(torch.randn(2, 2, 16, 12, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_augmentation_moves_each_image_on_its_own_and_not_far():
    torch.manual_seed(0)
    images = torch.zeros(64, 1, 33, 33, 1)
    images[:, :, 16, 16] = 100
    moved = augmented(images).flatten(1).argmax(1)
    rows, columns = moved // 33, moved % 33
    assert set(rows.tolist()) == set(columns.tolist()) == {14, 15, 16, 17, 18}
    assert (rows != columns).any()


def test_area_under_roc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 40), rng.random(40) < 0.4
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    assert area_under_roc(scores, positive) == pytest.approx(np.mean(pairs))
    assert area_under_roc(scores, positive) == pytest.approx(
        compute_roc_auc(torch.from_numpy(scores), torch.from_numpy(positive).int())
    )
    assert math.isnan(area_under_roc(scores, np.ones(40, bool)))


@pytest.mark.parametrize(
    ("successes", "count", "interval"),
    [(8, 10, (0.4902, 0.9433)), (0, 10, (0.0, 0.2775)), (50, 50, (0.9287, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_interval_has_its_known_values(successes, count, interval):
    assert wilson_interval(successes, count) == pytest.approx(interval, abs=1e-4)


def test_a_share_reads_well():
    assert str(Agreement(45, 50)) == "90.0 % (45 of 50; 79 to 96 %)"
    assert str(Agreement(0, 0)) == "no samples"
    assert math.isnan(Agreement(0, 0).share)


@pytest.mark.parametrize(
    ("classes", "message"), [(["one"], "at least two classes"), (["a", "b", "a"], "of different names")]
)
def test_bad_classes_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        ClassAgreement(classes)


def test_bad_images_and_labels_are_refused(judge):
    images, labels = blobs(6, (16, 16, 1))
    with pytest.raises(UserError, match=r"training images of every class.*none of large"):
        ClassAgreement(CLASSES).fit(images, [0] * 6)
    with pytest.raises(UserError, match=r"each image needs one class.*6 images, 5 classes"):
        judge.agreement(images, labels[:5])
    with pytest.raises(UserError, match=r"one of the classifier's.*Did you mean large"):
        judge.agreement(images, ["larg"] * 6)
    with pytest.raises(UserError, match=r"index of a class must lie in \[0, 2\).*Received: 2"):
        judge.agreement(images, [2] * 6)
    with pytest.raises(UserError, match=r"shape \(B, 1, 16, 16, 1\)"):
        judge.probabilities(torch.zeros(2, 1, 8, 8, 1))
    with pytest.raises(UserError, match="must be trained before it judges"):
        ClassAgreement(CLASSES).probabilities(images)


def test_samples_are_read_by_guidance_scale_in_the_range_of_the_training_images(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 23
    for seed, scale, values in ((2, 1.0, grey), (10, 2.0, grey), (1, 1.0, grey.astype(np.uint16) * 257)):
        Image.fromarray(values).save(tmp_path / f"sample_{seed}.png")
        sidecar = {"class_name": CLASSES[seed % 2], "guidance_scale": scale}
        (tmp_path / f"sample_{seed}.json").write_text(json.dumps(sidecar))
    samples = class_agreement.by_guidance(class_agreement.read_samples(tmp_path, SimpleNamespace(intensity="stored")))
    assert {scale: (tuple(i.shape), names) for scale, (i, names) in samples.items()} == {
        1.0: ((2, 1, 3, 4, 1), ["large", "small"]),
        2.0: ((1, 1, 3, 4, 1), ["small"]),
    }
    expected = torch.from_numpy(grey / 127.5 - 1).float()[None, ..., None]
    for image in (*samples[1.0][0], *samples[2.0][0]):
        assert torch.allclose(image, expected, atol=1e-5)


def test_colour_and_volume_samples_are_read(tmp_path):
    Image.fromarray(np.full((3, 4, 3), (255, 0, 0), np.uint8)).save(tmp_path / "sample_0.png")
    (tmp_path / "sample_0.json").write_text("{}")
    nibabel.save(nibabel.Nifti1Image(np.full((2, 3, 4), 400, np.int16), np.eye(4)), tmp_path / "sample_1.nii.gz")
    (tmp_path / "sample_1.json").write_text("{}")
    settings = SimpleNamespace(intensity="window", window=[-1000.0, 400.0])
    colour, volume = (sample.image for sample in class_agreement.read_samples(tmp_path, settings))
    assert tuple(colour.shape) == (3, 3, 4, 1)
    assert colour[:, 0, 0, 0].tolist() == [1, -1, -1]
    assert tuple(volume.shape) == (1, 2, 3, 4)
    assert volume.unique().tolist() == [1]


def test_folders_without_samples_or_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--samples must be a folder of sample_<seed>\.json"):
        class_agreement.read_samples(tmp_path, SimpleNamespace(intensity="stored"))
    sample = class_agreement.Sample(torch.zeros(1, 2, 2, 1), None, None, None)
    with pytest.raises(UserError, match=r"agreement needs samples of a class.*without class_name"):
        class_agreement.by_guidance([sample])


def test_the_table_has_a_row_for_each_set_of_images(judge):
    images, labels = blobs(4, (16, 16, 1))
    report = judge.agreement(images, labels)
    lines = class_agreement.table(CLASSES, [("real", None, report), ("drawn", 2.0, report)]).splitlines()
    assert lines[0] == "| images | guidance scale | agree | small | large |"
    assert {line.count("|") for line in lines} == {6}
    assert lines[3].startswith("| drawn | 2 | 100.0 % (4 of 4;")
