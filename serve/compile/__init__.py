"""The same policy for proxies people already run: equal requests get equal arms, or it is refused.

What carries over is who gets which arm, the arms' timeouts and limits, fallback and mirror where the proxy
has them, and streaming without buffers. Retries, health checks, breakers and logs stay the proxy's own.
"""

from __future__ import annotations

from collections.abc import Callable

from serve.compile.envoy import envoy
from serve.compile.gateway_api import gateway_api
from serve.compile.haproxy import haproxy
from serve.compile.istio import istio
from serve.compile.nginx import nginx
from serve.router.policy import Policy

TARGETS: dict[str, Callable[[Policy, str], dict[str, str]]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "envoy": envoy,
    "gateway-api": gateway_api,
    "istio": istio,
}


def compile_policy(policy: Policy, target: str, listen: str) -> dict[str, str]:
    """Texts of the target's files by name. Raises UserError on what it cannot express."""
    return TARGETS[target](policy, listen)
