"""Masks of diagnosed images: pictures of the images' own sizes, and a table.

Axis letters: n images, s side that the network sees, k structures, h/w rows and columns.
"""

import csv
import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from primia_jax.core import names, storage
from primia_jax.predictions import MASKS
from primia_jax.tasks.segmentation_figures import colour
from primia_jax.tasks.task import Inputs

_FLAGS = {True: "yes", False: "no", None: ""}


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks of n images.

    Attributes:
      class_names: [k] of the structures, the background first.
      masks: [n s s] uint8.
      inputs: the images.
    """

    class_names: tuple[str, ...]
    masks: np.ndarray
    inputs: Inputs

    @property
    def names(self) -> list[str]:
        """[n] of the images' files."""
        return list(self.inputs.names)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Files that could not be read, with reasons."""
        return list(self.inputs.skipped)

    def shares(self) -> np.ndarray:
        """[n k] share of each structure in the pixels that the network sees."""
        k = len(self.class_names)
        if not len(self.masks):
            return np.zeros((0, k))
        return np.stack([(self.masks == c).mean((1, 2)) for c in range(k)], 1)

    def lines(self) -> list[str]:
        """One line an image: the structures' shares."""
        flags = self.inputs.in_range or (None,) * len(self.names)
        remarks = self.inputs.remarks or ("",) * len(self.names)
        lines = []
        for name, row, in_range, remark in zip(self.names, self.shares(), flags, remarks):
            parts = "  ".join(f"{c} {p:.3f}" for c, p in zip(self.class_names[1:], row[1:]))
            notes = f"   [{remark}]" if remark else "   [out of range]" if in_range is False else ""
            lines.append(f"{names.printable(name)}: shares of the image: {parts}{notes}")
        return lines

    def write(self, path: pathlib.Path) -> None:
        """Replaces the table `path`, and writes each mask as a PNG into `masks/` beside it.

        A mask is a palette picture: the value of a pixel is the index of its structure in
        `class_names`; 0 stands outside the central square that the network sees. Columns of the
        table: file, mask, a share of the pixels for each structure, in_range, remarks. A skipped
        file is a row without a mask whose reason stands in the remarks.

        Raises:
          StorageError: if something cannot be written.
        """
        folder = storage.private_folder(path.parent / MASKS)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = [names.csv_cell(f"share_{name}") for name in self.class_names]
        writer.writerow(["file", "mask", *columns, "in_range", "remarks"])
        n, shares = len(self.names), self.shares()
        sizes = self.inputs.sizes or [mask.shape for mask in self.masks]
        flags, remarks = self.inputs.in_range or (None,) * n, self.inputs.remarks or ("",) * n
        for i, name in enumerate(self.names):
            file = f"{names.safe_file_name(name)}.mask.png"
            storage.write_bytes(folder / file, as_png(self.masks[i], sizes[i]))
            cells = [names.csv_cell(cell) for cell in (name, f"{MASKS}/{file}", remarks[i])]
            numbers = (f"{share:.6f}" for share in shares[i])
            writer.writerow([*cells[:2], *numbers, _FLAGS[flags[i]], cells[2]])
        for name, why in self.inputs.skipped:
            cells = [names.csv_cell(cell) for cell in (name, why)]
            writer.writerow([cells[0], *[""] * (len(columns) + 2), cells[1]])
        storage.write_text(path, text.getvalue())


def as_png(mask: np.ndarray, size: tuple[int, int]) -> bytes:
    """A mask [s s] of the central square of a picture, as a PNG [h w] of the picture's size."""
    height, width = size
    square = min(height, width)
    scaled = Image.fromarray(mask).resize((square, square), Image.Resampling.NEAREST)
    picture = Image.new("P", (width, height))
    picture.paste(scaled, ((width - square) // 2, (height - square) // 2))
    palette = [0, 0, 0]
    for structure in range(1, 256):
        palette += colour(structure)
    picture.putpalette(palette)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()
