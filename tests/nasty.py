"""A service with bad manners, chosen by switches; what isn't chosen, it doesn't do.

--port N             listen there (after --slow seconds) and answer HTTP
--ipv6               listen on ::1 instead of 127.0.0.1
--slow S             wait before listening
--ignore-term        ignore SIGTERM
--exit CODE          exit with this code after --after seconds
--signal N           kill itself with this signal after --after seconds
--after S            see --exit, --signal
--say TEXT           write this line first
--spam MB            write this many megabytes at 100 a second, say how long it took, and go on
--garbage            write bytes that aren't UTF-8
--child              a child process that sleeps
--setsid-child       a child in a session of its own that ignores SIGTERM
--daemon             a daemon: forked twice, in a session of its own, cookie kept
--scrubbed-daemon    the same without any environment
--pids FILE          write the pids of all of them there, one a line
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

SLEEPER = "import signal, time\nwhile True: time.sleep(60)"
STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--port", "--exit", "--signal", "--spam"):
        parser.add_argument(name, type=int)
    for name in ("--slow", "--after"):
        parser.add_argument(name, type=float, default=0.0)
    for name in ("--say", "--pids"):
        parser.add_argument(name, default="")
    for name in ("--ipv6", "--ignore-term", "--garbage", "--child", "--setsid-child"):
        parser.add_argument(name, action="store_true")
    for name in ("--daemon", "--scrubbed-daemon"):
        parser.add_argument(name, action="store_true")
    return parser.parse_args()


def note_pid(path: str, pid: int) -> None:
    if path:
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{pid}\n")


def daemonize(scrubbed: bool, path: str) -> None:
    """Fork, setsid, fork, exec: the second parent exits at once."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    note_pid(path, os.getpid())
    env = {} if scrubbed else dict(os.environ)
    os.execve(sys.executable, [sys.executable, "-S", "-c", STUBBORN], env)


def start_children(args: argparse.Namespace) -> None:
    if args.child:
        note_pid(args.pids, subprocess.Popen([sys.executable, "-S", "-c", SLEEPER]).pid)
    if args.setsid_child:
        stubborn = [sys.executable, "-S", "-c", STUBBORN]
        note_pid(args.pids, subprocess.Popen(stubborn, start_new_session=True).pid)
    if args.daemon:
        daemonize(False, args.pids)
    if args.scrubbed_daemon:
        daemonize(True, args.pids)


def serve(args: argparse.Namespace) -> None:
    import socketserver  # http.server takes longer than all else here

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            body = str(os.getpid()).encode()
            head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            with contextlib.suppress(ConnectionError):  # who only probes is gone
                while self.rfile.readline().strip():
                    continue
                self.wfile.write(head + body)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        address_family = socket.AF_INET6 if args.ipv6 else socket.AF_INET

    time.sleep(args.slow)
    Server(("::1" if args.ipv6 else "127.0.0.1", args.port), Answer).serve_forever()


def main() -> None:
    args = parse()
    if args.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note_pid(args.pids, os.getpid())
    start_children(args)
    if args.say:
        print(args.say, flush=True)
    if args.garbage:
        os.write(1, b"before \xff\xfe\x80 after\n")
    if args.port:
        threading.Thread(target=serve, args=(args,), daemon=True).start()
    if args.spam:
        block = b"x" * 99 + b"\n"
        began = time.monotonic()
        for tenth in range(args.spam * 10):
            os.write(1, block * 1000)
            time.sleep(max(0.0, began + tenth / 1000 - time.monotonic()))
        os.write(1, f"spam is over after {time.monotonic() - began:.3f} s\n".encode())
    if args.exit is not None or args.signal is not None:
        time.sleep(args.after)
        print("last words", flush=True)
        if args.signal is not None:
            os.kill(os.getpid(), args.signal)
        os._exit(args.exit or 0)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
