"""DICOM files: from stored values to grey levels, as the standard says they are to be shown.

Axis letters: h rows, w columns.
Source: DICOM PS3.3, C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (MONOCHROME1).
"""

import hashlib
import io

import numpy as np
import pydicom
from pydicom import pixels as pydicom_pixels

from primia_jax.data.image_files import Decoded, ImageError, float_to_grey

_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


def decode(content: bytes) -> Decoded:
    """The image in the DICOM file `content`: 16-bit grey values ready to be looked at.

    Stored values pass the modality LUT (or slope and intercept), then the first VOI LUT or window;
    MONOCHROME1 is inverted. The result is scaled to 0..65535: from the output range of the window
    or VOI LUT, or, where there is none, from the range that BitsStored allows. Floating-point
    pixels without a window must lie in [0, 1].

    Raises:
      ImageError: for a colour or multi-frame image, one without pixels, one whose compression no
        installed decoder reads, values that are not finite, and damaged files.
    """
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        values = _shown_values(dataset)
        patient = str(dataset.get("PatientID") or "").strip()
        institution = str(dataset.get("InstitutionName") or "").strip()
    except ImageError:
        raise
    except Exception as error:  # pydicom raises many types on damaged files
        text = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"damaged or unusual DICOM file ({text[:200]})") from error
    return Decoded(values, pseudonym(patient) if patient else None, institution or None)


def pseudonym(patient_id: str) -> str:
    """A short stand-in for a PatientID: it groups a patient's images, and nothing else.

    It is a hash, not a secret: who holds a list of identifiers can recognise them.
    """
    return hashlib.sha256(patient_id.encode()).hexdigest()[:12]


def _shown_values(dataset: pydicom.Dataset) -> np.ndarray:
    """[h, w] uint16."""
    photometric = dataset.get("PhotometricInterpretation")
    if photometric is None and not _has_pixels(dataset):
        raise ImageError("no pixel data (not an image, or not a DICOM file)")
    if photometric is None:
        raise ImageError("no PhotometricInterpretation: black and white are undefined")
    if photometric not in _MONOCHROME:
        raise ImageError(f"colour image ({photometric}); only MONOCHROME1 and MONOCHROME2 are read")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{frames} frames; only single images are read")
    if not _has_pixels(dataset):
        raise ImageError("no pixel data")
    stored = _stored_values(dataset)
    modality = np.asarray(pydicom_pixels.apply_modality_lut(stored, dataset))
    if not np.isfinite(modality).all():
        raise ImageError("grey values that are not finite (NaN or infinity)")
    levels = _grey_levels(modality, stored, dataset)
    return np.iinfo(np.uint16).max - levels if photometric == "MONOCHROME1" else levels


def _grey_levels(modality: np.ndarray, stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """[h, w] uint16: `modality` values through the first VOI LUT, the first window, or neither."""
    if dataset.get("VOILUTSequence"):
        # Signed, since the library subtracts the table's first input value, of either sign.
        inputs = np.clip(np.rint(modality), -(2**31), 2**31 - 1).astype(np.int64)
        looked_up = pydicom_pixels.apply_voi(inputs, dataset)
        return _scaled(looked_up, 0, _largest_entry(dataset.VOILUTSequence[0]))
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        # A description of the result by itself: the range of the window's output is 16 bits.
        view = pydicom.Dataset()
        view.PhotometricInterpretation = dataset.PhotometricInterpretation
        view.BitsStored, view.PixelRepresentation = 16, 0
        view.WindowCenter, view.WindowWidth = dataset.WindowCenter, dataset.WindowWidth
        view.VOILUTFunction = dataset.get("VOILUTFunction") or "LINEAR"
        return _scaled(pydicom_pixels.apply_windowing(modality, view), 0, 65535)
    if stored.dtype.kind == "f":
        return float_to_grey(modality)
    if dataset.get("ModalityLUTSequence"):
        return _scaled(modality, 0, _largest_entry(dataset.ModalityLUTSequence[0]))
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation") or 0)
    ends = np.array((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1))
    if "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        ends = ends * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return _scaled(modality, float(ends.min()), float(ends.max()))


def _largest_entry(table: pydicom.Dataset) -> int:
    return 2 ** int(table.LUTDescriptor[2]) - 1


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[h, w] uint16: `low` becomes 0, `high` 65535, what lies outside is cut off."""
    if not high > low:
        raise ImageError("all grey values are mapped to one")
    levels = (values.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(levels, 0, 1) * 65535).astype(np.uint16)


def _has_pixels(dataset: pydicom.Dataset) -> bool:
    keywords = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    return any(dataset.get(keyword) is not None for keyword in keywords)


def _stored_values(dataset: pydicom.Dataset) -> np.ndarray:
    """[h, w]: the pixels as stored, decompressed."""
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is not None and syntax.is_compressed and syntax.is_encapsulated:
        try:
            decoder = pydicom_pixels.get_decoder(syntax)
        except NotImplementedError as error:
            raise ImageError(f"compressed as {syntax.name}, which cannot be read") from error
        if not decoder.is_available:
            raise ImageError(
                f"compressed as {syntax.name}; no decoder for it is installed "
                "(pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg)"
            )
    return dataset.pixel_array
