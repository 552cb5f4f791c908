"""Each data set in its real layout, small: manifest, split, classes and the paper's preprocessing of its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_runs import ROOT, workflow
from data_files import write_dicom, write_itk, write_nifti
from image_files import write_picture
from monai.data import MetaTensor
from monai.transforms import Compose
from nibabel import aff2axcodes

from medical_diffusion.bundle import TrainingData
from medical_diffusion.data import load_volume
from medical_diffusion.errors import UserError, find_user_error

SUBJECTS = 3


def training_data(bundle: str, dataset_dir: Path, run_dir: Path, **options: Any) -> TrainingData:
    """What training would read, with the paper's options of a bundle unless others are given."""
    folder = ROOT / "bundles" / bundle
    options |= {"dataset_dir": str(dataset_dir), "run_dir": str(run_dir), "bundle_root": str(folder)}
    flow = workflow("train", bundle=folder, **options)
    try:
        data = flow.parser.get_parsed_content("data")
        data.prepare()
    except RuntimeError as error:
        raise find_user_error(error) or error from None
    return data


def preprocessed(data: TrainingData, item: dict[str, Any]) -> MetaTensor:
    """One volume in [-1, 1] with its affine."""
    chain = data.transform.transforms[:-1]  # the last step leaves voxels alone
    image = Compose(chain)(dict(item))["image"]
    assert image.dtype == torch.float32 and image.min() >= -1 and image.max() <= 1
    return image


def axes(image: MetaTensor) -> str:
    return "".join(aff2axcodes(image.affine.numpy()))


def spacing(image: MetaTensor) -> list[float]:
    return [round(float(v), 3) for v in image.pixdim]


def peak(image: MetaTensor) -> np.ndarray:
    """Millimetres of the centre of the brightest voxels."""
    index = np.argwhere(image[0].numpy() >= float(image.max()) - 0.05).mean(0)
    return (image.affine.numpy() @ np.append(index, 1))[:3]


def places(shape: tuple[int, int, int], size: tuple[float, float, float]) -> list[np.ndarray]:
    """Millimetres from the centre of each voxel, along i, j and k."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, size, strict=True)]
    return np.meshgrid(*axes, indexing="ij")


def series_affine(shape: tuple[int, int, int], size: tuple[float, float, float]) -> np.ndarray:
    """An axial series as scanners store it, centred: columns to the left, rows to the back, slices upwards."""
    affine = np.diag([-size[0], -size[1], size[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def test_lidc_is_in_hounsfield_units_on_the_papers_grid(tmp_path: Path) -> None:
    shape, size = (30, 26, 12), (10.0, 10.0, 20.0)
    affine = series_affine(shape, size)
    x, y, z = places(shape, size)
    for n in range(SUBJECTS):
        chest = np.where(np.hypot(x / 130, y / 110) < 1, 40, -1000).astype(np.int16)
        chest[(np.hypot(x - 60, y) < 50) & (np.abs(z) < 90)] = -500
        chest[20:23, 3:6, 5:8] = 1500  # denser than the window
        folder = tmp_path / "LIDC-IDRI" / f"LIDC-IDRI-000{n + 1}" / "CT_1.2"
        write_dicom(folder, chest, affine, uid=f"1.2.{n}", patient=f"LIDC-IDRI-000{n + 1}")
    data = training_data("lidc_ldm", tmp_path / "LIDC-IDRI", tmp_path / "run", manifest="lidc_idri")
    assert {item["subject"] for item in data.train + data.validation} == {f"LIDC-IDRI-000{n + 1}" for n in range(3)}
    image = preprocessed(data, data.train[0])
    assert image.shape == (1, 128, 128, 128) and axes(image) == "RAS" and spacing(image) == [2.5] * 3
    assert np.allclose(peak(image), (affine @ [21, 4, 6, 1])[:3], atol=5)
    assert image[0, 40, 64, 64] == pytest.approx(-0.5, abs=0.01), "-500 HU of the patient's left lung"
    assert image[0, 90, 64, 64] == pytest.approx(0.04, abs=0.01), "40 HU"
    assert image[0, 64, 4, 64] == pytest.approx(-1, abs=1e-4), "padded with air"


def breasts(shape: tuple[int, int, int], size: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A torso with two breasts in front, the patient's left one brighter; the axes of ``series_affine``."""
    x, y, z = places(shape, size)  # x to the left, y to the back
    both = (np.abs(np.abs(x) - 80) < 50) & (y < -20) & (y > -90) & (np.abs(z) < 60)
    image = np.where(np.abs(x) < 150, np.where((y > -20) & (y < 90), 300, 20), 20)
    image[both] = 400
    image[both & (x > 0)] = 500
    noise = np.random.default_rng(0).integers(0, 20, shape)
    return (image + noise).astype(np.int16), both.astype(np.uint8)


