"""The Kermany radiographs as a TFDS data set in ArrayRecord files; TensorFlow is not needed.

    python -m primia_jax.data.tfds_builder KERMANY_FOLDER DATA_DIR

Examples hold the image files byte for byte, so that a set read from here has the grey values and
digests of the folder that it was made from. Any other data set prepared in ArrayRecord with the
features `image` and `label` can be read too.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from primia_jax import environment
from primia_jax.config.sections import DataConfig
from primia_jax.data import file_catalogue, folders, image_files
from primia_jax.data.catalogue import Catalogue
from primia_jax.data.file_catalogue import Entry
from primia_jax.data.image_files import Decoded
from primia_jax.errors import DataError, UserError

_UNSPLIT = "unsplit"  # the TFDS split of images whose folder fixes none
_COMMAND = "python -m primia_jax.data.tfds_builder KERMANY_FOLDER"
_INFO_FILE = "dataset_info.json"


class KermanyXrays(tfds.core.GeneratorBasedBuilder):
    """Paediatric chest radiographs: normal, bacterial and viral pneumonia."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (the base class's convention)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "A folder with train and test, each with NORMAL and PNEUMONIA."

    # The library looks for these by importlib_resources, which it does not install, and not at all
    # in a module that runs as a command.
    code_path = epath.Path(__file__)
    pkg_dir_path = code_path.parent

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 1)),
                    "label": tfds.features.ClassLabel(names=list(folders.KERMANY_CLASSES)),
                    "patient": tfds.features.Text(),
                    "name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            citation="Kermany et al., Cell 172 (2018) 1122-1131",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = pathlib.Path(dl_manager.manual_dir)
        # Every file is looked at before the first is written, by the one who can still mend it.
        catalogue = folders.open_folder(str(root), DataConfig())
        free = np.full(len(catalogue), _UNSPLIT)
        splits = free if catalogue.splits is None else catalogue.splits
        return {
            str(split): self._generate_examples(root, catalogue, np.flatnonzero(splits == split))
            for split in np.unique(splits)
        }

    def _generate_examples(
        self, root: pathlib.Path, catalogue: Catalogue, indices: np.ndarray
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for i in indices:
            name = catalogue.names[i]
            yield (
                name,
                {
                    "image": root / name,  # a path: the file's bytes are stored as they are
                    "label": int(catalogue.labels[i]),
                    "patient": str(catalogue.patients[i]),
                    "name": name,
                },
            )


@dataclasses.dataclass(frozen=True)
class ArrayRecordDecoder:
    """Decodes the images of prepared records; usable from several threads."""

    sources: Mapping[str, Sequence[Mapping[str, Any]]]  # of each TFDS split
    places: tuple[tuple[str, int], ...]  # [n] split and position in it

    def __call__(self, record: int) -> Decoded:
        """The image of `record`; ImageError says why there is none."""
        split, position = self.places[record]
        return image_files.decode(self.sources[split][position]["image"])


def prepare(kermany_path: str, data_dir: str) -> pathlib.Path:
    """Writes the data set of the Kermany folder `kermany_path` below `data_dir`.

    Returns:
      The folder that was written, or that held the same version before.

    Raises:
      DataError: for a folder in another layout, or with images that cannot be read.
    """
    if folders.list_folder(kermany_path).class_names != folders.KERMANY_CLASSES:
        raise DataError(f"folder {kermany_path}: not the Kermany layout (NORMAL and PNEUMONIA)")
    builder = KermanyXrays(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=pathlib.Path(kermany_path).absolute())
    builder.download_and_prepare(download_config=config)
    return pathlib.Path(builder.data_path)


def open_prepared(path: str, data: DataConfig, class_names: tuple[str, ...] = ()) -> Catalogue:
    """The catalogue of a prepared data set.

    Args:
      path: the `data_dir` of `prepare`, or the folder of one version of any data set in ArrayRecord
        whose features are an image, a class label and, if known, texts `patient` and `name`.
      data: the section of settings.
      class_names: the run's classes, which must be the data set's; some may lack images.

    Raises:
      DataError: if there is none (with the command that prepares it) or it cannot be read; as
        `file_catalogue.assemble`.
    """
    where = f"data set {path}"
    own = pathlib.Path(path) / KermanyXrays.name / str(KermanyXrays.VERSION)
    folders = [d for d in (pathlib.Path(path), own) if (d / _INFO_FILE).is_file()]
    if not folders:
        raise DataError(f"{where}: not prepared; run: {_COMMAND} {path}")
    try:
        builder = tfds.builder_from_directory(folders[0])
        label = builder.info.features["label"]
        decoders = {"image": tfds.decode.SkipDecoding()}
        sources = {
            split: grain.MapDataset.source(builder.as_data_source(split, decoders=decoders))
            for split in builder.info.splits
        }
        entries, places = [], []
        for split, source in sources.items():
            for position in range(len(source)):
                entries.append(_entry(source[position], split, position))
                places.append((split, position))
        names = tuple(label.names)
    except Exception as error:  # the library and the file format raise many types
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: cannot be read ({type(error).__name__}: {text})") from error
    decode = ArrayRecordDecoder(sources, tuple(places))
    if class_names and class_names != names:
        raise DataError(
            f"{where}: its classes are {', '.join(names)}, those of the run "
            f"{', '.join(class_names)}; mend config.data.classes or prepare the data set anew"
        )
    return file_catalogue.assemble(entries, names, decode, data, where, declared=bool(class_names))


def _entry(example: Mapping[str, Any], split: str, position: int) -> Entry:
    name = example["name"].decode() if "name" in example else f"{split}/{position}"
    patient = example["patient"].decode() if "patient" in example else None
    fixed = folders.SPLIT_NAMES.get(split.lower(), "")
    return Entry(name, int(example["label"]), patient, split=fixed)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m primia_jax.data.tfds_builder")
    parser.add_argument("kermany_folder", help="holds train and test (each NORMAL, PNEUMONIA)")
    parser.add_argument("data_dir", help="where to write; config.data.path afterwards")
    given = parser.parse_args(arguments)
    try:
        print(prepare(given.kermany_folder, given.data_dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    environment.close_to_others()
    sys.exit(main())
