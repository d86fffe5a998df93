"""A server that speaks JSON-RPC over its pipes, with bad manners chosen by switches.

--starts FILE      append its pid there
--modern           answer server/discover; refuse initialize, and what has no _meta
--supports V       answer server/discover in version V, else with -32022 that names it
--insists V        answer initialize in version V, else with -32602 that names it
--plain            JSON-RPC, but not MCP: no handshake, every method is an echo of its params
--die-on-probe     exit when it is asked server/discover
--silent           leave server/discover without an answer
--mute             leave everything without an answer
--noise            write to stdout what is no message
--twice            answer everything twice
--wrong-ids        answer with another id first
--ignore-end       go on when stdin ends, and ignore SIGTERM
--deaf FILE        leave everything without an answer while FILE exists
--batch            write its answers as batches of one
--slow-list        think for half a second before it lists its tools
--die-once FILE    die when it is asked anything after the handshake, unless FILE exists
--needs FILE       end at once, unless FILE exists
--times N          with --die-once: unless FILE has N bytes; a byte is added each time
--pages            list the tools in three pages, the second of which is empty

Its tools: echo, slow, die, sample, progress, announce, big, cancelled, pid; regret asks a question
and takes it back, parting answers when stdin has ended, wide answers in UTF-8, watched tells of
the resources that it was asked to watch, levels of those of its log that it was asked for; close
closes a descriptor and lives on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any

LOCK = threading.Lock()
SWITCHES = set(sys.argv[1:])
CANCELLED: list[object] = []
PARTING: list[object] = []
WATCHED: list[str] = []
LEVELS: list[str] = []
ANSWERS: dict[object, Any] = {}
NOTES = {"readOnlyHint": True}
TOOLS = ["echo", "slow", "die", "sample", "progress", "announce", "big", "cancelled", "pid"]


def say(message: object) -> None:
    document = [message] if "--batch" in SWITCHES else message
    with LOCK:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def reply(id_: object, **body: object) -> None:
    if "--wrong-ids" in SWITCHES:
        for wrong in (None, -1, 10**6, str(id_), [id_], True):
            say({"jsonrpc": "2.0", "id": wrong, **body})
    if "--noise" in SWITCHES:
        with LOCK:
            print('hello\n"text"\n[1]\n{"level": "info"}\n{"half', flush=True)
    for _ in range(1 + ("--twice" in SWITCHES)):
        say({"jsonrpc": "2.0", "id": id_, **body})


def text(id_: object, words: str, **more: object) -> None:
    reply(id_, result={"content": [{"type": "text", "text": words}], **more})


def ask(method: str, params: dict[str, object]) -> Any:
    key = f"s{time.monotonic_ns()}"
    say({"jsonrpc": "2.0", "id": key, "method": method, "params": params})
    while key not in ANSWERS:
        time.sleep(0.002)
    return ANSWERS[key]


def run_tool(id_: object, params: dict[str, Any]) -> None:
    name, given = params.get("name"), params.get("arguments") or {}
    if name == "echo":
        text(id_, given.get("message", ""))
    elif name == "slow":
        time.sleep(given.get("seconds", 0.2))
        text(id_, given.get("message", "slow"))
    elif name == "die":
        print("dying words", file=sys.stderr, flush=True)
        os._exit(given.get("code", 3))
    elif name == "sample":
        answer = ask(given.get("method", "sampling/createMessage"), {"messages": []})
        text(id_, json.dumps(answer), isError="error" in answer)
    elif name == "progress":
        token = params.get("_meta", {}).get("progressToken")
        token = float(token) if given.get("float") else token
        for step in range(given.get("steps", 3)):
            note = {"progressToken": token, "progress": step}
            say({"jsonrpc": "2.0", "method": "notifications/progress", "params": note})
            time.sleep(given.get("pause", 0.01))
        text(id_, "done")
    elif name == "announce":
        levels = given.get("levels", ["info"]) * given.get("count", 1)
        for number, level in enumerate(levels):
            note = {"level": level, "data": "x" * given.get("size", 1), "number": number}
            say({"jsonrpc": "2.0", "method": "notifications/message", "params": note})
            time.sleep(given.get("pause", 0))
        text(id_, "announced")
    elif name == "big":
        text(id_, "x" * given["size"])
    elif name == "wide":
        content = [{"type": "text", "text": "я" * given["size"]}]
        message = {"jsonrpc": "2.0", "id": id_, "result": {"content": content}}
        with LOCK:
            sys.stdout.buffer.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
            sys.stdout.buffer.flush()
    elif name == "close":
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, given["descriptor"])
        text(id_, "closed")
        time.sleep(60)
    elif name == "levels":
        text(id_, " ".join(LEVELS))
    elif name == "watched":
        text(id_, json.dumps(WATCHED))
    elif name == "cancelled":
        text(id_, json.dumps(CANCELLED))
    elif name == "needs":
        time.sleep(given.get("pause", 0))
        given_so_far = params.get("inputResponses")
        if given_so_far and "method" not in given:
            able = params["_meta"]["io.modelcontextprotocol/clientCapabilities"]
            seen = {"roots": given_so_far, "state": params.get("requestState"), "able": able}
            text(id_, json.dumps(seen))
        else:
            asked = {"method": given.get("method", "roots/list"), "params": {"message": "how many"}}
            wanted = {"inputRequests": {"a": asked}} if not given.get("waits") else {}
            reply(id_, result={"resultType": "input_required", "requestState": "s", **wanted})
    elif name == "regret":  # the SDKs count their own questions, too
        say({"jsonrpc": "2.0", "id": id_, "method": "sampling/createMessage", "params": {}})
        note = {"requestId": id_}
        say({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": note})
        text(id_, "no matter")
    elif name == "parting":
        PARTING.append(id_)
    elif name == "broken":
        reply(id_, error={"code": -32603, "message": "Internal error"})
    elif name == "old":
        done = [{"type": "text", "text": "done"}]
        reply(id_, result={"content": done}, error=None)
    elif name == "float":
        reply(float(id_), result={"content": []})  # type: ignore[arg-type]
    elif name == "last":
        content = [{"type": "text", "text": "the end"}]
        with LOCK:  # nothing comes behind it
            print(end=json.dumps({"jsonrpc": "2.0", "id": id_, "result": {"content": content}}))
            sys.stdout.flush()
            os._exit(0)
    elif name == "turn":
        NOTES["readOnlyHint"] = False
        say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        text(id_, "turned")
    elif name == "refused":
        data = given.get("data", {"cause": "ECONNREFUSED"})
        reply(id_, error={"code": -32000, "message": "no database", "data": data})
    elif name == "terse":
        reply(id_, error="out of paper")
    elif name == "pid":
        text(id_, str(os.getpid()))
    else:
        reply(id_, error={"code": -32602, "message": f"Unknown tool: {name}"})


def die_once(method: object) -> None:
    path = sys.argv[sys.argv.index("--die-once") + 1]
    times = int(sys.argv[sys.argv.index("--times") + 1]) if "--times" in SWITCHES else 1
    greeting = ["server/discover", "initialize", "notifications/initialized", "tools/list"]
    greeting += ["ping"] * ("--plain" not in SWITCHES)  # whether it is ready
    if method not in greeting:
        with open(path, "a", encoding="utf-8") as file:
            if file.tell() < times:
                file.write("x")
                file.flush()
                os._exit(3)


def handle(message: dict[str, Any]) -> None:
    method, id_, params = message.get("method"), message.get("id"), message.get("params", {})
    if "--die-once" in SWITCHES:
        die_once(method)
    if "--deaf" in SWITCHES and os.path.exists(sys.argv[sys.argv.index("--deaf") + 1]):
        return
    if method == "notifications/cancelled":
        CANCELLED.append(params.get("requestId"))
    if "--plain" in SWITCHES:
        if "id" in message:
            with contextlib.suppress(RecursionError):
                reply(id_, result={"method": method, "params": params})
    elif method is None:
        ANSWERS[id_] = message
    elif method == "server/discover":
        if "--die-on-probe" in SWITCHES:
            os._exit(7)
        version = sys.argv[sys.argv.index("--supports") + 1] if "--supports" in SWITCHES else ""
        asked = params["_meta"]["io.modelcontextprotocol/protocolVersion"]
        if version and version != asked:
            data = {"supported": [version], "requested": asked}
            reply(id_, error={"code": -32022, "message": "Unsupported", "data": data})
        elif version:
            reply(id_, result={"supportedVersions": [version], "instructions": "be brief"})
        elif "--modern" in SWITCHES:
            info: object = {
                "io.modelcontextprotocol/serverInfo": {"name": "modern", "version": "9"}
            }
            able: object = {
                "logging": {},
                "resources": {"subscribe": True},
                "tools": {"listChanged": True, "other": True},
            }
            found = {"supportedVersions": ["2026-07-28"], "capabilities": able, "_meta": info}
            reply(id_, result=found)
        elif "--silent" not in SWITCHES:
            reply(id_, error={"code": -32601, "message": "Method not found"})
    elif method == "initialize" and "--modern" not in SWITCHES:
        insists = sys.argv[sys.argv.index("--insists") + 1] if "--insists" in SWITCHES else ""
        known: dict[str, object] = {"protocolVersion": insists or "2025-06-18", "capabilities": {}}
        known["serverInfo"] = {"name": "rpc", "version": "1"}
        if insists and params["protocolVersion"] != insists:
            data = {"supported": ["1999-01-01", insists], "requested": params["protocolVersion"]}
            text_ = "Unsupported protocol version"
            reply(id_, error={"code": -32602, "message": text_, "data": data})
        else:
            reply(id_, result=known)
    elif "--modern" in SWITCHES and id_ is not None and "_meta" not in params:
        reply(id_, error={"code": -32602, "message": "_meta is missing"})
    elif method in ("ping", "prompts/list"):
        reply(id_, result={})
    elif method == "tools/list":
        time.sleep(0.5 * ("--slow-list" in SWITCHES))
        noted = {"echo": NOTES, "pid": NOTES}
        tools = [{"name": name, "annotations": noted.get(name, {})} for name in TOOLS]
        fields = {"message": {"type": "string"}, "times": {"type": "integer"}}
        tools[0]["inputSchema"] = {"properties": fields, "required": ["message"]}
        more = {"nextCursor": "2"} if "--same-page" in SWITCHES else {}
        if "--pages" in SWITCHES:
            page = int(params.get("cursor", "0"))
            tools = (tools[:2], [], tools[2:])[page]
            more = {"nextCursor": str(page + 1)} if page < 2 else {}
        reply(id_, result={"tools": tools, **more})
    elif method == "logging/setLevel":
        LEVELS.append(params["level"])
        reply(id_, result={})
    elif method == "resources/subscribe":
        WATCHED[:] = {*WATCHED, params["uri"]}
        reply(id_, result={})
    elif method == "resources/unsubscribe":
        WATCHED.remove(params["uri"])
        reply(id_, result={})
    elif method == "subscriptions/listen" and params.get("lasts"):
        meta = {"_meta": {"io.modelcontextprotocol/subscriptionId": id_}}
        say(
            {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": meta}
        )
    elif method == "subscriptions/listen":
        meta = {"_meta": {"io.modelcontextprotocol/subscriptionId": id_}}
        say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": meta})
        reply(id_, result=meta)
    elif method == "tools/call":
        if params.get("name") in ("echo", "big", "close"):
            run_tool(id_, params)
        else:
            threading.Thread(target=run_tool, args=(id_, params), daemon=True).start()
    elif id_ is not None:
        reply(id_, error={"code": -32601, "message": "Method not found"})


def main() -> None:
    if "--needs" in SWITCHES and not os.path.exists(sys.argv[sys.argv.index("--needs") + 1]):
        sys.exit("it needs something")
    if "--starts" in sys.argv:
        with open(sys.argv[sys.argv.index("--starts") + 1], "a", encoding="utf-8") as file:
            print(os.getpid(), file=file)
    for line in sys.stdin:
        if "--mute" not in SWITCHES:
            with contextlib.suppress(RecursionError):
                handle(json.loads(line))
    for id_ in PARTING:
        text(id_, "x" * 2_000_000)
    if "--ignore-end" in SWITCHES:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
