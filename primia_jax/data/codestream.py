"""Headers of JPEG, JPEG-LS and JPEG 2000 codestreams: the size is known before anything is decoded.

Sources: ITU-T T.81 (JPEG), B.2.2; T.87 (JPEG-LS), C.2.2; T.800 (JPEG 2000), A.5.1.
"""

import struct
from typing import NamedTuple

MAX_SCANS = 32  # of a JPEG; encoders make about ten, and each costs a pass over the image
_JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC, then SIZ
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, SOF55
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF, 0xF7)
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # TEM, RST0 to RST7, SOI
_END_OF_HEADERS = {0xD9, 0xDA}  # EOI, SOS


class Header(NamedTuple):
    """The size that a codestream declares."""

    height: int
    width: int
    components: int
    precision: int  # bits of a sample; the largest, where components differ
    signed: bool = False
    lossy_jpeg: bool = False  # a process of the discrete cosine transform


def read_header(stream: bytes) -> Header | None:
    """The header of the codestream at the start of `stream`; None if there is none."""
    if stream.startswith(_JPEG_2000_START):
        return _jpeg_2000(stream, 0)
    if stream.startswith(b"\xff\xd8"):
        return _jpeg(stream)
    return None


def find_jpeg_2000(content: bytes) -> Header | None:
    """The header of the first JPEG 2000 codestream in a file, with or without JP2 boxes around."""
    position = content.find(_JPEG_2000_START)
    return None if position < 0 else _jpeg_2000(content, position)


def repaired(stream: bytes) -> bytes:
    """`stream` with the spectral selection 0 to 63 that a sequential JPEG must have.

    Some encoders write 0 to 0; strict decoders refuse it.
    """
    position, marker = _seek(stream, {0xDA})
    if marker is None or position + 5 > len(stream):
        return stream
    kind = _seek(stream, _FRAME_HEADERS)[1]
    last = position + 4 + 1 + 2 * stream[position + 4] + 1
    if kind not in (0xC0, 0xC1) or last >= len(stream) or stream[last] == 63:
        return stream
    return stream[:last] + b"\x3f" + stream[last + 1 :]


def count_scans(stream: bytes) -> int:
    """Scans of a JPEG codestream, each of which runs over the whole image; 0 for other data.

    Those of a preview in the headers (EXIF) do not count, unless the headers are irregular.
    """
    if not stream.startswith(b"\xff\xd8"):
        return 0
    return stream.count(b"\xff\xda", _seek(stream, {0xDA})[0])


def _jpeg(stream: bytes) -> Header | None:
    position, marker = _seek(stream, _FRAME_HEADERS)
    if marker is None or position + 10 > len(stream):
        return None
    precision, height, width, components = struct.unpack_from(">BHHB", stream, position + 4)
    lossy = marker not in _LOSSLESS
    return Header(height, width, components, precision, lossy_jpeg=lossy)


def _seek(stream: bytes, wanted: set[int]) -> tuple[int, int | None]:
    """Position and kind of the first marker of `wanted` among a JPEG's headers, else (0, None)."""
    position = 2
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker in wanted:
            return position, marker
        if marker in _END_OF_HEADERS:
            break
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
        else:
            position += 2 + struct.unpack_from(">H", stream, position + 2)[0]
    return 0, None


def _jpeg_2000(stream: bytes, position: int) -> Header | None:
    if position + 45 > len(stream):
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", stream, position + 8)
    components = struct.unpack_from(">H", stream, position + 40)[0]
    depths = stream[position + 42 : position + 42 + 3 * components : 3]
    precision = max(((depth & 0x7F) + 1 for depth in depths), default=0)
    signed = any(depth & 0x80 for depth in depths)
    return Header(bottom - top, right - left, components, precision, signed)
