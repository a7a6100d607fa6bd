"""Pages of a report: how their templates are rendered, and how a page gets into its file."""

import base64
import os
from pathlib import Path

import jinja2

from primia_jax.errors import StorageError


def environment() -> jinja2.Environment:
    """What renders the project's templates; a name that a template does not get is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("primia_jax.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: str | os.PathLike[str], page: str) -> None:
    """Writes a page, replacing what is there in one step.

    Raises:
      StorageError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise not_written(path, error) from error


def embedded(path: str | os.PathLike[str]) -> str:
    """The PNG picture at `path` as a data URI.

    Raises:
      StorageError: the file cannot be read.
    """
    try:
        return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    except OSError as error:
        raise StorageError(f"{path} cannot be read again: {error}") from error


def not_written(path: str | os.PathLike[str], error: OSError) -> StorageError:
    """What to raise where a report, or what belongs to it, cannot be written."""
    reason = error.strerror or error
    return StorageError(
        f"cannot write the report {path}: {reason}; free some space or choose another workdir"
    )