def test_duke_becomes_halves_by_mask_and_by_outline(tmp_path: Path) -> None:
    shape, size = (64, 48, 20), (6.0, 5.0, 8.0)
    affine = series_affine(shape, size)
    image, mask = breasts(shape, size)
    root = tmp_path / "Duke"
    for n in range(SUBJECTS):
        name = f"Breast_MRI_00{n + 1}"
        write_dicom(root / name / "MR_1.2.3", image, affine, uid=f"1.2.{n}", patient=name, modality="MR")
        if n != 1:
            write_itk(root / "masks" / f"{name}.nrrd", mask, affine)
    data = training_data("duke_ldm", root, tmp_path / "run", manifest="duke_breast_mri")
    items = data.train + data.validation
    assert len(items) == 2 * SUBJECTS and {"left", "right"} == {item["side"] for item in items}
    assert {item["subject"] for item in data.train}.isdisjoint(item["subject"] for item in data.validation)
    assert {item["subject"] for item in items if "mask" not in item} == {"Breast_MRI_002"}
    for item in items:
        half = preprocessed(data, item)
        assert half.shape == (1, 256, 256, 32) and axes(half) == "RAS"
        assert half.min() < -0.97 and half.max() > 0.97
        # in RAS the patient's left has negative coordinates; 80 mm from the midline, 35 mm in front of the body
        side = -1 if item["side"] == "left" else 1
        centre = (half.affine.numpy() @ [127.5, 127.5, 15.5, 1])[:3]
        if "mask" in item:
            assert np.allclose(centre, [80 * side, 55, 0], atol=6)
            assert np.allclose(np.array(spacing(half)) * half.shape[1:], [120, 90, 140], atol=16), "box and margin"
        else:
            assert 60 < centre[0] * side < 100 and abs(centre[2]) < 12 and centre[1] > 20
        inside = np.linalg.solve(half.affine.numpy(), [80 * side, 55, 0, 1])[:3].round().astype(int)
        assert half[(0, *inside)] > 0.85, "each breast is the brightest of its half"


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    shape, size = (32, 24, 10), (10.0, 10.0, 16.0)
    image, mask = breasts(shape, size)
    for n in range(2):
        write_nifti(tmp_path / "d" / "images" / f"Breast_MRI_00{n}.nii.gz", image, series_affine(shape, size))
        write_nifti(tmp_path / "d" / "masks" / f"Breast_MRI_00{n}.nii.gz", mask[:, :-1], series_affine(shape, size))
    with pytest.raises(UserError, match="have the shape of its image"):
        training_data("duke_ldm", tmp_path / "d", tmp_path / "run", manifest="duke_breast_mri")
    data = training_data("duke_ldm", tmp_path / "d", tmp_path / "run")
    with pytest.raises(RuntimeError) as failed:
        data.transform(dict(data.train[0]))
    assert "have the shape of its image" in str(find_user_error(failed.value))


