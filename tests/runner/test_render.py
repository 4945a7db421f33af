import copy
import functools
import gzip
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from transfusion.errors import SpecError
from transfusion.resources import Resources
from transfusion.runner.profile import Profile, read_profile
from transfusion.runner.render import render
from transfusion.runner.shipping import slug
from transfusion.spec.job import Job, check_job, read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store

REPOSITORY = Path(__file__).parents[2]
TARGETS = ("rayjob", "rayservice", "ray-up")
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

needs_crds = pytest.mark.skipif(
    "TRANSFUSION_KUBERAY_CRDS" not in os.environ,
    reason="KubeRay's schemas are not part of this repository: set TRANSFUSION_KUBERAY_CRDS to a copy of "
    "helm-chart/kuberay-operator/crds of the KubeRay release in use, see tests/README.md",
)

VALUES = {
    "store": "s3://bucket/prefix",
    "seed": 3,
    "stages": {"docs": {"uses": "data_pipelines.sources.python_docs", "config": {}}},
    "endpoint": {"model": "docs", "host": "0.0.0.0", "max_images": 4},
}


@pytest.fixture
def job() -> Job:
    return check_job(copy.deepcopy(VALUES), name="My job_2", where="job.yaml")


@pytest.fixture(params=["laptop", "gpu-cluster"])
def profile(request) -> Profile:
    return read_profile(REPOSITORY / "cluster" / f"{request.param}.yaml")


def rendered(job: Job, target: str, resources: Resources | None = None) -> dict:
    return yaml.safe_load(render(job, target=target, resources=resources or Profile()))


