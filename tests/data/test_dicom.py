"""DICOM files are shown as the standard says, and what cannot be shown says why."""

import pathlib

import numpy as np
import pydicom
import pytest
from image_sets import save_dicom
from pydicom.data import get_testdata_file
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence

from primia_jax.data import dicom, image_files
from primia_jax.data.image_files import ImageError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits


def shown(path: pathlib.Path) -> np.ndarray:
    return image_files.decode(path.read_bytes()).pixels


def shipped(name: str) -> bytes:
    """A file that comes with pydicom itself."""
    return pathlib.Path(get_testdata_file(name, download=False)).read_bytes()


def table(first: int, bits: int, entries: list[int]) -> Sequence:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return Sequence([item])


def test_bits_stored_span_16_bits(tmp_path):
    """Without a window, 0 and the largest stored value are black and white."""
    pixels = shown(save_dicom(tmp_path / "a", RAMP))
    np.testing.assert_array_equal(pixels, np.rint(RAMP / 4095 * 65535))
    assert pixels.dtype == np.uint16


def test_monochrome1_is_inverted(tmp_path):
    """In MONOCHROME1 low values are white: bones must not come out black."""
    plain = shown(save_dicom(tmp_path / "a", RAMP))
    inverted = shown(save_dicom(tmp_path / "b", RAMP, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted, 65535 - plain)


def test_window(tmp_path):
    """PS3.3 C.11.2.1.2.1: below the window black, above white, linear between."""
    pixels = shown(save_dicom(tmp_path / "a", RAMP, WindowCenter=1000, WindowWidth=201)).ravel()
    assert (pixels[:900] == 0).all()
    assert (pixels[1100:] == 65535).all()
    expected = ((np.arange(900, 1100) - 999.5) / 200 + 0.5) * 65535
    assert np.abs(pixels[900:1100] - expected).max() <= 0.5


def test_first_window_counts(tmp_path):
    one = save_dicom(tmp_path / "a", RAMP, WindowCenter=1000, WindowWidth=200)
    two = save_dicom(tmp_path / "b", RAMP, WindowCenter=[1000, 50], WindowWidth=[200, 10])
    np.testing.assert_array_equal(shown(one), shown(two))


def test_slope_and_intercept_come_before_the_window(tmp_path):
    """A window is in units of the modality, here 2·value − 1000."""
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    window = {"WindowCenter": 1000, "WindowWidth": 401}
    pixels = shown(save_dicom(tmp_path / "a", RAMP, **rescaled, **window)).ravel()
    assert pixels[899] == 0 and float(pixels[1000]) == pytest.approx(32768, abs=90)
    assert pixels[1100] == 65535
    whole = shown(save_dicom(tmp_path / "b", RAMP, **rescaled)).ravel()
    np.testing.assert_array_equal(whole, np.rint(np.arange(4096) / 4095 * 65535))


def test_negative_slope(tmp_path):
    """The largest modality value is white, whichever stored value it comes from."""
    rescaled = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    plain = shown(save_dicom(tmp_path / "a", RAMP))
    np.testing.assert_array_equal(
        shown(save_dicom(tmp_path / "b", RAMP, **rescaled)), 65535 - plain
    )
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    pixels = shown(save_dicom(tmp_path / "c", RAMP, **rescaled, **window)).ravel()
    assert pixels[0] == 65535 and pixels[-1] == 0


def test_voi_lut_goes_before_the_window(tmp_path):
    """A VOI LUT with a first input value and fewer entries than the image has values."""
    entries = [0, 100, 300, 1023]
    attributes = {"VOILUTSequence": table(10, 10, entries), "WindowCenter": 9, "WindowWidth": 9}
    pixels = shown(save_dicom(tmp_path / "a", RAMP, **attributes)).ravel()
    levels = np.rint(np.array(entries) / 1023 * 65535)
    np.testing.assert_array_equal(pixels[[0, 10, 11, 12, 13, 4000]], levels[[0, 0, 1, 2, 3, 3]])


def test_modality_lut(tmp_path):
    pixels = shown(save_dicom(tmp_path / "a", RAMP, ModalityLUTSequence=table(0, 8, [0, 85, 255])))
    np.testing.assert_array_equal(pixels.ravel()[[0, 1, 2, 3]], [0, 85 * 257, 65535, 65535])


def test_signed_values(tmp_path):
    values = np.array([[-2048, 0], [2047, -1]], np.int16)
    path = save_dicom(tmp_path / "a", values.view(np.uint16), PixelRepresentation=1)
    np.testing.assert_array_equal(shown(path), np.rint((values + 2048.0) / 4095 * 65535))


def test_patient_is_a_pseudonym(tmp_path):
    """The identifier itself goes no further; equal ones stay equal."""
    a = save_dicom(tmp_path / "a", RAMP, PatientID="Doe^Jane 1961", InstitutionName="North")
    b = save_dicom(tmp_path / "b", RAMP + 1, PatientID="Doe^Jane 1961 ")
    c = save_dicom(tmp_path / "c", RAMP, PatientID="")
    one, two, three = (image_files.decode(p.read_bytes()) for p in (a, b, c))
    assert one.patient == two.patient == dicom.pseudonym("Doe^Jane 1961")
    assert "Doe" not in one.patient and "1961" not in one.patient
    assert three.patient is None
    assert one.institution == "North" and two.institution is None


def test_float_pixels(tmp_path):
    """Floating-point pixels lie in [0, 1] or have no black and white; NaN is refused."""
    whole = {"PixelData": None, "BitsAllocated": 32, "BitsStored": None, "HighBit": None}
    whole["PixelRepresentation"] = None
    values = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    path = save_dicom(tmp_path / "a", RAMP, FloatPixelData=values.tobytes(), **whole)
    np.testing.assert_array_equal(shown(path), np.rint(values.astype(float) * 65535))
    for bad, reason in ((np.nan, "not finite"), (np.inf, "not finite"), (7, "outside")):
        values[5, 5] = bad
        path = save_dicom(tmp_path / "b", RAMP, FloatPixelData=values.tobytes(), **whole)
        with pytest.raises(ImageError, match=reason):
            shown(path)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PixelData": None}, "no pixel data"),
        ({"PhotometricInterpretation": "RGB"}, "colour image .RGB."),
        ({"PhotometricInterpretation": None}, "no PhotometricInterpretation"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"PixelData": b"\0" * 100}, "damaged"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "Window Width"),
        ({"Rows": None}, "damaged"),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "mapped to one"),
    ],
    ids=["no pixels", "colour", "no photometric", "frames", "short", "window", "no rows", "flat"],
)
def test_unusable_files(tmp_path, attributes, reason):
    path = save_dicom(tmp_path / "a", RAMP, **attributes)
    with pytest.raises(ImageError, match=reason):
        shown(path)


