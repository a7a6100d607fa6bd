"""DICOM files are shown as the standard says, and what cannot be shown says why."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from image_sets import save_dicom
from pydicom.sequence import Sequence

from primia_jax.config.sections import DataConfig
from primia_jax.data import dicom, image_files, load, open_catalogue
from primia_jax.data.image_files import ImageError
from primia_jax.federated import statistics
from primia_jax.federated.aggregation import Total
from primia_jax.tasks import Classification

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits


def shown(path: pathlib.Path) -> np.ndarray:
    return image_files.decode(path.read_bytes()).pixels


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
        ({"PhotometricInterpretation": "HSV"}, "HSV is not read"),
        ({"PhotometricInterpretation": None}, "no PhotometricInterpretation"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"PixelData": b"\0" * 100}, "cut off: 100 of 8192 bytes"),
        ({"PixelData": b""}, "no pixel data"),
        ({"Rows": None}, "no Rows"),
        ({"BitsStored": 40}, "BitsStored = 40 up to HighBit = 11 of 16 bits"),
        ({"HighBit": 20}, "BitsStored = 12 up to HighBit = 20 of 16 bits"),
        ({"HighBit": 3}, "BitsStored = 12 up to HighBit = 3 of 16 bits"),
        ({"PixelData": RAMP.tobytes() * 3}, "24576 bytes of pixels, where one frame has 8192"),
        ({"PixelData": RAMP.tobytes() * 3, "NumberOfFrames": 1}, "more frames"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "Window Width"),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "mapped to one"),
    ],
    ids=[
        "no pixels",
        "hsv",
        "no photometric",
        "frames",
        "short",
        "empty",
        "no rows",
        "bits",
        "high bit beyond",
        "high bit below",
        "undeclared frames",
        "frames declared as one",
        "window",
        "flat",
    ],
)
def test_unusable_files(tmp_path, attributes, reason):
    path = save_dicom(tmp_path / "a", RAMP, **attributes)
    with pytest.raises(ImageError, match=reason):
        shown(path)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"WindowCenter": "nan", "WindowWidth": "100"}, "WindowCenter nan is not a finite number"),
        ({"WindowCenter": "inf", "WindowWidth": "100"}, "not a finite number"),
        ({"WindowCenter": "2000", "WindowWidth": "nan"}, "not a finite number"),
        ({"WindowCenter": "2000", "WindowWidth": "1e999"}, "not a finite number"),
        ({"RescaleSlope": "nan", "RescaleIntercept": "0"}, "not a finite number"),
        ({"WindowCenter": "2000", "WindowWidth": "1e300"}, "one grey level"),
        ({"WindowCenter": "90000", "WindowWidth": "10"}, "one grey level"),
    ],
)
def test_numbers_that_show_nothing_are_refused(tmp_path, numbers, reason):
    """A blank image would be diagnosed like any other."""
    mark = b"7777777"
    content = save_dicom(tmp_path / "a", RAMP, **dict.fromkeys(numbers, mark.decode())).read_bytes()
    for keyword in sorted(numbers, key=pydicom.datadict.tag_for_keyword):
        content = content.replace(mark, numbers[keyword].encode().ljust(len(mark)), 1)
    with pytest.raises(ImageError, match=reason):
        image_files.decode(content)


@pytest.mark.parametrize(
    "attributes",
    [
        {"PixelData": bytes(2 * RAMP.size)},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095},
        {"PixelData": bytes(2 * RAMP.size), "PixelPaddingValue": 0},
    ],
    ids=("blank", "padding range", "padding"),
)
def test_a_blank_image_is_refused(tmp_path, attributes):
    with pytest.raises(ImageError, match="one grey level"):
        shown(save_dicom(tmp_path / "a", RAMP, **attributes))


def test_one_grey_level_beside_padding_is_a_picture(tmp_path):
    values = np.full_like(RAMP, 2000)
    values[:, :2] = 0
    film = save_dicom(tmp_path / "a", values, PixelPaddingValue=0)
    pixels = shown(film)
    assert not pixels[:, :2].any() and pixels[:, 2:].all()
    far = save_dicom(
        tmp_path / "b", values, PixelPaddingValue=0, WindowCenter="90000", WindowWidth="10"
    )
    with pytest.raises(ImageError, match="one grey level"):
        shown(far)


def test_one_pixel(tmp_path):
    with pytest.raises(ImageError, match="only 1x1"):
        shown(save_dicom(tmp_path / "a", RAMP[:1, :1]))


def test_no_dicom_at_all():
    with pytest.raises(ImageError, match=r"not a DICOM file|damaged"):
        image_files.decode(b"nothing of the kind", ".dcm")


@pytest.mark.parametrize("keywords", ["RescaleSlope RescaleIntercept", "WindowCenter WindowWidth"])
def test_empty_attributes_count_as_absent(tmp_path, keywords):
    """Present without a value, as some devices write them."""
    empty = dict.fromkeys(keywords.split(), "")
    path = save_dicom(tmp_path / "a", RAMP)
    dataset = pydicom.dcmread(path)
    for keyword in empty:
        setattr(dataset, keyword, None)
    dataset.save_as(tmp_path / "b")
    np.testing.assert_array_equal(shown(tmp_path / "b"), shown(path))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(tmp_path, photometric):
    """Pixels outside the picture, single values and ranges; the picture does not change."""
    values = RAMP.copy()
    values[:, :9] = 4090
    kind = {"PhotometricInterpretation": photometric}
    plain = shown(save_dicom(tmp_path / "a", values, **kind))
    one = shown(save_dicom(tmp_path / "b", values, PixelPaddingValue=4090, **kind))
    padded = values == 4090
    assert (one[padded] == 0).all()
    np.testing.assert_array_equal(one[~padded], plain[~padded])
    both = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4090}
    several = shown(save_dicom(tmp_path / "c", values, **both, **kind))
    padded = values >= 4090
    assert (several[padded] == 0).all()
    np.testing.assert_array_equal(several[~padded], plain[~padded])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_left_out_of_the_pooled_statistics(tmp_path, photometric):
    """Films in a padded frame have the same pooled mean and deviation as without it."""
    rng = np.random.default_rng(0)
    pooled = []
    films = [rng.integers(0, 4000, (8, 8)).astype(np.uint16) for _ in range(4)]
    for side, name in ((8, "bare"), (12, "framed"), (40, "cropped")):
        for i, film in enumerate(films):
            values = np.full((12, 12), 4095, np.uint16)
            values[2:10, 2:10] = film
            if side == 40:  # the frame lies outside the central square that is used
                values = np.full((8, 40), 4095, np.uint16)
                values[:, 16:24] = film
            save_dicom(
                tmp_path / name / "ab"[i % 2] / f"{i}.dcm",
                film if side == 8 else values,
                PhotometricInterpretation=photometric,
                PixelPaddingValue=4095,
            )
        square = 12 if side == 12 else 8
        data = DataConfig(source="dicom", path=str(tmp_path / name), image_size=square)
        catalogue = open_catalogue(data, 1, 0)
        loaded = load(catalogue, np.arange(4), square)
        assert (loaded.padding is not None) == (side == 12)
        part = statistics.contribution(loaded, Classification(loaded.class_names))
        total = Total((4 * part.values[0],), 4, part.counts)
        pooled.append(statistics.pooled(total, ("a", "b"), True)[:2])
    assert pooled[0] == pooled[1] == pooled[2] and pooled[0][0] > 0.3


def test_signed_padding_that_the_stored_bits_cannot_hold(tmp_path):
    """-2000 around a picture of 11 bits, in cells of 16, as CT and some detectors write it."""
    values = np.arange(64, dtype=np.int16).reshape(8, 8)
    values[0] = -2000
    bits = {"BitsStored": 11, "HighBit": 10, "PixelRepresentation": 1, "PixelPaddingValue": -2000}
    path = save_dicom(tmp_path / "a", values.view(np.uint16), **bits)
    pixels = shown(path)
    assert (pixels[0] == 0).all() and (pixels[1:] > 30000).all()
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)  # as some write it
    dataset.save_as(tmp_path / "b")
    np.testing.assert_array_equal(shown(tmp_path / "b"), pixels)


def test_padding_of_floats(tmp_path):
    """NaN and values outside [0, 1] are no picture where the header says so."""
    whole = {"PixelData": None, "BitsAllocated": 32, "BitsStored": None, "HighBit": None}
    whole["PixelRepresentation"] = None
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for padding in (np.nan, -1000.0):
        values[0] = padding
        path = save_dicom(
            tmp_path / "a", RAMP[:8, :8], FloatPixelData=values.tobytes(),
            FloatPixelPaddingValue=padding, **whole,
        )  # fmt: skip
        pixels = shown(path)
        assert (pixels[0] == 0).all()
        np.testing.assert_array_equal(pixels[1:], np.rint(values[1:].astype(float) * 65535))


def test_overlays_are_no_picture(tmp_path):
    """Overlay planes in the unused high bits, and in elements of their own, change nothing."""
    plain = shown(save_dicom(tmp_path / "a", RAMP))
    drawn = save_dicom(tmp_path / "b", RAMP | np.uint16(1 << 12) | np.uint16(1 << 15))
    np.testing.assert_array_equal(shown(drawn), plain)
    dataset = pydicom.dcmread(drawn)
    dataset.add_new(0x60000010, "US", 999)  # rows, more than the image has
    dataset.add_new(0x60003000, "OW", b"\xff" * 40)
    dataset.save_as(tmp_path / "c")
    np.testing.assert_array_equal(shown(tmp_path / "c"), plain)


def test_values_that_do_not_begin_at_bit_0(tmp_path):
    path = save_dicom(tmp_path / "a", RAMP << 4, HighBit=15)
    np.testing.assert_array_equal(shown(path), shown(save_dicom(tmp_path / "b", RAMP)))


def test_colour_and_palette_become_luminance(tmp_path):
    """ITU-R 601, in 16 bits, if the guard lets them pass."""
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[1:] = [200, 100, 50]
    whole = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8}
    whole |= {"HighBit": 7, "PhotometricInterpretation": "RGB", "PixelData": colours.tobytes()}
    path = save_dicom(tmp_path / "a", RAMP[:4, :4], **whole)
    expected = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) * 257
    off = DataConfig(dicom_guard="off")
    pixels = dicom.decode(path.read_bytes(), off).pixels
    assert (pixels[0] == 0).all() and np.abs(pixels[1:] - expected).max() <= 1
    with pytest.raises(ImageError, match=r"colour image \(RGB\)"):
        shown(path)
    dataset = pydicom.dcmread(save_dicom(tmp_path / "b", RAMP % 2))
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for name, low, high in (("Red", 0, 51400), ("Green", 0, 25700), ("Blue", 0, 12850)):
        keyword = f"{name}PaletteColorLookupTableDescriptor"
        dataset.add_new(keyword, "US", [2, 0, 16])
        table = np.array([low, high], "<u2").tobytes()
        setattr(dataset, f"{name}PaletteColorLookupTableData", table)
    dataset.save_as(tmp_path / "b")
    pixels = dicom.decode((tmp_path / "b").read_bytes(), off).pixels
    assert (pixels[:, 0] == 0).all() and np.abs(pixels[:, 1] - expected).max() <= 1


@pytest.mark.parametrize("implicit", [True, False])
def test_no_meta_header(tmp_path, implicit):
    """A bare data set, as old devices write it, is found by content too."""
    path = save_dicom(tmp_path / "a", RAMP)
    dataset = pydicom.dcmread(path)
    bare = io.BytesIO()
    del dataset.file_meta
    dataset.preamble = None
    dataset.save_as(bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert image_files.kind_of(bare.getvalue()) == "dicom"
    np.testing.assert_array_equal(image_files.decode(bare.getvalue()).pixels, shown(path))


def test_no_transfer_syntax(tmp_path):
    """A header without its most important element."""
    path = save_dicom(tmp_path / "a", RAMP)
    dataset = pydicom.dcmread(path)
    del dataset.file_meta.TransferSyntaxUID
    content = io.BytesIO()
    dataset.save_as(content, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(image_files.decode(content.getvalue()).pixels, shown(path))


def test_the_library_does_not_warn_on_the_console(tmp_path):
    """Its warnings may quote values of patients' headers; the file is read all the same."""
    excess = RAMP.tobytes() + bytes(128)
    save_dicom(tmp_path / "a", RAMP, PixelData=excess)
    program = (
        "import sys, pathlib; from primia_jax.data import image_files\n"
        "print(image_files.decode(pathlib.Path(sys.argv[1]).read_bytes()).pixels.shape)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "a")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.stdout.strip() == "(64, 64)" and done.stderr == ""


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "ExplicitVRBigEndian", "Implicit"])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_tables_in_every_encoding(tmp_path, vr, syntax, keyword):
    """Explicit or implicit VR, either byte order, words or a string of bytes."""
    order = ">" if syntax.endswith("BigEndian") else "<"
    dataset = pydicom.dcmread(save_dicom(tmp_path / "a", RAMP))
    entries = np.arange(4095, -1, -1, dtype=order + "u2")
    item = table(0, 12, entries.tolist())[0]
    if vr == "OW":
        item.add_new("LUTData", "OW", entries.tobytes())
    dataset[keyword] = pydicom.DataElement(keyword, "SQ", [item])
    dataset.PixelData = RAMP.astype(order + "u2").tobytes()
    name = "ImplicitVRLittleEndian" if syntax == "Implicit" else syntax
    dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, name)
    content = io.BytesIO()
    pydicom.dcmwrite(content, dataset, implicit_vr=syntax == "Implicit", little_endian=order == "<")
    pixels = image_files.decode(content.getvalue()).pixels
    np.testing.assert_array_equal(pixels, np.rint((4095.0 - RAMP) / 4095 * 65535))


