"""Safe names: everything from outside (sites, patients, files) that becomes a path or is shown.

Names come from tables, DICOM headers and folders, so anyone may have chosen them.
"""

import hashlib
import os
import pathlib
import re

from primia_jax.errors import ConfigError, DataError

# Names with a meaning of their own: lines of rounds.jsonl and parties of the computation.
RESERVED_SITES = frozenset(
    (
        "all", "model_owner", "model owner", "crypto_provider", "data_owner", "driver", "operator",
        "owner", "pooled", "server", "test",
    )
)  # fmt: skip
MAX_SITE_BYTES = 200
_MAX_FILE_BYTES = 200  # leaves room for an ending; file systems allow 255
_KEPT_BYTES = 120  # of a name that is shortened; 65 more for its digest
_DIGEST_MARK = "~"  # stands before the digest of a shortened name, and nowhere else
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-.")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")  # reserved on Windows
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20'"


def safe_file_name(text: str) -> str:
    """Name of a file or folder that stands for `text`, whatever `text` holds.

    Lower-case letters, digits, `_`, `-` and `.` stay; other letters are written `%XX`, a byte of
    their UTF-8 form each. Different texts give different names, also on disks that ignore case.
    The name has no separator, is not `.` or `..`, does not begin with `.` or `-`, is not reserved
    on Windows and has at most 200 bytes. It can be decoded, except where a long one ends in its
    SHA-256.
    """
    parts = [part for char in text for part in _escaped(char)]
    if not parts:
        return "%"
    if parts[0] in (".", "-") or _DEVICES.fullmatch("".join(parts)):
        parts[0] = f"%{ord(parts[0]):02x}"
    if parts[-1] == ".":
        parts[-1] = "%2e"
    name = "".join(parts)
    if len(name) <= _MAX_FILE_BYTES:
        return name
    kept = ""
    for part in parts:
        if len(kept) + len(part) > _KEPT_BYTES:
            break
        kept += part
    return kept + _DIGEST_MARK + hashlib.sha256(name.encode()).hexdigest()


def check_site_name(name: str, source: str = "") -> str:
    """Returns `name` if a hospital may be called so.

    Args:
      name: from a table, a DICOM header or a folder.
      source: where it comes from, for the message.

    Raises:
      DataError: for an empty, reserved or too long name, and for control characters or bytes that
        are not UTF-8.
    """
    where = f" ({source})" if source else ""
    shown = repr(printable(name[:40])) + ("…" if len(name) > 40 else "")
    if not name.strip():
        raise DataError(f"a hospital has an empty name{where}; give it one")
    if name.strip().casefold() in RESERVED_SITES:
        raise DataError(
            f"a hospital cannot be called {shown}{where}: the name is reserved; rename it"
        )
    if not name.isprintable():
        raise DataError(
            f"the hospital's name {shown}{where} has letters that are not shown (control "
            "characters, special spaces) or is not UTF-8; rename it"
        )
    if len(name.encode()) > MAX_SITE_BYTES:
        raise DataError(
            f"the hospital's name {shown}{where} has {len(name.encode())} bytes; "
            f"at most {MAX_SITE_BYTES} are allowed; shorten it"
        )
    return name


def printable(text: str) -> str:
    """`text` with control characters and bytes that are not UTF-8 written as escapes.

    The result can be encoded as UTF-8 and has a single line. It is for showing: two texts may look
    the same.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def csv_cell(text: str) -> str:
    """`text` as a cell that no spreadsheet takes for a formula.

    A quote is put before a text that begins, spaces and double quotes aside, with `=`, `+`, `-`,
    `@` or a quote; and likewise after each `;`, where spreadsheets of some languages begin a cell.
    Tabs are escaped.
    """
    return ";".join(map(_no_formula, printable(text).split(";")))


def csv_text(cell: str) -> str:
    """The text, as `printable` shows it, of a `csv_cell`."""
    return ";".join(part.removeprefix("'") for part in cell.split(";"))


def shortened(name: object) -> str:
    """The first letters of a digest or another long name, for messages."""
    return str(name) if len(str(name)) <= 12 else f"{str(name)[:12]}…"


def user_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Absolute path that a user named, a leading `~` expanded.

    Raises:
      ConfigError: if it is `~NAME` of an unknown user, or holds a NUL character.
    """
    if "\0" in os.fspath(path):
        raise ConfigError(f"the path {printable(os.fspath(path))!r} holds a NUL character")
    try:
        return pathlib.Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(
            f"the home folder in {os.fspath(path)} is unknown; write it out"
        ) from error


def _no_formula(part: str) -> str:
    return f"'{part}" if part.lstrip(' "\u3000\xa0').startswith(tuple(_FORMULA)) else part


def _escaped(char: str) -> list[str]:
    """The letter itself, its bytes as `%XX`, or `%uXXXX` for a surrogate (a byte not of UTF-8)."""
    if char in _PLAIN:
        return [char]
    if "\ud800" <= char <= "\udfff":
        return [f"%u{ord(char):04x}"]
    return [f"%{byte:02x}" for byte in char.encode()]


def _shown(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode()
