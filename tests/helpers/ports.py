"""Ports for servers that tests start."""

import random
import socket
from pathlib import Path

_LOWEST, _OUTGOING = 20_000, Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nobody uses.

    They are below those that the kernel gives to outgoing connections: one of these would be taken again before a
    slow server has bound it, and Ray's clusters hold hundreds.
    """
    above = int(_OUTGOING.read_text().split()[0]) if _OUTGOING.exists() else 32_768
    # Of the operating system: tests seed their own generators alike.
    every = random.SystemRandom().sample(range(_LOWEST, above), above - _LOWEST)
    found: list[int] = []
    for port in every:
        if len(found) == count:
            return found
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            found.append(port)
    raise RuntimeError(f"no {count} free ports between {_LOWEST} and {above}")