def test_modality_lut_spans_its_own_range(tmp_path):
    """A table of 10-bit output that is declared with 16 bits keeps its contrast."""
    table_10 = table(0, 16, (np.arange(4096) // 4).tolist())
    for kind, ends in (("MONOCHROME2", (0, 65535)), ("MONOCHROME1", (65535, 0))):
        attributes = {"ModalityLUTSequence": table_10, "PhotometricInterpretation": kind}
        pixels = shown(save_dicom(tmp_path / "a", RAMP, **attributes)).ravel()
        assert (pixels[0], pixels[-1]) == ends


def test_first_input_of_a_signed_table(tmp_path):
    """−2048, also where the header stores it as the unsigned 63488."""
    values = (RAMP.astype(np.int16) - 2048).view(np.uint16)
    for first in (-2048, 63488):
        sequence = table(max(first, 0), 12, list(range(4096)))
        sequence[0].add_new("LUTDescriptor", "US" if first > 0 else "SS", [4096, first, 12])
        attributes = {"VOILUTSequence": sequence, "PixelRepresentation": 1}
        pixels = shown(save_dicom(tmp_path / "a", values, **attributes))
        np.testing.assert_array_equal(pixels, np.rint(RAMP / 4095 * 65535))


@pytest.mark.parametrize(
    ("descriptor", "reason"),
    [([4096, 0, 12], "3 entries, where 4096"), ([3, 0, 0], "0 bits"), ([3, 0, 8], "300 among")],
)
def test_damaged_tables(tmp_path, descriptor, reason):
    sequence = table(0, 12, [0, 100, 300])
    sequence[0].LUTDescriptor = descriptor
    with pytest.raises(ImageError, match=reason):
        shown(save_dicom(tmp_path / "a", RAMP, VOILUTSequence=sequence))
