"""The stored values of a DICOM image: decompressed, and cut to the bits that are stored.

JPEG, JPEG Lossless and JPEG 2000 are decoded by GDCM (in a process of its own), JPEG-LS by CharLS,
RLE and uncompressed values by pydicom. Sizes are checked before a decoder runs. Axis letters: h
rows, w columns.

Source: DICOM PS3.5, 8.1.1 (pixel cells), 8.2 (compression); annex A.5 (deflated).
"""

import io
import itertools
import zlib
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom import encaps, filereader, filewriter, pixels, uid
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO

from primia_jax.data import codestream, gdcm_process
from primia_jax.data.decoded import MAX_FILE_BYTES, MAX_RATIO, ImageError, check_size

_SMALL_BYTES = 1 << 26
_PADDING_BYTES = 512  # after uncompressed pixels; devices fill blocks
_BLOCK = 1 << 20  # pixels whose colours are converted at a time
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_JPEG = (*uid.JPEGTransferSyntaxes, uid.JPEG2000Lossless, uid.JPEG2000)
_READ = (*_NATIVE, *_JPEG, *uid.JPEGLSTransferSyntaxes, uid.RLELossless)
_FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}


def read_dataset(content: bytes) -> pydicom.Dataset:
    """The data set in a file's `content`, with or without a header of its own (PS3.10).

    A deflated data set is inflated only as far as an image's size allows.

    Raises:
      ImageError: for a deflated data set that grows too large or is damaged.
      Exception: of many types, from pydicom, for damaged files.
    """
    dataset_at, meta = _read_meta(content)
    if meta is not None and meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        inflated = _inflated(content[dataset_at:])
        buffer = DicomBytesIO()
        buffer.write(bytes(128) + b"DICM")
        filewriter.write_file_meta_info(buffer, meta, enforce_standard=False)
        content = buffer.getvalue() + inflated
    return pydicom.dcmread(io.BytesIO(content), force=True)


class Stored(NamedTuple):
    """The pixels of an image before any of the standard's transformations for display."""

    values: np.ndarray  # [h, w]; [h, w, 3] of a colour image
    padding: np.ndarray | None = None  # [h, w] bool: pixels outside the picture


