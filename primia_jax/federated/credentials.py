"""Identities of the parties of a run: where their keys lie, and the plan that they agree on.

Every party has its key in a folder of its own (`core.identity`). The sealed messages of the
hospitals (`sealing`) and the sealed frames between actors (`runtime.frames`) rest on the same key.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

from primia_jax.config import ExperimentConfig, to_plain
from primia_jax.core import identity
from primia_jax.core.identity import Credentials
from primia_jax.core.names import safe_file_name, user_path
from primia_jax.core.storage import read_json, write_json
from primia_jax.errors import CheckpointError
from primia_jax.federated import checkpoints
from primia_jax.federated.aggregation import OWNER, PROVIDER

IDENTITIES = "identities.json"  # in the workdir: fingerprints by name, for people to compare
# Sections of the configuration in which parties, or the parts of a resumed run, may differ.
FREE_SECTIONS = (*("name", "latency_study", "audit", "tuning", "study", "evaluation", "runtime"),)


def plan_of(config: ExperimentConfig) -> bytes:
    """Digest of the configuration that all parties of a run must have in common."""
    plain = to_plain(config)
    return identity.plan_digest({k: v for k, v in plain.items() if k not in FREE_SECTIONS})


def opened(config: ExperimentConfig, folder: pathlib.Path, name: str) -> Credentials:
    """Credentials of the party `name`, to be called in its own process.

    Args:
      config: of the run.
      folder: the party's own in the run; its key lies there unless `config.federated.identities`
        names another folder.
      name: of the party.

    Raises:
      ConfigError: if the file of pins cannot be used.
      CheckpointError: if the key or the record of peers is damaged.
      StorageError: if they cannot be written.
    """
    fed = config.federated

    def place(template: str) -> pathlib.Path:
        return user_path(template.replace("{site}", safe_file_name(name)))

    home = place(fed.identities) if fed.identities else folder
    pins = place(fed.pins) if fed.pins else None
    return identity.open_credentials(home, name, plan_of(config), pins)


def makers(
    config: ExperimentConfig, folders: Mapping[str, pathlib.Path]
) -> dict[str, Callable[[], Credentials]]:
    """Functions that open each party's credentials in its own process; they can be pickled.

    Args:
      config: of the run.
      folders: the parties' own, by name.
    """
    return {
        name: functools.partial(opened, config, folder, name) for name, folder in folders.items()
    }


def training_folders(workdir: pathlib.Path, hospitals: Sequence[str]) -> dict[str, pathlib.Path]:
    """Folders of the parties of a training, by name, each its party's own."""
    folders = {name: checkpoints.site_folder(workdir, name) for name in hospitals}
    return {**folders, OWNER: workdir / "checkpoints", PROVIDER: workdir / PROVIDER}


def record(workdir: pathlib.Path, fingerprints: Mapping[str, str]) -> None:
    """Adds to identities.json the fingerprints that the parties report.

    Raises:
      CheckpointError: if a party has another key than earlier in this run.
    """
    path = workdir / IDENTITIES
    stored = read_json(path) if path.exists() else {}
    for name, shown in fingerprints.items():
        if stored.get(name, shown) != shown:
            raise CheckpointError(
                f"{name} has the identity key {shown}; {path} records {stored[name]} for this run: "
                "restore its key, or begin anew without --resume"
            )
    if not fingerprints.items() <= stored.items():
        write_json(path, {**stored, **fingerprints})
