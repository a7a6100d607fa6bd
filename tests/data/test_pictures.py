"""Pictures keep their depth and their polarity, or are refused; small files stay small."""

import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from image_sets import grey, save
from PIL import Image, TiffImagePlugin

from primia_jax.data import image_files, pictures, read_inputs
from primia_jax.data.image_files import ImageError

DEEP = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40) * 33 + 7  # low bytes matter
WHITE = 65535


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, kind: int, size: tuple[int, int] | None = None) -> bytes:
    """A 16-bit PNG of [h, w, c] `pixels`; `size` is declared in place of the true one."""
    height, width = size or pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(len(pixels), -1)
    # Every second row is stored as the difference to the one above.
    data = b""
    for i, row in enumerate(rows.view(np.uint8)):
        previous = rows[i - 1].view(np.uint8) if i else np.zeros_like(row)
        data += b"\2" + (row - previous).tobytes() if i % 2 else b"\0" + row.tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(
    pixels: np.ndarray, order: str, photometric: int, predictor: int = 1, **more: int
) -> bytes:
    """A deflated TIFF of 16-bit [h, w, c] `pixels` in byte order "<" or ">"."""
    height, width, channels = pixels.shape
    rows = pixels.copy()
    if predictor == 2:
        rows[:, 1:] -= pixels[:, :-1]
    data = zlib.compress(rows.astype(order + "u2").tobytes())
    tags = {256: width, 257: height, 259: 8, 262: photometric, 277: channels, 278: height}
    tags |= {279: len(data), 317: predictor, **({338: 2} if channels in (2, 4) else {})}
    tags |= {int(name[1:]): value for name, value in more.items()}
    count = len(tags) + 2
    bits_at = 8 + 2 + 12 * count + 4
    entries = {tag: struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items()}
    inline = struct.pack(order + "HH", 16, 16 if channels == 2 else 0)
    at = inline if channels <= 2 else struct.pack(order + "I", bits_at)
    entries[258] = struct.pack(order + "HHI", 258, 3, channels) + at
    entries[273] = struct.pack(order + "HHII", 273, 4, 1, bits_at + 2 * channels)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    table = b"".join(entries[tag] for tag in sorted(entries))
    head = mark + struct.pack(order + "IH", 8, count) + table + bytes(4)
    return head + struct.pack(f"{order}{channels}H", *[16] * channels) + data


def pixels_of(content: bytes) -> np.ndarray:
    return image_files.decode(content).pixels


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("predictor", [1, 2])
def test_16_bit_tiff(order, channels, white_is_zero, predictor):
    """Either byte order and polarity, with alpha or without, differenced or not."""
    stored = np.stack([DEEP, DEEP[::-1]][:channels], -1)
    content = tiff(stored, order, 0 if white_is_zero else 1, predictor)
    expected = WHITE - DEEP if white_is_zero else DEEP
    np.testing.assert_array_equal(pixels_of(content), expected)
    turned = tiff(stored, order, 0 if white_is_zero else 1, predictor, t274=6)
    np.testing.assert_array_equal(pixels_of(turned), np.rot90(expected, -1))


def test_8_bit_white_is_zero():
    content = encoded(Image.fromarray(255 - grey(1)), "TIFF", tiffinfo={262: 0})
    assert grey(1).tobytes() in content  # stored inverted
    np.testing.assert_array_equal(pixels_of(content), 255 - grey(1))


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour(channels):
    """Grey stored as colour keeps all its values; colours become luminance with 16 bits."""
    alpha = [np.full_like(DEEP, 9)] * (channels == 4)
    plain = np.stack([DEEP, DEEP, DEEP, *alpha], -1)
    colour = np.stack([DEEP, DEEP[::-1], DEEP.T.reshape(DEEP.shape), *alpha], -1)
    expected = colour[..., :3] @ np.array([0.299, 0.587, 0.114])
    for encode in (
        lambda stored: png(stored, 2 if channels == 3 else 6),
        lambda stored: tiff(stored, "<", 2),
        lambda stored: tiff(stored, ">", 2, predictor=2),
    ):
        np.testing.assert_array_equal(pixels_of(encode(plain)), DEEP)
        assert np.abs(pixels_of(encode(colour)) - expected).max() <= 1


def test_16_bit_grey_with_alpha_png():
    content = png(np.stack([DEEP, DEEP[::-1]], -1), 4)
    np.testing.assert_array_equal(pixels_of(content), DEEP)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "JPEG2000"])
def test_other_formats_are_read(tmp_path, kind):
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    content = encoded(Image.fromarray(grey(1)), kind, **options)
    assert pictures.is_picture(content)
    assert np.abs(pixels_of(content).astype(int) - grey(1)).max() <= 1


def test_16_bit_jpeg_2000():
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(DEEP), "JPEG2000")), DEEP)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations_are_refused(kind):
    frames = [Image.fromarray(grey(i)) for i in (1, 2)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="several frames"):
        pixels_of(content)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((8, 8), 9, np.int8), "signed grey values"),
        (np.full((8, 8), 9, np.int16), "signed grey values"),
        (np.full((8, 8), 9, np.int32), "signed grey values"),
        (np.full((8, 8), 9, np.uint32), "integers of 32 bits"),
        (np.full((8, 8), 70000, np.uint32), "integers of 32 bits"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_integers_without_black_and_white_are_refused(values, reason, order):
    """Also where every value would pass for one of 16 bits."""
    bits, signed = 8 * values.itemsize, values.dtype.kind == "i"
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: 1, 273: 8 + 2 + 10 * 12 + 4, 277: 1, 278: 8}
    tags |= {279: values.nbytes, 339: 2 if signed else 1}
    entries = [struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items()]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "IH", 8, 10) + b"".join(entries) + bytes(4)
    if order == ">" and values.dtype == np.uint32:
        reason = "of a kind that is not read"  # by Pillow
    with pytest.raises(ImageError, match=reason):
        pixels_of(head + values.astype(values.dtype.newbyteorder(order)).tobytes())


