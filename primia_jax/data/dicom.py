"""DICOM files: from stored values to grey levels, as the standard says they are to be shown.

Axis letters: h rows, w columns.
Source: DICOM PS3.3, C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (photometric
interpretation), C.7.5.1.1.2 (pixel padding).
"""

import hashlib
import math
import warnings
from collections.abc import Callable

import numpy as np
import pydicom
from pydicom import pixels as pydicom_pixels

from primia_jax.config.sections import DataConfig
from primia_jax.data import dicom_guard, dicom_luts
from primia_jax.data.decoded import Decoded, ImageError, float_to_grey, one_line
from primia_jax.data.dicom_pixels import Stored, read_dataset, stored_range, stored_values

_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_BLOCK = 1 << 20  # pixels that are computed at a time in floating point
_LUMINANCE = np.array([0.299, 0.587, 0.114])

# They quote values of headers, which are about patients, on consoles that others may see.
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom(\..*)?$")


def decode(content: bytes, data: DataConfig | None = None) -> Decoded:
    """The image in the DICOM file `content`: 16-bit grey values ready to be looked at.

    Stored values pass the modality LUT (or slope and intercept), then the first VOI LUT or window;
    MONOCHROME1 is inverted. The result is scaled to 0..65535: from the output range of the window
    or VOI LUT, or, where there is none, from the least and largest entry of the modality LUT, or
    else from the range that BitsStored allows. Floating-point pixels without a window must lie in
    [0, 1]. Padding is black and listed. Overlays are not drawn. Colour and palette images become
    luminance.

    Args:
      content: of the whole file.
      data: has the settings of the guard; the default ones if None.

    Raises:
      ImageError: for an image that the guard refuses, a multi-frame image, one without pixels, a
        compression that is not read, pixels, windows, slopes or intercepts that are not finite, an
        image that is shown in a single grey level, and oversized or damaged files.
    """
    try:
        dataset = read_dataset(content)
        _check_kind(dataset)
        remarks = dicom_guard.check(dataset, data or DataConfig())
        values, padding = _shown_values(dataset)
        _check_not_blank(values, padding)
        patient = str(dataset.get("PatientID") or "").strip()
        institution = str(dataset.get("InstitutionName") or "").strip()
    except ImageError:
        raise
    except Exception as error:  # pydicom raises many types on damaged files
        raise ImageError(f"damaged or unusual DICOM file ({one_line(error)})") from error
    return Decoded(
        values, pseudonym(patient) if patient else None, institution or None, remarks, padding
    )


def pseudonym(patient_id: str) -> str:
    """A short stand-in for a PatientID: it groups a patient's images, and nothing else.

    It is a hash, not a secret: who holds a list of identifiers can recognise them.
    """
    return hashlib.sha256(patient_id.encode()).hexdigest()[:12]


def _check_kind(dataset: pydicom.Dataset) -> None:
    """ImageError unless the data set holds one image of a known kind."""
    photometric = dataset.get("PhotometricInterpretation")
    if not _has_pixels(dataset):
        raise ImageError("no pixel data (not an image, or not a DICOM file)")
    if not photometric:
        raise ImageError("no PhotometricInterpretation: black and white are undefined")
    if photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", *_COLOURS):
        raise ImageError(f"PhotometricInterpretation {photometric} is not read")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{frames} frames; only single images are read")


def _check_not_blank(levels: np.ndarray, padding: np.ndarray | None) -> None:
    """ImageError for an image without any difference, which a network would diagnose all the same.

    Windows far off the pixel values and padding ranges that hold all of them make such images. One
    grey level beside padding is a picture, unless it is black or white: a window made it so.
    """
    shown = levels if padding is None else levels[~padding]
    limits = (0, np.iinfo(levels.dtype).max)
    uniform = not shown.size or shown.min() == shown.max()
    cut_off = not 0 < shown.size < levels.size or shown.flat[0] in limits
    if levels.size > 1 and uniform and cut_off:
        raise ImageError(
            "all pixels are padding or shown in one grey level: there is nothing to see; check "
            "window, padding and pixel data"
        )


def _shown_values(dataset: pydicom.Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """Grey levels [h, w] uint16, and the pixels of padding, [h, w] bool, if there are any."""
    stored = stored_values(dataset)
    photometric = dataset.PhotometricInterpretation
    if photometric in _COLOURS:
        return _luminance(stored.values, 2 ** int(dataset.BitsStored) - 1), None
    if photometric == "PALETTE COLOR":
        return _mapped(stored, lambda values: _palette_luminance(dataset, values)), None
    levels = _mapped(stored, _grey_levels(dataset, stored.values.dtype))
    if photometric == "MONOCHROME1":
        levels = np.iinfo(np.uint16).max - levels
    if stored.padding is not None:
        levels[stored.padding] = 0
    return levels, stored.padding


def _mapped(stored: Stored, to_grey: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """[h, w] uint16: `to_grey` of every value; that of padding is arbitrary.

    Integers of up to 16 bits are looked up in a table of all their values, others are computed, in
    either case block by block: the memory is bounded by that of the values.
    """
    values, table, low = stored.values, None, 0
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        low, high = int(values.min()), int(values.max())
        table = to_grey(np.arange(low, high + 1).astype(values.dtype))
    result = np.empty(values.shape, np.uint16)
    rows = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), rows):
        block = values[start : start + rows]
        if table is not None:
            result[start : start + rows] = table[block.astype(np.int32) - low]
            continue
        if stored.padding is not None:
            block = np.where(stored.padding[start : start + rows], block.dtype.type(0), block)
        result[start : start + rows] = to_grey(block)
    return result


