"""The manifests, by the schemas of Kubernetes, and against the code and each other. No cluster has run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.tls import ServerTls
from serving.triton_arguments import ADMIN_HEADER, RESTRICTED
from serving.tritonserver import ServerConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FOLDER = DEPLOY / "kubernetes"
VERSION = "1.30"
"""Old enough for whatever is in use; nothing here is newer."""


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


KUSTOMIZATION = next(documents(FOLDER / "kustomization.yaml"))
MANIFESTS = {d["kind"]: d for name in KUSTOMIZATION["resources"] for d in documents(FOLDER / name)}


@pytest.fixture
def pod() -> dict[str, Any]:
    return dict(MANIFESTS["Deployment"]["spec"]["template"])


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["spec"]["containers"]
    return dict(only)


@pytest.fixture(scope="module")
def runtime() -> dict[str, Any]:
    return next(documents(DEPLOY / "kserve" / "runtime.yaml"))


def test_every_file_is_used_or_is_for_somebody_else() -> None:
    others = {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert {path.name for path in FOLDER.iterdir()} == set(KUSTOMIZATION["resources"]) | others


@pytest.mark.parametrize("kind", sorted(MANIFESTS))
def test_a_manifest_is_what_kubernetes_takes(kind: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], VERSION, strict=True)


def test_the_schema_would_see_a_wrong_field() -> None:
    wrong = MANIFESTS["Service"] | {"spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_all_of_them_mean_the_same_pods(pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"]
    assert MANIFESTS["Service"]["spec"]["selector"].items() <= labels.items()
    for kind, where in (
        ("Deployment", "selector"),
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
    ):
        assert MANIFESTS[kind]["spec"][where]["matchLabels"].items() <= labels.items(), kind
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["Deployment"]["metadata"]["name"])


def test_ports_are_those_of_the_embedded_server(container: dict[str, Any]) -> None:
    assert {port["containerPort"] for port in container["ports"]} == set(ServerConfig().ports().values())
    names = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in MANIFESTS["Service"]["spec"]["ports"]} <= names
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in names


def test_it_runs_as_nobody_who_can_change_anything(pod: dict[str, Any], container: dict[str, Any]) -> None:
    spec, security = pod["spec"], container["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/dev/shm", "/tmp"}


def test_the_same_server_runs_as_in_the_compose_file(container: dict[str, Any], runtime: dict[str, Any]) -> None:
    compose = next(documents(DEPLOY / "compose.yaml"))["services"]["triton"]
    program, *arguments = compose["command"]
    # The repository is elsewhere in KServe, and Compose reads the threads from the environment.
    elsewhere = ("--model-repository", "--backend-config=onnxruntime,intra_op_thread_count")
    expected = {argument for argument in arguments if not argument.startswith(elsewhere)}
    (served,) = runtime["spec"]["containers"]
    for where in (container, served):
        assert where["command"] == [program]
        assert expected <= set(where["args"])
    assert compose["build"]["args"]["TRITON_IMAGE"].endswith(f":{KUSTOMIZATION['images'][0]['newTag']}-py3")


def test_callers_need_a_certificate(container: dict[str, Any]) -> None:
    arguments = container["args"]
    assert "--grpc-use-ssl-mutual=true" in arguments
    files = [a.partition("=")[2] for a in arguments if a.startswith(("--grpc-server", "--grpc-root"))]
    assert files == ["/tls/tls.crt", "/tls/tls.key", "/tls/ca.crt"]
    assert len(files) == len(ServerTls.__dataclass_fields__)


def test_nobody_makes_restricted_calls(container: dict[str, Any], runtime: dict[str, Any]) -> None:
    for served in (container, *runtime["spec"]["containers"]):
        (variable,) = served["env"]
        assert variable["valueFrom"] == {"secretKeyRef": {"name": "lungstreams-admin", "key": "key"}}
        for option, more in (("--grpc-restricted-protocol", set()), ("--http-restricted-api", {"inference"})):
            (value,) = (a.partition("=")[2] for a in served["args"] if a.startswith(option))
            calls, _, key = value.partition(":")
            assert set(calls.split(",")) == {*RESTRICTED, *more}
            assert key == f"{ADMIN_HEADER}=$({variable['name']})"


def test_it_scales_by_the_metric_that_the_adapter_makes() -> None:
    (metric,) = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (rule,) = next(documents(FOLDER / "prometheus-adapter.yaml"))["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]


def test_a_second_one_is_left_when_a_node_goes() -> None:
    replicas = MANIFESTS["Deployment"]["spec"]["replicas"]
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["minAvailable"] < replicas
    assert MANIFESTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == replicas


def test_kserve_runs_our_model_by_our_runtime(runtime: dict[str, Any]) -> None:
    service = next(documents(DEPLOY / "kserve" / "inference_service.yaml"))
    model = service["spec"]["predictor"]["model"]
    (formats,) = runtime["spec"]["supportedModelFormats"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] == {key: formats[key] for key in ("name", "version")}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    # Its pod is Kubernetes' own, so that Kubernetes' schema reads it.
    spec = {key: runtime["spec"][key] for key in ("containers", "volumes")}
    as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": spec}
    kubernetes_validate.validate(as_pod, VERSION, strict=True)
