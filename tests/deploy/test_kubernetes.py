"""The manifests against the published schemas, and against what the compose file says."""

import os
import re
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from api_client.gateway.connection import DRAIN_S

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
VERSION = "1.32"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for name in KUSTOMIZATION["resources"]
    for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
TEMPLATES = {
    m["metadata"]["name"]: m["spec"]["template"] for m in MANIFESTS if "template" in m["spec"]
}
PODS = {name: template["spec"] for name, template in TEMPLATES.items()}
TWINS = {
    "worker-gpu": "worker-gpu0",
    "beat": "beat",
    "dashboard": "flower",
    "gateway": "gateway",
    "redis": "redis",
}


@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda m: f"{m['kind']} {m['metadata']['name']}"
)
def test_a_manifest_is_as_its_schema_wants_it(manifest: dict[str, Any]) -> None:
    if manifest["apiVersion"].startswith("keda.sh/"):
        spec = manifest["spec"]
        assert spec.get("scaleTargetRef", {"name": "worker-gpu"})["name"] in PODS
        assert all(t["type"] in ("redis", "prometheus") for t in spec.get("triggers", ()))
        return
    kubernetes_validate.validate(manifest, VERSION, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined(name: str) -> None:
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert "livenessProbe" in container or name == "beat"


@pytest.mark.parametrize("name", PODS)
def test_a_pod_runs_what_compose_runs(name: str) -> None:
    [container] = PODS[name]["containers"]
    twin = COMPOSE["services"][TWINS[name]]
    at = "gpu@%h" if name == "worker-gpu" else None
    assert [at if at and "@" in word else word for word in twin["command"]] == container["command"]
    given = {one["name"]: one["value"] for one in container.get("env", ())}
    assert given.items() >= {k: str(v) for k, v in twin.get("environment", {}).items()}.items()
    assert not [k for k in given.keys() - twin.get("environment", {}) if k.endswith("_FILE")]
    [secrets] = [volume["secret"] for volume in PODS[name]["volumes"] if "secret" in volume]
    assert sorted(item["path"] for item in secrets["items"]) == sorted(twin["secrets"])
    assert secrets["secretName"] == "clipyard"


@pytest.mark.parametrize("name", PODS)
def test_what_is_to_stay_is_written_where_a_volume_is(name: str) -> None:
    [manifest] = [m for m in MANIFESTS if m["spec"].get("template") is TEMPLATES[name]]
    volumes = {one.pop("name"): one for one in deepcopy(PODS[name]["volumes"])}
    volumes |= {m["metadata"]["name"]: m for m in manifest["spec"].get("volumeClaimTemplates", ())}
    [container] = PODS[name]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    twin = COMPOSE["services"][TWINS[name]]
    kept = [re.split(r":(?=/)", at)[-1].removesuffix(":ro") for at in twin.get("volumes", ())]
    brief = [at.partition(":")[0] for at in twin.get("tmpfs", ())]
    assert sorted(mounts.values()) == sorted(["/run/secrets", *kept, *brief])
    claims = {m["metadata"]["name"] for m in MANIFESTS if m["kind"] == "PersistentVolumeClaim"}
    asked = (
        volume.get("persistentVolumeClaim", {}).get("claimName") for volume in volumes.values()
    )
    assert {*asked} - {None} <= claims


def test_a_service_leads_to_the_pods_of_its_name_at_the_port_that_others_know() -> None:
    services = {m["metadata"]["name"]: m["spec"] for m in MANIFESTS if m["kind"] == "Service"}
    assert services.keys() == {"redis", "gateway", "dashboard"}
    for name, service in services.items():
        assert service["selector"].items() <= TEMPLATES[name]["metadata"]["labels"].items()
        [listens], [port] = PODS[name]["containers"][0]["ports"], service["ports"]
        assert (port["targetPort"], port["port"]) == (listens["name"], listens["containerPort"])


def test_what_a_port_is_named_for_listens_to_other_pods() -> None:
    said = {name: str(pod["containers"][0]) for name, pod in PODS.items()}
    named = {name for name, pod in PODS.items() if "ports" in pod["containers"][0]}
    assert named == {"worker-gpu", "dashboard", "gateway", "redis"}
    assert [name for name in named - {"redis"} if "0.0.0.0" not in said[name]] == []


def test_a_gateway_may_finish_what_it_has_begun_and_what_a_service_still_sends_it() -> None:
    [container] = PODS["gateway"]["containers"]
    [sleep, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert PODS["gateway"]["terminationGracePeriodSeconds"] > int(seconds) + DRAIN_S


def test_a_gateway_is_asked_once_somebody_can_answer_and_lives_without() -> None:
    [container] = PODS["gateway"]["containers"]
    asked = {of: probe["httpGet"] for of, probe in container.items() if of.endswith("Probe")}
    assert asked == {
        "readinessProbe": {"path": "/readyz", "port": "http"},
        "livenessProbe": {"path": "/healthz", "port": "http"},
    }


@pytest.mark.parametrize("name", sorted(PODS.keys() - {"redis", "beat"}))
def test_a_probe_waits_as_long_as_compose_does(name: str) -> None:
    [container] = PODS[name]["containers"]
    waits = {of: probe["timeoutSeconds"] for of, probe in container.items() if of.endswith("Probe")}
    assert set(map("{}s".format, waits.values())) == {
        COMPOSE["services"][TWINS[name]]["healthcheck"]["timeout"]
    }


def test_a_worker_has_as_long_to_start_as_compose_gives_it() -> None:
    [container] = PODS["worker-gpu"]["containers"]
    start, twin = container["startupProbe"], COMPOSE["services"]["worker-gpu0"]["healthcheck"]
    given_s = start["periodSeconds"] * start["failureThreshold"]
    assert given_s >= int(twin["start_period"].removesuffix("s"))


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_finish_what_it_has_begun(name: str) -> None:
    grace = COMPOSE["services"][TWINS[name]].get("stop_grace_period", "10s")
    assert PODS[name]["terminationGracePeriodSeconds"] >= int(grace.removesuffix("s"))


def test_an_upgrade_of_the_workers_needs_no_gpu_to_spare() -> None:
    [worker] = [
        m for m in MANIFESTS if m["kind"] == "Deployment" and "worker" in m["metadata"]["name"]
    ]
    assert worker["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_redis_is_reached_by_our_own_pods_and_by_keda() -> None:
    [policy] = [m["spec"] for m in MANIFESTS if m["kind"] == "NetworkPolicy" and "redis" in str(m)]
    selected = policy["podSelector"]["matchLabels"].items()
    assert selected <= TEMPLATES["redis"]["metadata"]["labels"].items()
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])
    [rule] = policy["ingress"]
    [ours] = [label["pairs"] for label in KUSTOMIZATION["labels"]]
    keda = {"kubernetes.io/metadata.name": "keda"}
    assert rule["from"] == [
        {"podSelector": {"matchLabels": ours}},
        {"namespaceSelector": {"matchLabels": keda}},
    ]
    [port] = PODS["redis"]["containers"][0]["ports"]
    assert rule["ports"] == [{"port": port["containerPort"]}]


def test_no_worker_asks_the_metadata_of_the_cloud_also_one_of_another_name() -> None:
    [policy] = [m for m in MANIFESTS if m["metadata"]["name"] == "workers"]
    [worker] = [m for m in MANIFESTS if "nodeSelector" in str(m)]
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    assert selected <= worker["spec"]["template"]["metadata"]["labels"].items()
    assert not selected & worker["spec"]["selector"]["matchLabels"].items()  # which a copy changes
    [anywhere, names] = policy["spec"]["egress"]
    metadata = ["169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32"]
    assert anywhere == {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": metadata}}]}
    assert names.keys() == {"ports"}  # to whomever, but for names alone
    assert {(one["port"], one["protocol"]) for one in names["ports"]} == {(53, "UDP"), (53, "TCP")}


@pytest.mark.parametrize(("found", "lives"), [(0, True), (1, False), (2, False), (3, True)])
def test_a_worker_is_not_restarted_because_redis_is_away(
    tmp_path: Path, found: int, lives: bool
) -> None:
    (tmp_path / "clipyard").write_text(f"#!/bin/sh\nexit {found}\n")
    (tmp_path / "clipyard").chmod(0o755)
    [container] = PODS["worker-gpu"]["containers"]
    probe = container["livenessProbe"]["exec"]["command"]
    path = {"PATH": f"{tmp_path}:{os.defpath}"}
    assert (subprocess.run(probe, env=path, check=False).returncode == 0) is lives


def test_every_secret_queue_and_metric_that_is_named_exists() -> None:
    [scaled] = [m for m in MANIFESTS if m["kind"] == "ScaledObject"]
    lists = [t["metadata"]["listName"] for t in scaled["spec"]["triggers"] if t["type"] == "redis"]
    from api_client.wire.metrics import QUEUE_AGE_S
    from api_client.wire.names import BULK, EMBED, INTERACTIVE, Keys

    assert lists == [Keys("clipyard").queue(EMBED, step) for step in (INTERACTIVE, BULK)]
    assert scaled["spec"]["scaleTargetRef"] == {"name": "worker-gpu"}
    assert scaled["spec"]["minReplicaCount"] > 0  # nothing is sent where no worker is
    [login] = [m for m in MANIFESTS if m["kind"] == "TriggerAuthentication"]
    given = {
        t["authenticationRef"]["name"] for t in scaled["spec"]["triggers"] if t["type"] == "redis"
    }
    assert given == {login["metadata"]["name"]}
    told = {(one["name"], one["key"]) for one in login["spec"]["secretTargetRef"]}
    assert told == {("clipyard", "dashboard.user"), ("clipyard", "dashboard.password")}
    places = {t["metadata"].get("address") for t in scaled["spec"]["triggers"]} - {None}
    assert places == {f"redis.{KUSTOMIZATION['namespace']}:6379"}  # KEDA stands in another one
    [query] = [
        t["metadata"]["query"] for t in scaled["spec"]["triggers"] if t["type"] == "prometheus"
    ]
    assert query == f'max({QUEUE_AGE_S.name}{{queue="{EMBED}",priority="interactive"}})'
    alerts = (FOLDER.parent / "prometheus" / "alerts.yml").read_text()
    assert "clipyard_oldest_call_age_seconds" in alerts


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kustomize_builds_them() -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=True
    )
    made = [m for m in yaml.safe_load_all(built.stdout) if m]
    assert len(made) == len(MANIFESTS)
    labels = [m["spec"]["template"]["metadata"]["labels"] for m in made if "template" in m["spec"]]
    assert all(label["app.kubernetes.io/part-of"] == "clipyard" for label in labels)
