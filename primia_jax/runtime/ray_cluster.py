"""The Ray cluster that actors run in: one that is joined, or an embedded one for this run alone.

An embedded cluster listens on the loopback interface and asks for a token that was made for it; a
cluster that is joined must ask for a token too (`config.runtime.ray_auth`).

Ray's processes of one machine speak through sockets in the session folder, without a token. Ray
makes that folder with mode 0777. An embedded cluster keeps it in a private folder, removed at the
end. Whoever starts a cluster to be joined must do the same (`ray start --temp-dir`); where it lies
open on this machine, there is a warning.

A token keeps strangers out. It protects nobody from another member: whoever may join can run code
on every node as the user of its Ray processes, and read there what that user can read. A cluster is
therefore one organisation, whatever parties run in it.
"""

import contextlib
import ipaddress
import logging
import os
import pathlib
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import ray_constants
from ray._raylet import (  # type: ignore[attr-defined]  # a compiled module
    AuthenticationTokenLoader,
    Config,
)

from primia_jax import environment
from primia_jax.errors import ClusterError

_LOOPBACK = "127.0.0.1"
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_PROBE_S = 60.0
_SHARED_TMP = "/tmp"
# Linux allows 107 bytes to a socket's path. Ray adds "/session_DATE_TIME_PID/sockets/NAME": 63.
_MAX_FOLDER_BYTES = 107 - 70
_REMOVAL_S = 5.0
# Asks a cluster for its name with a token that cannot be its own.
_PROBE = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    print("refused")
else:
    print("let in")
"""


@contextlib.contextmanager
def cluster(address: str | None, auth: str = "token") -> Iterator[None]:
    """Joins the Ray cluster at `address`, or starts an embedded one; leaves or ends it afterwards.

    Within another `cluster` of this process it is that one, whatever the address is that answers.

    Args:
      address: HOST:PORT, or "auto"; None starts one.
      auth: "token" refuses to join a cluster that asks for no token; "none" joins it.

    Raises:
      ClusterError: if nothing answers at `address`, or tokens are missing there or here.
    """
    if address:
        _check_reachable(address)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    terminate = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        if address:
            _join(address, auth)
            _warn_if_open()
        else:
            stack.enter_context(_embedded())
        stack.callback(ray.shutdown)
        if callable(terminate):  # Ray has put its own handler in its place
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, terminate)
        yield


@contextlib.contextmanager
def _embedded() -> Iterator[None]:
    """Starts a cluster on the loopback interface; its token and its session are this user's alone.

    The session is Ray's folder of sockets, logs and spilled objects.
    """
    with _private_folder() as folder:
        path = folder / "token"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        # Ray moves 127.0.0.1 to an address that others reach, unless it was told on import that
        # this system has no clusters of several nodes.
        several_nodes = ray_constants.ENABLE_RAY_CLUSTER
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            with _variables({_MODE: "token", _TOKEN_PATH: str(path), _TOKEN: None}):
                _init(
                    "this machine",
                    address="local",
                    include_dashboard=False,
                    num_cpus=max(2, os.cpu_count() or 1),
                    _node_ip_address=_LOOPBACK,
                    _temp_dir=str(folder / "r"),  # Ray gives it mode 0777
                )
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = several_nodes
        address = ray.get_runtime_context().gcs_address
        if not _is_loopback(address):
            ray.shutdown()
            raise ClusterError(
                f"the embedded Ray listens at {address}, where others reach it; Ray "
                f"{ray.__version__} is too new, install an earlier one"
            )
        yield
    _reload()


@contextlib.contextmanager
def _private_folder() -> Iterator[pathlib.Path]:
    """Makes a folder of mode 0700 with a path short enough for sockets; removes it at the end."""
    prefix = "primia_jax-ray-"
    base = os.path.realpath(tempfile.gettempdir())
    if len(os.fsencode(base)) + len(prefix) + 9 > _MAX_FOLDER_BYTES:
        base = _SHARED_TMP
    folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    try:
        yield folder
    finally:
        end = time.monotonic() + _REMOVAL_S
        while folder.exists():  # Ray's last processes may still write while they end
            shutil.rmtree(folder, ignore_errors=True)
            if time.monotonic() > end:
                break
            time.sleep(0.05)


def _warn_if_open() -> None:
    """Warns if other users of this machine could replace the sockets of the cluster's node here."""
    node = ray._private.worker._global_node
    if node is None:  # a Ray client: its node is elsewhere
        return
    session = pathlib.Path(node.get_session_dir_path())
    if writable_by_others(session, session / "sockets", session / "logs"):
        warnings.warn(
            f"other users of this machine can replace the sockets of Ray in {session}, and take "
            "part as any process of the cluster; start every node with `ray start "
            "--temp-dir=FOLDER/ray`, FOLDER of mode 0700",
            stacklevel=4,
        )