def test_adni_is_the_brain_alone(tmp_path: Path) -> None:
    shape, size = (40, 44, 36), (4.0, 4.0, 4.0)
    affine = series_affine(shape, size)
    x, y, z = places(shape, size)
    inside = (x / 50) ** 2 + (y / 64) ** 2 + (z / 44) ** 2 < 1
    for n in range(SUBJECTS):
        brain = np.where(inside, 300 + 2 * y + 100 * n, 0).astype(np.int16)
        brain[(x - 10) ** 2 + (y - 40) ** 2 + z**2 < 100] = 1500
        subject = f"00{n}_S_0295"
        folder = tmp_path / "ADNI" / subject / "MP-RAGE" / "2006-04-18_08_20_30.0" / f"I{n}"
        write_nifti(folder / f"ADNI_{subject}_MR_MP-RAGE_I{n}.nii", brain, affine)
    data = training_data("adni_ldm", tmp_path / "ADNI", tmp_path / "run", manifest="adni")
    image = preprocessed(data, data.train[0])
    assert torch.equal(data.transform(dict(data.train[0]))["image"], image.as_tensor()), "what training gets"
    assert image.shape == (1, 64, 64, 64) and axes(image) == "RAS"
    assert np.allclose(np.array(spacing(image)) * 64, [100 + 16, 128 + 16, 88 + 16], atol=9), "brain and margin"
    assert np.allclose(peak(image), [-10, -40, 0], atol=3)
    assert image[0, 0, 0, 0] == -1 and (image > -1).float().mean() > 0.35
    assert image.max() == 1


def test_mrnet_arrays_are_sagittal_slices_last(tmp_path: Path) -> None:
    root = tmp_path / "MRNet-v1.0"
    depths = {"train": (40, 20, 36, 24), "valid": (33,)}
    number = 0
    for part, counts in depths.items():
        (root / part / "sagittal").mkdir(parents=True)
        rows = []
        for depth in counts:
            generator = np.random.default_rng(number)
            exam = generator.integers(0, 60, (depth, 256, 256)) + 10 * number
            exam[:, 20:60, 30:90] = 200 + 5 * number  # high and in front
            exam[: depth // 2] += 20
            np.save(root / part / "sagittal" / f"{number:04d}.npy", exam.astype(np.uint8))
            rows.append(f"{number:04d},{number % 2}")
            number += 1
        (root / f"{part}-acl.csv").write_text("\n".join(rows) + "\n")
    data = training_data("mrnet_ldm", root, tmp_path / "run", manifest="mrnet")
    assert data.class_names == ("intact", "torn")
    assert all(item["class_label"] == int(Path(item["image"]).stem) % 2 for item in data.train)
    assert len(data.train) + len(data.validation) + len(data.lists.test) == 5
    for item in data.train:
        knee = preprocessed(data, item)
        assert knee.shape == (1, 256, 256, 32) and axes(knee) == "ASR" and spacing(knee) == [1, 1, 1]
        # H grows to the front and W upwards: the bright block lies at the upper ends of both
        assert knee[0, 166:226, 196:236, 16].mean() > knee[0, :160, :190, 16].mean() + 0.5
        depth = np.load(item["image"]).shape[0]
        padded = (knee[0, 0] == -1).all(0).sum()
        assert padded == max(0, 32 - depth)
    assert data.landmarks_path.is_file() and len(data.landmarks or []) > 9

    again = training_data("mrnet_ldm", root, tmp_path / "run", manifest="mrnet")
    written = data.landmarks_path.stat().st_mtime_ns
    assert again.landmarks == data.landmarks and again.key == data.key
    assert data.landmarks_path.stat().st_mtime_ns == written, "fitted once"
    plain = training_data("mrnet_ldm", root, tmp_path / "other", manifest="mrnet", histogram_standardization=False)
    assert plain.landmarks is None and plain.key != data.key


def test_arrays_state_no_geometry_and_the_log_says_what_is_assumed(tmp_path: Path) -> None:
    exam = np.zeros((12, 8, 10), np.uint8)
    exam[3, 1, 7] = 9
    np.save(tmp_path / "a.npy", exam)
    knee = load_volume(tmp_path / "a.npy")
    assert knee.shape == (8, 10, 12) and knee[1, 7, 3] == 9 and knee.dtype == torch.float32
    assert axes(knee) == "IPL" and spacing(knee) == [1, 1, 1]
    np.save(tmp_path / "b.npy", np.zeros((8, 10), np.uint8))
    with pytest.raises(UserError, match="more than one slice"):
        load_volume(tmp_path / "b.npy")
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-50])
    with pytest.raises(UserError, match=r"complete.*a\.npy"):
        load_volume(tmp_path / "a.npy")


