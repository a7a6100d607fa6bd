"""Pictures (JPEG, PNG, BMP, TIFF, WebP, GIF, JPEG 2000) decoded to grey values by Pillow.

Axis letters: h rows, w columns.
"""

import io
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from primia_jax.data import codestream, tiff
from primia_jax.data.decoded import ImageError, check_size, float_to_grey, one_line

_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
_GREY_16 = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_JPEG_2000_BOX = b"\0\0\0\x0cjP  \r\n\x87\n"
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"GIF87a",
    b"GIF89a",
    _JPEG_2000_BOX,
    b"\xff\x4f\xff\x51",
)
_ORIENTATION = 0x0112
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}
# ITU-R 601 in fractions of 2^16 that add up to 1, as Pillow has them for 8 bits.
_LUMINANCE = tuple(np.uint32(weight) for weight in (19595, 38470, 7471))
_BLOCK = 1 << 20  # pixels that are computed at a time


def is_picture(content: bytes) -> bool:
    """True if the first bytes (16 or more) are those of a format that is read."""
    return content.startswith(_SIGNATURES) or _is_webp(content)


def decode(content: bytes) -> np.ndarray:
    """[h, w] uint8 or uint16: the grey values of the picture in a file's `content`.

    Colour becomes luminance (ITU-R 601), transparency is dropped, the EXIF orientation is applied.
    Depth is kept: 16-bit values stay 16-bit values, grey or colour, with or without transparency.

    Raises:
      ImageError: for another format, several frames, damaged or oversized files, values without a
        defined black and white.
    """
    _check_webp(content)
    file = tiff.rewritten(content)
    try:
        with _open(file.content) as stored:
            _check(stored, content)
            pixels = _grey_levels(stored, file, content)
            # Read after the pixels: Pillow turns some formats itself and then forgets the tag.
            orientation = stored.getexif().get(_ORIENTATION, 1)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        if is_picture(content):
            raise ImageError("a picture, but damaged or of a kind that is not read") from error
        raise ImageError("not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels ({one_line(error)})") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ImageError(f"damaged image ({one_line(error)})") from error
    turn = _TURNS.get(orientation if orientation != 1 else file.orientation)
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=_FORMATS)


def _check(stored: Image.Image, content: bytes) -> None:
    """ImageError for several frames, and for a size that is not to be decoded."""
    width, height = stored.size
    check_size(height, width, 2 * len(stored.getbands()), len(content))
    # Some cameras append a preview as a second frame (MPO); the first is the photograph.
    # Frames are not counted: in a TIFF file that takes time quadratic in their number.
    if stored.format != "MPO" and getattr(stored, "is_animated", False):
        raise ImageError("several frames; only single images are read")
    if codestream.count_scans(content) > codestream.MAX_SCANS:
        raise ImageError(f"a JPEG of more than {codestream.MAX_SCANS} scans; not decoded")
    tiff.check_samples(getattr(stored, "tag_v2", {}))


def _grey_levels(stored: Image.Image, file: tiff.Rewritten, content: bytes) -> np.ndarray:
    """[h, w] uint8 or uint16, as stored: not turned upright yet."""
    raw_mode = _raw_mode(stored)
    if raw_mode == "LA;16B":
        return _grey_with_alpha_16(stored)
    if ";16" in raw_mode and stored.mode not in _GREY_16:
        return _luminance_16(stored, file.content, raw_mode)
    if stored.format == "JPEG2000":
        return _jpeg_2000(stored, content)
    bits, white_is_zero = _tiff_depth(stored)
    values = np.asarray(stored) if stored.mode in (*_GREY_16, "F") else None
    if values is None:
        return _eight_bits(stored)
    if stored.mode == "F":
        return float_to_grey(1 - values if white_is_zero else values)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ImageError("grey values outside 0 to 65535")
    if bits < 16:
        values = np.rint(values * (65535 / (2**bits - 1)))
    levels = values.astype(np.uint16)
    return tiff.restored(65535 - levels if white_is_zero else levels, file)


def _eight_bits(picture: Image.Image) -> np.ndarray:
    """[h, w] uint8: the luminance of a picture with 8 bits a channel, or fewer."""
    try:
        # A palette is looked up first: its own conversion to grey mistakes transparency.
        colour = picture.convert("RGB") if picture.mode in ("P", "PA") else picture
        return np.array(colour.convert("L"))
    except ValueError as error:
        raise ImageError(f"colour mode {picture.mode} cannot be turned to grey") from error