def writable_by_others(*folders: pathlib.Path) -> bool:
    """True if another user can replace what is in one of these folders, or a folder above it."""
    for folder in folders:
        path = folder.resolve()
        for above in (*reversed(path.parents), path):
            mode = above.stat().st_mode if above.exists() else 0
            # Where the sticky bit is set, files can be renamed by their owner alone.
            if mode & 0o022 and not mode & stat.S_ISVTX:
                return True
            if not mode & 0o011:  # nobody else comes further down
                break
    return False


def _join(address: str, auth: str) -> None:
    """Joins the cluster at `address`, if its tokens are as `auth` says."""
    if auth == "none":
        _init(_named(address), address=address)
        return
    mode = os.environ.get(_MODE, "token")
    if mode.lower() != "token":
        raise ClusterError(
            f"{_MODE}={mode} in the environment switches Ray's tokens off, and whoever reaches "
            f"the cluster could run code as any party; set {_MODE}=token on every node and here"
        )
    if not _has_token():
        raise ClusterError(
            f"there is no token for the Ray cluster at {_named(address)}; put it into "
            f"~/.ray/auth_token or into a file that {_TOKEN_PATH} names (`ray get-auth-token`)"
        )
    with _variables({_MODE: "token"}):
        _init(_named(address), address=address)
    if not _asks_for_tokens(ray.get_runtime_context().gcs_address):
        ray.shutdown()
        raise ClusterError(
            f"the Ray cluster at {_named(address)} asks for no token: whoever reaches it can run "
            f"code as any party; start its nodes with {_MODE}=token, or accept that by "
            "--config.runtime.ray_auth=none"
        )


def _init(where: str, **options: Any) -> None:
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # Ray raises several kinds
        texts = f"{error} {error.__cause__} {error.__context__}"
        hint = f"; set {_MODE}=token and the same token on every node and here"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(
            f"no Ray cluster at {where}: {lines[0]}{hint if 'oken' in texts else ''}"
        ) from error


@contextlib.contextmanager
def _variables(values: dict[str, str | None]) -> Iterator[None]:
    """Sets (None: removes) environment variables for Ray within the block.

    Ray's processes are started within it and keep them; this process has read the token then, and
    other programs that it starts later are not given it.
    """
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        _reload()
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _reload() -> None:
    """Has Ray read its environment variables anew; it does so by itself on import only."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _has_token() -> bool:
    if os.environ.get(_TOKEN):
        return True
    path = os.environ.get(_TOKEN_PATH) or "~/.ray/auth_token"
    return pathlib.Path(path).expanduser().is_file()


def _asks_for_tokens(gcs_address: str) -> bool:
    """True if the cluster at `gcs_address` refuses a wrong token.

    Asked in a process of its own, since a process has one token at a time.

    Raises:
      ClusterError: if it cannot be found out.
    """
    wrong = {name: value for name, value in os.environ.items() if name != _TOKEN_PATH}
    wrong |= {_MODE: "token", _TOKEN: secrets.token_hex(32)}
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _PROBE, gcs_address],
            env=wrong, capture_output=True, text=True, timeout=_PROBE_S,
        ).stdout.strip()  # fmt: skip
    except subprocess.TimeoutExpired:
        answer = ""
    if answer not in ("refused", "let in"):
        ray.shutdown()
        raise ClusterError(
            f"the Ray cluster at {gcs_address} does not say whether it asks for tokens; try again, "
            "or join it unchecked by --config.runtime.ray_auth=none"
        )
    return answer == "refused"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False


def _named(address: str) -> str:
    """`address`, and the environment variable that it comes from."""
    if environment.ray_address() == address:
        return f"'{address}' (RAY_ADDRESS in the environment)"
    return f"'{address}'"


def _check_reachable(address: str) -> None:
    """Refuses a dead address, for which `ray.init` would wait for a minute."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"ray_address {_named(address)}: expected HOST:PORT (or 'auto')")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {_named(address)} ({error}); start one with "
            "`ray start --head`"
        ) from error