def stored_values(dataset: pydicom.Dataset) -> Stored:
    """The pixels as stored.

    Integers are the BitsStored bits below HighBit, with their sign: bits around them belong to
    overlays. Values of a lossy compression that leave this range are clipped.

    Raises:
      ImageError: for a size beyond the limits, cut or missing pixels, more than one frame, bits
        that contradict each other, a compression that is not read, and codestreams of another size
        than the header says.
      Exception: of many types, from the decoders, for damaged files.
    """
    syntax = _transfer_syntax(dataset)
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    samples = _integer(dataset, "SamplesPerPixel", 1)
    keyword = next((name for name in _FLOATS if dataset.get(name) is not None), "PixelData")
    allocated = _FLOATS.get(keyword) or _integer(dataset, "BitsAllocated")
    data = dataset[keyword].value
    if not isinstance(data, bytes) or not data:
        raise ImageError("no pixel data")
    check_size(rows, columns, max(1, samples * allocated // 8), len(data))
    if syntax.is_encapsulated:
        _check_fragments(dataset, syntax, data)
    else:
        _check_length(dataset, len(data), (rows * columns * samples * allocated + 7) // 8)
    if keyword != "PixelData":
        values = _by_pydicom(dataset, syntax, "")
        return Stored(values, _padding(dataset, values, keyword.removesuffix("Data")))
    _check_bits(dataset, allocated)
    if samples != 1:
        return Stored(_colour(dataset, syntax, data))
    if syntax in _JPEG:
        values = _by_gdcm(dataset, syntax, encaps.get_frame(data, 0, number_of_frames=1))
        return Stored(values, _padding(dataset, values))
    if syntax in uid.JPEGLSTransferSyntaxes:
        _check_codestream(dataset, encaps.get_frame(data, 0, number_of_frames=1))
        cells = _by_pydicom(dataset, syntax, "pyjpegls")
    else:
        cells = _by_pydicom(dataset, syntax, "pydicom" if syntax.is_encapsulated else "")
    values = _cut_to_stored_bits(dataset, cells)
    padding = _padding(dataset, values)
    # Some devices pad with a value that the stored bits cannot hold.
    return Stored(values, _padding(dataset, cells) if padding is None else padding)


def _check_length(dataset: pydicom.Dataset, length: int, expected: int) -> None:
    """ImageError unless uncompressed pixels are one frame, up to the padding that devices append.

    Args:
      dataset: the image.
      length: bytes of its pixel data.
      expected: bytes of one frame without subsampling.
    """
    # Some files of this kind are not subsampled after all.
    if dataset.PhotometricInterpretation == "YBR_FULL_422" and length < expected:
        expected = expected * 2 // 3
    if length < expected:
        raise ImageError(f"cut off: {length} of {expected} bytes of pixels")
    if length - expected > min(expected - 1, _PADDING_BYTES):
        raise ImageError(f"{length} bytes of pixels, where one frame has {expected}: more frames?")


def _check_fragments(dataset: pydicom.Dataset, syntax: uid.UID, data: bytes) -> None:
    """ImageError for compressed pixels of more than one frame, whatever the header declares."""
    # Without the table of offsets and the first fragment.
    fragments = itertools.islice(encaps.generate_fragments(data), 2, None)
    offsets = encaps.parse_basic_offsets(data)
    starts = (b"\xff\xd8", b"\xff\x4f\xff\x51")  # of a frame, which may have many fragments
    every = syntax == uid.RLELossless  # which has one fragment a frame
    if len(offsets) > 1 or any(every or fragment.startswith(starts) for fragment in fragments):
        raise ImageError("several frames; only single images are read")


def _check_bits(dataset: pydicom.Dataset, allocated: int) -> None:
    """ImageError unless the stored bits lie within the allocated ones."""
    stored = _integer(dataset, "BitsStored", allocated)
    high = _integer(dataset, "HighBit", stored - 1)
    if not 1 <= stored <= high + 1 <= allocated:
        raise ImageError(f"BitsStored = {stored} up to HighBit = {high} of {allocated} bits")


def _read_meta(content: bytes) -> tuple[int, FileMetaDataset | None]:
    """Offset of the data set, and the group of attributes before it if there is one."""
    if content[128:132] != b"DICM":
        return 0, None
    file = io.BytesIO(content)
    file.seek(132)
    try:
        meta = filereader.read_dataset(
            file, is_implicit_VR=False, is_little_endian=True,
            stop_when=lambda tag, vr, length: tag.group != 2,
        )  # fmt: skip
    except Exception:  # left to pydicom, which knows more irregular headers
        return 0, None
    return file.tell(), FileMetaDataset(meta)


def _inflated(stored: bytes) -> bytes:
    limit = min(MAX_FILE_BYTES, max(_SMALL_BYTES, MAX_RATIO * len(stored)))
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(stored, limit)
    except zlib.error as error:
        raise ImageError(f"damaged deflated data ({error})") from error
    if len(data) >= limit:
        raise ImageError(
            f"deflated data of {len(stored)} bytes that grow beyond {limit >> 20} MiB; not decoded"
        )
    return data


def _transfer_syntax(dataset: pydicom.Dataset) -> uid.UID:
    """As the header says; else what pydicom noticed when it read the data set."""
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is None:
        implicit, little = dataset.original_encoding
        if not little:
            syntax = uid.ExplicitVRBigEndian
        else:
            syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    if syntax not in _READ:
        raise ImageError(f"compressed as {syntax.name}, which is not read")
    return syntax


def _integer(dataset: pydicom.Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise ImageError(f"no {keyword} in the header")
        return default
    return int(value)


def _by_pydicom(dataset: pydicom.Dataset, syntax: uid.UID, plugin: str) -> np.ndarray:
    decoder = pixels.get_decoder(syntax)
    options: Any = {"correct_unused_bits": False}  # `_cut_to_stored_bits` does, by HighBit
    values, _ = decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin, **options)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _colour(dataset: pydicom.Dataset, syntax: uid.UID, data: bytes) -> np.ndarray:
    """[h, w, 3] red, green and blue, as stored: 0 to 2^BitsStored − 1."""
    plugin = "pydicom" if syntax == uid.RLELossless else ""
    if syntax in uid.JPEGLSTransferSyntaxes:
        plugin = "pyjpegls"
    if syntax.is_encapsulated:
        frame = encaps.get_frame(data, 0, number_of_frames=1)
        header = _check_codestream(dataset, frame)
        if syntax in _JPEG:
            return _colour_by_gdcm(dataset, syntax, frame, header)
    colours, properties = pixels.get_decoder(syntax).as_array(
        dataset, index=0, raw=True, decoding_plugin=plugin
    )
    return _as_rgb(colours, str(properties["photometric_interpretation"]))


def _colour_by_gdcm(
    dataset: pydicom.Dataset, syntax: uid.UID, frame: bytes, header: codestream.Header | None
) -> np.ndarray:
    """[h, w, 3] red, green and blue of one JPEG or JPEG 2000 frame with 8 bits a channel."""
    if header is None or header.precision != 8 or header.components != 3:
        raise ImageError("compressed colour that is not of 8 bits in 3 channels, which is not read")
    photometric = str(dataset.PhotometricInterpretation)
    planar = _integer(dataset, "PlanarConfiguration", 0)
    decoded = _decoded_by_gdcm(header, syntax, frame, photometric, planar)
    colours = np.frombuffer(decoded, np.uint8).reshape(header.height, header.width, 3)
    # GDCM itself turns the colour spaces of JPEG 2000 to RGB.
    return _as_rgb(colours, photometric)


def _as_rgb(colours: np.ndarray, photometric: str) -> np.ndarray:
    """[h, w, 3] red, green and blue; computed in blocks of rows, in place where that is allowed."""
    if photometric not in ("YBR_FULL", "YBR_FULL_422"):
        return colours
    if not colours.flags.writeable:
        colours = colours.copy()
    rows = max(1, _BLOCK // colours.shape[1])
    for start in range(0, len(colours), rows):
        block = colours[start : start + rows]
        block[:] = pixels.convert_color_space(block, photometric, "RGB")
    return colours


def _decoded_by_gdcm(
    header: codestream.Header,
    syntax: uid.UID,
    frame: bytes,
    photometric: str,
    planar: int = 0,
) -> bytes:
    """The samples of a frame, as many as `header` promises."""
    cell = 8 if header.precision <= 8 else 16
    decoded = gdcm_process.decode(
        codestream.repaired(frame),
        width=header.width,
        height=header.height,
        samples=header.components,
        bits=header.precision,
        cell=cell,
        signed=int(header.signed),
        planar=planar,
        photometric=photometric,
        syntax=str(syntax),
    )
    if len(decoded) != header.height * header.width * header.components * cell // 8:
        raise ImageError("damaged compressed data (too few pixels)")
    return decoded


def _check_codestream(dataset: pydicom.Dataset, frame: bytes) -> codestream.Header | None:
    """The frame's own header (None for RLE), which must agree with the data set's."""
    header = codestream.read_header(frame)
    if codestream.count_scans(frame) > codestream.MAX_SCANS:
        raise ImageError(f"a JPEG of more than {codestream.MAX_SCANS} scans; not decoded")
    expected = (int(dataset.Rows), int(dataset.Columns), _integer(dataset, "SamplesPerPixel", 1))
    if header is not None and header[:3] != expected:
        raise ImageError(
            f"compressed image of {header.width}x{header.height} pixels and {header.components} "
            f"channels, where the header says {expected[1]}x{expected[0]} and {expected[2]}"
        )
    return header


def _by_gdcm(dataset: pydicom.Dataset, syntax: uid.UID, frame: bytes) -> np.ndarray:
    """[h, w] the grey values of one JPEG, JPEG Lossless or JPEG 2000 frame."""
    header = _check_codestream(dataset, frame)
    if header is None:
        raise ImageError("damaged compressed data (no header)")
    allowed = (8, 12) if header.lossy_jpeg else range(2, 17)
    if header.precision not in allowed:
        raise ImageError(f"compressed with {header.precision} bits a pixel, which is not read")
    # The precision of the codestream, not BitsStored: GDCM would cut excess bits off, so that a
    # lossy 1025 of 10 bits became 1 and not 1023.
    cell, bits = 8 if header.precision <= 8 else 16, header.precision
    decoded = _decoded_by_gdcm(header, syntax, frame, "MONOCHROME2")
    values = np.frombuffer(decoded, f"<u{cell // 8}")
    values = values.reshape(header.height, header.width)
    stored, signed = int(dataset.BitsStored), bool(_integer(dataset, "PixelRepresentation", 0))
    if header.signed or (signed and bits >= stored):
        values = _with_sign(values, bits)
    low, high = stored_range(stored, signed)
    held = np.iinfo(values.dtype)
    clipped = np.clip(values, max(low, held.min), min(high, held.max))
    return clipped.astype(np.int16 if signed else np.uint16)


def _padding(
    dataset: pydicom.Dataset, values: np.ndarray, keyword: str = "Pixel"
) -> np.ndarray | None:
    """[h, w] bool: pixels with the padding value, or between it and the range limit, if any."""
    first = dataset.get(f"{keyword}PaddingValue")
    last = dataset.get(f"{keyword}PaddingRangeLimit")
    if first is None or first == "":
        return None
    ends = [float(first), float(first if last is None or last == "" else last)]
    if values.dtype.kind in "iu":  # the header may write a negative value as unsigned, or back
        held, cells = np.iinfo(values.dtype), 1 << 8 * values.dtype.itemsize
        ends = [end - cells if end > held.max else end for end in ends]
        ends = [end + cells if end < held.min else end for end in ends]
    if any(np.isnan(ends)):
        padding = np.isnan(values)
    else:
        padding = (values >= min(ends)) & (values <= max(ends))
    return padding if padding.any() else None


def stored_range(bits: int, signed: bool) -> tuple[int, int]:
    """The least and the largest value of `bits` bits."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _cut_to_stored_bits(dataset: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """Integer `values` without the bits around those that are stored, and with their sign."""
    allocated = 8 * values.dtype.itemsize
    stored = _integer(dataset, "BitsStored", allocated)
    lowest = _integer(dataset, "HighBit", stored - 1) - stored + 1
    signed = bool(_integer(dataset, "PixelRepresentation", 0))
    if stored == allocated:
        return values
    unsigned = values.view(f"u{values.dtype.itemsize}") >> lowest
    if signed:
        return _with_sign(unsigned, stored)
    return unsigned & ((1 << stored) - 1)


def _with_sign(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned `values`, whose lowest `bits` bits are a two's complement, as signed integers."""
    size = 8 * values.dtype.itemsize
    shifted = values << (size - bits)
    return shifted.view(f"i{size // 8}") >> (size - bits)
