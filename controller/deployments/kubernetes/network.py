"""Whom an agent may talk to, by its access tier. A cluster needs a network plugin that enforces policies for that.

| tier | in | out |
| --- | --- | --- |
| 1 | the platform's namespace and its own | the name servers |
| 2 | the same | and the platform's API, and public addresses |
| 3 | the same | and every pod of the cluster that lets it in |
| 4 | the same | the name servers, and exactly the networks of the manifest |
"""

from typing import Any

from backplane.domain.agent_manifest import AccessTier, AgentManifest

Json = dict[str, Any]

NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Clusters from 1.21 on give each namespace this label."""
API_LABEL = {"app.kubernetes.io/name": "agent-api"}
NOT_PUBLIC_4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
)
"""Private, link-local (where clouds hand out credentials), and what else is not the Internet."""
PUBLIC_6 = "2000::/3"
NOT_PUBLIC_6 = ("2001:db8::/32",)
NODE_NAME_SERVER = "169.254.20.10/32"
"""The name server's cache on each node, where there is one."""


def network_policy_spec(manifest: AgentManifest, platform_namespace: str) -> Json:
    """Without the selector of its pods."""
    tier = manifest.access_tier
    own: Json = {"podSelector": {}}
    ingress = {"from": [_namespace(platform_namespace), own], "ports": [{"protocol": "TCP", "port": "http"}]}
    egress = [_name_servers()]
    if tier is AccessTier.POLICY:
        # Names of networks alone: whoever wrote them meant these, and no port in particular.
        if manifest.egress:
            egress.append({"to": [{"ipBlock": {"cidr": cidr}} for cidr in manifest.egress]})
    elif tier is not AccessTier.READ:
        api = {**_namespace(platform_namespace), "podSelector": {"matchLabels": dict(API_LABEL)}}
        egress += [{"to": [api]}, {"to": _public()}]
        if tier is AccessTier.WRITE_ELEVATED:
            egress.append({"to": [own, {"namespaceSelector": {}}]})
    return {"policyTypes": ["Ingress", "Egress"], "ingress": [ingress], "egress": egress}


def _namespace(name: str) -> Json:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: name}}}


def _name_servers() -> Json:
    servers = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    return {
        "to": [servers, {"ipBlock": {"cidr": NODE_NAME_SERVER}}],
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
    }


def _public() -> list[Json]:
    return [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(NOT_PUBLIC_4)}},
        {"ipBlock": {"cidr": PUBLIC_6, "except": list(NOT_PUBLIC_6)}},
    ]
