"""Every compression gives the values that another decoder gives; sizes are checked beforehand."""

import functools
import io
import pathlib
import tracemalloc

import gdcm
import jpeg_ls
import numpy as np
import pydicom
import pytest
from image_sets import save_dicom
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_files
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder

from primia_jax.config.sections import DataConfig
from primia_jax.data import dicom, dicom_pixels
from primia_jax.data.image_files import ImageError

OFF = DataConfig(dicom_guard="off")
Y, X = np.mgrid[:64, :64]
WAVES = (2000 + 1500 * np.sin(Y / 9) * np.cos(X / 7)).astype(np.uint16)


@functools.cache
def shipped() -> dict[str, pathlib.Path]:
    """Files that come with pydicom itself, by name."""
    paths = [pathlib.Path(name) for name in get_testdata_files()]
    return {path.name: path for path in paths if path.is_file()}


def values_of(content: bytes) -> np.ndarray:
    return dicom_pixels.stored_values(dicom_pixels.read_dataset(content)).values


def changed(path: pathlib.Path, target: pathlib.Path, syntax: str) -> bytes:
    """The image at `path` in another transfer syntax, written by GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target.read_bytes()


def encapsulated(frame: bytes, syntax: str, path: pathlib.Path, shape, **attributes) -> bytes:
    """A file whose only frame is `frame`."""
    save_dicom(path, np.zeros(shape, np.uint16), **attributes)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


@pytest.mark.parametrize(
    "syntax",
    ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless",
     "RLELossless", "DeflatedExplicitVRLittleEndian", "ExplicitVRBigEndian",
     "ImplicitVRLittleEndian"],
)  # fmt: skip
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_encodings_keep_every_value(tmp_path, syntax, signed):
    stored = (WAVES.astype(np.int16) - 2048 if signed else WAVES).astype(
        np.int16 if signed else np.uint16
    )
    path = save_dicom(tmp_path / "a", stored.view(np.uint16), PixelRepresentation=int(signed))
    values = values_of(changed(path, tmp_path / "b", syntax))
    assert values.dtype.kind == ("i" if signed else "u")
    np.testing.assert_array_equal(values, stored)


@pytest.mark.parametrize("bits", [5, 6, 7, 8, 10, 16])
def test_jpeg_ls_of_any_depth(tmp_path, bits):
    cell = np.uint8 if bits <= 8 else np.uint16
    stored = (WAVES.astype(np.int64) * (2**bits - 1) // 4095).astype(cell)
    frame = bytes(jpeg_ls.encode_buffer(stored.tobytes(), 64, 64, 1, bits))
    depth = {"BitsAllocated": 8 * stored.itemsize, "BitsStored": bits, "HighBit": bits - 1}
    content = encapsulated(frame, uid.JPEGLSLossless, tmp_path / "a", (64, 64), **depth)
    np.testing.assert_array_equal(values_of(content), stored)


def test_jpeg_baseline(tmp_path):
    picture = io.BytesIO()
    Image.fromarray((WAVES >> 4).astype(np.uint8)).save(picture, "JPEG", quality=95)
    depth = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    content = encapsulated(
        picture.getvalue(), uid.JPEGBaseline8Bit, tmp_path / "a", (64, 64), **depth
    )
    expected = np.asarray(Image.open(picture)).astype(int)
    assert np.abs(values_of(content) - expected).max() <= 1


def is_single_grey(path: pathlib.Path) -> bool:
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception:
        return False
    return (
        str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME")
        and str(dataset.get("NumberOfFrames") or 1) == "1"
    )


# No decoder makes sense of these; the reason is told in a line.
UNDECODABLE = {
    "MR_truncated.dcm": "cut off: 8130 of 8192",
    "badVR.dcm": "damaged or unusual",
    "JPEG2000-embedded-sequence-delimiter.dcm": "compressed image of 3722445056x1024",
}

# Shown as their windows say they are all white or all black.
BLANK = {"17166", "17196"}


def test_files_of_pydicom_as_another_decoder_reads_them():
    """All that show one grey image, in every transfer syntax, beside pylibjpeg."""
    compared = 0
    for path in filter(is_single_grey, shipped().values()):
        if path.name in UNDECODABLE:
            continue
        dataset = pydicom.dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        if path.name == "JPEG-lossy.dcm":  # which libjpeg refuses: "scan stop must be 63"
            frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
            at = frame.index(b"\xff\xda") + 8
            frame = frame[:at] + b"\x3f" + frame[at + 1 :]
            dataset.PixelData = encapsulate([frame])
            dataset["PixelData"].is_undefined_length = True
        plugin = "pylibjpeg" if syntax.is_encapsulated else ""
        expected, _ = get_decoder(syntax).as_array(dataset, decoding_plugin=plugin, raw=True)
        values = values_of(path.read_bytes())
        lossy = 1 if syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000) else 0
        difference = np.abs(values.astype(np.int64) - expected.astype(np.int64))
        assert difference.max() <= lossy, path.name
        compared += 1
        try:
            assert dicom.decode(path.read_bytes(), OFF).pixels.shape == values.shape
        except ImageError as error:
            assert path.name in BLANK and "one grey level" in str(error), (path.name, error)
    assert compared >= 40


def test_other_files_of_pydicom_are_read_or_refused_in_a_line():
    """Colour becomes grey, several frames are refused, and what is no image says so."""
    outcomes = {}
    for name, path in shipped().items():
        try:
            outcomes[name] = dicom.decode(path.read_bytes(), OFF).pixels.ndim
        except ImageError as error:
            outcomes[name] = str(error)
            assert len(str(error)) < 250 and "\n" not in str(error)
    for name, reason in UNDECODABLE.items():
        assert reason in outcomes[name]
    for name in ("examples_palette.dcm", "examples_rgb_color.dcm", "SC_rgb_jpeg_gdcm.dcm"):
        assert outcomes[name] == 2, outcomes[name]
    for name in ("examples_jpeg2k.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle_16bit.dcm"):
        assert outcomes[name] == 2, outcomes[name]
    assert outcomes["rtdose.dcm"] == "15 frames; only single images are read"
    assert "no pixel data" in outcomes["test-SR.dcm"]


def test_lossy_values_beyond_the_stored_bits_are_clipped():
    """Cut to 8 bits, the brightest of these pixels would come out black."""
    dataset = pydicom.dcmread(shipped()["JPGExtended.dcm"])
    whole = dicom_pixels.stored_values(dataset).values
    assert whole.max() > 255
    dataset.BitsStored, dataset.HighBit = 8, 7
    np.testing.assert_array_equal(
        dicom_pixels.stored_values(dataset).values, np.minimum(whole, 255)
    )


def test_lossy_jpeg_of_other_depths_is_refused(tmp_path):
    """GDCM writes such files and decodes them to plain white."""
    content = changed(save_dicom(tmp_path / "a", WAVES), tmp_path / "b", "JPEGExtendedProcess2_4")
    with pytest.raises(ImageError, match="16 bits a pixel"):
        values_of(content)


def test_unknown_compression(tmp_path):
    content = encapsulated(b"\0\0", uid.HTJ2KLossless, tmp_path / "a", (64, 64))
    with pytest.raises(ImageError, match=r"compressed as High-Throughput JPEG 2000.* not read"):
        values_of(content)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14", "JPEG2000Lossless", "JPEGLSLossless"])
def test_codestreams_of_another_size_are_refused(tmp_path, syntax):
    """Whatever the header claims, no decoder writes more pixels than it has room for."""
    content = changed(save_dicom(tmp_path / "a", WAVES), tmp_path / "b", syntax)
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.Rows = 32
    with pytest.raises(ImageError, match=r"64x64 pixels and 1 channels, .* says 64x32"):
        dicom_pixels.stored_values(dataset)
    cut = content[: len(content) - 900]
    with pytest.raises((ImageError, ValueError, EOFError, RuntimeError)):
        values_of(cut)
    with pytest.raises(ImageError):
        dicom.decode(cut)


def test_a_file_that_crashes_the_decoder_costs_itself_alone(tmp_path):
    """GDCM aborts its process on this byte; the next image is decoded."""
    path = save_dicom(tmp_path / "a", WAVES)
    whole = changed(path, tmp_path / "b", "JPEGLosslessProcess14_1")
    at = whole.index(b"\xff\xc3") + 13
    with pytest.raises(ImageError, match="the decoder failed on it"):
        dicom.decode(whole[:at] + b"\0" + whole[at + 1 :])
    np.testing.assert_array_equal(values_of(whole), WAVES)


def test_damaged_files_are_read_or_refused_in_a_line():
    """Changed bytes and cut ends, in every compression; nothing else is ever raised."""
    rng = np.random.Generator(np.random.Philox(3))
    names = ("MR_small_RLE.dcm", "JPEG2000.dcm", "JPGExtended.dcm", "MR_small_jpeg_ls_lossless.dcm")
    for name in (*names, "image_dfl.dcm", "SC_rgb_jpeg_gdcm.dcm", "examples_palette.dcm"):
        content = shipped()[name].read_bytes()
        for _ in range(25):
            damaged = bytearray(content[: int(rng.integers(len(content) // 4, 2 * len(content)))])
            damaged[int(rng.integers(132, 800))] = int(rng.integers(256))
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
            try:
                dicom.decode(bytes(damaged), OFF)
            except ImageError as error:
                assert len(str(error)) <= 300 and str(error).isprintable()


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless"])
@pytest.mark.parametrize("frames", [None, 1])
def test_undeclared_frames_are_refused(tmp_path, syntax, frames):
    content = changed(save_dicom(tmp_path / "a", WAVES), tmp_path / "b", syntax)
    dataset = pydicom.dcmread(io.BytesIO(content))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.NumberOfFrames = frames
    for offsets in (True, False):
        dataset.PixelData = encapsulate([frame] * 3, has_bot=offsets)
        with pytest.raises(ImageError, match="several frames"):
            dicom_pixels.stored_values(dataset)


def test_memory_of_colour_is_bounded(tmp_path):
    """YBR becomes RGB in blocks of rows: no more than eight bytes a pixel beside the file."""
    side = 3000
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL", "BitsAllocated": 8}
    colour |= {"PlanarConfiguration": 0, "BitsStored": 8, "HighBit": 7, "Rows": side}
    colour |= {"Columns": side, "PixelData": bytes([77, 128, 128]) * side**2}
    dataset = dicom_pixels.read_dataset(save_dicom(tmp_path / "a", WAVES, **colour).read_bytes())
    tracemalloc.start()
    values = dicom_pixels.stored_values(dataset).values
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (values == 77).all() and peak < 8 * side**2


def refused_cheaply(content: bytes, reason: str) -> None:
    tracemalloc.start()
    with pytest.raises(ImageError, match=reason):
        dicom.decode(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


@pytest.mark.parametrize(
    ("rows", "columns", "reason"),
    [(40000, 40000, "40000x40000 pixels; at most 80 million"), (8000, 8000, "claim to hold")],
)
def test_sizes_are_checked_before_decoding(tmp_path, rows, columns, reason):
    """A small file that claims a large image, run-length encoded."""
    content = changed(save_dicom(tmp_path / "a", WAVES), tmp_path / "b", "RLELossless")
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.Rows, dataset.Columns = rows, columns
    claims = io.BytesIO()
    dataset.save_as(claims)
    refused_cheaply(claims.getvalue(), reason)


def test_deflated_bomb(tmp_path):
    """Inflating stops at the limit: 100 MB out of 100 kB are not decoded."""
    bomb = bytes(10_000 * 10_000)
    path = save_dicom(
        tmp_path / "a", WAVES, Rows=10_000, Columns=10_000, PixelData=bomb, BitsAllocated=8,
        BitsStored=8, HighBit=7,
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "b")
    content = (tmp_path / "b").read_bytes()
    assert len(content) < 200_000
    tracemalloc.start()
    with pytest.raises(ImageError, match="grow beyond 64 MiB"):
        dicom.decode(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 << 20
    with pytest.raises(ImageError, match="damaged"):
        dicom.decode(content[:400] + b"\xff" * 400)
