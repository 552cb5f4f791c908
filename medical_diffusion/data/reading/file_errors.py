"""What libraries raise about a bad image file, as one message that names the file."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from medical_diffusion.errors import UserError

_COPY_AGAIN = "Copy or download the file again, or remove it"


@contextlib.contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """Turn what nibabel, SimpleITK, Pillow, NumPy and zlib raise about a bad file into one message with its path.

    Raises:
        UserError: anything went wrong inside the block.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("an image file must exist", str(path), "Check the path") from error
    except Image.DecompressionBombError as error:
        raise too_many_pixels(path, str(error)) from error
    except (ImageFileError, HeaderDataError, UnidentifiedImageError, zipfile.BadZipFile) as error:
        rule = "a file must be of the format that its name says"
        raise UserError(rule, f"{path} ({error})", _COPY_AGAIN) from error
    except (EOFError, zlib.error, struct.error) as error:
        raise UserError("an image file must be complete", f"{path} ({error})", _COPY_AGAIN) from error
    # Pillow tells of a damaged PNG with a SyntaxError
    except (OSError, RuntimeError, ValueError, SyntaxError) as error:
        last_line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError("an image file must be readable and complete", f"{path} ({last_line})", _COPY_AGAIN) from error


def too_many_pixels(path: Path, detail: str) -> UserError:
    """The error for a file whose header promises more pixels than memory should be given for."""
    return UserError(
        "an image must have no more pixels than the guard against decompression bombs allows",
        f"{path} ({detail})",
        "Cut or shrink it to a size that can be trained on; a trusted source may raise PIL.Image.MAX_IMAGE_PIXELS",
    )


def check_pixel_count(path: Path, pixels: int) -> None:
    """Pillow's guard for the formats that it does not read.

    Raises:
        UserError: more pixels than twice ``PIL.Image.MAX_IMAGE_PIXELS``, where Pillow refuses as well.
    """
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and pixels > (limit := 2 * Image.MAX_IMAGE_PIXELS):
        raise too_many_pixels(path, f"{pixels} pixels exceed the limit of {limit}")
