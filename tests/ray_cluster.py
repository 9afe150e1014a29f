"""A Ray cluster of two nodes on this machine, each of one CPU, with no more of Ray than tests need."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

import psutil

from engines.ports import free_port

SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER: whoever loses its parent below us becomes our child
NODE = {
    "num_cpus": 1,
    "memory": 2_000_000_000,
    "object_store_memory": 80_000_000,
    "include_dashboard": False,
    "include_log_monitor": False,
}
AGENT = ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN")
NOTHING = [sys.executable, "-SIc", "import signal; signal.pause()"]
# On a busy machine parts of Ray take longer to start than it waits, and a node that answers late is not dead.
SETTINGS = {
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_prestart_worker_first_driver": "0",  # of workers that no test has a use for
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # whatever token is in this machine's home
}


@contextmanager
def two_nodes(
    head: dict[str, Any] | None = None, second: dict[str, Any] | None = None
) -> Iterator[tuple[Any, Any]]:
    """The cluster and its second node, given further parameters of each; every process is gone afterwards."""
    import ray
    from ray import _raylet as ports
    from ray._private import ray_constants, services
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

    start, python = Node.start_raylet, services._build_python_executable_command_memory_profileable

    def start_raylet(node: Any, *arguments: Any) -> None:
        """It waits for the dashboard's agent to tell these ports, and dies after some seconds."""
        for port in AGENT:
            ports.persist_port(node._session_dir, node._node_id, getattr(ports, f"{port}_PORT_NAME"), -1)
        start(node, *arguments)

    def command(component: str, *arguments: Any) -> Any:
        agent = component == ray_constants.PROCESS_TYPE_DASHBOARD_AGENT
        return NOTHING if agent else python(component, *arguments)

    wait_for_node = Cluster._wait_for_node
    libc, before = ctypes.CDLL(None), set(psutil.Process().children(recursive=True))
    libc.prctl(SUBREAPER, 1)
    try:
        with (
            patch.dict(os.environ, SETTINGS),
            patch.object(Node, "start_api_server"),  # of the dashboard
            patch.object(Node, "start_raylet", start_raylet),
            patch.object(Cluster, "_wait_for_node", lambda self, node: wait_for_node(self, node, 300)),
            patch.object(services, "_build_python_executable_command_memory_profileable", command),
        ):
            parameters = [{**NODE, "no_monitor": True, **(head or {})}, {**NODE, **(second or {})}]
            for node in parameters:
                node["runtime_env_agent_port"] = free_port()
            cluster = Cluster(initialize_head=True, head_node_args=parameters[0])
            other = cluster.add_node(**parameters[1])
            for node in parameters:
                for listener in ("runtime_env_agent_port", "ray_client_server_port"):
                    if port := node.get(listener):
                        _wait_for(ray.util.get_node_ip_address(), port)
            yield cluster, other
            cluster.shutdown()
    finally:
        while left := set(psutil.Process().children(recursive=True)) - before:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)  # of some the parents had to end first
        libc.prctl(SUBREAPER, 0)


def _wait_for(host: str, port: int) -> None:
    """Until something listens there."""
    until = time.monotonic() + 300
    while True:
        try:
            socket.create_connection((host, port), timeout=300).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def raylet(node: Any) -> psutil.Process:
    """What runs a node: its workers are its children and end with it."""
    ((process,),) = (found for kind, found in node.all_processes.items() if kind == "raylet")
    return psutil.Process(process.process.pid)