def test_pages_of_a_tiff_are_not_counted(monkeypatch):
    """Reading stops at the second of many directories."""
    pages = 50
    content = bytearray(encoded(Image.fromarray(grey(1)), "TIFF"))
    content += bytes(len(content) % 2)
    first = struct.unpack_from("<I", content, 4)[0]
    after = first + 2 + 12 * struct.unpack_from("<H", content, first)[0]
    struct.pack_into("<I", content, after, len(content))
    for i in range(pages):
        content += struct.pack("<HI", 0, len(content) + 6 if i < pages - 1 else 0)
    directory = TiffImagePlugin.ImageFileDirectory_v2
    load, loads = directory.load, []

    def counted(self, file):
        loads.append(1)
        load(self, file)

    monkeypatch.setattr(directory, "load", counted)
    with pytest.raises(ImageError, match="several frames"):
        pixels_of(bytes(content))
    assert len(loads) <= 4


def test_scans_of_a_jpeg_are_bounded():
    """Each scan of a progressive JPEG costs a pass over the image; a usual file is read."""
    content = encoded(Image.fromarray(grey(1)), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    assert pixels_of(content[:-2] + 10 * last + content[-2:]).shape == grey(1).shape
    bomb = content[:-2] + 200 * last + content[-2:]
    stray = bomb.replace(b"\xff\xdb", b"\0\xff\xdb", 1)  # a byte that decoders skip
    for content in (bomb, stray):
        with pytest.raises(ImageError, match="more than 32 scans"):
            pixels_of(content)


def test_memory_of_16_bit_colour_is_bounded():
    """Beside Pillow's own picture: less than 12 bytes a pixel of arrays, plus the file."""
    side = 3000
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    data = zlib.compress(bytes((1 + 6 * side) * side), 1)
    parts = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    tracemalloc.start()
    assert pixels_of(content).shape == (side, side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * side**2


def test_formats_that_are_not_read_are_listed(tmp_path):
    """Nothing that is meant as an image vanishes."""
    save(tmp_path / "a.png", grey(1))
    names = ["b.heic", "c.nii.gz", "d.svg", "e.pgm"]
    for name in names:
        (tmp_path / name).write_bytes(b"P5 1 1 255 x")
    inputs = read_inputs(str(tmp_path), 16)
    assert inputs.names == ["a.png"]
    assert [name for name, _ in inputs.skipped] == names
    reasons = dict(inputs.skipped)
    assert reasons["b.heic"] == ".heic files are not read; save it as PNG or DICOM"


def test_a_known_format_that_is_damaged_says_so():
    with pytest.raises(ImageError, match="a picture, but damaged or of a kind that is not read"):
        pixels_of(b"II*\0" + bytes(40))


def webp(width: int, height: int) -> bytes:
    """The lossless WebP file of a small picture, declared to be larger."""
    content = bytearray(encoded(Image.fromarray(grey(1)), "WEBP", lossless=True))
    at = content.index(b"VP8L") + 9
    bits = int.from_bytes(content[at : at + 4], "little") >> 28
    size = (width - 1) | (height - 1) << 14 | bits << 28
    content[at : at + 4] = size.to_bytes(4, "little")
    return bytes(content)


def gif(width: int, height: int) -> bytes:
    content = bytearray(encoded(Image.fromarray(grey(1)), "GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        png(DEEP[..., np.newaxis], 0, (9000, 9000)),
        png(DEEP[..., np.newaxis], 0, (60000, 60000)),
        png(DEEP[..., np.newaxis], 0, (7000, 7000)),
        tiff(DEEP[..., np.newaxis], "<", 1, t256=70000, t257=70000, t278=70000),
        webp(16000, 16000),
        gif(65000, 65000),
    ],
    ids=["png", "large png", "well compressed png", "tiff", "webp", "gif"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_sizes_are_checked_before_decoding(content):
    """A kilobyte that claims a large image costs no memory."""
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"at most 80 million|claim to hold|too many pixels"):
        pixels_of(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_named_pipes_are_not_opened(tmp_path):
    """They would wait for a writer for ever; with an image's suffix they are listed."""
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b")
    save(tmp_path / "c.png", grey(1))
    inputs = read_inputs(str(tmp_path), 16)
    assert inputs.names == ["c.png"]
    assert inputs.skipped == [("a.png", "is a named pipe, socket or device, not a file")]
    for name in ("b", "/dev/zero"):
        with pytest.raises(ImageError, match="not a file"):
            image_files.read_bytes(tmp_path / name)


def test_large_files_are_not_read(tmp_path):
    with (tmp_path / "a.dcm").open("wb") as file:
        file.truncate(1 << 30)  # a hole, which takes no room
    with pytest.raises(ImageError, match="a file of 1024 MiB; too large"):
        image_files.read_bytes(tmp_path / "a.dcm")
