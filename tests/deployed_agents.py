"""Deployments as values, for tests that need no database."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from backplane.domain.agent_manifest import AgentManifest, parse_manifest
from backplane.domain.deployments import Deployment, DeploymentStatus, Revision, Rollout

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
ID = "01a22e7f-287a-718d-81be-4ef3c1d633e0"
SERVE = """\
import http.server, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ.get("WORD", "none").encode())
    def log_message(self, *words):
        pass
print("serving as", os.environ.get("WORD"), flush=True)
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Answer).serve_forever()
"""
"""An agent: it answers every path with its variable WORD."""


def agent_manifest(
    *,
    tier: str = "tier_1_read",
    scaling: dict[str, Any] | None = None,
    version: str = "1.0.0",
    health: str = "/health",
    **deployment: Any,
) -> AgentManifest:
    """`deployment`: fields of spec.deployment."""
    spec = {
        "role": "helper",
        "access_tier": tier,
        "deployment": {
            "scaling": scaling or {"min_replicas": 1},
            "resources": {"cpu": "50m", "memory": "64Mi"},
            **deployment,
        },
        "monitoring": {"health_check": {"path": health, "readiness_delay_seconds": 1, "readiness_period_seconds": 1}},
    }
    return parse_manifest(
        {
            "apiVersion": "ossa/v0.4.6",
            "kind": "Agent",
            "metadata": {"name": "greeter", "version": version},
            "spec": spec,
        }
    )


def revision_of(manifest: AgentManifest, number: int = 1, **values: Any) -> Revision:
    return Revision(number, "agents/greeter:1", manifest, "created", "ada", NOW, **values)


def deployment_of(revision: Revision | None = None, *, replicas: int | None = 1, **values: Any) -> Deployment:
    current = revision or revision_of(agent_manifest())
    made = Deployment(
        id=ID,
        user_id="ada",
        agent_id="greeter",
        namespace="ada-agents",
        current=current,
        effective=current if current.may_run else None,
        replicas=replicas,
        status=DeploymentStatus.DEPLOYING,
        reason="",
        rollout=Rollout(),
        created_at=NOW,
        updated_at=NOW,
    )
    return replace(made, **values)
