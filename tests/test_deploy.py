"""The manifests say what the page and the code say; no cluster is needed, and none is asked."""

from pathlib import Path
from typing import Any

import yaml

from assets.catalog import ENGINES
from orchestration.cli import main

ROOT = Path(__file__).parents[1]


def manifests() -> list[Any]:
    return [document for file in (ROOT / "deploy").glob("*.yaml") for document in yaml.safe_load_all(file.read_text())]


def containers(part: Any) -> list[Any]:
    if isinstance(part, dict):
        return part.get("containers", []) + [c for value in part.values() for c in containers(value)]
    return [c for value in part for c in containers(value)] if isinstance(part, list) else []


def test_every_role_has_one_image_commands_that_exist_and_no_secret() -> None:
    found = {manifest["kind"]: manifest for manifest in manifests()}
    assert found.keys() >= {"RayCluster", "Job", "CronJob", "Deployment", "Service", "PersistentVolumeClaim"}
    roles = containers(list(found.values()))
    assert len(roles) == 5 and {role["image"] for role in roles} == {"triptych:0.1.0"}
    assert all(role["envFrom"] == [{"secretRef": {"name": "triptych"}}] and "env" not in role for role in roles)
    commands = [role["command"] for role in roles if "command" in role]
    assert len(commands) == 3 and all(name == "triptych" and word in main.commands for name, word, *_ in commands)


def test_the_run_of_the_night_is_the_run() -> None:
    job, nightly = (next(m for m in manifests() if m["kind"] == kind)["spec"] for kind in ("Job", "CronJob"))
    assert nightly["jobTemplate"]["spec"] == job


def test_nodes_have_the_release_that_is_pinned_and_the_service_the_name_that_the_page_says() -> None:
    (ray,) = (manifest for manifest in manifests() if manifest["kind"] == "RayCluster")
    assert f"ray=={ray['spec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    address = f"ray://{ray['metadata']['name']}-head-svc:10001"  # as KubeRay names it
    assert address in (ROOT / "docs" / "cluster.md").read_text()
    assert ENGINES.options(ENGINES.choose({"kind": "ray", "address": address})).address == address