def test_one_pixel(tmp_path):
    with pytest.raises(ImageError, match="only 1x1"):
        shown(save_dicom(tmp_path / "a", RAMP[:1, :1]))


def test_no_dicom_at_all():
    with pytest.raises(ImageError, match=r"not a DICOM file|damaged"):
        image_files.decode(b"nothing of the kind", ".dcm")


@pytest.mark.parametrize(
    "name",
    ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"],
)
def test_shipped_encodings_agree(name):
    """One picture stored in four transfer syntaxes, one of them compressed, is one picture."""
    reference = image_files.decode(shipped("MR_small.dcm")).pixels
    assert len(np.unique(reference)) > 100
    np.testing.assert_array_equal(image_files.decode(shipped(name)).pixels, reference)


@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_overlay.dcm", "image_dfl.dcm"])
def test_shipped_files_are_read(name):
    pixels = image_files.decode(shipped(name)).pixels
    assert pixels.dtype == np.uint16 and len(np.unique(pixels)) > 20


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SC_rgb_small_odd.dcm", "colour"),
        ("examples_palette.dcm", "colour"),
        ("rtdose.dcm", "15 frames"),
        ("MR_truncated.dcm", "damaged"),
        ("test-SR.dcm", "no pixel data"),
    ],
)
def test_shipped_files_are_refused(name, reason):
    with pytest.raises(ImageError, match=reason):
        image_files.decode(shipped(name))


def test_compression_without_a_decoder(monkeypatch):
    """The message names the compression and what to install, not an exception of the library."""
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(ImageError, match=r"compressed as JPEG-LS .*pip install"):
        image_files.decode(shipped("JPEGLSNearLossless_08.dcm"))
