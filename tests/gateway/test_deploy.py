"""What is deployed: jobs that load, secrets that stay out of them, a chart that Helm takes."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dialoop.core import jobfile
from dialoop.gateway.spec import GatewayJob

Json = dict[str, Any]
DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm/dialoop"
SECRETS = ("DATABASE_URL", "ENGINE_KEY", "REDIS_URL")
ALL: Json = {
    "autoscaling": {"enabled": True},
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {"matchLabels": {"a": "b"}}}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podAnnotations": {"note": "1"},
    "imagePullSecrets": [{"name": "registry"}],
    "tolerations": [{"key": "a", "operator": "Exists"}],
}
"""Values with everything that is optional."""


@pytest.fixture
def helm() -> Any:
    """Helm's own library."""
    return pytest.importorskip("helm_python").chart


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that pods and containers have."""
    for name in SECRETS:
        monkeypatch.setenv(name, f"postgresql://{name}@host/x")


def load(text: str, tmp_path: Path) -> GatewayJob:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return jobfile.load(GatewayJob, file)


def render(helm: Any, values: Json | None = None) -> dict[str, Json]:
    """Documents by their kind; no chart has two of one kind."""
    chart = helm.Chart.load(str(CHART))
    try:
        found = chart.render(values or {}, name="desk", namespace="n")
    finally:
        chart.close()
    texts = (text for name, text in found.items() if not name.endswith("NOTES.txt"))
    documents = [document for text in texts if (document := yaml.safe_load(text))]
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("values", [{}, ALL], ids=["default", "all"])
def test_helm_finds_nothing_wrong(helm: Any, values: Json) -> None:
    found = helm.lint(str(CHART), values, strict=True)
    said = [message for message in found["messages"] if "icon is recommended" not in str(message)]
    assert (said, found["errors"]) == ([], [])


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("values", [{}, ALL], ids=["default", "all"])
def test_the_chart_s_job_is_one_and_holds_no_secret(
    helm: Any, values: Json, tmp_path: Path
) -> None:
    data = render(helm, values)["ConfigMap"]["data"]
    job = load(data["gateway.yaml"], tmp_path)
    assert job.num_gateways == (8 if values else 2)
    assert (job.host, job.database) == ("0.0.0.0", "postgresql://DATABASE_URL@host/x")
    assert set(re.findall(r"\$\{(\w+)\}", data["gateway.yaml"])) == set(SECRETS)
    assert yaml.safe_load(data["keys.yaml"]) == {"database": "${DATABASE_URL}"}
    assert "Secret" not in render(helm, values)


def test_a_pod_has_time_to_end_and_knows_its_state(helm: Any) -> None:
    values = {"job": {"patience": {"request_s": 90.5}, "port": 9000}, "preStopSeconds": 7}
    found = render(helm, values)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == 91 + 7 + 15
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("readiness", "liveness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "readiness": "/ready",
        "liveness": "/live",
    }
    assert container["ports"] == [{"name": "http", "containerPort": 9000}]
    assert container["envFrom"] == [{"secretRef": {"name": "dialoop-gateway"}}]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_everything_optional_points_at_the_pods(helm: Any) -> None:
    found = render(helm, ALL)
    labels = found["Deployment"]["spec"]["selector"]["matchLabels"]
    pods = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels.items() <= pods.items()
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert labels.items() <= found["Service"]["metadata"]["labels"].items()
    assert found["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == labels
    assert found["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == 8
    assert "replicas" not in found["Deployment"]["spec"], "they are the autoscaler's"


def test_several_pods_do_not_share_a_sqlite_file(helm: Any) -> None:
    with pytest.raises(Exception, match="several gateways need PostgreSQL"):
        render(helm, {"job": {"database": "sqlite"}})
    assert render(helm, {"job": {"database": "sqlite"}, "replicas": 1})


@pytest.mark.usefixtures("secrets")
def test_the_gateways_of_compose_have_all_that_their_job_names() -> None:
    job = jobfile.load(GatewayJob, DEPLOY / "gateway.yaml")
    compose = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    gateways = {name: service for name, service in services.items() if name.startswith("gateway")}
    assert len(gateways) == job.num_gateways
    named = re.findall(r"\$\{(\w+)\}", (DEPLOY / "gateway.yaml").read_text(encoding="utf-8"))
    for service in gateways.values():
        assert set(named) == service["environment"].keys()
        assert service["ports"][0].endswith(f":{job.port}")
        assert int(service["stop_grace_period"].removesuffix("s")) > job.patience.request_s
        assert "./gateway.yaml:/etc/dialoop/gateway.yaml:ro" in service["volumes"]
    assert {engine.url for engine in job.engines} == {"http://engine:8001/v1"}
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            is_built = "build" in services[name]
            assert is_built or "healthcheck" in services[name]


def test_the_image_has_health_checks_and_no_rights() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    last = text[text.index("AS gateway\n") :]
    assert "http://127.0.0.1:8080/ready" in last
    assert text.index("USER 10001") < text.index("ENTRYPOINT")
    copied = set(re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE))
    files = {name for line in copied for name in line.split()}
    root = DEPLOY.parent
    assert files
    assert all((root / name).exists() for name in files)
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert files == {line[1:] for line in allowed if line.startswith("!")}
    tracked = subprocess.run(
        ["git", "ls-files", *files], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    assert "LICENSE" in tracked.split()
