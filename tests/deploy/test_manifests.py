"""Compose file, Kubernetes manifests and the systemd unit against schemas and checks of their systems."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app import __version__
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
K8S = DEPLOY / "k8s"
# A file that an overlay expects from its user.
INPUTS = {"keys": ("keys.toml", '[keys.alice]\nkey = "secret"\n'), "contexts": ("prompt_config.toml", "")}

has_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_the_compose_file_is_valid() -> None:
    schema = json.loads((Path(__file__).parent / "data/compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(compose())


def test_files_and_volumes_of_the_compose_file_exist() -> None:
    project = compose()
    mounts = [
        str(mount).split(":")[0] for s in project["services"].values() for mount in s.get("volumes", ())
    ]
    assert {mount for mount in mounts if not mount.startswith(".")} == set(project["volumes"])
    assert all((DEPLOY / mount).exists() for mount in mounts if mount.startswith("."))


def test_ports_of_the_compose_file_are_on_loopback_and_differ() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


@pytest.mark.parametrize(
    "path",
    sorted(p for p in K8S.glob("base/*.yaml") if p.stem != "kustomization"),
    ids=lambda path: path.stem,
)
def test_manifests_of_the_base_are_valid(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def rendered(folder: Path) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(folder)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True).stdout))


@has_kubectl
@pytest.mark.parametrize("name", sorted(path.name for path in K8S.glob("overlays/*")))
def test_overlays_are_valid(name: str, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s/overlays" / name
    if name in INPUTS:
        file, text = INPUTS[name]
        (folder / file).write_text(text)
    manifests = rendered(folder)
    assert {"Deployment", "Service", "PersistentVolumeClaim"} < {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        if manifest["kind"] not in ("ServiceMonitor", "ScaledObject"):  # of operators
            kubernetes_validate.validate(manifest, "1.37", strict=True)


def deployment() -> dict[str, Any]:
    return dict(yaml.safe_load((K8S / "base/deployment.yaml").read_text())["spec"]["template"]["spec"])


def test_pods_end_after_the_grace_of_the_server() -> None:
    from app.config.settings import Settings

    container = deployment()["containers"][0]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert (
        deployment()["terminationGracePeriodSeconds"]
        > pause + Settings.model_fields["shutdown_grace"].default
    )


def test_the_version_is_the_same_everywhere() -> None:
    found = {
        name: re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)[:n]
        for name, pattern, n in (
            ("pyproject.toml", r'^version = "(.*)"', 1),
            ("CHANGELOG.md", r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", 1),
            ("Dockerfile", r'image\.version="(.*)"', 1),
            ("deploy/k8s/base/kustomization.yaml", r"(?:version|newTag): ([\w.]+)", 2),
            ("deploy/k8s/kserve/runtime.yaml", r"image: tokenstream:(.+)", 1),
        )
    }
    assert {version for versions in found.values() for version in versions} == {__version__}, found
    assert all(found.values()), found


def test_selectors_match_the_pods() -> None:
    """Everything that selects pods by label selects those of the Deployment."""
    pods = yaml.safe_load((K8S / "base/deployment.yaml").read_text())["spec"]["template"]["metadata"][
        "labels"
    ]
    selectors = re.findall(
        r"(?:elector|matchLabels): (\{app[^}]*\})", "".join(p.read_text() for p in K8S.rglob("*.yaml"))
    )
    assert len(selectors) >= 6
    assert all(yaml.safe_load(selector) == pods for selector in selectors)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_hardened() -> None:
    unit = DEPLOY / "systemd/tokenstream.service"
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-300:]
