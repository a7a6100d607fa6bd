"""Objects of a user's own modules, named in a configuration as `module:object`."""

import importlib
import inspect
import os
import re
import socket
import sys
from typing import Any

from primia_jax.errors import ConfigError

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_reference(name: str) -> bool:
    """True if `name` is meant as `module:object`; the package's own parts have no colon."""
    return ":" in name


def check_reference(name: str, where: str) -> None:
    """Checks the form of a reference; imports nothing.

    Args:
      name: the reference.
      where: the config option that holds it, for messages.

    Raises:
      ConfigError: if it is not of the form `package.module:object`.
    """
    if not _REFERENCE.fullmatch(name):
        raise ConfigError(f"{where} = {name!r}: write module:object, for instance mymodule:MyNet")


def load(reference: str, where: str) -> Any:
    """The callable object that `reference` names, imported in this process.

    Args:
      reference: `module:object`; the object may be an attribute of a class, `module:Class.name`.
      where: the config option that holds it, for messages.

    Raises:
      ConfigError: if the module cannot be imported here, or it has no such object, or the object
        cannot be called.
    """
    check_reference(reference, where)
    module, _, path = reference.partition(":")
    start = f"{where} = {reference!r}:"
    try:
        value: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{start} there is no module {missing!r} in {_process()}; put its folder on "
                "PYTHONPATH there, or install it"
            ) from None
        raise ConfigError(
            f"{start} the import of {module!r} failed in {_process()} with "
            f"{type(error).__name__}: {first_line(error)}; correct the module, or install what it "
            "imports"
        ) from None
    file = getattr(value, "__file__", None) or "a namespace package"
    for name in path.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            raise ConfigError(
                f"{start} module {module!r} ({file}) has no {path!r}; correct the name"
            ) from None
    if not callable(value):
        raise ConfigError(
            f"{start} is a {type(value).__name__} and cannot be called; name a class or a function"
        )
    return value


def reference_to(value: Any, where: str) -> str:
    """The reference `module:object` by which every process can import `value`.

    Args:
      value: a class or a function at the top level of a module; or a reference already.
      where: the argument that holds it, for messages.

    Raises:
      ConfigError: if it cannot be imported by its name.
    """
    if isinstance(value, str):
        check_reference(value, where)
        return value
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if not callable(value) or not module or not name:
        raise ConfigError(
            f"{where}: a {type(value).__name__} has no name to import it by; pass a class or a "
            "function of a module, or 'module:object'"
        )
    if module == "__main__" or "<" in name:
        raise ConfigError(
            f"{where}: other processes cannot import {name} from {module}; define it at the top "
            "level of a module of its own and import it from there"
        )
    reference = f"{module}:{name}"
    if load(reference, where) is not value:
        raise ConfigError(f"{where}: {reference} is another object now; pass that one")
    return reference


def arguments_for(function: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the `offered` keyword arguments that `function` has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in parameters}


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def _process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} ({sys.executable})"
