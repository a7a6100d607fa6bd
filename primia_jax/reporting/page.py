"""Pages of a report: their templates, and pictures within them."""

import base64
import os
from pathlib import Path

import jinja2

from primia_jax.core.storage import storing


def environment() -> jinja2.Environment:
    """What renders the project's templates; a name that a template does not get is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("primia_jax.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def embedded(path: str | os.PathLike[str]) -> str:
    """The PNG picture at `path` as a data URI.

    Raises:
      StorageError: the file cannot be read.
    """
    with storing(f"{path} cannot be read again"):
        return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
