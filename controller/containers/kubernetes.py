"""What sandboxes that are Jobs use, by the metrics API (`metrics.k8s.io`), which many clusters do not have."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from backplane.containers.use import ContainerUse
from backplane.domain.sandbox_labels import PART, SANDBOX
from backplane.kubernetes.api import ApiRefused, open_api_server
from controller.containers.loop import CannotBeRead

NEVER = (401, 403, 404)
"""What the API server answers where there is no metrics API, or it is not for this account."""
_AMOUNT = re.compile(r"([0-9]+)(n|u|m|Ki|Mi|Gi|k|M|G)?")
_UNITS = {"n": "1e-9", "u": "1e-6", "m": "1e-3", "Ki": "1024", "Mi": "1048576", "Gi": "1073741824"}
_UNITS |= {"k": "1e3", "M": "1e6", "G": "1e9"}


class JobsPlace:
    """The pods of sandboxes in a namespace, by the cluster's metrics API."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    async def use(self) -> Sequence[ContainerUse]:
        path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{self._namespace}/pods"
        try:
            async with open_api_server() as api:
                listed = await api.call("GET", path, [("labelSelector", f"{PART}={SANDBOX}")])
        except ApiRefused as refused:
            if refused.status in NEVER:
                raise CannotBeRead(f"{refused.status} {refused.message}") from None
            raise refused.unavailable(f"list pods.metrics.k8s.io in {self._namespace}") from None
        return [of_pod(pod) for pod in listed["items"]]


def of_pod(pod: dict[str, Any]) -> ContainerUse:
    used = [container["usage"] for container in pod.get("containers", [])]
    return ContainerUse(
        float(sum(_amount(one.get("cpu", "0")) for one in used)),
        int(sum(_amount(one.get("memory", "0")) for one in used)),
    )


def _amount(text: str) -> Decimal:
    """In the notation of the metrics API, which writes billionths of a processor. What is no amount is 0."""
    found = _AMOUNT.fullmatch(text)
    return Decimal(found[1]) * Decimal(_UNITS.get(found[2] or "", "1")) if found else Decimal(0)
