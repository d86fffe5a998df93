"""psutil for Wine, which doesn't tell who listens: as if Windows had said it of service.py.

It listens on the port after --port, from when the kernel below Wine shows that somebody does.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import SimpleNamespace

HERE = os.path.dirname(os.path.abspath(__file__))
LISTENING = " 00000000:0000 0A "

sys.path[:], before = [one for one in sys.path if one != HERE], sys.path[:]
del sys.modules["psutil"]
psutil = importlib.import_module("psutil")
sys.path[:] = before


def net_connections(self: psutil.Process, kind: str = "tcp") -> list[SimpleNamespace]:
    words = self.cmdline()
    if not any(word.endswith("service.py") for word in words) or "--port" not in words:
        return []
    port = int(words[words.index("--port") + 1])
    with open("Z:\\proc\\net\\tcp", encoding="ascii") as file:
        rows = [line for line in file if f":{port:04X}{LISTENING}" in line]
    address = SimpleNamespace(ip="127.0.0.1", port=port)
    return [SimpleNamespace(status=psutil.CONN_LISTEN, laddr=address) for _ in rows]


psutil.Process.net_connections = net_connections
