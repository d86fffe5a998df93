"""Commands without an interpreter's start for each: the program is imported once, then forked.

    forkserver.py PROGRAM SOCKET

A request comes with the command's three descriptors; the answer is its pid, later its status.
"""

from __future__ import annotations

import gc
import io
import json
import os
import select
import socket
import sys
from pathlib import Path

REQUEST_BYTES = 1 << 20


def request(
    server: str,
    words: list[str],
    cwd: str,
    env: dict[str, str],
    files: list[int],
    memory_bytes: int | None = None,
) -> socket.socket:
    """A command that has begun: where its pid and then its status come, each as a line."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(server)
    text = json.dumps({"argv": ["spm", *words], "cwd": cwd, "env": env, "memory": memory_bytes})
    socket.send_fds(connection, [text.encode("utf-8", "surrogateescape")], files)
    return connection


def limit_memory(size_bytes: int | None) -> None:
    """What needs more fails."""
    if size_bytes:
        import resource  # no Windows has it

        resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))


def become(text: bytes, files: list[int]) -> None:
    """In the forked process: all that a fresh interpreter would have."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 100)
    wanted = json.loads(text.decode("utf-8", "surrogateescape"))
    limit_memory(wanted["memory"])
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.argv = wanted["argv"]
    encoding = sys.stdout.encoding
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding)
    out, err = (io.BufferedWriter(io.FileIO(fd, "w", closefd=False)) for fd in (1, 2))
    sys.stdout = io.TextIOWrapper(out, encoding)
    sys.stderr = io.TextIOWrapper(err, encoding, "backslashreplace", line_buffering=True)


def serve(path: str) -> None:
    """Fork for each request; it returns in the forked processes alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{path}.new")
    listener.listen(100)
    os.rename(f"{path}.new", path)  # who sees it can connect
    gc.collect()
    gc.freeze()  # what a command doesn't touch needn't be copied for it
    under_way: dict[int, tuple[int, socket.socket]] = {}  # pid and caller, by pidfd
    parent = os.getppid()
    while os.getppid() == parent:
        watched: list[socket.socket | int] = [listener, *under_way]
        ready = select.select(watched, [], [], 1.0)[0]
        for watch in [one for one in ready if isinstance(one, int)]:
            pid, caller = under_way.pop(watch)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            caller.send(str(status).encode())
            caller.close()
            os.close(watch)
        if listener in ready:
            caller = listener.accept()[0]
            text, files, _, _ = socket.recv_fds(caller, REQUEST_BYTES, 3)
            pid = os.fork()
            if pid == 0:
                for one in (listener, caller, *(one for _, one in under_way.values())):
                    one.detach()  # become() closes them
                become(text, files)
                return
            for file in files:
                os.close(file)
            caller.send(str(pid).encode())
            under_way[os.pidfd_open(pid)] = pid, caller
    os._exit(0)


if __name__ == "__main__":
    sys.path[0] = str(Path(sys.argv[1]).parent)
    import argparse  # noqa: F401
    import shutil  # noqa: F401
    import subprocess  # noqa: F401

    import psutil  # noqa: F401

    from simple_process_manager import main

    serve(sys.argv[2])
    main()