def strict(schema: object) -> object:
    """The schema with unknown fields forbidden wherever it lists the known ones."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not free:
        closed.setdefault("additionalProperties", False)
    return closed


@functools.cache
def kuberay_validator(kind: str) -> jsonschema.Draft202012Validator:
    folder = Path(os.environ["TRANSFUSION_KUBERAY_CRDS"])
    crd = folder / f"ray.io_{kind.lower()}s.yaml"
    if crd.exists():
        definition = yaml.load(crd.read_text(), Loader=yaml.CSafeLoader)
        (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
    else:
        packed = gzip.decompress((folder / f"{kind}.json.gz").read_bytes())
        schema = strict(json.loads(packed)["schema"])
    # Kubernetes itself checks `metadata`; the schema of a custom resource leaves it open.
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def ray_up_validator() -> jsonschema.Draft7Validator:
    (folder,) = importlib.util.find_spec("ray").submodule_search_locations
    text = (Path(folder) / "autoscaler" / "ray-schema.json").read_text()
    return jsonschema.Draft7Validator(json.loads(text))


def every_misspelling(document: dict, places: list[tuple[str, ...]]):
    for place in places:
        wrong = copy.deepcopy(document)
        at = wrong
        for step in place[:-1]:
            at = at[int(step) if step.isdigit() else step]
        at[place[-1] + "x"] = at.pop(place[-1])
        yield ".".join(place), wrong


@needs_crds
@pytest.mark.parametrize(("target", "kind"), [("rayjob", "RayJob"), ("rayservice", "RayService")])
def test_kuberay_accepts_what_is_rendered_and_a_misspelt_field_is_caught(
    job, profile, target, kind
):
    document, validator = rendered(job, target, profile), kuberay_validator(kind)
    assert document["kind"] == kind
    validator.validate(document)
    cluster = ("spec", "rayClusterSpec" if kind == "RayJob" else "rayClusterConfig")
    pod = (*cluster, "workerGroupSpecs", "0", "template", "spec")
    places = [
        (*cluster, "authOptions"),
        (*cluster, "headGroupSpec", "serviceType"),
        (*cluster, "workerGroupSpecs", "0", "maxReplicas"),
        (*pod, "restartPolicy"),
        (*pod, "containers", "0", "securityContext", "readOnlyRootFilesystem"),
        ("spec", "backoffLimit" if kind == "RayJob" else "serveConfigV2"),
    ]
    for place, wrong in every_misspelling(document, places):
        assert not validator.is_valid(wrong), f"{place} misspelt went through"


def test_ray_accepts_the_ray_up_file_and_a_misspelt_field_is_caught(job, profile):
    document, validator = rendered(job, "ray-up", profile), ray_up_validator()
    validator.validate(document)
    places = [
        ("max_workers",),
        ("auth", "ssh_user"),
        ("docker", "run_options"),
        ("available_node_types", "cpu", "node_config"),
    ]
    for place, wrong in every_misspelling(document, places):
        assert not validator.is_valid(wrong), f"{place} misspelt went through"


def test_ray_itself_validates_the_ray_up_file(job, profile):
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(rendered(job, "ray-up", profile))
    validate_config(filled)
    assert set(filled["available_node_types"]) == {"head", *profile.cluster.groups}


def test_ray_serve_takes_the_serve_config(job, profile):
    from ray.serve.schema import ServeDeploySchema

    text = rendered(job, "rayservice", profile)["spec"]["serveConfigV2"]
    parsed = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert [application.route_prefix for application in parsed.applications] == ["/"]


def test_the_endpoint_builds_from_the_rendered_arguments(job, profile):
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.schema import ServeDeploySchema

    text = rendered(job, "rayservice", profile)["spec"]["serveConfigV2"]
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    module, _, name = application.import_path.partition(":")
    builder = getattr(importlib.import_module(module), name)
    built = call_user_app_builder_with_args_if_necessary(builder, application.args)
    options = built._bound_deployment.ray_actor_options
    assert options["num_gpus"] == profile.serve.gpus_per_replica


@pytest.mark.parametrize("target", ["rayjob", "rayservice"])
def test_every_pod_is_locked_down_and_every_cluster_asks_for_a_token(job, profile, target):
    spec = rendered(job, target, profile)["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["autoscalerOptions"]["version"] == "v2"
    templates = [group["template"] for group in cluster["workerGroupSpecs"]]
    for template in [cluster["headGroupSpec"]["template"], *templates]:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["restartPolicy"] == "Never", "autoscaler v2 refuses anything else"
        assert pod["terminationGracePeriodSeconds"] == 300
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"secretRef": {"name": "transfusion-store"}} in container["envFrom"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_a_ray_up_cluster_asks_for_a_token_and_shows_its_dashboard_to_nobody(job, profile):
    document = rendered(job, "ray-up", profile)
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in document[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "ssh_private_key" not in document["auth"]
    assert document["available_node_types"]["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("target", TARGETS)
def test_no_secret_of_this_environment_is_rendered(job, target, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, f"hush-{name}")
    assert "hush" not in render(job, target=target, resources=Profile())


def test_the_carried_job_is_the_same_job(job, tmp_path):
    template = rendered(job, "rayjob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    annotations = template["metadata"]["annotations"]
    (tmp_path / "job.yaml").write_text(annotations["transfusion/job.yaml"])
    (tmp_path / "profile.yaml").write_text(annotations["transfusion/profile.yaml"])
    carried = read_job(tmp_path / "job.yaml")
    empty = open_store(str(tmp_path / "store"))
    assert [s.fingerprint for s in plan_job(carried, empty)] == [
        s.fingerprint for s in plan_job(job, empty)
    ]
    read_profile(tmp_path / "profile.yaml")
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    for item in volumes["job"]["downwardAPI"]["items"]:
        key = re.fullmatch(r"metadata\.annotations\['(.+)'\]", item["fieldRef"]["fieldPath"])[1]
        assert key in annotations


def test_the_served_model_is_pinned_by_its_fingerprint(job, tmp_path):
    (planned,) = plan_job(job, open_store(str(tmp_path)))
    config = yaml.safe_load(rendered(job, "rayservice")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    model = deployment["user_config"]["model"]
    assert model.startswith("s3://bucket/prefix/data_pipelines.sources.python_docs/")
    assert planned.fingerprint.startswith(model.rsplit("/", 1)[1])
    # Ray Serve starts replicas again for new arguments, and not for a new `user_config`.
    assert model not in repr(application["args"])


def test_every_container_of_an_endpoint_has_the_environment_that_serve_reads(job):
    def environments(profile: Profile) -> list[dict[str, str]]:
        config = rendered(job, "rayservice", profile)["spec"]["rayClusterConfig"]
        templates = [config["headGroupSpec"], *config["workerGroupSpecs"]]
        containers = [each["template"]["spec"]["containers"][0] for each in templates]
        return [{pair["name"]: pair["value"] for pair in one["env"]} for one in containers]

    for found in environments(Profile()):
        assert found["RAY_SERVE_USE_GRPC_BY_DEFAULT"] == "1"
        assert "RAY_SERVE_ENABLE_HA_PROXY" not in found
    haproxy = Profile.model_validate({"serve": {"proxy": "haproxy"}})
    assert all(found["RAY_SERVE_ENABLE_HA_PROXY"] == "1" for found in environments(haproxy))


def test_the_same_job_has_the_same_name_and_another_seed_another(job):
    other = check_job({**copy.deepcopy(VALUES), "seed": 4}, name="My job_2", where="job.yaml")
    names = [rendered(each, "rayjob")["metadata"]["name"] for each in (job, job, other)]
    assert names[0] == names[1] != names[2]
    services = [rendered(each, "rayservice")["metadata"]["name"] for each in (job, other)]
    assert services[0] == services[1], "a new model is an upgrade of the service, not another one"


@given(st.text(max_size=80))
def test_any_file_name_gives_a_name_that_kubernetes_takes(name):
    assert DNS_1035.fullmatch(slug(name))
    assert len(slug(name)) + 1 + 10 <= 47, "KubeRay's limit for a RayJob"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train": {"gpus_per_worker": 1}}, "cluster.gpu is missing"),
        ({"train": {"num_workers": 100, "cpus_per_worker": 4}}, "hold 8 of these at most"),
        ({"pool": {"cpus_per_actor": 16}}, "hold 0 of these at most"),
        ({"cluster": {"cpu": {"min": 9}}}, "min must not be above max, got 9 and 4"),
    ],
)
def test_machines_that_cannot_hold_the_job_are_a_fault_now_not_a_wait_for_ever(job, values, told):
    with pytest.raises(SpecError, match=re.escape(told)):
        render(job, target="rayjob", resources=Profile.model_validate(values))


def test_a_misspelt_target_is_told_with_the_known_ones(job):
    with pytest.raises(SpecError, match="did you mean 'rayjob'"):
        render(job, target="rayjobs", resources=Profile())


def test_a_local_store_and_an_unpinned_image_are_pointed_out(job):
    local = check_job({**copy.deepcopy(VALUES), "store": "./here"}, name="x", where="job.yaml")
    head = render(local, target="rayjob", resources=Profile()).split("apiVersion")[0]
    assert "here" in head
    assert "not pinned by digest" in head
    pinned = Profile.model_validate({"cluster": {"image": "r/t@sha256:" + "0" * 64}})
    assert "LOOK" not in render(job, target="rayjob", resources=pinned)


def test_rendering_opens_no_connection_and_loads_neither_torch_nor_ray(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(VALUES))
    script = """
import socket, sys
from pathlib import Path
def refuse(*_): raise AssertionError("a connection was opened")
socket.socket.connect = refuse
from transfusion.runner.profile import Profile
from transfusion.runner.render import render
from transfusion.spec.job import read_job
for target in ("rayjob", "rayservice", "ray-up"):
    render(read_job(Path("job.yaml")), target=target, resources=Profile())
assert not {"ray", "torch"} & set(sys.modules), "heavy"
"""
    path = os.pathsep.join([str(REPOSITORY / "platform"), str(REPOSITORY)])
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
