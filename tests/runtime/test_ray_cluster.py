"""Who can reach an embedded Ray cluster, and which clusters are joined."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
import ray

from primia_jax.errors import ClusterError
from primia_jax.runtime.ray_cluster import _asks_for_tokens as asks_for_tokens
from primia_jax.runtime.ray_cluster import cluster, writable_by_others

ROOT = pathlib.Path(__file__).parents[2]
_LISTENS = "0A"


def listening(pids):
    """Addresses, in hexadecimal, at which these processes listen."""
    inodes = set()
    for pid in pids:
        for entry in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(entry)
            except OSError:  # closed meanwhile
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and fields[9] in inodes:
                found.append(fields[1].partition(":")[0])
    return found


def descendants(pid):
    """This process and those that it started, directly or not."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.mark.skipif(not pathlib.Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_the_embedded_cluster_listens_on_loopback_alone(ray_cluster):
    """Old code let every interface of the machine reach Ray, without a token."""
    addresses = listening(descendants(os.getpid()))
    assert len(addresses) >= 4, "Ray's processes were not found"
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # of 127.0.0.1
    assert set(addresses) <= loopback, addresses


@ray.remote(num_cpus=0)
def _variables():
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}


def test_its_token_is_its_own_and_stays_out_of_the_environment(ray_cluster):
    assert asks_for_tokens(ray.get_runtime_context().gcs_address)
    assert not [name for name in os.environ if name.startswith("RAY_AUTH")]
    inside = ray.get(_variables.remote())
    path = pathlib.Path(inside["RAY_AUTH_TOKEN_PATH"])
    assert inside["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in inside
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert len(path.read_text()) == 64


SESSION = """
import os, pathlib, ray, stat
from primia_jax.runtime.ray_cluster import cluster, writable_by_others
os.umask(0)
with cluster(None):
    session = pathlib.Path(ray._private.worker._global_node.get_session_dir_path())
    assert (session / "sockets" / "raylet").is_socket()
    folder = session.parent.parent
    print(oct(stat.S_IMODE(folder.stat().st_mode)), folder.stat().st_uid)
    print(writable_by_others(session, session / "sockets", session / "logs"))
    print(folder)
"""


def test_other_users_cannot_reach_the_sockets_of_the_embedded_cluster(tmp_path):
    """Not even with umask 0 and a long TMPDIR; nothing of the session is left.

    Old code left them in /tmp/ray with mode 0777, where another user could replace them.
    """
    far = tmp_path / ("far" * 25)
    far.mkdir()
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", SESSION], cwd=ROOT, capture_output=True, text=True,
        env=environ | {"RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(far)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    mode, is_open, folder = ended.stdout.splitlines()
    assert mode == f"0o700 {os.getuid()}" and is_open == "False"
    assert pathlib.Path(folder).parent == pathlib.Path("/tmp")
    assert not os.path.lexists(folder) and not list(far.iterdir())


@pytest.mark.parametrize(
    ("above", "mode", "is_open"),
    [
        (0o755, 0o777, True),
        (0o755, 0o775, True),
        (0o777, 0o700, True),
        (0o700, 0o777, False),
        (0o755, 0o755, False),
    ],
)
def test_a_session_that_others_can_write_to_is_noticed(above, mode, is_open):
    """As that of a cluster that was started without --temp-dir."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        session = pathlib.Path(folder, "session")
        session.mkdir()
        session.chmod(mode)
        os.chmod(folder, above)
        assert writable_by_others(session) is is_open


OPEN = """
import sys, ray
ray.init(address="local", include_dashboard=False, num_cpus=1, logging_level="ERROR",
         object_store_memory=80 << 20)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_a_cluster_without_tokens_is_not_joined(tmp_path):
    """A real one; and one is not even asked where this side has no token, or none is used."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environ |= {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN], env=environ | {"RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        address = process.stdout.readline().strip()

        def join(**variables):
            result = subprocess.run(
                [sys.executable, "-c", JOIN, address], cwd=ROOT,
                env=environ | variables, capture_output=True, text=True,
            )  # fmt: skip
            return result.stdout.strip()

        assert "there is no token for the Ray cluster" in join()
        assert "RAY_AUTH_MODE=disabled in the environment" in join(RAY_AUTH_MODE="disabled")
        refused = join(RAY_AUTH_TOKEN="ab" * 32)
        assert refused.startswith(f"the Ray cluster at '{address}' asks for no token: whoever")
        assert "\n" not in refused and "--config.runtime.ray_auth=none" in refused
    finally:
        process.communicate()


JOIN = """
import sys
from primia_jax.errors import ClusterError
from primia_jax.runtime.ray_cluster import cluster
try:
    with cluster(sys.argv[1]):
        print("joined")
except ClusterError as error:
    print(error)
"""


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:port"])
def test_a_dead_address_is_one_clear_line(address, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = r"ray_address|no Ray cluster answers"
    with pytest.raises(ClusterError, match=words) as caught, cluster(address):
        pass
    assert "RAY_ADDRESS" not in str(caught.value)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(ClusterError, match="RAY_ADDRESS in the environment"),
        cluster(address),
    ):
        pass
