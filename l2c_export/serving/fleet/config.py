"""A fleet as YAML: what `serve deploy` takes, and the RayService of KubeRay that holds it."""

from __future__ import annotations

from typing import Any

import msgspec

from ...support.extras import needs
from ...version import __version__
from .options import BUILD, FleetOptions

IMAGE = "YOUR-REGISTRY/l2c-export-ray:TAG"  # nobody else can know it


def described(options: FleetOptions, host: str, port: int, kind: str) -> str:
    """The YAML of a kind, "serve" or "kuberay"."""
    deployed = serve_config(options, host, port)
    return text(deployed) if kind == "serve" else text(ray_service(options, text(deployed)))


def serve_config(options: FleetOptions, host: str, port: int) -> dict[str, Any]:
    """For `serve deploy`; what every deployment has is in `args`, by which `build` makes them."""
    args = {name: value for name, value in msgspec.to_builtins(options).items() if value is not None}
    application = {"name": "l2c", "route_prefix": "/", "import_path": BUILD, "args": args}
    return {"proxy_location": "EveryNode", "http_options": {"host": host, "port": port}, "applications": [application]}


def ray_service(options: FleetOptions, deployed: str) -> dict[str, Any]:
    """For KubeRay: a head that draws nothing, and a worker for every replica."""
    replicas = options.replicas * len(options.models)
    gpus = {"nvidia.com/gpu": str(options.gpus)} if options.gpus else {}
    resources = {"cpu": str(options.cores_each + 1), "memory": "8Gi", **gpus}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "l2c"},
        "spec": {
            "serveConfigV2": deployed,
            "rayClusterConfig": {
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "1", "dashboard-host": "0.0.0.0"},
                    "template": pod("ray-head", {"cpu": "2", "memory": "4Gi"}),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "samplers",
                        "replicas": replicas,
                        "minReplicas": replicas,
                        "maxReplicas": replicas,
                        "rayStartParams": {},
                        "template": pod("ray-worker", resources),
                    }
                ],
            },
        },
    }


def pod(name: str, resources: dict[str, str]) -> dict[str, Any]:
    """A machine; the artefacts are expected where the configuration names them."""
    both = {"requests": resources, "limits": resources}
    return {"spec": {"containers": [{"name": name, "image": IMAGE, "resources": both}]}}


def text(document: Any) -> str:
    """YAML, in which texts of several lines stay readable."""
    yaml = needs("yaml", "ray")

    class Readable(yaml.SafeDumper):  # type: ignore[misc,name-defined]
        def ignore_aliases(self, _: Any) -> bool:
            return True

    def represented(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Readable.add_representer(str, represented)
    head = f"# Written by l2c serve {__version__}\n"
    return head + str(yaml.dump(document, Dumper=Readable, sort_keys=False, allow_unicode=True))
