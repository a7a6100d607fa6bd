"""Pages of a report: their templates, and pictures within them."""

import base64
import os
from pathlib import Path
from typing import Any

import jinja2

from primia_jax.core.storage import storing, write_text
from primia_jax.reporting import formats


def environment(*, autoescape: bool = True) -> jinja2.Environment:
    """The project's templates; a name that a template does not get is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("primia_jax.reporting", "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "signed", "figure", "percent", "interval", "p_equals", "listed"):
        environment.filters[name] = getattr(formats, name)
    return environment


def render(template: str, **context: Any) -> str:
    """The page that the template makes of `context`."""
    return environment().get_template(template).render(context)


def write(path: Path, template: str, **context: Any) -> None:
    """Writes a page that needs nothing outside itself.

    Raises:
      StorageError: if it cannot be written.
    """
    write_text(path, render(template, **context))


def sentences(template: str, **context: Any) -> list[str]:
    """The lines of a template of plain text, without blank ones; spaces are run together."""
    text = environment(autoescape=False).get_template(template).render(context)
    return [words for line in text.splitlines() if (words := " ".join(line.split()))]


def embedded(path: str | os.PathLike[str]) -> str:
    """The PNG picture at `path` as a data URI.

    Raises:
      StorageError: the file cannot be read.
    """
    with storing(f"{path} cannot be read again"):
        return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
