"""Pictures of every kind become the grey squares they should be; unusable ones say why."""

import io
import os
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import grey, save, save_dicom
from PIL import Image

from primia_jax.data import image_files
from primia_jax.data.image_files import ImageError


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_8_bit_is_kept(kind):
    """No format changes a grey value."""
    decoded = image_files.decode(encoded(Image.fromarray(grey(1)), kind))
    assert decoded.pixels.dtype == np.uint8
    np.testing.assert_array_equal(decoded.pixels, grey(1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_kept(kind):
    """Depth is not silently lost: radiographs have 12 bits and more."""
    deep = grey(1).astype(np.uint16) * 251
    decoded = image_files.decode(encoded(Image.fromarray(deep), kind))
    assert decoded.pixels.dtype == np.uint16
    np.testing.assert_array_equal(decoded.pixels, deep)


def test_big_endian_16_bit_tiff():
    deep = grey(1).astype(np.uint16) * 251
    header = b"MM\0*" + (8).to_bytes(4, "big")
    tags = [(256, 52), (257, 40), (258, 16), (259, 1), (262, 1), (277, 1), (278, 40)]
    n_tags = len(tags) + 2
    data_at = 8 + 2 + 12 * n_tags + 4
    tags_long = [(273, data_at), (279, deep.nbytes)]
    body = n_tags.to_bytes(2, "big")
    entries = sorted([(t, 3, v) for t, v in tags] + [(t, 4, v) for t, v in tags_long])
    for tag, kind, value in entries:
        packed = value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big")
        body += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big") + packed
    content = header + body + bytes(4) + deep.astype(">u2").tobytes()
    np.testing.assert_array_equal(image_files.decode(content).pixels, deep)


def test_colour_becomes_luminance():
    """ITU-R 601 weights; transparency and palettes do not change the grey value."""
    colour = Image.new("RGB", (8, 6), (200, 100, 50))
    expected = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    clear = colour.copy()
    clear.putalpha(0)
    for picture in (colour, clear, colour.quantize(4)):
        pixels = image_files.decode(encoded(picture, "PNG")).pixels
        assert pixels.shape == (6, 8)
        assert np.abs(pixels.astype(int) - expected).max() <= 1
    transparent_palette = encoded(colour.quantize(4), "PNG", transparency=0)
    assert abs(int(image_files.decode(transparent_palette).pixels[0, 0]) - expected) <= 1


def test_black_and_white_and_grey_with_alpha():
    mask = Image.fromarray(grey(1) > 127)
    pixels = image_files.decode(encoded(mask, "PNG")).pixels
    np.testing.assert_array_equal(pixels, (grey(1) > 127) * np.uint8(255))
    with_alpha = Image.merge("LA", [Image.fromarray(grey(1)), Image.fromarray(grey(2))])
    decoded = image_files.decode(encoded(with_alpha, "PNG"))
    np.testing.assert_array_equal(decoded.pixels, grey(1))


def test_exif_orientation_is_applied():
    """A radiograph photographed sideways is turned upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    content = encoded(Image.fromarray(grey(1)), "PNG", exif=exif)
    np.testing.assert_array_equal(image_files.decode(content).pixels, np.rot90(grey(1), -1))


def test_float_images():
    """Values in [0, 1] span 16 bits; others have no black and white, or are not numbers."""
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    decoded = image_files.decode(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(decoded.pixels, np.rint(values.astype(float) * 65535))
    for bad, reason in ((np.nan, "not finite"), (np.inf, "not finite"), (3.0, "outside")):
        values[1, 1] = bad
        with pytest.raises(ImageError, match=reason):
            image_files.decode(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello", "not an image"),
        (encoded(Image.fromarray(grey(1)), "PNG")[:300], "damaged"),
        (encoded(Image.fromarray(grey(1)), "JPEG")[:500], "damaged"),
        (encoded(Image.fromarray(grey(1, 1, 1)), "PNG"), "only 1x1 pixels"),
        (encoded(Image.fromarray(grey(1, 1, 90)), "PNG"), "only 90x1 pixels"),
        (
            encoded(
                Image.fromarray(grey(1)),
                "TIFF",
                save_all=True,
                append_images=[Image.fromarray(grey(2))],
            ),
            "several frames",
        ),
    ],
    ids=["text", "cut png", "cut jpeg", "one pixel", "a line", "two pages"],
)
def test_unusable_content(content, reason):
    with pytest.raises(ImageError, match=reason):
        image_files.decode(content)


def test_missing_and_empty_files(tmp_path):
    (tmp_path / "empty.png").touch()
    for name, reason in (("none.png", "no such file"), ("empty.png", "empty"), ("", "directory")):
        with pytest.raises(ImageError, match=reason):
            image_files.read_bytes(tmp_path / name)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(2, 70),
    width=st.integers(2, 70),
    side=st.integers(1, 40),
    deep=st.booleans(),
    level=st.integers(0, 255),
)
def test_fit_keeps_flat_images_flat(height, width, side, deep, level):
    """Odd sizes included: shape and dtype are right, and interpolation invents no grey value."""
    flat = np.full((height, width), level, np.uint8)
    flat = flat.astype(np.uint16) * 257 if deep else flat
    fitted = image_files.fit(flat, side)
    assert fitted.shape == (side, side)
    assert fitted.dtype == flat.dtype
    assert (fitted == flat[0, 0]).all()


def test_fit_crops_the_centre():
    """The shorter side fills the square; what lies beyond it at both ends is cut alike."""
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = grey(1, 10, 10)
    np.testing.assert_array_equal(image_files.fit(wide, 10), wide[:, 10:20])
    np.testing.assert_array_equal(image_files.fit(wide.T, 10), wide[:, 10:20].T)


def test_fit_averages_when_shrinking():
    """Antialiased: a fine chequerboard becomes grey, not black or white (also at 16 bits)."""
    board = (np.indices((64, 64)).sum(0) % 2).astype(np.uint16) * 65535
    inner = image_files.fit(board, 8)[1:-1, 1:-1]
    assert np.abs(inner.astype(int) - 32768).max() < 700
    inner = image_files.fit((board // 257).astype(np.uint8), 8)[1:-1, 1:-1]
    assert np.abs(inner.astype(int) - 128).max() <= 4


def test_fit_has_16_bit_precision():
    """Neighbouring 16-bit levels stay apart (an 8-bit path would merge 256 of them)."""
    ramp = np.tile(np.arange(0, 4000, 10, dtype=np.uint16), (400, 1))
    assert len(np.unique(image_files.fit(ramp, 400))) == 400
    assert len(np.unique(image_files.fit(ramp, 200))) == 200


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (4, 4, 3)])
def test_fit_refuses(shape):
    with pytest.raises(ImageError):
        image_files.fit(np.zeros(shape, np.uint8), 8)


def test_digest_is_of_the_picture():
    """Containers and metadata do not matter; a pixel, the shape and the depth do."""
    pixels = grey(1)
    picture = Image.fromarray(pixels)
    digest = image_files.pixel_digest(image_files.decode(encoded(picture, "PNG")).pixels)
    assert digest == image_files.pixel_digest(image_files.decode(encoded(picture, "BMP")).pixels)
    changed = pixels.copy()
    changed[3, 3] ^= 1
    others = [changed, pixels.T, pixels.reshape(52, 40), pixels.astype(np.uint16)]
    assert len({digest, *map(image_files.pixel_digest, others)}) == 5


def test_digest_is_of_any_depth(tmp_path):
    """A copy with 16 bits, as PNG or DICOM, and an 8-bit DICOM file are the same picture."""
    pixels = grey(1)
    depth = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": pixels.tobytes()}
    contents = [
        encoded(Image.fromarray(pixels), "PNG"),
        encoded(Image.fromarray(pixels * np.uint16(257)), "PNG"),
        save_dicom(tmp_path / "a", pixels.astype(np.uint16), **depth).read_bytes(),
    ]
    decoded = [image_files.decode(content).pixels for content in contents]
    assert {image.dtype.itemsize for image in decoded} == {1, 2}
    assert len(set(map(image_files.pixel_digest, decoded))) == 1


def test_candidates_by_suffix_or_content(tmp_path):
    """A damaged image is still meant as one; a text file or a picture's leftovers are not."""
    save(tmp_path / "a.png", grey(1)).rename(tmp_path / "noname")
    (tmp_path / "broken.JPG").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("II")
    save(tmp_path / "__MACOSX" / "._a.png", grey(1))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    found = [f.name for f in image_files.walk(tmp_path) if image_files.is_candidate(f)]
    assert found == ["broken.JPG", "noname"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "real" / "a.png", grey(1))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "set")
    assert [f.name for f in image_files.walk(tmp_path / "set")] == ["a.png"]


def test_stack_widens_mixed_depths():
    """White stays white where 8-bit images stand beside 16-bit ones."""
    images = [np.full((3, 3), 255, np.uint8), np.full((3, 3), 65535, np.uint16)]
    stacked = image_files.stack(images)
    assert stacked.shape == (2, 3, 3, 1)
    assert (stacked == 65535).all()
    assert image_files.stack(images[:1]).dtype == np.uint8


def test_decoding_is_silent(capfd, monkeypatch):
    """What a decoder says, in Python or from C, quotes a file; logs are read by others."""

    def talk(content):
        warnings.warn("a patient's name", stacklevel=1)
        print("a patient's name", file=sys.stderr)
        os.write(2, b"a patient's name")
        return grey(1)

    monkeypatch.setattr(image_files.pictures, "decode", talk)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image_files.decode(encoded(Image.fromarray(grey(1)), "PNG"))
    assert not caught
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_padding_is_scaled_with_its_image():
    """A pixel that any padding has part in is padding; what the square leaves out is not."""
    padding = np.zeros((16, 24), bool)
    padding[:, :7] = True  # of which the square leaves out 4 columns
    decoded = image_files.Decoded(np.full((16, 24), 200, np.uint8), padding=padding)
    small = image_files.fit_decoded(decoded, 8)
    expected = image_files.fit(np.where(padding, 0, 200).astype(np.uint8), 8) < 200
    np.testing.assert_array_equal(small.padding, expected)
    assert 0 < small.padding.sum() <= 16
    full = image_files.fit_decoded(decoded, 16).padding
    np.testing.assert_array_equal(full, np.arange(16)[None] < np.full((16, 1), 3))
    outside = decoded._replace(padding=np.arange(24)[None] < np.full((16, 1), 4))
    assert image_files.fit_decoded(outside, 16).padding is None
