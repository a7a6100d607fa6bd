"""Modes of what a process leaves, and the folder of compiled programs."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from primia_jax import environment
from primia_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
_CACHE = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture
def lax():
    """A umask that closes nothing."""
    former = os.umask(0)
    yield
    os.umask(former)


def test_compiled_programs_are_their_owners_alone(lax, tmp_path, monkeypatch):
    """Whatever the umask and the former mode: they are code that later processes run."""
    monkeypatch.delenv(_CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = pathlib.Path(environment.private_cache())
    while folder != tmp_path:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder = folder.parent
    folder = pathlib.Path(environment.compilation_cache_dir())
    folder.chmod(0o755)
    environment.private_cache()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    (folder / "program").touch(mode=0o666)
    with pytest.raises(ConfigError, match="other users can write"):
        environment.private_cache()


@pytest.mark.parametrize("named", [False, True])
def test_compiled_programs_that_others_could_replace_are_refused(named, tmp_path, monkeypatch):
    monkeypatch.delenv(_CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = pathlib.Path(environment.private_cache())
    if named:
        monkeypatch.setenv(_CACHE, str(folder))
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="other users can write to the compiled programs"):
        environment.set_up_process()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777


LAUNCHED = """
import pathlib, sys
from primia_jax import launch
launch.main = lambda _: pathlib.Path(sys.argv[1], "left").touch()  # as a library does
launch.run()
"""


def test_the_command_line_leaves_nothing_for_others(lax, tmp_path):
    """Nor do libraries that write files themselves."""
    subprocess.run([sys.executable, "-c", LAUNCHED, str(tmp_path)], cwd=ROOT, check=True)
    assert stat.S_IMODE((tmp_path / "left").stat().st_mode) == 0o600


def test_setting_up_keeps_the_umask_of_the_caller(lax):
    environment.set_up_process()
    assert os.umask(0) == 0
