"""The files that start clusters: their form, and one real cluster of three nodes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
LOCAL = LAUNCH / "local_cluster.sh"
VM_CLUSTERS = ("ray_cloud_vms.yaml", "ray_tpu_pod.yaml")


def load(name: str) -> dict:
    return yaml.safe_load((LAUNCH / name).read_text())


def environment() -> dict[str, str]:
    """This process's environment, with the `ray` of its Python first on the PATH."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=200, check=False
    )


@pytest.mark.parametrize("name", VM_CLUSTERS)
def test_vm_clusters_follow_rays_schema(name):
    config = load(name)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    nodes = config["available_node_types"]
    assert nodes[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {kind: node for kind, node in nodes.items() if kind != config["head_node_type"]}
    assert workers and config["max_workers"] >= sum(
        node["max_workers"] for node in workers.values()
    )
    for node in workers.values():
        assert node["resources"]["CPU"] == 1 and node["resources"]["hospital"] == 1
        assert node["min_workers"] <= node["max_workers"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "ray start" in commands[-1]


def test_tpu_hospitals_have_a_slice_of_one_host():
    config = load("ray_tpu_pod.yaml")
    assert config["provider"]["type"] == "gcp"
    node = config["available_node_types"]["hospital_tpu"]
    kind, cores = node["node_config"]["acceleratorType"].split("-")
    assert kind == "v4" and int(cores) <= 8 and node["resources"]["TPU"] == int(cores) // 2
    assert node["node_config"]["runtimeVersion"]


def test_kuberay_manifest():
    manifest = load("kuberay.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    spec = manifest["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        # The operator takes start parameters as strings only.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"].startswith("YOUR_") and container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        resources = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert resources["hospital"] == 1


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(script):
    assert os.access(script, os.X_OK)
    checked = run("bash", "-n", str(script))
    assert checked.returncode == 0, checked.stderr
    # A blanket `ray stop` would end the clusters of others.
    assert "ray stop" not in script.read_text()


def test_every_file_is_explained():
    text = (LAUNCH / "README.md").read_text()
    for file in LAUNCH.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in text, file.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nodes=2",), "unknown argument '--nodes=2'"),
        (("--workers=0",), "'0': expected a whole number"),
        (("--workers=two",), "'two': expected a whole number"),
    ],
)
def test_mistakes_are_named(arguments, words):
    result = run(str(LOCAL), *arguments)
    assert result.returncode == 2 and words in result.stderr


def test_help_is_the_head_comment():
    result = run(str(LOCAL), "--help")
    assert result.returncode == 0 and result.stdout.startswith("Starts a Ray cluster")
    assert "#" not in result.stdout and "set -euo" not in result.stdout


PROBE = """
import os, sys, ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
assert sys.argv[1] == "--ray_address=" + os.environ["RAY_ADDRESS"], sys.argv
@ray.remote(num_cpus=1)
class Hospital:
    def node(self):
        return ray.get_runtime_context().get_node_id()
hospitals = [Hospital.remote() for _ in range(2)]
used = ray.get([hospital.node.remote() for hospital in hospitals])
nodes = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
print(len(nodes), len(set(used)), [nodes[node]["CPU"] for node in used])
print("token", os.environ["RAY_AUTH_TOKEN_PATH"])
sys.exit(7)
"""


def test_a_local_cluster_of_three_nodes():
    """Each worker gets an actor; the command's status is passed on; nothing is left behind."""
    result = run(
        *(str(LOCAL), "--workers=2", "--object-store-mb=80", "--"),
        *(sys.executable, "-c", PROBE, "--ray_address=$RAY_ADDRESS"),
    )
    assert result.returncode == 7, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "3 2 [1.0, 1.0]"
    folder = Path(lines[1].removeprefix("token ")).parent
    assert folder.name.startswith("ray-local-") and not folder.exists()
    assert not [line for line in command_lines() if str(folder) in line]


def command_lines() -> Iterator[str]:
    """Those of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:  # it has ended
            continue


@pytest.mark.slow
def test_the_smoke_run_over_two_worker_nodes(tmp_path):
    """The whole system on a cluster of several nodes gives the figures of one machine."""
    launch = (sys.executable, "-m", "primia_jax.launch", "--config=configs/smoke.py")
    on_nodes = run(
        *(str(LOCAL), "--workers=2", "--", *launch, f"--workdir={tmp_path / 'nodes'}"),
        "--ray_address=$RAY_ADDRESS",
    )
    assert on_nodes.returncode == 0, on_nodes.stderr
    alone = run(*launch, f"--workdir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    metrics = [(tmp_path / name / "metrics.json").read_text() for name in ("nodes", "alone")]
    assert metrics[0] == metrics[1]
