"""A service for the Windows tests: what it does is chosen by switches, else it sleeps.

--say TEXT   write this line           --bytes HEX  write these bytes
--argv       write its words, JSON     --port N     answer HTTP there
--child      a child that sleeps       --orphan     one whose parent has ended
--scrubbed   with --orphan: without its environment, so without our cookie
--lines N    write so many lines, 20 at a time
--ask        say whether it has a terminal, end with the code that is typed
--mark DIR   to be found in a list of processes
--exit CODE  end with this code, after --after S seconds
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import time

WORDS = sys.argv[1:]
SLEEP = "import time; time.sleep(300)"


def value(switch: str, default: str = "") -> str:
    """The word after a switch."""
    return WORDS[WORDS.index(switch) + 1] if switch in WORDS else default


def main() -> None:
    null, mark = subprocess.DEVNULL, value("--mark")
    if "--argv" in WORDS:
        print(json.dumps([WORDS, os.getcwd(), os.environ.get("PORT")]), flush=True)
    if "--say" in WORDS:
        print(value("--say"), flush=True)
    if "--ask" in WORDS:
        sys.exit(int(input(f"{sys.stdin.isatty()} {sys.stdout.isatty()}?")))
    if "--bytes" in WORDS:
        os.write(1, bytes.fromhex(value("--bytes")))
    for number in range(int(value("--lines", "0"))):
        print("line", number, flush=number % 20 == 19)
        time.sleep(0.01 * (number % 20 == 19))
    if "--child" in WORDS:
        subprocess.Popen([sys.executable, "-c", SLEEP, mark, "child"], stdin=null)
    if "--orphan" in WORDS:
        code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}, "
        code += f"{mark!r}, 'orphan'], stdin=-3, stdout=-3, stderr=-3)"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SPM_")}
        env = kept if "--scrubbed" in WORDS else None
        subprocess.run([sys.executable, "-c", code, mark], env=env, check=True)
        print("orphaned", flush=True)
    time.sleep(float(value("--after", "0")))
    if "--exit" in WORDS:
        sys.exit(int(value("--exit")))
    if "--port" in WORDS:
        address = ("127.0.0.1", int(value("--port")))
        http.server.HTTPServer(address, http.server.BaseHTTPRequestHandler).serve_forever()
    time.sleep(300)


main()
