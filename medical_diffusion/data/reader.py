"""Reading volumes: nibabel for NIfTI, SimpleITK for NRRD, MetaImage and DICOM series.

Both give the array in index order ``(i, j, k)`` and an affine from that index to millimetres in RAS+: ITK's LPS axes
differ from RAS by the sign of the first two. A library's error becomes a ``UserError`` that names the file.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, MetaTensor, NibabelReader
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from medical_diffusion.data.checks import VolumeHeader, header_faults, raise_faults
from medical_diffusion.data.dicom import choose_series
from medical_diffusion.errors import UserError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_nifti(path: str | Path) -> bool:
    """Whether a file is NIfTI by its name."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)


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
            return image, _itk_affine(image)
        series = choose_series(path, self.series_uid)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(series.files)
        # Slices of one series may have different rescale slopes: a type taken from the first would round the others.
        if series.slices[0].samples == 1:
            reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
        return image, series.affine if len(series.slices) > 1 else _itk_affine(image)


def read_header(path: str | Path, series_uid: str | None = None) -> VolumeHeader:
    """Shape, affine and stored type of a volume, without its voxels.

    Raises:
        UserError: the file is missing, or is not what its name says.
    """
    path = Path(path)
    with _as_user_error(path):
        if is_nifti(path):
            import nibabel

            image: Any = nibabel.load(path)
            return VolumeHeader(tuple(image.shape), np.array(image.affine, dtype=float), image.get_data_dtype().name)
        if path.is_dir():
            series = choose_series(path, series_uid)
            return VolumeHeader(series.shape, series.affine, "float32")
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        shape = tuple(reader.GetSize())
        if reader.GetNumberOfComponents() > 1:
            shape = (*shape, *[1] * (3 - len(shape)), reader.GetNumberOfComponents())
        return VolumeHeader(shape, _itk_affine(reader), _itk_dtype(sitk, reader.GetPixelID()))


def load_volume(path: str | Path, series_uid: str | None = None, allow_planar: bool = False) -> MetaTensor:
    """One volume as float32 ``(H, W, D)`` with its RAS+ affine, in stored units (HU for CT).

    Args:
        path: a NIfTI, NRRD or MetaImage file, a DICOM file, or a folder that holds a DICOM series.
        series_uid: which series of a DICOM folder.
        allow_planar: accept an image of depth 1.

    Raises:
        UserError: missing, truncated or of another format than its name says, not three-dimensional, singular affine.
    """
    path = Path(path)
    header = read_header(path, series_uid)
    faults = header_faults(path, header, allow_planar)
    raise_faults(faults, "a volume must be valid", "`medical_diffusion data verify` lists the faults of a whole folder")
    reader = NibabelReader() if is_nifti(path) else SimpleITKReader(series_uid)
    with _as_user_error(path):
        # Not through LoadImage: it builds every reader it knows at each call, GPU ones with their warnings included.
        voxels, _ = reader.get_data(reader.read(str(path)))
    array = torch.from_numpy(np.asarray(voxels, dtype=np.float32, order="C").reshape(header.spatial_shape))
    return MetaTensor(
        array,
        affine=torch.as_tensor(header.affine, dtype=torch.float64),
        meta={
            MetaKeys.ORIGINAL_AFFINE: header.affine,
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(header.spatial_shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            "filename_or_obj": str(path),
        },
    )


class LoadVolumed(MapTransform):
    """Replace paths by volumes: float32 ``MetaTensor`` of shape ``(H, W, D)``; ``EnsureChannelFirstd`` comes next.

    An item's ``series_uid``, where it has one, chooses the series of a DICOM folder.

    Args:
        keys: keys of the items that hold a path.
        allow_planar: accept images of depth 1 (2D work); a 2D file gets a third axis of size 1.

    Raises:
        UserError: as ``load_volume``.
    """

    def __init__(self, keys: KeysCollection, allow_planar: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.allow_planar = allow_planar

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by its volume."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = load_volume(item[key], item.get("series_uid"), self.allow_planar)
        return item


def is_intact(path: str | Path) -> bool:
    """Whether a file is as long as its header says, without reading it all where that can be avoided.

    A gzip file ends with its uncompressed length: where that differs from the header's, the file is decompressed to
    be sure. Formats other than NIfTI are not examined and count as intact.
    """
    if not is_nifti(path):
        return True
    import nibabel

    with _as_user_error(Path(path)):
        image: Any = nibabel.load(path)
        expected = int(image.dataobj.offset + np.prod(image.shape, dtype=np.int64) * image.get_data_dtype().itemsize)
    if not str(path).lower().endswith(".gz"):
        return os.path.getsize(path) >= expected
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        stated = int.from_bytes(file.read(4), "little")
    return stated == expected % 2**32 or _decompressed_length(path) >= expected


def has_valid_checksum(path: str | Path) -> bool:
    """Whether a gzip file's content agrees with its checksum (nibabel does not look); other files count as valid."""
    return not str(path).lower().endswith(".gz") or _decompressed_length(path) >= 0


def _decompressed_length(path: str | Path) -> int:
    """Bytes in a gzip file, or -1 where it is damaged."""
    length = 0
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(1 << 20):
                length += len(block)
    except (OSError, EOFError, zlib.error):
        return -1
    return length


def _reversed(image: Any) -> list[int]:
    return list(range(image.GetDimension()))[::-1]


def _itk_affine(image: Any) -> np.ndarray:
    """RAS+ affine of a SimpleITK image or file reader of two or more axes, ``(4, 4)``."""
    dimension = image.GetDimension()
    used = min(dimension, 3)
    direction = np.asarray(image.GetDirection()).reshape(dimension, dimension)[:used, :used]
    affine = np.eye(4)
    affine[:used, :used] = direction * np.asarray(image.GetSpacing())[:used]
    affine[:used, 3] = np.asarray(image.GetOrigin())[:used]
    return _LPS_TO_RAS @ affine


def _itk_dtype(sitk: Any, pixel_id: int) -> str:
    """numpy-like name of a SimpleITK pixel type ("int16"), or ITK's own name where it is not a plain number."""
    name = sitk.GetPixelIDValueAsString(pixel_id).replace("vector of ", "")
    sign = {"8-bit signed integer": "int8", "8-bit unsigned integer": "uint8"}
    for bits in (16, 32, 64):
        sign |= {f"{bits}-bit signed integer": f"int{bits}", f"{bits}-bit unsigned integer": f"uint{bits}"}
    return (sign | {"32-bit float": "float32", "64-bit float": "float64"}).get(name, name)


@contextlib.contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    """Turn what nibabel, SimpleITK and zlib raise about a bad file into one message with its path."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    copy_again = "Copy or download the file again, or remove it"
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("an image file must exist", str(path), "Check the path") from error
    except (ImageFileError, HeaderDataError) as error:
        rule = "a file must be of the format that its name says"
        raise UserError(rule, f"{path} ({error})", copy_again) from error
    except (EOFError, zlib.error) as error:
        raise UserError("an image file must be complete", f"{path} ({error})", copy_again) from error
    except (OSError, RuntimeError, ValueError) as error:
        last_line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError("an image file must be readable and complete", f"{path} ({last_line})", copy_again) from error