def _grey_levels(dataset: pydicom.Dataset, dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    """The function from stored values of `dtype` to grey levels (uint16)."""
    to_modality = _modality_units(dataset)
    signed = bool(dataset.get("PixelRepresentation") or 0)
    if dataset.get("VOILUTSequence"):
        voi = _table(dataset, "VOILUTSequence", signed=_is_signed(dataset, dtype, to_modality))
        return lambda values: _scaled(voi(to_modality(values)), 0, 2**voi.bits - 1)
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is not None and width is not None:
        # A description of the result by itself: the range of the window's output is 16 bits.
        view = pydicom.Dataset()
        view.PhotometricInterpretation = dataset.PhotometricInterpretation
        view.BitsStored, view.PixelRepresentation = 16, 0
        view.WindowCenter, view.WindowWidth = centre, width
        view.VOILUTFunction = dataset.get("VOILUTFunction") or "LINEAR"
        return lambda values: _scaled(
            pydicom_pixels.apply_windowing(to_modality(values), view), 0, 65535
        )
    if dtype.kind == "f":
        return lambda values: float_to_grey(to_modality(values))
    if dataset.get("ModalityLUTSequence"):
        # The entries and not their bits: tables for 10-bit output are declared with 16 bits.
        entries = _table(dataset, "ModalityLUTSequence", signed=signed).entries
        return lambda values: _scaled(to_modality(values), int(entries.min()), int(entries.max()))
    ends = to_modality(np.array(stored_range(int(dataset.BitsStored), signed)))
    return lambda values: _scaled(to_modality(values), float(ends.min()), float(ends.max()))


def _modality_units(dataset: pydicom.Dataset) -> Callable[[np.ndarray], np.ndarray]:
    """The function from stored values to float64 in the modality's units, which must be finite."""
    if dataset.get("ModalityLUTSequence"):
        signed = bool(dataset.get("PixelRepresentation") or 0)
        table = _table(dataset, "ModalityLUTSequence", signed=signed)
        return lambda values: table(values).astype(np.float64)
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")

    def rescaled(values: np.ndarray) -> np.ndarray:
        result = values.astype(np.float64)
        if slope is not None and intercept is not None:
            result = result * slope + intercept
        if not np.isfinite(result).all():
            raise ImageError("grey values that are not finite (NaN or infinity)")
        return result

    return rescaled


def _number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """An attribute's first value; None if it is absent or present without a value.

    Raises:
      ImageError: for NaN and infinity.
    """
    value = dataset.get(keyword)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    if value is None or value == "":
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ImageError(f"{keyword} {value} is not a finite number")
    return number


def _luminance(colours: np.ndarray, white: int) -> np.ndarray:
    """[h, w] uint16 from [h, w, 3] red, green and blue, each 0 to `white` (ITU-R 601)."""
    result = np.empty(colours.shape[:2], np.uint16)
    rows = max(1, _BLOCK // colours.shape[1])
    for start in range(0, len(colours), rows):
        levels = colours[start : start + rows] @ _LUMINANCE
        result[start : start + rows] = np.rint(np.clip(levels * (65535 / white), 0, 65535))
    return result


def _table(dataset: pydicom.Dataset, keyword: str, *, signed: bool) -> dicom_luts.Table:
    """The first table of a LUT sequence; `signed` if its inputs are signed 16-bit integers."""
    little_endian = dataset.file_meta.TransferSyntaxUID.is_little_endian
    return dicom_luts.read_table(dataset[keyword][0], little_endian=little_endian, signed=signed)


def _is_signed(
    dataset: pydicom.Dataset, dtype: np.dtype, to_modality: Callable[[np.ndarray], np.ndarray]
) -> bool:
    """True if values in the modality's units can be negative and do not exceed 32767."""
    if dtype.kind == "f":
        return False
    signed = bool(dataset.get("PixelRepresentation") or 0)
    ends = to_modality(np.array(stored_range(int(dataset.BitsStored), signed)))
    return float(ends.min()) < 0 and float(ends.max()) < 1 << 15


def _palette_luminance(dataset: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """Grey levels (uint16) of the palette's colours at [n] `values`."""
    colours = np.asarray(pydicom_pixels.apply_color_lut(values, dataset))[..., :3]
    return _luminance(colours.reshape(1, -1, 3), np.iinfo(colours.dtype).max)[0]


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint16: `low` becomes 0, `high` 65535, what lies outside is cut off."""
    if not high > low:
        raise ImageError("all grey values are mapped to one")
    levels = (np.asarray(values).astype(np.float64) - low) / (high - low)
    if not np.isfinite(levels).all():
        raise ImageError("grey values that are not finite (NaN or infinity)")
    return np.rint(np.clip(levels, 0, 1) * 65535).astype(np.uint16)


def _has_pixels(dataset: pydicom.Dataset) -> bool:
    keywords = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    return any(dataset.get(keyword) is not None for keyword in keywords)