def colours(seed: int, shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A smooth picture whose left part is red and right part blue."""
    picture = np.random.default_rng(seed).integers(0, 30, (*shape, 3))
    picture[:, : shape[1] // 2, 0] = 220
    picture[:, shape[1] // 2 :, 2] = 220
    return picture.astype(np.uint8)


def check_colours(image: MetaTensor, size: int) -> None:
    assert image.shape == (3, size, size, 1)
    left, right = image[:, :, : size // 4].mean((1, 2, 3)), image[:, :, -size // 4 :].mean((1, 2, 3))
    assert left[0] == pytest.approx(220 / 127.5 - 1, abs=0.1) == right[2]
    assert left[2] < -0.7 and right[0] < -0.7


def test_airogs_is_labelled_by_its_table(tmp_path: Path) -> None:
    root = tmp_path / "airogs"
    rows = ["challenge_id,class"]
    for n in range(6):
        write_picture(root / str(n % 2) / f"TRAIN{n:06d}.jpg", colours(n), quality=95)
        rows.append(f"TRAIN{n:06d},{'RG' if n % 3 == 0 else 'NRG'}")
    (root / "train_labels.csv").write_text("\n".join(rows) + "\n")
    data = training_data("airogs_ldm", root, tmp_path / "run", manifest="airogs")
    assert data.class_names == ("no glaucoma", "glaucoma")
    assert all(item["class_label"] == (int(Path(item["image"]).stem[5:]) % 3 == 0) for item in data.train)
    check_colours(preprocessed(data, data.train[0]), 256)


def test_crcdx_is_labelled_by_its_folders(tmp_path: Path) -> None:
    root = tmp_path / "crcdx" / "TRAIN"
    for n in range(6):
        folder = ("nonMSIH", "MSIH")[n % 2]
        write_picture(root / folder / f"blk-ABCDEFGHIJKL-TCGA-AA-000{n // 2}-01Z-00-DX1.png", colours(n))
    data = training_data("crcdx_ldm", root.parent, tmp_path / "run", manifest="crcdx")
    assert data.class_names == ("stable", "instable")
    assert all(item["class_label"] == ("/MSIH/" in item["image"]) for item in data.train)
    assert {item["subject"] for item in data.train}.isdisjoint(item["subject"] for item in data.validation)
    check_colours(preprocessed(data, data.train[0]), 512)


def test_chexpert_drops_laterals_and_relabels(tmp_path: Path) -> None:
    root = tmp_path / "CheXpert-v1.0-small"
    rows = ["Path,Sex,Age,Frontal/Lateral,AP/PA,Cardiomegaly"]
    stated = ("1.0", "0.0", "-1.0", "", "1.0", "")
    for n, value in enumerate(stated):
        views = ("view1_frontal", "view2_lateral") if n % 2 else ("view1_frontal",)
        for view in views:
            name = f"train/patient{n:05d}/study1/{view}.jpg"
            write_picture(root / name, np.linspace(0, 255, 32 * 24).reshape(32, 24).astype(np.uint8), quality=95)
            direction = view.split("_")[1].capitalize()
            rows.append(f"CheXpert-v1.0-small/{name},Male,60,{direction},AP,{value}")
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    data = training_data("chexpert_ldm", root.parent, tmp_path / "run", manifest="chexpert")
    items = data.train + data.validation + data.lists.test
    assert len(items) == len(stated) and all("frontal" in item["image"] for item in items)
    labels = {item["subject"]: item["class_label"] for item in items}
    assert labels == {f"patient{n:05d}": int(value in ("1.0", "-1.0")) for n, value in enumerate(stated)}
    image = preprocessed(data, data.train[0])
    assert image.shape == (1, 256, 256, 1)
    assert image[0, :4].mean() < -0.9 and image[0, -4:].mean() > 0.9, "rows run down"