def _raw_mode(stored: Image.Image) -> str:
    """Pillow's name for the layout of the stored bytes; empty where it gives none."""
    tiles: Any = getattr(stored, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) else ""


def _set_raw_mode(stored: Image.Image, raw_mode: str) -> None:
    """Makes Pillow take the stored bytes for `raw_mode`, which has as many bits a pixel."""
    picture: Any = stored

    def changed(arguments: Any) -> Any:
        return (raw_mode, *arguments[1:]) if isinstance(arguments, tuple) else raw_mode

    picture.tile = [tile._replace(args=changed(tile.args)) for tile in picture.tile]


def _grey_with_alpha_16(stored: Image.Image) -> np.ndarray:
    """[h, w] uint16: Pillow keeps 8 of 16 bits, unless the four bytes pass for four channels."""
    _set_raw_mode(stored, "RGBA")
    channels = np.asarray(stored).astype(np.uint16)
    return channels[..., 0] << 8 | channels[..., 1]


def _luminance_16(stored: Image.Image, content: bytes, raw_mode: str) -> np.ndarray:
    """[h, w] uint16 from 16 bits a channel: Pillow gives the high bytes, and then the low ones."""
    name, order = raw_mode.rsplit(";16", 1)
    if name not in ("RGB", "RGBA", "RGBX") or _is_planar(stored):
        raise ImageError(f"16 bits a channel in the layout {raw_mode}, which is not read")
    little = order == "L" or (order == "N" and sys.byteorder == "little")
    levels = np.zeros((stored.height, stored.width), np.uint32)
    with _open(content) as again:  # closed before the other is decoded, to hold one at a time
        _set_raw_mode(again, f"{name};16{'B' if little else 'L'}")
        _add_luminance(levels, again, 0)
    _add_luminance(levels, stored, 8)
    levels += 1 << 15
    levels >>= 16
    return levels.astype(np.uint16)


def _add_luminance(levels: np.ndarray, picture: Image.Image, shift: int) -> None:
    """Adds the luminance of [h, w] 8-bit colours, times 2^(`shift` + 16), to uint32 `levels`.

    Blocks of rows bound the memory that is needed beside the picture's.
    """
    rows = max(1, _BLOCK // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        block = np.asarray(picture.crop((0, top, picture.width, bottom)))
        for channel, weight in enumerate(_LUMINANCE):
            levels[top:bottom] += block[..., channel] * (weight << shift)


def _jpeg_2000(stored: Image.Image, content: bytes) -> np.ndarray:
    """[h, w] uint8 or uint16; Pillow shifts values of fewer bits to the upper end."""
    header = codestream.find_jpeg_2000(content)
    if header is None:
        raise ImageError("damaged image (no JPEG 2000 header)")
    if stored.mode not in _GREY_16:
        if header.precision > 8:
            raise ImageError(f"JPEG 2000 with {header.precision} bits a colour channel")
        return _eight_bits(stored)
    if header.precision > 16:
        raise ImageError(f"JPEG 2000 with {header.precision} bits a pixel")
    values = np.asarray(stored).astype(np.uint16) >> (16 - header.precision)
    return np.rint(values * (65535 / (2**header.precision - 1))).astype(np.uint16)


def _tiff_depth(stored: Image.Image) -> tuple[int, bool]:
    """Bits a sample of a deep grey image, and if 0 is white; (16, False) for other formats."""
    tags: Any = getattr(stored, "tag_v2", None)
    if tags is None:
        return 16, False
    bits = tags.get(258, (16,))
    first = bits[0] if isinstance(bits, tuple) else bits
    # Pillow itself turns WhiteIsZero images of 8 bits and fewer.
    return min(int(first), 16), tags.get(262) == 0


def _is_planar(stored: Image.Image) -> bool:
    tags: Any = getattr(stored, "tag_v2", None)
    return tags is not None and tags.get(284) == 2


def _is_webp(content: bytes) -> bool:
    return content[:4] == b"RIFF" and content[8:12] == b"WEBP"


def _check_webp(content: bytes) -> None:
    """`check_size` of a WebP file: its library allocates memory when it is opened."""
    if not _is_webp(content) or len(content) < 30:
        return
    kind, data = content[12:16], content[20:30]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[4:7], "little")
        height = 1 + int.from_bytes(data[7:10], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 6))
    check_size(height, width, 4, len(content))
