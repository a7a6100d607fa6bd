"""Masks of diagnosed images: pictures of the images' own sizes, and a table.

Axis letters: n images, s side that the network sees, k structures, h/w rows and columns.
"""

import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from primia_jax import predictions
from primia_jax.core import names, storage
from primia_jax.predictions import MASKS
from primia_jax.tasks.segmentation_figures import colour
from primia_jax.tasks.task import Inputs


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

    def rows(self) -> list[predictions.Row]:
        """[n] rows of the table."""
        n = len(self.names)
        files = (f"{MASKS}/{names.safe_file_name(name)}.mask.png" for name in self.names)
        flags, remarks = self.inputs.in_range or (None,) * n, self.inputs.remarks or ("",) * n
        return list(map(predictions.Row, self.names, files, self.shares(), flags, remarks))

    def lines(self) -> list[str]:
        """One line an image: the structures' shares."""
        return [
            row.line(
                "shares of the image: "
                + predictions.shares_text(self.class_names[1:], row.shares[1:])
            )
            for row in self.rows()
        ]

    def write(self, path: pathlib.Path) -> None:
        """Replaces the table `path`, and writes each mask as a PNG into `masks/` beside it.

        A mask is a palette picture: the value of a pixel is the index of its structure in
        `class_names`; 0 stands outside the central square that the network sees. Columns of the
        table: file, mask, a share of the pixels for each structure, in_range, remarks.

        Raises:
          StorageError: if something cannot be written.
        """
        storage.private_folder(path.parent / MASKS)
        sizes = self.inputs.sizes or [mask.shape for mask in self.masks]
        for row, mask, size in zip(self.rows(), self.masks, sizes):
            storage.write_bytes(path.parent / row.answer, as_png(mask, size))
        columns = [f"share_{name}" for name in self.class_names]
        predictions.write_table(path, "mask", columns, self.rows(), self.skipped)


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
