"""SimpleITK: MONAI's reader for NRRD, MetaImage and DICOM series, and the RAS+ geometry of an ITK image.

ITK's axes are LPS: they differ from RAS by the sign of the first two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from medical_diffusion.data.reading.dicom import choose_series

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class SimpleITKReader(ImageReader):
    """MONAI image reader for NRRD, MetaImage and DICOM (a file, or a folder with one series) by SimpleITK.

    The array is ``(i, j, k)`` as ``NibabelReader`` gives it, with the components of a pixel as a last axis where there
    are several; ``affine`` in the metadata is RAS+.

    Args:
        series_uid: which series of a DICOM folder to read; needed only where it holds several.
    """

    def __init__(self, series_uid: str | None = None) -> None:
        self.series_uid = series_uid

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all names are a folder or of a format that this reader takes."""
        return all(Path(f).is_dir() or str(f).lower().endswith(ITK_SUFFIXES) for f in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """``(SimpleITK image, RAS+ affine)``, or a list of them for several paths."""
        images = [self._read_one(Path(path)) for path in ensure_tuple(data)]
        return images if len(images) > 1 else images[0]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Array and metadata; several images of one shape are stacked along a new first (channel) axis."""
        import SimpleITK as sitk

        images = img if isinstance(img, list) else [img]
        # GetArrayFromImage gives (k, j, i[, component]): reverse the spatial axes only.
        arrays = [np.moveaxis(sitk.GetArrayFromImage(i), range(i.GetDimension()), _reversed(i)) for i, _ in images]
        image, affine = images[0]
        meta = {
            MetaKeys.ORIGINAL_AFFINE: affine,
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(image.GetSize()[:3]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if image.GetNumberOfComponentsPerPixel() > 1 else float("nan"),
        }
        if len(arrays) == 1:
            return arrays[0], meta
        meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = 0
        return np.stack(arrays), meta

    def _read_one(self, path: Path) -> tuple[Any, np.ndarray]:
        import SimpleITK as sitk

        if not path.is_dir():
            image = sitk.ReadImage(str(path))
            return image, itk_affine(image)
        series = choose_series(path, self.series_uid)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(series.files)
        # Slices of one series may have different rescale slopes: a type taken from the first would round the others.
        if series.slices[0].samples == 1:
            reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
        return image, series.affine if len(series.slices) > 1 else itk_affine(image)


def _reversed(image: Any) -> list[int]:
    return list(range(image.GetDimension()))[::-1]


def itk_affine(image: Any) -> np.ndarray:
    """RAS+ affine of a SimpleITK image or file reader of two or more axes, ``(4, 4)``."""
    dimension = image.GetDimension()
    used = min(dimension, 3)
    direction = np.asarray(image.GetDirection()).reshape(dimension, dimension)[:used, :used]
    affine = np.eye(4)
    affine[:used, :used] = direction * np.asarray(image.GetSpacing())[:used]
    affine[:used, 3] = np.asarray(image.GetOrigin())[:used]
    return _LPS_TO_RAS @ affine


def itk_dtype(pixel_id: int) -> str:
    """numpy-like name of a SimpleITK pixel type ("int16"), or ITK's own name where it is not a plain number."""
    import SimpleITK as sitk

    name = sitk.GetPixelIDValueAsString(pixel_id).replace("vector of ", "")
    sign = {"8-bit signed integer": "int8", "8-bit unsigned integer": "uint8"}
    for bits in (16, 32, 64):
        sign |= {f"{bits}-bit signed integer": f"int{bits}", f"{bits}-bit unsigned integer": f"uint{bits}"}
    return (sign | {"32-bit float": "float32", "64-bit float": "float64"}).get(name, name)
