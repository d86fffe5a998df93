#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
# /// script
# requires-python = ">=3.9"
# dependencies = ["psutil>=6.0"]
# ///
# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the simple_process_manager authors
"""Start background services, know whether they are really up, stop all of them and nothing else.

    $ python simple_process_manager.py start api "uvicorn main:app --port 8000"
    [OK] api started (pid 812, port 8000 recognised in the command), log: .spm/…/output.log
    $ python simple_process_manager.py wait-healthy 8000 30
    [OK] api answers on 127.0.0.1:8000 after 0.42 s (pid 812)
    $ python simple_process_manager.py stop api
    [OK] api stopped in 0.11 s (exit code 0, 1 process ended); port 8000 is free

The rooms of this file, in reading order; each uses itself and those above it:

    Errors        one class for each exit code
    Values        durations, names, Spec, Record and their JSON
    Platform      everything that differs by operating system, and nothing else
    Processes     identity, tree, kill plan, who listens on a port
    Store         the state directory
    Probes        does something answer on a port
    Policies      pure decisions: status, differences, waiting intervals
    Supervisor    the loop of one service
    Relay         JSON-RPC over the pipes of a service, for many callers
    Config        spm.json: one table for options, keys and schema; files become specs
    Commands      one function a command: takes arguments, returns a Result, prints nothing
    Command line  parsers, rendering, errors to exit codes, main()

The way of one service:

    main(argv) ─▶ start ─▶ intent in state.json
                    │ launches; one JSON line over stdin ──▶ Supervisor (own session, subreaper)
                    ◀── one over stdout: started / failed ──── │ spawns ─▶ service (own session)
    list, status ─▶ read state.json, look at /proc             │ waits, records the exit
    stop, touch ──▶ services/NAME/control.sock ──────────────▶ │ ends the tree, answers, leaves

The state directory (--home, else SPM_HOME, else the nearest .spm/, else .spm/ in the project root):

    state.json              every service: what was asked (spec) and what is (record)
    lock                    held for each read-change-write of state.json
    lock.up, lock.up.by     held by the `up` or `down` that is under way, and who that is
    versions/NNNN.json      each configuration that was applied, mode 0600: what came of it, and
                            the journal of an `up` that was killed
    versions/NNNN-TIME.json a spm.json that was replaced after version NNNN, byte for byte
    cache/                  compiled form of this file, from which supervisors start
    services/NAME/lock      held by the command that starts or stops NAME
    services/NAME/supervisor.lock   held by the supervisor for as long as it lives
    services/NAME/control.sock      JSON lines: stop, status, touch, settings, watch, join …
    services/NAME/env.json          values given by --env K=V, digests of env files, mode 0600
    services/NAME/output.log[.1]    stdout and stderr of the service
    services/NAME/events.jsonl      what happened and why: the journal state.json is rebuilt from
    services/NAME/exits.jsonl       failed exits, their causes and last lines, secrets masked
    services/NAME/metrics.jsonl     samples: how much was written by when, what the tree used

Exit codes: 0 ok, 1 failed, 2 usage, 3 not_found, 4 start_failed, 5 port_conflict, 6 config,
7 cooldown, 8 refused, 9 state, 124 timeout, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path[:1] == [os.path.dirname(os.path.normpath(__file__))]:
    del sys.path[0]  # the user's repository: its queue.py must not shadow the standard library's

import _thread
import contextlib
import errno
import functools
import itertools
import time

TYPE_CHECKING = False  # type checkers take this name for true; importing typing takes 2 ms
if TYPE_CHECKING:
    import argparse
    import codecs
    import ctypes
    import json
    import pathlib
    import pwd
    import re
    import secrets
    import select
    import selectors
    import shlex
    import shutil
    import signal
    import socket
    import struct
    import subprocess
    import tempfile
    import termios
    import threading
    import tty
    import types
    import zlib
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from typing import NamedTuple, NoReturn, Protocol, TextIO, TypeVar

    import psutil

    Kind = Callable[[object, str], object]
    Message = dict[str, object]  # of JSON-RPC
    Ask = Callable[["Checks", "Check", float], "Sight"]  # who looks where a check itself can't
    Env = Mapping[str, str]
    Over = Callable[[], bool]  # whether there is nothing more to wait for
    Schema = Mapping[str, object]  # of JSON
    Owner = tuple["Identity | None", str]  # a process and its name; None: nobody
    Parse = Callable[[str], object]
    Lacking = Callable[["Iterable[Wanted]"], "Sequence[Problem]"]  # what is, for services
    Run = Callable[["Store", argparse.Namespace], "Result"]  # a command
    Stopped = tuple["Record", "Ended | None"]  # afterwards; what had to be ended, None: nothing
    Described = tuple[str, "Spec", Mapping[str, str]]  # its name, its spec, what it depends on
    Made = TypeVar("Made", bound=NamedTuple)
    Given = TypeVar("Given")
    Ends = tuple[int, int, int]  # a supervisor's pid, where to write its order and read its answer
else:
    from operator import itemgetter

    class Late:
        """A module that is imported when it is first used: each takes milliseconds."""

        def __init__(self, name):
            self.name = name

        def __getattr__(self, wanted):
            module = globals()[self.name] = __import__(self.name)
            return getattr(module, wanted)

    LATE = "argparse codecs ctypes json pathlib psutil pwd re secrets select selectors"
    LATE += " shlex shutil signal socket struct subprocess tempfile termios threading tty zlib"
    for _name in LATE.split():
        globals()[_name] = Late(_name)

    class NamedTuple(tuple):
        """What is used here of typing.NamedTuple, which takes 0.2 ms a class: 4 ms a command."""

        __slots__ = ()

        def __init_subclass__(cls):
            cls._fields = tuple(cls.__annotations__)
            cls._field_defaults = {k: vars(cls)[k] for k in cls._fields if k in vars(cls)}
            for index, name in enumerate(cls._fields):
                setattr(cls, name, property(itemgetter(index)))

        def __new__(cls, *values, **named):
            """A tuple of the fields, given by position or name."""
            if not named and len(values) == len(cls._fields):
                return tuple.__new__(cls, values)
            given = {**cls._field_defaults, **dict(zip(cls._fields, values)), **named}
            if len(given) != len(cls._fields) or len(values) > len(given):
                raise TypeError(f"{cls.__name__} has the fields {', '.join(cls._fields)}")
            return cls._make([given[name] for name in cls._fields])

        @classmethod
        def _make(cls, values):
            return tuple.__new__(cls, values)

        def _asdict(self):
            return dict(zip(self._fields, self))

        def _replace(self, **named):
            return type(self)(**{**self._asdict(), **named})

        def __repr__(self):
            return f"{type(self).__name__}({self._asdict()})"


__version__ = "1.0.0"

# == Errors ========================================================================================
# One class for each exit code. A message says what, on which object and what was seen; the advice
# says what to do next. Nobody matches on a message.


def cut(line: object) -> str:
    """A quoted line, 500 characters of it at most; one that was cut stays as it is."""
    text = str(line)
    return text if len(text) < 550 else f"{text[:500]}… {len(text) - 500} more characters"


class SpmError(Exception):
    """A command failed: `kind` and `exit_code` are the contract, `facts` go into the JSON."""

    kind, exit_code, retryable = "failed", 1, False

    def __init_subclass__(cls, kind: str, exit_code: int, retryable: bool = False) -> None:
        cls.kind, cls.exit_code, cls.retryable = kind, exit_code, retryable

    def __init__(self, message: str, advice: str = "", **facts: object) -> None:
        super().__init__(message)
        tail = facts.get("log_tail")  # `logs` has each line whole
        facts.update({"log_tail": list(map(cut, tail))} if isinstance(tail, list) else {})
        self.message, self.advice, self.facts = message, advice, facts

    def to_json(self) -> dict[str, object]:
        """The `error` object of a failed command's JSON document."""
        known = {"kind": self.kind, "message": self.message, "advice": self.advice}
        return {**known, "retryable": self.retryable, **self.facts}


class Failed(SpmError, kind="failed", exit_code=1):
    """It ran and failed."""


class UsageError(SpmError, kind="usage", exit_code=2):
    """Bad arguments or values."""


class NotFound(SpmError, kind="not_found", exit_code=3):
    """No such service, or it isn't running."""


class StartFailed(SpmError, kind="start_failed", exit_code=4):
    """The command could not be executed."""


class PortConflict(SpmError, kind="port_conflict", exit_code=5, retryable=True):
    """The port is somebody else's."""


class ConfigError(SpmError, kind="config", exit_code=6):
    """Configuration or environment is invalid."""


class Cooldown(SpmError, kind="cooldown", exit_code=7, retryable=True):
    """It failed just now: a start is refused for a while."""


class Refused(SpmError, kind="refused", exit_code=8):
    """It would touch what isn't ours, or replace what runs."""


class StateError(SpmError, kind="state", exit_code=9):
    """The state directory can't be read or written; retryable: what is short may be there later."""


class TimedOut(SpmError, kind="timeout", exit_code=124, retryable=True):
    """Not in the time given."""


class Interrupted(SpmError, kind="interrupted", exit_code=130, retryable=True):
    """Ctrl-C, or a signal that asks to leave as that does."""

    @classmethod
    def by(cls, asked: KeyboardInterrupt, text: str, advice: str, **facts: object) -> Interrupted:
        """The error that tells of it."""
        number = signal.Signals(getattr(asked, "number", signal.SIGINT))
        error = cls(text, advice, signal=number.name, **facts)
        error.exit_code = 128 + number
        return error


class Leave(KeyboardInterrupt):
    """A signal asks us to leave: no error that is taken for a service's, and no Exception."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.name = number, signal.Signals(number).name


ERRORS: dict[str, type[SpmError]] = {cls.kind: cls for cls in SpmError.__subclasses__()}

# == Values ========================================================================================
# Durations, sizes, names, ports, and the records with their JSON. Pure: nothing reads or writes.
# from_json trusts nobody: it returns a valid value or raises RecordError with the field's path.

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
# Devices of Windows, what it cuts off; and where a name is asked for digits alone may be a port.
NO_NAME = r"(?i)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?|.*\.|[0-9]+"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_.]*"
PORT_MARK = r"(?<!\$){port}"  # ${port} is a variable of a shell's
DURATION = r"(?a)(\d+(?:\.\d+)?)(ms|s|m|h|)"
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
LEASE = r"forever|session|[0-9]+"
LEASES = f"{DURATION}|{LEASE}"
NOTICES = ("ready", "alive", "stopped")
LONGEST_S = 10 * 365 * 86400.0  # ten years: what comes after must still fit the system's clocks
SIZE = r"(?a)(\d+)(B|[kK]B|MB|GB|KiB|MiB|GiB|)"
SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "kB": 10**3, "MB": 10**6, "GB": 10**9}
SIZE_UNITS.update({"KiB": 2**10, "MiB": 2**20, "GiB": 2**30})


def parse_duration(text: str) -> float:
    """Seconds of `500ms`, `30s`, `2m`, `1h`, or plain; UsageError unless positive and finite."""
    match = re.fullmatch(DURATION, text.strip())
    seconds = float(match[1]) * DURATION_UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST_S:
        advice = "write 500ms, 30s, 2m, 1h or seconds"
        raise UsageError(f"{text!r} is not a duration above 0", advice)
    return seconds


def lease_s(lease: str) -> float | None:
    """Seconds of a lease that is a duration, None for the others; a plain number is a pid."""
    return None if re.fullmatch(LEASE, lease) else parse_duration(lease)


def parse_size(text: str) -> int:
    """Bytes of `500kB`, `10MB`, `1GiB` or a plain number; UsageError unless at least 1 kB."""
    match = re.fullmatch(SIZE, text.strip())
    size = int(match[1]) * SIZE_UNITS[match[2]] if match and len(match[1]) < 16 else 0
    if not 1000 <= size <= 2**60:
        raise UsageError(f"{text!r} is not a size of at least 1 kB", "write 500kB, 10MB or 1GiB")
    return size


def parse_count(text: str) -> int:
    """A number from 0 on, or UsageError."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"{text!r} is not a number from 0 on", "write for example 100")
    return int(text)


def checked(fits: Callable[[str], object], fault: str, advice: str) -> Callable[[str], str]:
    """A parser that returns the text itself if it fits, else raises UsageError."""

    def parse(text: str) -> str:
        if fits(text):
            return text
        raise UsageError(f"{text!r} {fault}", advice)

    return parse


parse_lease = checked(
    lambda text: re.fullmatch(LEASES, text) and (lease_s(text) or True),
    "is no lease",
    "write forever, session, a duration with its unit such as 2h, or a PID",
)


def is_name(text: str) -> bool:
    """Whether a service may be called so."""
    return bool(re.fullmatch(NAME, text)) and not re.fullmatch(NO_NAME, text)


check_name = checked(
    lambda text: is_name(text) or re.fullmatch("[0-9]{1,64}", text),  # of an earlier version
    "is not a service name",
    "use 1 to 64 letters, digits, '.', '_', '-', and begin with a letter or digit; no device of "
    "Windows (con, nul, aux, prn, com1, lpt1 …), no '.' at the end",
)
check_new_name = checked(
    is_name,
    "is no service name but a port",
    "write a name with a letter in it, and declare the port: --port N",
)
TYPES = ("simple", "forking", "stdio", "external")
RESTARTS = ("no", "on-failure", "always")
PROTOCOLS = ("auto", "modern", "handshake", "jsonrpc")


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser of one of these words."""
    return checked(choices.__contains__, f"isn't one of {', '.join(choices)}", "write one of these")


def codes_of(text: str) -> set[int]:
    """The exit codes of `0,143,SIGINT`: of signal n 128+n, as a shell reports it."""
    known, words = signal.Signals.__members__, [word.strip() for word in text.split(",")]
    numbers = {int(word) for word in words if word.isdecimal() and len(word) < 11}
    return numbers | {128 + known[word] for word in words if word in known}


parse_codes = checked(
    lambda text: not text or all(map(codes_of, text.split(","))),
    "are no exit codes",
    "write for example 0,143 or 0,SIGTERM",
)


def parse_pause(text: str) -> float:
    """Seconds of a duration, or 0 in whatever unit: none."""
    match = re.fullmatch(DURATION, text.strip())
    return 0.0 if match and not float(match[1]) else parse_duration(text)


def is_pattern(value: object) -> bool:
    """Whether it is a regular expression."""
    with contextlib.suppress(re.error, RecursionError, OverflowError):
        return isinstance(value, str) and bool(re.compile(value))
    return False


parse_pattern = checked(
    is_pattern, "is no regular expression", "write what re.search() understands"
)


def as_port(text: str) -> int | None:
    """The port number that `text` is, else None."""
    port = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    return port if 1 <= port <= 65535 else None


def parse_port(text: str) -> int:
    """A port from 1 to 65535, or UsageError."""
    port = as_port(text)
    if port is None:
        raise UsageError(f"{text!r} is not a port", "a port is a number from 1 to 65535")
    return port


def parse_port_or_auto(text: str) -> int | str:
    """A port, or `auto`."""
    return text if text == "auto" else parse_port(text)


URL = r"(https?)://(\[[\da-fA-F:.]+\]|[^\s/:?#@[\]]+)(?::(\d{1,5}))?([/?][^\s#]*)?(?:#\S*)?"
URL_PORTS = {"http": "80", "https": "443"}
CHECKS = "tcp, tcp:PORT, http, http:/PATH, a URL, log:REGEX, exec:COMMAND or mcp"
EXPECTED = r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?"


class Check(NamedTuple):
    """One thing that must hold before a service counts as healthy."""

    kind: str  # tcp, http, https, log, exec or mcp
    text: str = ""  # of http the path, of log the pattern, of exec the command
    host: str = ""  # of a URL; none: wherever the service listens
    port: int | None = None  # none: the service's own


def parse_url(text: str) -> Check | None:
    """The check that a URL asks for, None if `text` isn't a URL."""
    match = re.fullmatch(URL, text)
    port = as_port(match[3] or URL_PORTS[match[1]]) if match else None
    if match is None or port is None:
        return None
    path, host = match[4] or "/", match[2].strip("[]").lower()
    host = "localhost" if host in ("0.0.0.0", "::") else host  # as servers print it
    return Check(match[1], path if path[0] == "/" else f"/{path}", host, port)


def parse_check(text: str) -> Check:
    """The check of `tcp[:PORT]`, `http[:PATH]`, a URL, `log:REGEX`, `exec:COMMAND` or `mcp`."""
    kind, colon, rest = text.partition(":")
    url = parse_url(text)
    if url:
        return url
    if kind == "tcp" or text == "mcp":
        return Check(kind, port=parse_port(rest) if colon else None)
    if kind == "http" and not re.search(r"^//|\s", rest):
        return Check(kind, rest if rest[:1] == "/" else f"/{rest}")
    if kind not in ("log", "exec") or not rest.strip():
        raise UsageError(f"{text!r} is not a check", f"write {CHECKS}")
    return Check(kind, parse_pattern(rest) if kind == "log" else rest)


parse_expect = checked(
    lambda text: re.fullmatch(rf"{EXPECTED}(?:, *{EXPECTED})*", text),
    "are no http statuses",
    "write for example 200,204 or 200-399",
)


def is_expected(status: int, expect: str) -> bool:
    """Whether a status is among the expected codes and ranges."""
    ranges = re.findall(EXPECTED, expect)
    return any(int(low) <= status <= int(high or low) for low, high in ranges)


parse_required = checked(
    lambda text: re.match(rf"{VARIABLE}(=|$)", text) and is_pattern(text.partition("=")[2]),
    "is neither NAME nor NAME=REGEX",
    "write for example PORT=[0-9]+",
)


def format_duration(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3 m 4 s`, `2 h 5 m`, `3 d 4 h`."""
    if seconds < 60:
        return f"{max(seconds, 0):.2f} s" if seconds < 9.995 else f"{int(seconds)} s"
    units = (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))
    unit, size, lower, lower_size = next(row for row in units if seconds >= row[1])
    return f"{seconds // size:.0f} {unit} {seconds % size // lower_size:.0f} {lower}"


def format_bytes(size: float) -> str:
    """`512 B`, `43.1 MB`, `120 MB`."""
    unit = next((unit for unit in ("GB", "MB", "kB") if size >= SIZE_UNITS[unit]), "B")
    value = size / SIZE_UNITS[unit]
    return f"{value:.1f} {unit}" if value < 100 and unit != "B" else f"{value:.0f} {unit}"


def counted(number: int, noun: str) -> str:
    """`1 process`, `3 processes`, `2 services`."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


# Signs of a port in a command, the most reliable first; its words are joined by NUL.
PORT_SIGNS = (
    r"\0--port[=\0](\d{1,5})(?=\0)",
    r"\0(?:-p|http\.server)\0(\d{1,5})(?=\0)",
    r"\0PORT=(\d{1,5})(?=\0)",
    r"[\0=](?!\d+:\d)(?:(?:https?|tcp)://)?(?:[^\0\s/:=[\]]*|\[[^\0\]]*\]):(\d{1,5})(?:/[^\0]*)?(?=\0)",
)
# Another process than theirs listens on the ports they name.
NO_PORT_PROGRAMS = ("docker", "podman", "nerdctl", "docker-compose", "kubectl", "ssh")


def recognise_port(words: Sequence[str], signs: Sequence[str] = PORT_SIGNS) -> int | None:
    """The port a command seems to listen on: `--port N`, `--port=N`, `-p N`, `PORT=N`, `:N`."""
    if words and os.path.basename(words[0]).lower().removesuffix(".exe") in NO_PORT_PROGRAMS:
        return None
    text = "\0".join(("", *words, ""))
    found = (as_port(match[1]) for sign in signs for match in re.finditer(sign, text))
    return next((port for port in found if port), None)


ENV_LINE = rf"(?s)\s*(?:export\s+)?({VARIABLE})\s*=(.*)"
ENV_QUOTED = r"""(?:"((?:[^"\\]|\\.)*)"|'([^']*)')(?:\s+#.*)?"""
ENV_COMMENT = r"(?:^|\s)#.*"
ENV_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def parse_env_text(text: str, source: str) -> dict[str, str]:
    """The variables of a dotenv text: quotes, export, comments; ConfigError names the bad line."""
    # The line itself is never shown: it may hold a secret.
    values: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(ENV_LINE, line)
        value = _env_value(match[2].strip()) if match else None
        if match is None or value is None:
            advice = "write NAME=value, NAME='value' or NAME=\"value\"; a comment begins with #"
            raise ConfigError(f"{source}, line {number}: not NAME=value", advice)
        values[match[1]] = value
    return values


def _env_value(text: str) -> str | None:
    if "\0" in text or text[:1] not in ('"', "'"):
        return None if "\0" in text else re.sub(ENV_COMMENT, "", text).rstrip()
    match = re.fullmatch(ENV_QUOTED, text)
    if match is None or match[1] is None:
        return match and match[2]
    return re.sub(r"\\(.)", lambda found: ENV_ESCAPES.get(found[1], found[1]), match[1])


SECRET_WORDS = r"token|secret|passw|passphrase|_pass\b|pwd|(?:api|access|private)[_-]?key"
SECRET_NAME = rf"(?i:[\w.-]{{,40}}(?:{SECRET_WORDS})[\w.-]{{,40}})"
SECRET_NOUN = r"\b(?i:token|key|secret|password)"
# a quote inside may be escaped, and the one at the end missing: the line was cut before
QUOTATION = r"""(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?)"""
VALUE = rf"""(?:{QUOTATION}+|[^\s"',;&]+)"""
NO_VALUE = (  # `TOKEN: not set`; as problems of configurations are told: `env.TOKEN: T is not set`
    r"(?!(?i:not|is|parameter|unbound|bearer|basic)\s|\$\{\w+\}\s"
    r"|\w+ (?:is (?:not set|empty|shorter)|doesn't match)\b)"
)
SECRETS = (  # the first group is shown, the rest isn't
    rf"({SECRET_NAME}[\"']?\s*[=:]\s*){NO_VALUE}{VALUE}",
    rf"(--{SECRET_NAME}\s+|{SECRET_NOUN}\s+(?=\S*\d)(?=\S{{20}}))(?:{QUOTATION}+|\S+)",
    r"(\b(?i:bearer|basic)\s+)[\w.~+/=-]{6,}",
    r"(://[^\s/:@]*:)[^\s/]+(?=@)",
    r"(\b(?:[sp]k-|gh[a-z]_|github_pat_|glpat-|xox[a-z]-|AKIA|AIza|npm_|eyJ))[\w.-]{10,}",
)
# without one of these no pattern fits; compiling them takes 3 ms
SECRET_HINTS = "token secret passw passphrase _pass pwd key bearer basic :// k- gh pat_ glpat xox "
SECRET_HINTS += "akia aiza npm_ eyj"


def mask_secrets(text: str) -> str:
    """The text with what looks like a key, token or password replaced by `…`."""
    folded = text.casefold()
    for pattern in SECRETS if any(hint in folded for hint in SECRET_HINTS.split()) else ():
        text = re.sub(pattern, r"\1…", text)
    return text


def masked_line(line: str) -> str:
    """A line for a page: secrets masked, 200 characters at most."""
    return mask_secrets(line[:300])[:200]


RULED = ("cpu", "memory_mb", "processes", "threads", "files", "probe_ms", "call_errors")
METRICS = (*RULED, "restarts")


class Rule(NamedTuple):
    """When a figure is an alert, and what is done about it."""

    text: str
    metric: str
    sign: str  # > or <
    limit: float
    for_s: float
    severity: str
    action: str  # log, restart, stop or exec COMMAND
    every_s: float  # it acts at most so often


RULE_TIME = r"((?=[0-9.]*[1-9])[0-9]{1,6}(?:\.[0-9]{1,3})?(?:ms|s|m|h)?)(?![\w.])"
ACTION = r"(?:log|restart|stop)\b|exec\s+\S.*?(?=\s+every\s+\S+\s*$|\s*$)"
# It matches as much of a text as is a rule.
RULE = (
    rf"\s*(?:({'|'.join(RULED)})\s*(?:([<>])\s*(?:([0-9]{{1,12}}(?:\.[0-9]{{1,9}})?)(?![\w.])"
    rf"(?:\s+for\s+{RULE_TIME})?(?:\s+(info|warning|critical)\b)?(?:\s*:\s*({ACTION}))?"
    rf"(?:\s+every\s+{RULE_TIME})?)?)?)?\s*"
)
RULE_FORM = "METRIC>NUMBER [for D] [info|warning|critical] [: log|restart|stop|exec …] [every D]"


def parse_rule(text: str) -> Rule:
    """The rule that a text is; UsageError, with the position from which on it is none."""
    match = re.match(RULE, text)
    assert match  # of nothing, if need be
    metric, sign, limit, for_d, severity, action, every_d = match.groups()
    if limit is None or match.end() < len(text):
        advice = f"write {RULE_FORM}; a metric is one of {', '.join(RULED)}"
        raise UsageError(f"{text!r} is no alert: wrong at position {match.end() + 1}", advice)
    for_s, every_s = (parse_duration(one) if one else 0.0 for one in (for_d, every_d))
    what = severity or "warning", action or "log"
    return Rule(text.strip(), metric, sign, float(limit), for_s, *what, every_s or 300.0)


NOTHING: Mapping[str, object] = {}
NO_RULES: Mapping[str, Mapping[str, object]] = {}


class RecordError(ValueError):
    """A document isn't what it should be; the message begins with the field's path."""


def parse_json(text: str | bytes) -> object:
    """The value of a JSON text; ValueError, and nothing else, if it is none."""
    try:
        value: object = json.loads(text)
    except RecursionError as error:
        raise RecordError("nested too deeply") from error
    return value


def is_instance(value: object) -> bool:
    """Whether it can be that of a start: an empty one is "the same" as having no cookie."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w-]+(\.[\w-]+)*", value))


def _kind(expected: str, fits: Callable[[object], bool]) -> Kind:
    def kind(value: object, path: str) -> object:
        if not fits(value):
            raise RecordError(f"{path}: {expected} was expected")
        return value

    return kind


def _list_of(kind: Kind) -> Kind:
    def listed(value: object, path: str) -> object:
        if not isinstance(value, list):
            raise RecordError(f"{path}: a list was expected")
        return tuple(kind(item, f"{path}[{index}]") for index, item in enumerate(value))

    return listed


_text = _kind("a string", lambda value: isinstance(value, str) and "\0" not in value)
_flag = _kind("true or false", lambda value: isinstance(value, bool))
_integer = _kind("an integer", lambda value: type(value) is int and abs(value) < 2**62)
_size = _kind("a size", lambda value: type(value) is int and 1000 <= value <= 2**60)
_errno = _kind("an error number", lambda value: type(value) is int and 0 < value < 2**15)
_pattern = _kind("a regular expression", is_pattern)
_pid = _kind("a process id", lambda value: type(value) is int and 1 < value < 2**31)
_any_pid = _kind("a process id", lambda value: type(value) is int and 0 < value < 2**31)
_number = _kind(
    "a number from 0 on",
    lambda value: (type(value) is int or type(value) is float) and 0 <= value < 1e15,
)


def _one_of(*choices: str) -> Kind:
    return _kind(f"one of {', '.join(choices)}", choices.__contains__)


def _or_none(kind: Kind) -> Kind:
    return lambda value, path: None if value is None else kind(value, path)


def _object(data: object, path: str) -> dict[str, object]:
    if not isinstance(data, dict):
        raise RecordError(f"{path}: an object was expected")
    return data


def read_object(
    data: object, path: str, kinds: Mapping[str, Kind], defaults: Mapping[str, object] = NOTHING
) -> list[object]:
    """The fields of a JSON object in the order of `kinds`; RecordError if one doesn't fit."""
    known = _object(data, path)
    return [
        defaults[key]
        if key in defaults and key not in known
        else kind(known.get(key), f"{path}.{key}")
        for key, kind in kinds.items()
    ]


def unknown_keys(data: object, kinds: Mapping[str, Kind]) -> dict[str, object]:
    """What a later version wrote and this one carries along."""
    return {k: v for k, v in _object(data, "object").items() if k not in kinds}


def texts_by_name(data: object, path: str) -> dict[str, str]:
    """An object whose values are all strings, or RecordError."""
    return {key: str(_text(value, f"{path}.{key}")) for key, value in _object(data, path).items()}


KINDS: dict[str, Kind] = {"str": _text, "bool": _flag, "int": _integer, "float": _number}
KINDS.update({f"tuple[{key}, ...]": _list_of(kind) for key, kind in KINDS.items()})
KINDS["Mapping[str, object]"] = texts_by_name


def kinds_of(cls: type[NamedTuple], **special: Kind) -> dict[str, Kind]:
    """How each field of a record is read: as its annotation says, or by a special kind."""
    hints = {key: hint.partition(" | None") for key, hint in cls.__annotations__.items()}
    kinds = {key: special.get(key) or KINDS[hint] for key, (hint, _, _) in hints.items()}
    kinds.update({key: _or_none(kinds[key]) for key, (_, none, _) in hints.items() if none})
    return {key: kind for key, kind in kinds.items() if key != "extra"}


def reader(cls: type[Made], **special: Kind) -> Callable[[object, str], Made]:
    """The function that makes a record of a JSON object, or raises RecordError."""
    kinds = kinds_of(cls, **special)
    return lambda data, path: cls._make(read_object(data, path, kinds, cls._field_defaults))


RULE_KINDS = {"required": _flag, "pattern": _pattern, "min_length": _number, "secret": _flag}
NO_RULE = {"required": False, "pattern": "", "min_length": 0, "secret": False}


def env_rules(data: object, path: str) -> dict[str, dict[str, object]]:
    """What variables must be like, by name and complete, or RecordError."""
    return {
        name: dict(zip(RULE_KINDS, read_object(rule, f"{path}.{name}", RULE_KINDS, NO_RULE)))
        for name, rule in _object(data, path).items()
    }


class Spec(NamedTuple):
    """What was asked for: enough to start the service again, and no value of any variable."""

    argv: tuple[str, ...]
    cwd: str
    shell: bool = False
    port: int | None = None
    port_declared: bool = False
    env_given: tuple[str, ...] = ()  # names whose values are in env.json
    env_taken: tuple[str, ...] = ()  # names taken from the caller at each start
    env_files: tuple[str, ...] = ()  # absolute paths, read anew at each start
    log_bytes: int = 10**7
    port_asked: str = ""  # "auto", or the number that was asked for when --on-conflict next left it
    lease: str = "forever"
    idle_timeout_s: float | None = None
    ready: tuple[str, ...] = ()  # checks, all of which must hold once: see parse_check()
    expect: str = "200-399"
    insecure: bool = False
    health: tuple[str, ...] = ()  # checks that must go on to hold
    health_interval_s: float = 10.0
    health_timeout_s: float = 5.0
    health_retries: int = 3
    type: str = "simple"
    pid_file: str | None = None  # absolute; where a forking one writes its daemon's pid
    match: str | None = None  # what the command line of an external one's process looks like
    terminal: str | None = None  # what opens a window for it: auto, a name, or 'PROGRAM {}'
    no_pause: bool = False  # close that window though it failed
    require_env: tuple[str, ...] = ()  # NAME or NAME=REGEX
    restart: str = "no"
    max_restarts: int = 5  # automatic ones in restart_window_s, then it has failed
    restart_window_s: float = 600.0
    success_codes: str = "0"  # exits that are no failure
    no_restart_codes: str = ""  # exits that are final under each policy
    backoff_s: float = 0.5  # before the first automatic restart; doubled each time
    backoff_max_s: float = 60.0
    backoff_reset_s: float = 60.0  # who lived that long failed for another reason than before
    call_cooldown_s: float = 60.0  # the next, for starts by a call: on unless it was asked for
    cooldown_s: float = 0.0  # before it may be started again after a failure; doubled each time
    start_seconds: float = 0.0  # how long it must live to count as started
    success_log: str | None = None  # patterns of its log that decide that earlier
    failure_log: str | None = None
    sample_s: float = 5.0  # between two looks at what it uses; 0: none
    alerts: tuple[str, ...] = ()  # see parse_rule()
    protocol: str = "auto"  # of a stdio service
    keep_alive: bool = True  # a stdio service outlives the call that started it
    root: tuple[str, ...] = ()  # absolute; a stdio service is told of them
    connect_timeout_s: float = 30.0  # in which it has to say how it is spoken to
    rules: Mapping[str, Mapping[str, object]] = NO_RULES  # of variables: see RULE_KINDS
    extra: Mapping[str, object] = NOTHING

    @property
    def words(self) -> tuple[str, ...]:
        """What is executed: argv with the declared port in place of {port}."""
        if not self.port_declared or self.port is None:
            return self.argv
        return tuple(re.sub(PORT_MARK, str(self.port), word) for word in self.argv)

    @property
    def plain_words(self) -> Sequence[str]:
        """The words that a port may be recognised in: a shell's text taken apart at its blanks."""
        return self.words[-1].split() if self.shell else self.words

    @property
    def port_doubt(self) -> str:
        """What to say where the command names another port than the declared one."""
        words = self.plain_words
        named = recognise_port(words, PORT_SIGNS[:3]) if self.port_declared else None
        told = f"port {self.port} is declared, but the command names {named}: "
        told += f"declare --port {named}, or write {{port}} instead of {named} there"
        return told * bool(named and not re.search(rf"\b{self.port}\b", " ".join(words)))

    @property
    def readiness(self) -> tuple[str, ...]:
        """The checks that make it ready: without --ready the first success of --health does."""
        return self.ready or self.health

    def to_json(self) -> dict[str, object]:
        """Its JSON object."""
        return {**self.extra, **{key: getattr(self, key) for key in SPEC}}

    @classmethod
    def from_json(cls, data: object, path: str = "spec") -> Spec:
        """The Spec of a JSON object, or RecordError."""
        known = read_object(data, path, SPEC, cls._field_defaults)
        spec = cls._make([*known, unknown_keys(data, SPEC)])
        if not spec.argv or not spec.argv[0]:
            raise RecordError(f"{path}.argv: a command was expected")
        if spec.port is not None and not 1 <= spec.port <= 65535:
            raise RecordError(f"{path}.port: a port was expected")
        return spec


class Identity(NamedTuple):
    """A process for certain: its pid and what tells it from a later one with that number."""

    pid: int
    token: str

    @property
    def born(self) -> float:
        """When it was started, to compare with others: each system's tokens begin with that."""
        number = self.token.partition("@")[0]
        return float(number) if number.replace(".", "", 1).isdecimal() else 0.0


class Place(NamedTuple):
    """Where pids mean something: this boot of this host, this PID namespace."""

    host: str
    boot: str
    namespace: str

    def is_same(self, other: Place) -> bool:
        """Whether pids mean the same there; a boot known by its minute seems to move a little."""
        a, b = self.boot, other.boot
        is_near = a.isdecimal() and b.isdecimal() and abs(float(a) - float(b)) <= 1
        return self._replace(boot="") == other._replace(boot="") and (a == b or is_near)


class Exit(NamedTuple):
    """How a main process ended; code and signal are both None where nobody saw it."""

    at: float
    code: int | None = None
    signal: str | None = None
    core: bool = False  # it left a core file
    oom: bool = False  # the kernel ended it for want of memory, and says so
    errno: int | None = None  # why it couldn't even be executed
    lived_s: float | None = None
    because: str = ""  # why its supervisor ended it, as one that failed

    def __str__(self) -> str:
        """`exit code 1`, `killed by SIGSEGV`, `exit code not known`."""
        if self.errno:
            return f"could not be executed: {os.strerror(self.errno)}"
        if self.signal:
            return f"killed by {self.signal}" + ", out of memory" * self.oom
        return "exit code not known" if self.code is None else f"exit code {self.code}"


UP_PHASES = ("starting", "running", "ready", "unhealthy")
LIVE_PHASES = (*UP_PHASES, "stopping", "backoff")
ENDED_PHASES = ("stopped", "exited", "failed")


class Record(NamedTuple):
    """What is (phase) and what is wanted, as its supervisor last wrote it: one instance."""

    name: str
    spec: Spec
    instance: str
    place: Place
    wanted: str
    phase: str
    started_at: float
    last_active: float
    main: Identity | None = None
    supervisor: Identity | None = None
    exit: Exit | None = None
    reason: str = ""
    owner: Identity | None = None  # the service lives as long as this process
    owner_name: str = ""
    lease_until: float | None = None  # by steady_s(), as active_at: means something at its place
    active_at: float | None = None
    launcher: Identity | None = None  # what was executed, where main is what it left behind
    environment: Mapping[str, object] = NOTHING  # where each variable came from, no values
    restarts: int = 0  # automatic ones since the start that was asked for
    restarted_at: tuple[float, ...] = ()  # when those were decided on that count, by steady_s()
    backoffs: int = 0  # in a row
    retry_at: float | None = None  # while it waits to restart, by steady_s()
    failures: int = 0  # failed instances in a row, over all starts of this spec
    failed_at: float | None = None  # by steady_s()
    log_at: int = 0  # where in all that was ever written its output begins, after a restart
    alerts: tuple[str, ...] = ()  # those that are active
    sharers: tuple[Identity, ...] = ()  # other runs that use it: the next owners
    config: str = ""  # the file that it was started from, "" by hand
    called: bool = False  # a call started it, and it has answered nothing yet
    guessed: bool = False  # made up from a process that was found: its options are lost
    extra: Mapping[str, object] = NOTHING

    def to_json(self) -> dict[str, object]:
        """Its JSON object."""
        data = {key: getattr(self, key) for key in RECORD}
        data.update({k: value._asdict() for k, value in data.items() if hasattr(value, "_asdict")})
        data["sharers"] = [one._asdict() for one in self.sharers]
        return {**self.extra, **data, "spec": self.spec.to_json()}

    @property
    def born(self) -> float:
        """When what was executed was started: nothing of the instance is older."""
        first = self.launcher or self.main
        return first.born if first else 0.0

    @classmethod
    def from_json(cls, data: object, path: str = "record") -> Record:
        """The Record of a JSON object, or RecordError."""
        known = read_object(data, path, RECORD, cls._field_defaults)
        return cls._make([*known, unknown_keys(data, RECORD)])


SPEC = kinds_of(
    Spec,
    log_bytes=_size,
    lease=_kind("a lease", lambda v: isinstance(v, str) and bool(re.fullmatch(LEASES, v))),
    type=_one_of(*TYPES),
    match=_pattern,
    restart=_one_of(*RESTARTS),
    success_log=_pattern,
    failure_log=_pattern,
    protocol=_one_of(*PROTOCOLS),
    rules=env_rules,
)
read_identity, read_exit = reader(Identity, pid=_pid), reader(Exit, errno=_errno)
read_owner = reader(Identity, pid=_any_pid)  # in a container that may be who runs as pid 1
KINDS.update(Spec=Spec.from_json, Identity=read_identity, Place=reader(Place), Exit=read_exit)
RECORD = kinds_of(
    Record,
    owner=read_owner,
    sharers=_list_of(read_owner),
    instance=_kind("an instance", is_instance),
    wanted=_one_of("running", "stopped"),
    phase=_one_of(*LIVE_PHASES, *ENDED_PHASES, "external"),
)


class Stat(NamedTuple):
    """One look at one process."""

    identity: Identity
    parent: int
    group: int
    state: str  # one letter as in proc_pid_stat(5); Z and X are dead, T is stopped
    cpu_s: float
    memory_bytes: int
    is_mine: bool  # it runs as this user
    threads: int = 1
    waited_s: float = 0.0  # cpu time of its children that ended and were waited for

    @property
    def is_dead(self) -> bool:
        """A zombie holds nothing but its number."""
        return self.state in "ZX"


class Cookie(NamedTuple):
    """What the environment of a process says about whose it is; "" where it says nothing."""

    instance: str = ""
    service: str = ""
    home: str = ""
    supervises: str = ""  # the instance that this process is the supervisor of

    @property
    def is_supervisor(self) -> bool:
        """Whether it is a supervisor: these bear no instance, what a service starts does."""
        return bool(self.supervises) and not self.instance


class Listener(NamedTuple):
    """A TCP socket that listens."""

    port: int
    address: str
    pid: int | None = None  # None: this user can't see it
    uid: int | None = None  # the owner of the socket, where the system tells


COOKIE_NAMES = ("SPM_INSTANCE", "SPM_SERVICE", "SPM_HOME", "SPM_SUPERVISOR")

# == Platform ======================================================================================
# Everything that differs by operating system, and nothing else: both sides offer the same plain
# functions. Abilities are probed (/proc, pidfd, prctl), never guessed from versions.

CONTROL_SOCKET = "control.sock"
# In the order in which `auto` looks for them, all but the first where there is a display; {} are
# the words of a command.
TERMINALS = {
    "Terminal.app": """osascript -e 'tell application "Terminal" to do script "{}"'""",
    "x-terminal-emulator": "x-terminal-emulator -e {}",
    "gnome-terminal": "gnome-terminal -- {}",
    "konsole": "konsole -e {}",
    "xterm": "xterm -e {}",
}
# What a window says of itself; all else the service has from who started it.
WINDOW_VARIABLES = ("TERM", "COLORTERM", "TMUX", "TMUX_PANE", "WINDOWID", "TERM_PROGRAM")
QUOTED = r"""(?s)\\.|'[^']*'|"((?:[^"\\]|\\.)*)\""""
CONTINUED = r"(?s)\\\n|(\\.)"
EXPANSION = r"\$(?:\w+|[({?$@!#*])|`"
OPERATOR = r"&&|\|\||[|&;<>()\n]"
ASSIGNMENT = r"^[A-Za-z_]\w*="


own_signals = __import__("_signal")  # the interpreter's: importing `signal` takes 0.5 ms


def _psutil_stat(pid: int) -> Stat | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            # create_time() moves when the clock is set (psutil/_psosx.py); what it compares doesn't
            born = getattr(process, "_ident", (pid, None))[1]
            identity = Identity(pid, f"{process.create_time() if born is None else born:.2f}")
            states = {psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_STOPPED: "T"}
            state = states.get(process.status(), "R")
            facts = process.ppid(), process_group(pid), state
            cpu, memory, threads = 0.0, 0, 1
            # macOS tells only of one's own, and of zombies nothing
            with contextlib.suppress(psutil.AccessDenied, psutil.ZombieProcess):
                cpu, threads = sum(process.cpu_times()[:2]), process.num_threads()
                memory = process.memory_info().rss
            return Stat(identity, *facts, cpu, memory, is_mine(process), threads)
    except psutil.ZombieProcess:
        return Stat(Identity(pid, ""), 0, 0, "Z", 0.0, 0, False)
    except (psutil.Error, OSError, ValueError, OverflowError):
        return None


def _psutil_cookie(pid: int) -> Cookie:
    with contextlib.suppress(psutil.Error, OSError):
        environ = psutil.Process(pid).environ()
        return Cookie(*(environ.get(name, "") for name in COOKIE_NAMES))
    return Cookie()


def _psutil_arguments(pid: int) -> list[str]:
    with contextlib.suppress(psutil.Error, OSError):
        return psutil.Process(pid).cmdline()
    return []


def _psutil_boot() -> str:
    return f"{psutil.boot_time() / 60:.0f}"  # to the minute: it moves with the clock's corrections


# They say nothing about what is looked at. ENOSPC of epoll_ctl(2): this user has too many watches.
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
PATIENCE_S = [0.0]  # how long that is waited for; a supervisor that gave up would leave its service


def patiently(act: Callable[..., Given], *given: object) -> Given:
    """What `act` returns, tried again while the system has no descriptor to give."""
    deadline = 0.0
    while True:
        try:
            return act(*given)
        except OSError as error:
            now = time.monotonic()
            deadline = deadline or now + PATIENCE_S[0]
            if error.errno not in NO_ROOM or now >= deadline:
                raise
        time.sleep(0.02)


def _read_proc(path: str) -> bytes:
    with open(f"/proc/{path}", "rb", buffering=0) as file:
        return file.readall()


def _proc(path: str) -> bytes:
    """A file of proc(5), as far as there is one and we may read it."""
    try:
        return patiently(_read_proc, path)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
    return b""


def interpreter() -> str:
    """The Python that runs this; "" where nobody can tell: without PATH it doesn't know itself."""
    own = "/proc/self/exe"
    return sys.executable or (os.path.realpath(own) if os.path.exists(own) else "")


def pss_of(pid: int) -> int | None:
    """Its share of the memory that it uses, as proc_pid_smaps(5) tells; None where that can't."""
    fields = _proc(f"{pid}/smaps_rollup").partition(b"\nPss:")[2].split()
    return int(fields[0]) * 1024 if fields else None


def descendants(pid: int) -> dict[int, Stat]:
    """A look at a process and all below it: just the one where proc_tid_children(5) is missing."""
    queue = [pid]
    for one in queue:
        with contextlib.suppress(OSError):  # it has ended
            for thread in os.listdir(f"/proc/{one}/task"):
                queue += map(int, _proc(f"{one}/task/{thread}/children").split())
    return looks_at(queue)


def looks_at(pids: Iterable[int]) -> dict[int, Stat]:
    """One look at each of these processes that is there, by pid."""
    return {pid: look for pid in pids for look in [stat_of(pid)] if look}


def wait_while(holds: Callable[[], object], wait_s: float, pause_s: float) -> bool:
    """Look again and again, in the end each pause_s, until it holds no more; whether it does."""
    deadline, next_s = time.monotonic() + wait_s, 0.001
    while holds():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return True
        time.sleep(min(next_s, left_s))
        next_s = min(next_s * 1.5, pause_s)
    return False


def _ask_for_lock(descriptor: int, wait_s: float) -> bool:
    return not wait_while(lambda: not try_lock(descriptor), wait_s, 0.02)


if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes.wintypes import HANDLE, LPWSTR

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel32.CreateJobObjectW.restype = _kernel32.OpenJobObjectW.restype = HANDLE
    _kernel32.ReOpenFile.restype = _kernel32.GetStdHandle.restype = HANDLE
    _children: list[subprocess.Popen[bytes]] = []
    _wakes: list[socket.socket] = []
    _jobs: list[int] = []  # kept open: a job that nobody holds loses its name
    _routines: list[object] = []  # what the system calls, once we run in a window
    _window = {"closed": False, "told": True}  # by its X; why the tool in it ended is known
    CMD_SWITCHES = ("/d", "/s", "/c")
    CLOSED = b"\2"  # CTRL_CLOSE_EVENT
    FORCE = "TerminateProcess"
    SAME_PIDS_S = 0.0  # a number may be used again at once
    CONNECT_S = 0.05  # a closed port of loopback refuses only after 2 s: SYN is sent three times
    ASKED_S = 2.0  # to end the tool of a closed window: after 5 s the system ends us
    NO_WINDOW = "only --terminal auto opens one, on the desktop; or try --type external"
    ADOPTS = False  # the other children of a supervisor are its console's host and its probes
    HAS_EXEC = False  # os.execv starts another process there, and nobody waits for that
    my_user_id = 0  # as os.stat() has it: the access list of the profile protects the directory
    stat_of, cookie_of, user_name = _psutil_stat, _psutil_cookie, str
    arguments_of = _psutil_arguments

    def _always(answer: Given) -> Callable[..., Given]:
        return lambda *_: answer

    # What this system lacks, and what it does instead.
    process_group = _always(0)  # the job object stands in, see companions()
    become_subreaper = _always(False)  # so it does here
    is_open_to_others = _always(False)  # there are no such bits
    is_own_peer = _always(True)  # who has the token is one of us
    BORN_PER_S = 1  # what Identity.born counts in
    hold_interrupts = _always(None)
    hear_children = _always(None)
    most_connections = _always(400)  # select() knows 512 sockets
    is_mine = _always(True)  # whose environment we may read, with our cookie in it, is ours
    listen_sockets: Callable[[], dict[str, Listener] | None] = _always(None)  # psutil knows
    links_of: Callable[[int], list[str]] = _always([])
    oom_kills = _always(0)  # it refuses memory, it doesn't end a process for it
    alarm = _always(None)  # no signal could interrupt us
    terminal_line = {"auto": ""}.get  # the system itself opens one for a supervisor
    death_watch: Callable[[Identity], int | None] = _always(None)  # it is looked at
    path_of: Callable[[int], str] = _always("")  # a directory with open files isn't renamed
    open_files: Callable[[int], list[str]] = _always([])  # nor is that of theirs

    def free_bytes(path: str) -> float:
        """How much more can be written to its disk; inf where that can't be told."""
        import shutil

        with contextlib.suppress(OSError):
            return float(shutil.disk_usage(path).free)
        return float("inf")

    def steady_s() -> float:
        """Seconds since the boot without those asleep, which time.monotonic() counts here."""
        ticks = ctypes.c_ulonglong()  # of 100 ns
        _kernel32.QueryUnbiasedInterruptTime(ctypes.byref(ticks))
        return ticks.value / 1e7

    def all_pids() -> list[int]:
        """The number of every process that can be seen."""
        return psutil.pids()

    def all_stats(besides: frozenset[int] = frozenset()) -> dict[int, Stat]:
        """One look at every process that can be seen, by pid; not at those in `besides`."""
        # An orphan keeps its parent's number, which a later process may have: no parent then.
        stats = looks_at(pid for pid in all_pids() if pid not in besides)
        began = {pid: float(look.identity.token or 0) for pid, look in stats.items()}
        for pid, look in stats.items():
            if began.get(look.parent, 0.0) > began[pid]:
                stats[pid] = look._replace(parent=0)
        return stats

    def place() -> Place:
        """Where pids mean something."""
        return Place(os.environ.get("COMPUTERNAME", ""), _psutil_boot(), "")

    def has_reader(file: int) -> bool:
        """Whether who reads what is written there may still do so: here only a write tells."""
        return True

    def key_within(wait_s: float) -> str:
        """The key that is pressed within some seconds, "" if none is."""
        # ENABLE_VIRTUAL_TERMINAL_PROCESSING: the console understands control sequences
        _kernel32.SetConsoleMode(HANDLE(_kernel32.GetStdHandle(-11)), 7)
        wait_while(lambda: not msvcrt.kbhit(), wait_s, 0.02)
        return msvcrt.getwch() if msvcrt.kbhit() else ""

    def companions(main: Identity, instance: str, stats: dict[int, Stat]) -> dict[int, str]:
        """The members of the instance's job object, with the reason."""
        job_object_query, basic_process_id_list = 0x4, 3
        job = _kernel32.OpenJobObjectW(job_object_query, False, f"Local\\spm-{instance}")
        if not job:
            return {}
        # JOBOBJECT_BASIC_PROCESS_ID_LIST: DWORD assigned, DWORD listed, then ULONG_PTR pids
        listing = (ctypes.c_size_t * 4096)()
        size = ctypes.sizeof(listing)
        _kernel32.QueryInformationJobObject(HANDLE(job), basic_process_id_list, listing, size, None)
        _kernel32.CloseHandle(HANDLE(job))
        listed = min(listing[0] >> 32, 4095)
        return {int(pid): "in its job object" for pid in listing[1 : listed + 1]}

    def listening_ports() -> set[int] | None:
        """The TCP ports that anybody listens on, which a connection would learn slowly."""
        table_of = ctypes.WinDLL("iphlpapi").GetExtendedTcpTable
        of_listeners, ports = 3, set[int]()
        # MIB_TCPROW_OWNER_PID has 6 words, its local port is the third; for IPv6 14, the sixth
        for family, width, at in ((socket.AF_INET, 6, 3), (socket.AF_INET6, 14, 6)):
            words, size = (ctypes.c_uint32 * (1 << 14))(), ctypes.c_ulong(1 << 16)
            if table_of(words, ctypes.byref(size), False, int(family), of_listeners, 0):
                return None  # there are thousands
            ports |= {socket.ntohs(one & 0xFFFF) for one in words[at : words[0] * width : width]}
        return ports

    def send_signal(identity: Identity, force: bool) -> bool:
        """End a process for certain, or politely by CTRL_BREAK: False where that can't reach it."""
        look, _window["told"] = stat_of(identity.pid), True
        if look is None or look.identity != identity:
            return False
        try:
            if force:
                psutil.Process(identity.pid).kill()
            elif identity.pid not in [child.pid for child in _children]:
                return False  # it leads no group on our console: the event might reach ourselves
            else:  # in our window it leads no group, there all but us hear it
                os.kill(0 if _routines else identity.pid, signal.CTRL_BREAK_EVENT)
        except (psutil.Error, OSError):
            return False
        return True

    def launch_supervisor(argv: list[str], env: dict[str, str], in_window: bool) -> Ends:
        """Start a supervisor apart from our console and, where it lets us, from our job."""
        # Its pid, and the descriptors to write its order to and to read its answer from.
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        if in_window:  # a venv's python.exe, ended with it, would take the supervisor along
            flags = subprocess.CREATE_NEW_CONSOLE
            argv = [getattr(sys, "_base_executable", argv[0]), *argv[1:]]
        pipe, out = subprocess.PIPE, subprocess.STDOUT

        def launch(more: int) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                argv, env=env, stdin=pipe, stdout=pipe, stderr=out, creationflags=flags | more
            )

        try:
            process = launch(subprocess.CREATE_BREAKAWAY_FROM_JOB)
        except PermissionError:  # ERROR_ACCESS_DENIED: our job doesn't let anybody go
            process = launch(0)
        assert process.stdin and process.stdout
        process.returncode = 0  # it goes on without us; Popen must neither wait nor warn
        with process.stdin, process.stdout:
            return process.pid, os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno())

    def read_answer(descriptor: int, wait_s: float) -> bytes:
        """An answer to its line end, what is none to its end; a pipe has no time limit here."""
        with open(descriptor, "rb", closefd=False) as file:
            line = file.readline()
            return line if line.startswith(b"{") else line + file.read()

    def dismiss(pid: int) -> None:
        """End a supervisor that got no order: TerminateProcess."""
        with contextlib.suppress(OSError):
            os.kill(pid, 9)

    def _enter_window(title: str) -> list[int]:
        # Both ends of the console that launch_supervisor() asked for.
        if not _kernel32.GetConsoleWindow():
            raise OSError(errno.ENXIO, "there is no window")
        if not _routines:
            _routines.append(ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_ulong)(_on_control))
            _kernel32.SetConsoleCtrlHandler(_routines[0], True)
            _kernel32.SetConsoleCtrlHandler(None, False)  # Ctrl-C ignored is inherited
            _kernel32.SetConsoleTitleW(ctypes.c_wchar_p(title))
        _window["told"] = False
        return [os.open(name, os.O_RDWR) for name in ("CONIN$", "CONOUT$")]

    def _on_control(event: int) -> bool:
        # HandlerRoutine, called in a thread of its own: Ctrl-C and Ctrl-Break are the tool's. When
        # it returns from CTRL_CLOSE_EVENT we are ended, so it doesn't: the loop is told.
        if event in CLOSED:
            _window.update(closed=True, told=True)
            _wake(CLOSED)
            time.sleep(60)
        return event < CLOSED[0]

    def asks_to_stop(wakes: bytes, in_window: bool) -> str:
        """Why the wakes ask for it, "" if they don't."""
        return "its window was closed (CTRL_CLOSE)" if CLOSED in wakes else ""

    def await_key(text: str) -> socket.socket:
        """Say this in our window; what it returns is readable after a key, or when it is closed."""
        if not _routines:
            raise OSError(errno.ENXIO, "we aren't in it")
        with open("CONOUT$", "w", encoding="utf-8") as console:
            console.write(text)
        ours, theirs = socket.socketpair()

        def wait() -> None:
            while not (_window["closed"] or msvcrt.kbhit()):
                time.sleep(0.05)
            theirs.close()

        threading.Thread(target=wait, name="key", daemon=True).start()
        return ours

    def settle(in_window: bool = False) -> None:
        """Leave the caller's directory: nobody could remove it. CreateProcess did the rest."""
        os.chdir(os.environ.get("SYSTEMROOT", "/"))

    def service_pipes() -> tuple[socket.socket, socket.socket, int, int]:
        """Our ends of a service's stdout and stdin, and the descriptors of its stdin and stdout."""
        # select() knows sockets only, so two threads carry between one and the pipes.
        ours, theirs = socket.socketpair()
        (stdin, write), (read, stdout) = os.pipe(), os.pipe()

        def carry(take: Callable[[int], bytes], give: Callable[[bytes], object], end: int) -> None:
            with contextlib.suppress(OSError):  # the service, or the supervisor, is gone
                while chunk := take(1 << 16):
                    give(chunk)
            os.close(end)
            if end == read:
                with contextlib.suppress(OSError):  # the supervisor has let go of it
                    theirs.shutdown(socket.SHUT_WR)

        take, give = functools.partial(os.read, read), functools.partial(os.write, write)
        for way in ((theirs.recv, give, write), (take, theirs.sendall, read)):
            threading.Thread(target=carry, args=way, daemon=True).start()
        return ours, ours, stdin, stdout

    def launch_service(
        argv: Sequence[str], cwd: str, env: dict[str, str], log: int, instance: str, ends: list[int]
    ) -> int:
        """The pid of the service, suspended until it is in its job; OSError if it can't run."""
        # With log -1 it shares our window; in a group of its own it wouldn't hear of Ctrl-C.
        create_suspended, group = 0x4, 0 if log < 0 else subprocess.CREATE_NEW_PROCESS_GROUP
        mine = _enter_window(env["SPM_SERVICE"]) if log < 0 else [_appender(log)]
        output, ends = mine[-1], mine if log < 0 else ends
        os.chdir(cwd)  # CreateProcess looks for the program from the caller's directory
        try:
            # CreateProcess alone adds only .exe, and doesn't look in the PATH of `env`
            program = shutil.which(argv[0], path=env.get("PATH")) or argv[0]
            line = join_command([program, *argv[1:]])
            if tuple(argv[1:-1]) == CMD_SWITCHES:  # cmd knows no \": it strips the outer quotes
                line = f'{join_command([program, *CMD_SWITCHES])} "{argv[-1]}"'
            process = subprocess.Popen(
                line,
                cwd=cwd,
                env={"PYTHONUTF8": "1", **env},
                stdin=ends[0] if ends else subprocess.DEVNULL,
                stdout=ends[1] if ends else output,
                stderr=output,
                creationflags=group | create_suspended,
            )
        finally:
            settle()
            for descriptor in mine:
                os.close(descriptor)
        handle = HANDLE(int(process._handle))  # type: ignore[attr-defined]
        job = _kernel32.CreateJobObjectW(None, f"Local\\spm-{instance}")
        if job:
            _jobs.append(job)
            _kernel32.AssignProcessToJobObject(HANDLE(job), handle)
            # A handle in the service itself: the job keeps its name when its supervisor is killed.
            ours, same_access = HANDLE(-1), 2
            to = ctypes.byref(HANDLE())
            _kernel32.DuplicateHandle(ours, HANDLE(job), handle, to, 0, False, same_access)
        ctypes.WinDLL("ntdll").NtResumeProcess(handle)
        _children.append(process)
        threading.Thread(target=_wait_for, args=(process,), name="child", daemon=True).start()
        return process.pid

    def _appender(log: int) -> int:
        # The system knows no O_APPEND, and an inherited handle shares our position in the file: a
        # handle of its own that may append but not write elsewhere goes on behind a truncation.
        append, share_all = 0x120114, 7  # FILE_GENERIC_WRITE without FILE_WRITE_DATA
        handle = _kernel32.ReOpenFile(HANDLE(msvcrt.get_osfhandle(log)), append, share_all, 0)
        if handle == HANDLE(-1).value:
            return os.dup(log)
        return msvcrt.open_osfhandle(handle, os.O_APPEND)

    def watch(wake: socket.socket) -> None:
        """Have a byte sent to `wake` when a child ends that is launched from now on."""
        _wakes.append(wake)
        _wake(CLOSED if _window["closed"] else b"\0")

    def _wake(word: bytes) -> None:
        for wake in _wakes:
            with contextlib.suppress(OSError):  # the supervisor is leaving already
                wake.send(word)

    def _wait_for(child: subprocess.Popen[bytes]) -> None:
        child.wait()
        # The closing of our window ends the tool too, and it may hear of that before we do.
        wait_while(lambda: not _window["told"], 0.3, 0.01)
        _window["told"] = True
        _wake(b"\0")

    def reap() -> tuple[list[tuple[int, int | None, str | None, bool]], bool]:
        """(pid, exit code, signal name, core) of the children that ended since the last call."""
        # And whether the system knows of no other child: never, it keeps no such list.
        ended = [child for child in _children if _window["told"] and child.poll() is not None]
        _children[:] = [child for child in _children if child not in ended]
        return [(child.pid, child.returncode, None, False) for child in ended], False

    def exit_code_of(process: subprocess.Popen[bytes]) -> int | None:
        """The exit code of a child, None while it runs."""
        return process.poll()

    def try_lock(descriptor: int) -> bool:
        """Take the exclusive lock on an open file, or return False; it ends with its holder."""
        with contextlib.suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            return True
        return False

    def is_locked(descriptor: int) -> bool:
        """Whether somebody has the lock on an open file."""
        return not try_lock(descriptor)

    lock_within = _ask_for_lock

    def _patiently(act: Callable[..., Given], *args: object) -> Given:
        # A file that somebody else has open just now is refused: tried again for a second.
        for _ in range(50):
            with contextlib.suppress(PermissionError):
                return act(*args)
            time.sleep(0.02)
        return act(*args)

    replace_file = functools.partial(_patiently, os.replace)

    def private(path: str, flags: int) -> int:
        """An opener for files; a directory is refused for good, which isn't waited for."""
        return os.open(path, flags) if os.path.isdir(path) else _patiently(os.open, path, flags)

    def read_at(descriptor: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes from an offset of an open file."""
        msvcrt.setmode(descriptor, os.O_BINARY)  # else CR LF is read as one byte, ^Z as the end
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)

    def listen_local(directory: str) -> tuple[socket.socket, str]:
        """A listening loopback socket and its token, both left in a file of the directory."""
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            server.bind(("127.0.0.1", 0))
            server.listen(512)  # else a crowd makes commands wait
            token, path = secrets.token_hex(16), os.path.join(directory, CONTROL_SOCKET)
            with open(path + ".new", "w", encoding="utf-8") as file:
                json.dump({"port": server.getsockname()[1], "token": token}, file)
            replace_file(path + ".new", path)
        except OSError:
            server.close()
            raise
        return server, token

    def connect_local(directory: str, timeout_s: float) -> tuple[socket.socket, str]:
        """A connection to what listens there, and the token to show; OSError if nothing does."""
        with open(os.path.join(directory, CONTROL_SOCKET), "rb") as file:
            try:
                address = _object(parse_json(file.read()), CONTROL_SOCKET)
            except ValueError as error:  # a cloned repository may have brought it along
                raise OSError(errno.EINVAL, str(error), file.name) from error
        port, token = as_port(str(address.get("port"))) or 0, str(address.get("token"))
        return socket.create_connection(("127.0.0.1", port), timeout_s), token

    def split_command(text: str) -> list[str]:
        """The words of a command line by the rules of CommandLineToArgvW."""
        split = ctypes.WinDLL("shell32").CommandLineToArgvW
        split.restype = ctypes.POINTER(LPWSTR)
        count = ctypes.c_int()
        words = split(ctypes.c_wchar_p(text.strip()), ctypes.byref(count))
        return [str(words[index]) for index in range(count.value)] if text.strip() else []

    def join_command(words: Sequence[str]) -> str:
        """One line that splits into these words again."""
        return subprocess.list2cmdline(words)

    def typed_word(text: str) -> str:
        """A word as it is typed, or pasted, into a shell."""
        return join_command([text])

    def shell_sign(text: str) -> str | None:
        """What only a shell would understand in this command line, else None."""
        match = re.search(r"&&|\|\||[|<>]|%\w+%", re.sub(r'"[^"]*"', "", text))
        return match and match[0]

    def shell_argv(text: str) -> tuple[str, ...]:
        """The words that run `text` in the system's shell."""
        return (os.environ.get("COMSPEC", "cmd.exe"), *CMD_SWITCHES, text)

else:
    import fcntl

    _reaped: dict[int, int] = {}  # the exit codes that reap() collected last
    my_user_id = os.geteuid()
    FORCE = "SIGKILL"
    SAME_PIDS_S = 0.5  # no number is used again within: 32,000 forks later, proc(5) on pid_max
    CONNECT_S = 0.25  # loopback refuses at once; only a full backlog takes longer
    ASKED_S = 10.0  # for a service to end when a signal asks its supervisor to
    NO_WINDOW = "install tmux or xterm, set DISPLAY, give 'PROGRAM {}', or try --type external"
    ADOPTS = True
    HAS_EXEC = True
    # One clock for all processes of a boot (docs.python.org/3/library/time.html#time.monotonic);
    # nobody sets it, and it stands still in suspend: CLOCK_MONOTONIC in clock_gettime(2), on macOS
    # mach_absolute_time().
    steady_s = time.monotonic
    replace_file = os.replace
    read_at = os.pread
    HAS_PROC = os.path.exists("/proc/self/stat")
    BORN_PER_S = os.sysconf("SC_CLK_TCK") if HAS_PROC else 1  # what Identity.born counts in

    @functools.lru_cache(None)
    def _boot() -> str:
        """The boot id of proc_sys_kernel(5), else the minute of the boot."""
        return _proc("sys/kernel/random/boot_id")[:8].decode() or _psutil_boot()

    def place() -> Place:
        """Where pids mean something; the namespace as in pid_namespaces(7)."""
        namespace = ""
        with contextlib.suppress(OSError):
            namespace = os.readlink("/proc/self/ns/pid")
        return Place(os.uname().nodename, _boot(), namespace)

    def is_open_to_others(mode: int) -> bool:
        """Whether these permissions let others write."""
        return bool(mode & 0o022)

    def free_bytes(path: str) -> float:
        """How much more can be written to its disk; inf where that can't be told."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(path)
            blocks = disk.f_bavail if my_user_id else disk.f_bfree  # some are kept for root
            return float(blocks * disk.f_frsize) if disk.f_blocks else float("inf")
        return float("inf")

    def process_group(pid: int) -> int:
        """Its process group, 0 if it is gone."""
        with contextlib.suppress(OSError):
            return os.getpgid(pid)
        return 0

    def _read_stat(pid: int) -> tuple[bytes, int]:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            return os.read(descriptor, 4096), os.fstat(descriptor).st_uid
        finally:
            os.close(descriptor)

    def stat_of(pid: int, waits: bool = True) -> Stat | None:
        """One look at a process, None if there is none; on Linux one read of proc_pid_stat(5)."""
        try:
            text, owner = patiently(_read_stat, pid) if waits else _read_stat(pid)
        except OSError as error:  # ESRCH: it ended between the two calls
            if error.errno in NO_ROOM:
                raise
            return None if HAS_PROC else _psutil_stat(pid)
        # from field 3 on: the name before it may hold spaces and parentheses
        state, *fields = text[text.rindex(b")") + 2 :].decode().split(" ", 22)
        used, system, waited, waited_system = map(int, fields[10:14])
        ticks = os.sysconf("SC_CLK_TCK")
        cpu_s, waited_s = (used + system) / ticks, (waited + waited_system) / ticks
        # starttime in ticks since boot doesn't move with the clock, unlike create_time()
        identity = Identity(pid, f"{fields[18]}@{_boot()}")
        memory, is_mine = int(fields[20]) * os.sysconf("SC_PAGE_SIZE"), owner == my_user_id
        parent, group, threads = int(fields[0]), int(fields[1]), int(fields[16])
        state = "S" if state == "Z" and threads > 1 else state  # it goes on without its first one
        return Stat(identity, parent, group, state, cpu_s, memory, is_mine, threads, waited_s)

    def all_pids() -> list[int]:
        """The number of every process that can be seen."""
        names = filter(str.isdigit, patiently(os.listdir, "/proc")) if HAS_PROC else psutil.pids()
        return [*map(int, names)]

    def all_stats(besides: frozenset[int] = frozenset()) -> dict[int, Stat]:
        """One look at every process that can be seen, by pid; not at those in `besides`."""
        return looks_at(pid for pid in all_pids() if pid not in besides)

    def hold_interrupts(holds: bool) -> None:
        """Keep Ctrl-C and SIGTERM back, or let them come: sigprocmask(2), which exec hands down."""
        how = signal.SIG_BLOCK if holds else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, [signal.SIGINT, signal.SIGTERM])

    def hear_children() -> None:
        """Have children leave their exit codes: that the caller ignores SIGCHLD is inherited."""
        own_signals.signal(own_signals.SIGCHLD, own_signals.SIG_DFL)

    def has_reader(file: int) -> bool:
        """Whether who reads what is written there may still do so: poll(2) tells of a pipe."""
        look = select.poll()
        # What is asked for is never there, the rest is told unasked; macOS tells nothing for 0.
        look.register(file, getattr(select, "POLLRDBAND", 0))
        return not any(found & (select.POLLERR | select.POLLHUP) for _, found in look.poll(0))

    def key_within(wait_s: float) -> str:
        """The key that is pressed within some seconds, "" if none is or there is no keyboard."""
        if not os.isatty(0):
            time.sleep(wait_s)
            return ""
        before = termios.tcgetattr(0)
        try:
            tty.setcbreak(0, termios.TCSADRAIN)  # Ctrl-C goes on to be a signal
            is_there = select.select([0], [], [], wait_s)[0]
            return (os.read(0, 1).decode("latin-1") or "q") if is_there else ""  # hung up: leave
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def is_mine(process: psutil.Process) -> bool:
        """Whether it runs as this user."""
        return bool(process.uids().effective == my_user_id)

    def cookie_of(pid: int) -> Cookie:
        """What the environment of `pid` says, as far as we may read it."""
        if not HAS_PROC:
            return _psutil_cookie(pid)
        pairs = [one for one in _proc(f"{pid}/environ").split(b"\0") if one.startswith(b"SPM_")]
        environ = dict(os.fsdecode(pair).partition("=")[::2] for pair in pairs)
        return Cookie(*(environ.get(name, "") for name in COOKIE_NAMES))

    def arguments_of(pid: int) -> list[str]:
        """The words of its command line, none if they can't be seen."""
        if not HAS_PROC:
            return _psutil_arguments(pid)
        words = os.fsdecode(_proc(f"{pid}/cmdline")).rstrip("\0").split("\0")
        return words if len(words) > 1 else words[0].split()  # a title written over them

    def companions(main: Identity, instance: str, stats: dict[int, Stat]) -> dict[int, str]:
        """The members of the main process's group, with the reason."""
        # Only while the leader is there to vouch for the group: its number may be used again later.
        leader = stats.get(main.pid)
        if leader is None or leader.identity != main:
            return {}
        reason = f"in process group {main.pid}"
        return {pid: reason for pid, look in stats.items() if look.group == main.pid}

    def send_signal(identity: Identity, force: bool, has_room: bool = True) -> bool:
        """SIGKILL if `force`, else SIGTERM and SIGCONT, after checking the identity."""
        # Through a pidfd where there is one: between check and signal the pid can't change hands.
        # False if the process is gone or not ours to signal.
        handle = death_watch(identity) if has_room else None
        try:
            look = stat_of(identity.pid, waits=handle is None)  # else for what we hold
            if look is None or look.identity != identity:
                return False
            # A stopped process acts on SIGTERM only once it is continued.
            for number in (signal.SIGKILL,) if force else (signal.SIGTERM, signal.SIGCONT):
                if sys.platform == "linux" and handle is not None:
                    signal.pidfd_send_signal(handle, number)
                else:
                    os.kill(identity.pid, number)
            return True
        except OSError as error:  # gone, or another user's: whoever looks again sees which
            # Else it took the last descriptor, or a sandbox knows but the half of pidfds.
            if handle is None or error.errno == errno.ESRCH:
                return False
        finally:
            if handle is not None:
                os.close(handle)
        return send_signal(identity, force, has_room=False)

    def listen_sockets() -> dict[str, Listener] | None:
        """Each listening TCP socket by its name in /proc/PID/fd; None: ask psutil."""
        # sock_diag(7) hands out the listening sockets alone: 0.05 ms, where the kernel walks all of
        # its tables to write /proc/net/tcp: 5 ms.
        if sys.platform != "linux" or not HAS_PROC:
            return None
        found: dict[str, Listener] = {}
        by_family, request_dump, listen_only, done = 20, 0x301, 1 << 10, 3
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:
                for family, end in ((socket.AF_INET, 28), (socket.AF_INET6, 40)):
                    query = (family, socket.IPPROTO_TCP, 0, listen_only)
                    head = (72, by_family, request_dump, 0, 0)
                    netlink.sendall(struct.pack("=IHHIIBBBxI48x", *head, *query))
                    kind, data = by_family, b""
                    while kind == by_family:
                        data = data or netlink.recv(1 << 16)
                        size, kind = struct.unpack_from("=IH", data)
                        if kind == by_family:
                            # inet_diag_msg: port at 4, address at 8, uid at 64, inode at 68
                            port = int.from_bytes(data[20:22], "big")
                            address = socket.inet_ntop(family, data[24:end])
                            uid, inode = struct.unpack_from("=II", data, 16 + 64)
                            found[f"socket:[{inode}]"] = Listener(port, address, None, uid)
                        data = data[(size + 3) & ~3 :]
                    if kind != done:
                        return None
        except (OSError, struct.error):  # not allowed here
            return None
        return found

    def listening_ports() -> set[int] | None:
        """None: loopback refuses at once, and answers also for what no table shows."""

    def user_name(uid: int) -> str:
        """The name of a user, or the number if it has none."""
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(uid).pw_name
        return str(uid)

    def links_of(pid: int) -> list[str]:
        """What /proc/PID/fd says of the open files of a process, as far as we may read it."""
        found = []
        with contextlib.suppress(OSError):
            directory = f"/proc/{pid}/fd"
            names = os.listdir(directory)
            if not names:  # its first thread has ended; what others have is the same
                thread = [pid, *os.listdir(f"/proc/{pid}/task")][-1]  # none, if all have just ended
                directory = f"/proc/{pid}/task/{thread}/fd"
                names = os.listdir(directory)
            for name in names:
                with contextlib.suppress(OSError):
                    found.append(os.readlink(f"{directory}/{name}"))
        return found

    def launch_supervisor(argv: list[str], env: dict[str, str], in_window: bool) -> Ends:
        """Start a supervisor: its pid, and where to write its order to and read its answer from."""
        # posix_spawn(3), because importing subprocess takes 3 ms; session, directory and inherited
        # descriptors are the supervisor's own first business: see settle().
        ends = [_above_standard(end) for pipe in (os.pipe(), os.pipe()) for end in pipe]
        order, write_order, read_answer, answer = ends
        moves = [(os.POSIX_SPAWN_DUP2, end, to) for to, end in enumerate((order, answer, answer))]
        try:
            pid = os.posix_spawn(argv[0], argv, env, file_actions=moves)
        finally:
            os.close(order)
            os.close(answer)
        return pid, write_order, read_answer

    def dismiss(pid: int) -> None:
        """End a supervisor that got no order; it is our child, so the pid is still its own."""
        with contextlib.suppress(OSError):
            os.kill(pid, 9)
            os.waitpid(pid, 0)

    def _above_standard(descriptor: int) -> int:
        # With a standard stream closed a pipe may get its number, which dup2 must be free to use.
        if descriptor > 2:
            return descriptor
        moved: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(descriptor)
        return moved

    def read_answer(descriptor: int, wait_s: float) -> bytes:
        """An answer to its line end, what is none to its end; or what comes in wait_s seconds."""
        chunk, answer, deadline = b"?", b"", time.monotonic() + wait_s
        while chunk and not (answer.startswith(b"{") and answer.endswith(b"\n")):
            left_s = max(0.0, deadline - time.monotonic())
            is_there = select.select([descriptor], [], [], left_s)[0]
            chunk = os.read(descriptor, 1 << 16) if is_there else b""
            answer += chunk
        return answer

    def terminal_line(asked: str) -> str | None:
        """How to run a command in a new window, {} standing for its words; None if none can."""
        # `auto`: in the caller's tmux, on the screen, else in a tmux that can be attached to.
        in_tmux, screens = "TMUX" in os.environ, ("DISPLAY", "WAYLAND_DISPLAY")
        here = [*TERMINALS.values()][: None if any(map(os.environ.get, screens)) else 1]
        tmux = "tmux new-window -n {name} {}" if in_tmux else "tmux new-session -d -s {name} {}"
        lines = [TERMINALS.get(asked, tmux if asked == "tmux" else asked)]
        if asked == "auto":
            lines = [tmux] * in_tmux + here + [tmux]
        return next((line for line in lines if shutil.which(split_command(line)[0])), None)

    def await_key(text: str) -> int | socket.socket:
        """Say this in our window; what it returns becomes readable with a key."""
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpgrp())  # a shell may have put a group of its own in front
        tty.setcbreak(0)
        os.write(1, text.encode())
        return 0

    def settle(in_window: bool = False) -> None:
        """Leave the caller's session (a window's we keep) and directory, and its descriptors."""
        if not in_window:
            with contextlib.suppress(PermissionError):  # we lead a session already
                os.setsid()
        # What the caller blocked is inherited. Who asks us to stop is heard from watch() on.
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGTERM, signal.SIGHUP])
        os.chdir("/")
        for name in os.listdir("/dev/fd"):
            if int(name) > 2:
                with contextlib.suppress(OSError):  # the one that listdir used
                    os.close(int(name))

    def service_pipes() -> tuple[socket.socket, socket.socket, int, int]:
        """Our ends of a service's stdout and stdin, and the descriptors of its stdin and stdout."""
        # Socket pairs, as libuv's hosts use them too; two, or only the end of both would be seen.
        ours, stdout = socket.socketpair()
        try:
            into, stdin = socket.socketpair()
        except OSError:  # no descriptor is left
            ours.close()
            stdout.close()
            raise
        return ours, into, stdin.detach(), stdout.detach()

    def launch_service(
        argv: Sequence[str], cwd: str, env: dict[str, str], log: int, instance: str, ends: list[int]
    ) -> int:
        """The pid of the service, in a session of its own; OSError if it can't be executed."""
        # With log -1 it shares our session and our terminal, the window that we run in.
        # posix_spawn(3) as in launch_supervisor(); it knows no directory, searches our own PATH.
        null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        output = [(os.POSIX_SPAWN_DUP2, log, to) for to in (1, 2)]
        output += [(os.POSIX_SPAWN_DUP2, end, to) for to, end in enumerate(ends)]
        ignored = [signal.SIGPIPE, signal.SIGXFSZ]  # by Python, for itself
        ignored += [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM]  # by the caller
        os.environ["PATH"] = env.get("PATH", os.defpath)
        os.chdir(cwd)
        try:
            return os.posix_spawnp(
                argv[0],
                list(argv),
                env,
                file_actions=[null, *output] if log >= 0 else [],
                setsid=log >= 0,
                setsigmask=[],
                setsigdef=ignored,
            )
        finally:
            os.chdir("/")

    def become_subreaper() -> bool:
        """Have orphaned descendants come back to us: PR_SET_CHILD_SUBREAPER(2const), Linux 3.4."""
        option = 36  # PR_SET_CHILD_SUBREAPER
        with contextlib.suppress(OSError, AttributeError):
            return HAS_PROC and bool(ctypes.CDLL(None).prctl(option, 1, 0, 0, 0) == 0)
        return False

    def watch(wake: socket.socket) -> None:
        """Have a byte sent to `wake` when a child ends or somebody signals us, from now on."""
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        handled = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
        for number in handled:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def asks_to_stop(wakes: bytes, in_window: bool) -> str:
        """Why the wakes ask for it, "" if they don't: SIGTERM, or SIGHUP of our window."""
        hung_up = in_window and signal.SIGHUP in wakes
        told = "its supervisor got SIGTERM" if signal.SIGTERM in wakes else ""
        return "its window was closed (SIGHUP)" if hung_up else told

    def oom_kills() -> int:
        """How often the kernel ended a process of our cgroup for want of memory, if known."""
        # cgroup v2 says so in memory.events, v1 in memory.oom_control.
        with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as groups:
            for controller, group in (line.rstrip().split(":", 2)[1:] for line in groups):
                files = {"": "{}/memory.events", "memory": "/memory{}/memory.oom_control"}
                path = "/sys/fs/cgroup" + files.get(controller, "?").format(group)
                with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
                    return sum(int(line.split()[1]) for line in file if line[:9] == "oom_kill ")
        return 0

    def reap() -> tuple[list[tuple[int, int | None, str | None, bool]], bool]:
        """(pid, exit code, signal name, core) of the children that ended since the last call."""
        # And whether no other child is left: ECHILD of waitpid(2).
        ended: list[tuple[int, int | None, str | None, bool]] = []
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return ended, False
                code = _reaped[pid] = os.waitstatus_to_exitcode(status)
                if len(_reaped) > 50:
                    del _reaped[next(iter(_reaped))]
                names = [one.name for one in signal.Signals if one == -code]
                name = None if code >= 0 else (names or [f"signal {-code}"])[0]
                ended.append((pid, None if name else code, name, os.WCOREDUMP(status)))
        return ended, True

    def exit_code_of(process: subprocess.Popen[bytes]) -> int | None:
        """The exit code of a child, None while it runs; reap() may have been faster than we."""
        try:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            process.returncode = os.waitstatus_to_exitcode(status) if pid else None
        except ChildProcessError:
            process.returncode = _reaped.pop(process.pid, None)
        return process.returncode

    def alarm(wait_s: float, act: Callable[[], None]) -> None:
        """Have `act` called in wait_s seconds, in the middle of anything; 0: no more."""
        signal.signal(signal.SIGALRM, lambda *_: act())
        signal.setitimer(signal.ITIMER_REAL, wait_s)

    def death_watch(identity: Identity) -> int | None:
        """A descriptor of the process that becomes readable when it ends: pidfd_open(2)."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):  # it is gone, or the kernel is old
                return os.pidfd_open(identity.pid)
        return None

    def path_of(descriptor: int) -> str:
        """Where an open file is by now, though what it is in was renamed; "" if that isn't known.

        It may have been removed from there.
        """
        with contextlib.suppress(OSError):
            if sys.platform == "darwin":
                path = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024))
                return os.fsdecode(path.rstrip(b"\0"))
            return os.readlink(f"/proc/self/fd/{descriptor}")
        return ""

    def open_files(pid: int) -> list[str]:
        """Where the files that a process has open are by now, if they are still there."""
        if HAS_PROC:  # importing psutil takes longer than all of a look
            return links_of(pid)
        with contextlib.suppress(psutil.Error, OSError):
            return [one.path for one in psutil.Process(pid).open_files()]
        return []

    def try_lock(descriptor: int) -> bool:
        """Take the exclusive lock on an open file, or return False; it ends with its holder."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def is_locked(descriptor: int) -> bool:
        """Whether somebody has the lock on an open file; those who ask don't see each other."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return True

    _late: list[_thread.LockType] = []  # of threads that waited for too long; released at their end

    def lock_within(descriptor: int, wait_s: float) -> bool:
        """Take the exclusive lock on an open file; False if it isn't free within wait_s seconds."""
        if try_lock(descriptor):
            return True
        # flock(2) has a queue but no time limit: a thread waits. Its descriptor is of the same open
        # file, and whoever closes last gives the lock back, also one that comes too late. Where its
        # holder has been stopped (Ctrl-Z) no more than a few wait so: others ask now and then.
        _late[:] = [one for one in _late if one.locked()]
        try:
            mine = os.dup(descriptor) if len(_late) < 4 else -1
        except OSError:  # no descriptor is left
            mine = -1
        if mine < 0:
            return _ask_for_lock(descriptor, wait_s)
        is_over, has_it, signals = _thread.allocate_lock(), list[bool](), signal.valid_signals()

        def wait() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # the main thread is to be woken
            with contextlib.suppress(OSError):
                fcntl.flock(mine, fcntl.LOCK_EX)
                has_it.append(True)
            os.close(mine)
            is_over.release()

        is_over.acquire()
        try:
            _thread.start_new_thread(wait, ())
        except RuntimeError:  # no more threads for this user
            os.close(mine)
            return _ask_for_lock(descriptor, wait_s)
        is_in_time = is_over.acquire(timeout=max(wait_s, 0.0))
        _late.extend([] if is_in_time else [is_over])
        return is_in_time and bool(has_it)

    def private(path: str, flags: int) -> int:
        """An opener for files that only this user may read; no FIFO there is waited for."""
        # What a link there leads to isn't ours to read or write: ELOOP.
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600)

    _IN_DIRECTORY = _thread.allocate_lock()

    @contextlib.contextmanager
    def _address(directory: str) -> Iterator[str]:
        # unix(7): sun_path holds 108 bytes (104 on macOS), so a long path is named from within.
        path = os.path.join(directory, CONTROL_SOCKET)
        if len(os.fsencode(path)) < 100:
            yield path
            return
        with _IN_DIRECTORY:  # which all threads are in
            flags: int = getattr(os, "O_PATH", os.O_RDONLY)  # with O_PATH it needn't be readable
            here = os.open(".", flags)
            try:
                os.chdir(directory)
                yield CONTROL_SOCKET
            finally:
                os.fchdir(here)
                os.close(here)

    def listen_local(directory: str) -> tuple[socket.socket, str]:
        """A listening Unix socket in the directory; it needs no token, its mode protects it."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(directory) as address:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address)
                server.bind(address)
                os.chmod(address, 0o600)
            server.listen(512)  # else a crowd makes commands wait
        except OSError:
            server.close()
            raise
        return server, ""

    def most_connections() -> int:
        """How many clients a supervisor can have: it needs some descriptors for itself."""
        limit = os.sysconf("SC_OPEN_MAX")  # the soft limit
        return max(limit - 100, limit // 2) if limit > 0 else 4000

    def is_own_peer(connection: socket.socket) -> bool:
        """Whether this user or root connected: unix(7) SO_PEERCRED, on macOS LOCAL_PEERCRED."""
        level, option = 0, 1  # <sys/un.h>: struct xucred begins with a version and the uid
        if sys.platform == "linux":
            level, option = socket.SOL_SOCKET, socket.SO_PEERCRED  # struct ucred: pid, uid, gid
        with contextlib.suppress(OSError):  # it has hung up
            user = struct.unpack("2I", connection.getsockopt(level, option, 8))[1]
            return user in (0, my_user_id)
        return False

    def connect_local(directory: str, timeout_s: float) -> tuple[socket.socket, str]:
        """A connection to what listens there, and the token to show; OSError if nothing does."""
        path = os.path.join(directory, CONTROL_SOCKET)
        if os.path.islink(path):  # a cloned repository may have brought it along
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(timeout_s)
        try:
            with _address(directory) as address:
                client.connect(address)
        except OSError:
            client.close()
            raise
        return client, ""

    def _in_one_line(text: str) -> str:
        # POSIX, Shell Command Language 2.2: but between single quotes, a backslash and the line
        # end behind it are removed.
        def joined(part: re.Match[str]) -> str:
            return part[0] if part[0][0] == "'" else re.sub(CONTINUED, r"\1", part[0])

        return re.sub(QUOTED, joined, text)

    def split_command(text: str) -> list[str]:
        """The words of a command line as a POSIX shell splits them; ValueError if it can't be."""
        return shlex.split(_in_one_line(text))

    def join_command(words: Sequence[str]) -> str:
        """One line that splits into these words again."""
        return " ".join(map(shlex.quote, words))

    def typed_word(text: str) -> str:
        """A word as it is typed, or pasted, into a shell, control characters in $'…' of it."""
        if not re.search(r"[\x00-\x1f\x7f]", text):
            return shlex.quote(text)
        known = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\t": r"\t", "\r": r"\r"}
        # Three octal digits are taken at most, so that what follows them stays what it is.

        def escaped(found: re.Match[str]) -> str:
            return known.get(found[0], f"\\{ord(found[0]):03o}")

        return "$'" + re.sub(r"[\x00-\x1f\x7f\\']", escaped, text) + "'"

    def shell_sign(text: str) -> str | None:
        """What only a shell would understand in this command line, else None."""
        text = _in_one_line(text).strip()
        bare = re.sub(QUOTED, ".", text)
        inside = " ".join(found[1] for found in re.finditer(QUOTED, text) if found[1])
        inside = re.sub(r"\\.", "", inside)
        looks = ((EXPANSION, bare), (OPERATOR, bare), (EXPANSION, inside), (ASSIGNMENT, text))
        signs = (re.search(pattern, part) for pattern, part in looks)
        return next((sign[0] for sign in signs if sign), None)

    def shell_argv(text: str) -> tuple[str, ...]:
        """The words that run `text` in the system's shell."""
        return ("/bin/sh", "-c", text)


# == Processes =====================================================================================
# Identity, the tree of a service, how it is ended, who listens on a port. A signal is sent only to
# a member of a tree that was read just before, and only if its token still matches.

STDIO_END_S = 2.0  # for the end of stdin, and again for SIGTERM
GIVE_UP_AFTER_KILL_S = 5.0  # a process in uninterruptible sleep outlives even SIGKILL
LOOK_AGAIN_S = (0.0005, 0.05)  # shortest and longest wait between two looks at a tree that ends


class Member(NamedTuple):
    """A process of a service's tree and why it belongs."""

    identity: Identity
    why: str


class Ended(NamedTuple):
    """What ending a tree came to."""

    processes: int  # how many were seen and had to end
    seconds: float
    killed: bool  # whether SIGKILL was needed
    left: tuple[int, ...]  # the pids that outlived even that


read_ended = reader(Ended)
_reached: list[str] = []


def reached(step: str) -> None:
    """A step that a crash may follow, as tests ask: SPM_TEST_CRASH=supervisor.launched:2,…

    A crash is noted in the file SPM_TEST_CRASHES.
    """
    asked = os.environ.get("SPM_TEST_CRASH")
    if asked:
        role = "supervisor" if sys.argv[1:2] == ["supervise"] else "command"
        _reached.append(f"{role}.{step}")
        for point, _, nth in (one.partition(":") for one in asked.split(",")):
            if point == _reached[-1] and _reached.count(point) >= int(nth or 1):
                with open(os.environ.get("SPM_TEST_CRASHES", os.devnull), "a") as file:
                    file.write(f"{point}\n")
                dismiss(os.getpid())


def is_alive(identity: Identity | None) -> bool:
    """Whether that very process lives; a zombie doesn't."""
    return condition_of(identity) in ("alive", "stopped")


CONDITIONS = {
    "stopped": "its main process is stopped (SIGSTOP)",
    "zombie": "its end was not seen: its main process is a zombie that nobody collected",
    "starting": "its launcher has not exited",
}


def condition_of(identity: Identity | None) -> str:
    """`alive`, `stopped` (SIGSTOP), `zombie`, `gone`, or `stranger`: its number is another's."""
    return condition_from(identity and stat_of(identity.pid), identity)


def condition_from(look: Stat | None, identity: Identity | None) -> str:
    """The same by what was already seen of that number."""
    if look is None:
        return "gone"
    if look.identity != identity and look.identity.token:
        return "stranger"
    return "zombie" if look.is_dead else "stopped" if look.state in "Tt" else "alive"


def run_of(instance: str) -> str:
    """What all instances have in common that one supervisor started by itself."""
    return instance.partition(".")[0]


def lineage(pid: int = 0) -> tuple[int, ...]:
    """The pids of this process (or another) and its ancestors: ours are never to be signalled."""
    pids, look = [pid or os.getpid()], stat_of(pid or os.getpid())
    while look and look.parent > 0 and look.parent not in pids:
        above = stat_of(look.parent)
        if above and above.identity.born > look.identity.born:
            break  # Windows keeps a dead parent's number, which a later process may have
        pids.append(look.parent)
        look = above
    return tuple(pids)


def cookies_among(stats: Mapping[int, Stat], record: Record) -> dict[int, Cookie]:
    """The cookies of those processes that may belong to an instance."""
    # Only the younger ones can bear its own, and what was adopted another one: a command of an
    # alert that outlives a restart. What has no memory has no environment either.
    born, guard = record.born, record.supervisor.pid if record.supervisor else 0
    young = [pid for pid, look in stats.items() if look.identity.born >= born and look.memory_bytes]
    adopted = [pid for pid, look in stats.items() if look.parent == guard]
    return {pid: cookie_of(pid) for pid in (*young, *adopted)}


def is_foreign(cookie: Cookie, run: str) -> bool:
    """Whether that is a supervisor's, or of another run; none: it may be in the middle of exec."""
    return cookie.is_supervisor or run_of(cookie.instance) not in ("", run)


def tree_of(
    record: Record,
    stats: dict[int, Stat] | None = None,
    cookies: Mapping[int, Cookie] | None = None,
) -> list[Member]:
    """Everything that belongs to an instance and lives, each with the reason.

        main process ── its descendants
        process group (Windows: job) of the main process ── their descendants
        what the supervisor adopted ── their descendants
        bearers of the instance's cookie, same user ── their descendants

    Left out with all below them: processes of another instance, and supervisors.
    """
    stats = all_stats() if stats is None else stats
    children: dict[int, list[int]] = {}
    for pid, look in stats.items():
        children.setdefault(look.parent, []).append(pid)
    cookies = cookies_among(stats, record) if cookies is None else cookies
    guard = record.supervisor.pid if record.supervisor else 0
    reasons: dict[int, str] = {}
    run = run_of(record.instance)
    living = {look.identity for look in stats.values()}
    roots: list[tuple[int, str]] = []
    if record.main:
        roots += [(record.main.pid, "main process")] * (record.main in living)
        found = companions(record.main, record.instance, stats)
        stats.update(looks_at(found.keys() - stats.keys()))  # a job knows who just began
        roots += [(pid, why) for pid, why in found.items() if pid in stats]
    if ADOPTS and record.supervisor and record.supervisor in living:
        adopted = children.get(guard, ())
        roots += [(pid, "adopted by its supervisor") for pid in adopted]
    bearers = [pid for pid, cookie in cookies.items() if cookie.instance == record.instance != ""]
    roots += [(pid, "bears its cookie") for pid in bearers if stats[pid].is_mine]
    for root, reason in roots:
        if reason != "main process" and is_foreign(cookies.get(root, Cookie()), run):
            continue
        branch = [(root, reason)]
        while branch:  # whom one of ours started is ours, whatever it did to its cookie
            pid, why = branch.pop()
            is_supervisor = cookies.get(pid, Cookie()).is_supervisor and why != "main process"
            if pid > 1 and pid not in reasons and not is_supervisor:
                reasons[pid] = why
                branch += [(child, f"child of {pid}") for child in children.get(pid, ())]
    return [Member(stats[p].identity, why) for p, why in reasons.items() if not stats[p].is_dead]


class Tree:
    """The tree of an instance, looked at again and again while it ends.

    Who is older than its main process, a supervisor or another instance's, and no member, won't
    be one: those are left out of the looks that follow soon. They cost much with many processes.
    """

    def __init__(self, record: Record) -> None:
        self.record, self.strangers = record, frozenset[int]()
        self.at = -1.0  # when all processes were looked at
        self.members: list[Member] = []
        self.look()

    def look(self) -> list[Member]:
        """Its members now."""
        strangers, now = self.settled(), time.monotonic()
        stats = all_stats(strangers)
        cookies = cookies_among(stats, self.record)
        self.members = tree_of(self.record, stats, cookies)
        if not strangers:
            guard = self.record.supervisor.pid if self.record.supervisor else -1
            mine = {guard, *(member.identity.pid for member in self.members)}
            older = [pid for pid, one in stats.items() if one.identity.born < self.record.born]
            run = run_of(self.record.instance)
            others = [pid for pid, cookie in cookies.items() if is_foreign(cookie, run)]
            outside = {pid for pid in (*older, *others) if stats[pid].parent != guard}
            self.at, self.strangers = now, frozenset(outside - mine)
        return self.members

    def settled(self) -> frozenset[int]:
        """Who needs no second look so soon."""
        return self.strangers if time.monotonic() < self.at + SAME_PIDS_S else frozenset()


def eldest(members: Sequence[Member]) -> Member | None:
    """The oldest of those whose parent isn't among them."""
    pids = {member.identity.pid for member in members}
    looks = [(member, stat_of(member.identity.pid)) for member in members]
    tops = [member for member, look in looks if look and look.parent not in pids]
    return min(tops, key=lambda one: (one.identity.born, one.identity.pid), default=None)


def has_guests(parent: int, record: Record, besides: frozenset[int]) -> bool:
    """Whether children of a process are another instance's, or supervisors: not to wait for."""
    children = [pid for pid, look in all_stats(besides).items() if look.parent == parent]
    return any(is_foreign(cookie_of(pid), run_of(record.instance)) for pid in children)


def end_tree(
    tree: Tree,
    timeout_s: float,
    force: bool,
    is_empty: Callable[[frozenset[int]], bool | None] = lambda _: None,
    quiet_s: float = 0.0,
) -> Generator[float, bool, Ended]:
    """End everything that belongs to an instance; the first look at its tree was just taken.

        look ─▶ SIGTERM to each (SIGKILL if force) ─▶ look … until timeout_s
             ─▶ SIGKILL to each                    ─▶ look … until two looks find nothing

    `is_empty` is what the kernel says: True and one look after that is enough; False and there is
    something that the look didn't show; None where the kernel can't be asked.
    `quiet_s` is how long nothing is signalled: its stdin was closed, that may do.
    Yields how many seconds to wait at most before the next step; send True to go over to SIGKILL.
    Who waits is the caller's business: a supervisor's loop, or `drive`.
    """
    began, members = time.monotonic(), tree.members
    kill_at = began if force else began + quiet_s + timeout_s
    signalled: dict[Identity, bool | None] = {}  # with SIGKILL? None: not yet
    wait_s, quiet, killed, is_heard = LOOK_AGAIN_S[0], 0, False, False
    while quiet < 2 and time.monotonic() < kill_at + GIVE_UP_AFTER_KILL_S:
        kill = time.monotonic() >= kill_at
        due = [m.identity for m in members if signalled.setdefault(m.identity) in (None, not kill)]
        due = due if kill or time.monotonic() >= began + quiet_s else []
        delivered = [send_signal(identity, kill) for identity in due]
        signalled.update(dict.fromkeys(due, kill))
        reached("ending")
        killed = killed or (kill and any(delivered))
        is_heard = is_heard or any(delivered)
        if due and not is_heard:
            kill_at = min(kill_at, time.monotonic())  # nothing polite can be delivered here
        if (yield max(0.0, wait_s if kill else min(wait_s, kill_at - time.monotonic()))):
            kill_at = min(kill_at, time.monotonic())
        looked_at = time.monotonic()
        empty = is_empty(tree.settled())
        members = tree.look()  # after that: the last one may just have had another one started
        quiet = 0 if members or empty is False else quiet + 1 + bool(empty)
        wait_s = LOOK_AGAIN_S[0] if quiet else min(wait_s * 2, LOOK_AGAIN_S[1])
        # Among many processes a look is dear, and of its own children a supervisor is told.
        wait_s = max(wait_s, 4 * (time.monotonic() - looked_at))
    left = tuple(member.identity.pid for member in members)
    return Ended(len(signalled), time.monotonic() - began, killed, left)


def drive(steps: Generator[float, bool, Given]) -> Given:
    """Take an ending through all its steps, sleeping in between; what came of it."""
    try:
        while True:
            time.sleep(next(steps))
    except StopIteration as done:
        outcome: Given = done.value
        return outcome


# Programs that run others for somebody, and what pid 1 is where it isn't somebody's program.
RUNNERS = (
    "(ba|z|fi|da|a|k|mk|c|tc)?sh|nu|busybox|pwsh|powershell|cmd|env|uvx?|np[mx]|pnpm|pnpx|yarn|"
    "corepack|turbo|nx|make|gmake|timeout|xargs|sudo|doas|su|nohup|setsid|time|nice|stdbuf|poetry|"
    "tox|nox|hatch|pdm|pipenv|just|task|invoke|rake|bundle|cargo|git|pre-commit|direnv|mise|watch|"
    "bwrap|unshare|sandbox-exec|codex-[a-z]+-sandbox|script|simple_process_manager|spm"
)
INITS = "systemd|init|launchd|tini|dumb-init|docker-init|catatonit|s6-svscan|runit"
INTERPRETER = "pythonw?|pypy|node|nodejs"
PROGRAM_ENDING = r"[\d.]*(?:-cli)?(?:\.exe|\.[cm]?js|\.pyc?)?$"  # python3.11.exe, npm-cli.js


def is_runner(name: str, words: Sequence[str]) -> bool:
    """Whether a process only runs others: a shell, a tool runner, a script of one, this file."""
    # npm calls itself "npm run dev"; and a name may be that of a thread
    programs = [word.split(" ")[0] for word in (name, *words[:1])]
    scripts = [word for word in words[1:6] if not word.startswith("-")][:1]
    plain = [re.sub(PROGRAM_ENDING, "", os.path.basename(w.lower())) for w in programs + scripts]
    is_script = any(re.fullmatch(INTERPRETER, word) for word in plain[: len(programs)])
    used = plain if is_script else plain[: len(programs)]
    own = os.path.basename(__file__).rpartition(".")[0].lower()
    return any(word == own or re.fullmatch(RUNNERS, word.lstrip("-")) for word in used)


def session_owner() -> Owner:
    """Whose session this is, and its name: the nearest ancestor that isn't a runner."""
    # Else the topmost of those; None if pid 1 is the one, as an agent in a container may be.
    owner: Owner = (None, "")
    for look in filter(None, map(stat_of, lineage()[1:])):
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(look.identity.pid)
            if process.pid == 1:
                return owner if re.fullmatch(INITS, process.name()) else (None, "")
            owner = look.identity, f"{process.name()}, the topmost shell"
            if not is_runner(process.name(), process.cmdline()):
                return look.identity, process.name()
    return owner


def owner_of(lease: str) -> Owner:
    """The process as long as which a service may live; UsageError if it doesn't live."""
    if not lease.isdigit():
        return session_owner() if lease == "session" else (None, "")
    pid = int(lease) if len(lease) < 20 else 0  # int() refuses thousands of digits
    look = stat_of(pid) if pid > 0 else None
    if look and not look.is_dead:
        with contextlib.suppress(psutil.Error, OSError):
            return look.identity, psutil.Process(look.identity.pid).name()
        return look.identity, ""
    advice = "give the pid of one that does; a duration needs a unit, as in 30s"
    raise UsageError(f"--lease {lease}: no such process lives", advice)


def command_line(pid: int) -> str:
    """The command line of a process as one line, "" if it can't be seen."""
    return join_command(arguments_of(pid))


def matching(pattern: str, record: Record, born: float = 0.0) -> list[Member]:
    """This user's processes of that age whose command line matches, nobody else's service."""
    # Without this process and those above it: who types the pattern has it in its command line.
    above, why = lineage(), f"its command line matches {pattern!r}"
    looks = [look for look in all_stats().values() if look.is_mine and look.identity.born >= born]
    found = [look.identity for look in looks if not look.is_dead and look.identity.pid not in above]
    return [
        Member(one, why)
        for one in found
        if re.search(pattern, command_line(one.pid))
        if cookie_of(one.pid) == Cookie() or cookie_of(one.pid).instance == record.instance
    ]


def listeners(pids: Iterable[int]) -> Iterator[Listener]:
    """The TCP sockets that these processes listen on, process by process."""
    known = listen_sockets()
    for pid in pids:
        if known is not None:
            names = dict.fromkeys(links_of(pid))
            yield from (known[name]._replace(pid=pid) for name in names if name in known)
            continue
        with contextlib.suppress(psutil.Error, OSError):
            for one in psutil.Process(pid).net_connections(kind="tcp"):
                if one.status == psutil.CONN_LISTEN and one.laddr:
                    yield Listener(one.laddr.port, one.laddr.ip, pid)


def port_listeners(port: int) -> Iterator[Listener]:
    """Who listens on a TCP port, also whom this user can't see; if nobody, no process is read."""
    known = listen_sockets()
    hidden = [one for one in (known or {}).values() if one.port == port]
    pids = all_pids() if hidden or known is None else []
    for one in listeners(sorted(pids, reverse=True)):  # mostly a young one, and one may be enough
        if one.port == port:
            hidden = [other for other in hidden if other != one._replace(pid=None)]
            yield one
    yield from hidden


REACHED_AT = {"0.0.0.0": ("127.0.0.1",), "::": ("::1", "127.0.0.1")}


def reached_at(address: str) -> tuple[str, ...]:
    """The addresses at which a socket that listens on `address` can be reached from here."""
    address = address[7:] if address.startswith("::ffff:") else address
    return REACHED_AT.get(address, (address,))


def own_listeners(record: Record, port: int | None) -> list[Listener]:
    """Where a service's tree listens, on that port or on any; mostly it is the main process."""
    first = [record.main.pid] if record.main and port else []
    main = [one for one in listeners(first) if one.port == port]
    rows = main or listeners(member.identity.pid for member in tree_of(record))
    return sorted({one for one in rows if port in (None, one.port)}, key=lambda one: one[:2])


def port_holder(port: int, address: str = "") -> int | None:
    """The pid that listens on a port or answers at that address of it; None if not to be seen."""
    found = (one for one in port_listeners(port) if address in ("", *reached_at(one.address)))
    return next((one.pid for one in found if one.pid), None)


class Holder(NamedTuple):
    """A process that listens on a port, as far as it can be seen."""

    identity: Identity | None = None  # None: this user can't see which one it is
    user: str = ""
    is_ours: bool = False  # it runs as this user, and not above this process
    name: str = ""
    command: str = ""
    cwd: str = ""
    cookie: Cookie = Cookie()  # its own or, if it cleared its environment, an ancestor's
    addresses: tuple[str, ...] = ()
    kind: str = ""  # as classify_holder() says

    def to_json(self) -> dict[str, object]:
        """Its JSON object."""
        keys = ("kind", "user", "name", "command", "cwd", "addresses")
        data = {"pid": self.identity and self.identity.pid, **{k: getattr(self, k) for k in keys}}
        return {**data, "service": self.cookie.service or None, "home": self.cookie.home or None}

    def __str__(self) -> str:
        """`pid 812 (python3, user ann, in /srv/app)`."""
        if self.identity is None:
            return f"a process {self.user and f'of user {self.user} '}that this user can't see"
        words = [self.name, self.user and f"user {self.user}", self.cwd and f"in {self.cwd}"]
        words += [f"service {self.cookie.service} of {self.cookie.home}"] * bool(self.cookie.home)
        facts = ", ".join(filter(None, words))
        return f"pid {self.identity.pid}" + (f" ({facts})" if facts else "")


def look_at(pid: int | None, listening: Sequence[Listener] = ()) -> Holder:
    """What can be seen of a process."""
    look, uids = stat_of(pid) if pid else None, {one.uid for one in listening} - {None}
    holder = Holder(addresses=tuple(sorted({one.address for one in listening})))
    if not pid or look is None:
        return holder._replace(user=", ".join(user_name(uid) for uid in uids if uid is not None))
    cookies = [cookie_of(one) for one in lineage(pid)]
    cookie = next((one for one in cookies if one.home and one.service), Cookie())
    own = {"instance": cookie.instance or cookie.supervises, "supervises": cookies[0].supervises}
    cookie, command = cookie._replace(**own), command_line(pid)
    holder = holder._replace(identity=look.identity, command=command, cookie=cookie)
    with contextlib.suppress(psutil.Error, OSError, KeyError):
        process = psutil.Process(pid)
        holder = holder._replace(name=process.name(), user=process.username())
        # Who gave up root looks like root's own in /proc; a socket may be somebody else's gift.
        mine = is_mine(process) and uids <= {my_user_id}
        holder = holder._replace(is_ours=look.is_mine and mine and pid not in lineage())
        holder = holder._replace(cwd=process.cwd())
    return holder


def holders_of(port: int) -> list[Holder]:
    """Each process that listens on a port; one without identity for all that can't be seen."""
    found = [*port_listeners(port)]
    pids = dict.fromkeys(one.pid for one in found)
    looks = {pid: look_at(pid, [one for one in found if one.pid == pid]) for pid in pids}
    # A number may have changed hands since: who was just identified must listen there too.
    sure = {one.pid for one in listeners(filter(None, looks)) if one.port == port}
    return [look for pid, look in looks.items() if pid is None or pid in sure]


# == Store =========================================================================================
# The state directory: state.json under its lock, and the files of each service. A reader never sees
# half a file. What can't be parsed is moved aside and rebuilt; nothing here signals a process.

LOCK_WAIT_S = 10.0
BEGINS_S = 1.0  # a supervisor answers the start first, then opens its socket
HUNG_S = 3.0  # a supervisor answers within milliseconds; this one is stopped or hangs
JOURNAL_BYTES = 1_000_000
STATE_BYTES = 32 << 20  # 10,000 services
LOG_PARTS = ("output.log.1", "output.log")
LONGEST_LOG = 1 << 30
STATE_ADVICE = {
    "ENOSPC": "free some disk space and run the command again; running services go on",
    "EROFS": "make it writable again (mount -o remount,rw …), or take another one: --home /tmp/x",
    "EMFILE": "raise the limit of open files (ulimit -n), then run the command again",
    "ENFILE": "the whole system has no more: end what opened so many, then run the command again",
    "EAGAIN": "raise the limit of processes (ulimit -u), or end some; then run the command again",
    "EACCES": "make it readable and writable for this user: chmod -R u+rwX {path}",
    "EPERM": "make it readable and writable for this user: chmod -R u+rwX {path}",
    "EISDIR": "a directory is in the way: move it aside",
    "ELOOP": "a link is in the way: remove it",
    "ESPIPE": "a FIFO is in the way: remove it",
}
SHORT_OF = ("ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EBUSY", "ESTALE")
OTHER_HOME = "give a directory of your own, one that doesn't exist yet: e.g. --home /tmp/x"
OWN_FILES = ("services", "lock", "cache", "state.json", ".gitignore")
PROJECT_MARKS = (".git", "pyproject.toml", "package.json", "spm.json")


def working_directory() -> str:
    """The current directory; StateError where it was removed."""
    try:
        return os.getcwd()
    except OSError as error:
        told = f"the current directory can't be told: {error.strerror}"
        raise StateError(told, 'cd to one that exists; cd "$PWD" if it was made anew') from error


def full_path(path: str) -> str:
    """The path from the root on; StateError where the current directory was removed."""
    return os.path.abspath(path if os.path.isabs(path) else os.path.join(working_directory(), path))


def find_home(given: str | None) -> str:
    """The state directory: given, SPM_HOME, nearest .spm/ upward, project root's, ./.spm."""
    # The search ends at a .git (file or directory): each worktree has a state of its own.
    explicit = given or os.environ.get("SPM_HOME")
    return full_path(explicit or os.path.join(project_root(), ".spm"))


def is_same_home(one: str, other: str) -> bool:
    """Whether both paths, absolute or "", lead to one state directory, be it removed or not."""
    if one == other or not (os.path.isabs(one) and os.path.isabs(other)):
        return one == other
    with contextlib.suppress(OSError):  # a file system may ignore case, or be mounted twice
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def inherited_home(home: str) -> str:
    """What to say where a service's SPM_HOME hides that of the project that we are in, else ""."""
    who = os.environ.get("SPM_SERVICE") if os.environ.get("SPM_INSTANCE") else None
    with contextlib.suppress(SpmError):
        own = os.path.join(project_root(), ".spm") if who else home
        if os.path.isdir(own) and not is_same_home(own, home):
            return f"this is {home}, SPM_HOME of {who} above us: for {own} give --home"
    return ""


def project_root() -> str:
    """The directory whose .spm/ serves where we are: the nearest that has it, else the project's.

    A part of a repository (backend/pyproject.toml) is served by the spm.json above it.
    """
    here = working_directory()
    parents, above = [here], os.path.dirname(here)
    while above != parents[-1] and not os.path.lexists(os.path.join(parents[-1], ".git")):
        parents.append(above)
        above = os.path.dirname(above)

    def has(path: str, mark: str) -> bool:
        full = os.path.join(path, mark)
        return os.path.isdir(full) if mark == ".spm" else os.path.lexists(full)

    # Outside a repository one that lies about in /tmp or ~ doesn't serve the projects there.
    above_parts = ["spm.json"] * os.path.lexists(os.path.join(parents[-1], ".git"))
    ranked = ((path, marks) for marks in ([".spm"], above_parts, PROJECT_MARKS) for path in parents)
    roots = (path for path, marks in ranked if any(has(path, mark) for mark in marks))
    return next(roots, here)


def repository_of(home: str) -> str:
    """The nearest directory above a home that has a .git (file or directory), "" without one."""
    path = os.path.dirname(home)
    while path != os.path.dirname(path) and not os.path.lexists(os.path.join(path, ".git")):
        path = os.path.dirname(path)
    return path if os.path.lexists(os.path.join(path, ".git")) else ""


def root_of(home: str) -> str:
    """The project's directory: that of .spm, else where we are."""
    return os.path.dirname(home) if os.path.basename(home) == ".spm" else project_root()


def is_in_project(path: str, home: str) -> bool:
    """Whether a directory is in a home's project and in none further in."""
    # Where everything is kept (/, ~, the temporary directory, what holds them) is no project.
    root = os.path.realpath(root_of(home))
    path, inner = os.path.realpath(path), (".git", ".spm")
    while path != root and not any(os.path.lexists(os.path.join(path, one)) for one in inner):
        path, below = os.path.dirname(path), path
        if path == below:
            return False
    wide = [os.path.realpath(one) for one in (os.path.expanduser("~"), tempfile.gettempdir())]
    return path == root and not any(f"{one}{os.sep}".startswith(f"{root}{os.sep}") for one in wide)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A file, or where the system opens those a directory, to look at its lock."""
    descriptor = private(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def state_errors(path: str) -> Iterator[None]:
    """Turn an OSError into a StateError that names the file and what to do."""
    try:
        yield
    except OSError as error:
        name, reason = errno.errorcode.get(error.errno or 0, ""), error.strerror or str(error)
        advice = STATE_ADVICE.get(name, "see what is there: ls -la {path}")
        if not os.path.exists(path):  # what can't be made is a matter of who it would be in
            path = os.path.dirname(path)
        if name in ("EACCES", "EPERM") and not is_own(path):
            advice = OTHER_HOME
        elif not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
            path = os.path.dirname(path)
        told = f"{error.filename or path}: {reason}"
        advice = advice.format(path=path)
        raise StateError(told, advice, retryable=may_pass(error)) from error


def may_pass(error: Exception) -> bool:
    """Whether something is short that may be there later."""
    return errno.errorcode.get(getattr(error, "errno", 0)) in SHORT_OF


def is_own(path: str) -> bool:
    """Whether it is there and this user's, who can then change its mode."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_uid == my_user_id
    return False


LEFT = r"([\w-]+\.jsonl?|\.gitignore|output\.log\.1|room|lock\.up\.by|simple_process_manager[\w-]*"
LEFT += r"\.pyc)\.\d+\.tmp"


def write_file(path: str, data: bytes, durable: bool = True) -> None:
    """Replace a file whole: temporary file beside it, flush, fsync, os.replace."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb", opener=private) as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        reached("written")
        replace_file(temporary, path)
        reached("replaced")
    finally:  # after an error, or Ctrl-C; else it isn't there any more
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def append_line(
    path: str,
    line: dict[str, object],
    shorten: Callable[[list[bytes]], list[bytes]] = lambda lines: lines[len(lines) // 2 + 1 :],
) -> None:
    """Append one JSON line in one write; a file that has grown long is shortened first."""
    if file_size(path) > JOURNAL_BYTES - 500:
        lines = read_tail(path, 4 * JOURNAL_BYTES).splitlines(True)
        write_file(path, b"".join(shorten(lines)), durable=False)
    with open(path, "a+b", buffering=0, opener=private) as file:
        torn = file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n"
        file.write(b"\n" * bool(torn) + json.dumps(line).encode() + b"\n")


def json_lines(path: str, read: Callable[[dict[str, object]], Given]) -> list[Given]:
    """What `read` makes of each object in a file of JSON lines, oldest first.

    What can't be read is left out.
    """
    found = []  # the service may write there too: no more is read than would be of ours
    for line in read_tail(path, 4 * JOURNAL_BYTES).splitlines():
        with contextlib.suppress(ValueError):
            found.append(read(_object(parse_json(line), "line")))
    return found


def make_private(directory: str) -> None:
    """Create a directory and the one it is in: no more, for what is above may have been removed."""
    for path in (os.path.dirname(directory), directory):
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)


def is_same_file(descriptor: int, path: str) -> bool:
    """Whether the path still leads to this open file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


SAME_FILE_S = 5.0  # it is looked at that often whether what is waited for is still the lock


@contextlib.contextmanager
def locked(
    path: str, wait_s: float, busy: str | Callable[[], str], makes: bool = False
) -> Iterator[None]:
    """Hold the lock of a file; TimedOut, saying `busy`, if it isn't free within wait_s seconds.

    `makes`: its directory, too, which somebody may just remove.
    """
    deadline, inner = time.monotonic() + wait_s, os.path.dirname(path)
    while True:
        with state_errors(path):
            try:
                make_private(inner) if makes else None
                descriptor = private(path, os.O_RDWR | os.O_CREAT)
            except (FileNotFoundError, FileExistsError):
                is_file = any(map(os.path.isfile, (inner, os.path.dirname(inner))))
                if not makes or is_file or time.monotonic() >= deadline:
                    raise
                continue
        try:
            # Who held it may have removed the file, and somebody have made another since.
            left_s = min(deadline - time.monotonic(), SAME_FILE_S)
            with state_errors(path):  # ENOLCK, or what a network's file system may say
                is_held = lock_within(descriptor, left_s) and is_same_file(descriptor, path)
            if is_held:
                yield
                return
        finally:
            os.close(descriptor)
        if time.monotonic() >= deadline:
            told = busy if isinstance(busy, str) else busy()
            raise TimedOut(told, "see who holds it: another spm command may hang or be stopped")


class Event(NamedTuple):
    """Something that happened to a service."""

    at: float
    name: str
    event: str
    why: str

    def __str__(self) -> str:
        at = min(self.at, 3e10)  # Windows knows no time after the year 3000
        when = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}.{at % 1 * 1000:03.0f}"
        told = self.event + f": {self.why}" * bool(self.why)
        told = "".join(c if c.isprintable() else repr(c)[1:-1] for c in told)
        return f"{when} {self.name} {told}"


read_event = reader(Event)


STATE_HEAD, STATE_END = b'{"schema": 1, "services": {\n', b"\n}}\n"
STATE_KEY = r'"[a-z0-9][a-z0-9._-]*"'


def event_in(line: dict[str, object], key: str) -> Event:
    """The event of a line of a journal; the name as it was given, where its record tells that."""
    record = line.get("record")
    name = record.get("name") if isinstance(record, dict) else None
    is_known = isinstance(name, str) and name.lower() == key
    return read_event({**line, "name": name if is_known else key}, "event")


def lines_of(records: Mapping[str, Record]) -> dict[str, str]:
    """The JSON of each, on one line."""
    return {key: json.dumps(record.to_json()) for key, record in records.items()}


def record_of(key: str, data: object) -> Record:
    """The record in state.json under that key; RecordError if it is no record, or another's."""
    record = Record.from_json(data, f"services.{key}")
    if not re.fullmatch(NAME, record.name) or record.name.lower() != key:
        raise RecordError(f"services: {key!r:.80} isn't the name of its record")
    return record


class Store:
    """One state directory. Keys are names in lower case: names are compared without case."""

    def __init__(self, home: str, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.lock_wait_s = lock_wait_s
        self.move_to(home)
        self.notes: list[str] = []  # what had to be mended on the way; the renderer shows them
        self.claims: set[str] = set()  # the services that this very command starts or stops
        self.parsed: dict[str, tuple[str, Record]] = {}  # what state.json said, by key
        self.reserved: Record | None = None  # what reserve() wrote last
        self.supervises = ""  # the key of the service whose supervisor we are, who knows
        self.has_looked = False  # for who runs and isn't in state.json

    def move_to(self, home: str) -> None:
        """Have this directory, which may be the one we had, renamed."""
        self.home, self.state_path = home, os.path.join(home, "state.json")

    def prepare(self) -> None:
        """Create the directory, or check that it is ours alone; StateError if it isn't."""
        with state_errors(self.home):
            if not os.path.lexists(self.home):
                os.makedirs(self.home, mode=0o700, exist_ok=True)
            facts = os.stat(self.home), os.lstat(self.home)
        # To change /tmp, /dev/null or /home/bob would break more than it mends.
        is_state = os.path.lexists(self.state_path) and not facts[0].st_mode & 0o1000
        if not os.path.isdir(self.home):
            raise StateError(f"{self.home} is no directory", OTHER_HOME)
        if {one.st_uid for one in facts} != {my_user_id}:
            how = f"; or take it over: chown -R {my_user_id} {self.home}" * is_state
            raise StateError(f"{self.home} belongs to another user", OTHER_HOME + how)
        if is_open_to_others(facts[0].st_mode):
            advice = f"run: chmod 700 {self.home}" if is_state else OTHER_HOME
            raise StateError(f"{self.home} can be written by others", advice)
        with state_errors(self.home):
            tops = [self.home, *filter(os.path.isdir, [self.path("")])]
            entries = [entry for top in tops for entry in os.scandir(top)]
            links = [entry.path for entry in entries if entry.is_symlink()]
        if links:  # a cloned repository may have brought it along
            advice = "see where it leads, then remove it" if is_state else OTHER_HOME
            raise StateError(f"{links[0]} is a link: nothing is read or written", advice)
        if entries and not any(entry.name.startswith(OWN_FILES) for entry in entries):
            raise StateError(f"{self.home} is no state directory: it holds other files", OTHER_HOME)
        ignore = os.path.join(self.home, ".gitignore")
        if ignore not in [entry.path for entry in entries]:  # in it are values of variables
            with contextlib.suppress(OSError):
                write_file(ignore, b"*\n", durable=False)

    def path(self, name: str, *parts: str) -> str:
        """A path in the directory of a service."""
        return os.path.join(self.home, "services", name.lower(), *parts)

    def directories(self) -> list[str]:
        """The names of what is in services/."""
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.path(""))
        return []

    # -- state.json

    def record(self, name: str) -> Record | None:
        """The record of one service; the others aren't looked at if it is there."""
        key = name.lower()
        with contextlib.suppress(OSError, ValueError):  # missing or damaged
            line = self._lines().get(key)
            if line is not None:
                return record_of(key, parse_json(line))
            if self.has_looked:  # for those who run and aren't there
                return None
        return self.records().get(key)

    def save(self, records: dict[str, Record | None]) -> None:
        """Write these records, forget those that are None. StateError if that can't be done."""
        with self._lock():
            self._save(records)

    def _save(self, records: Mapping[str, Record | None]) -> None:
        try:  # what is there stays as it is: whoever needs a record checks it
            known = self._lines()
            try:  # what is replaced is that service's, and no more
                for name in records:
                    parse_json(known.get(name.lower(), "0"))
            except ValueError:
                known = self._lines(is_plain=False)
        except (OSError, ValueError):  # missing or damaged
            known = lines_of(self.records(has_lock=True))
        for name, record in records.items():
            known.pop(name.lower(), None)
            known.update(lines_of({name.lower(): record}) if record else {})
        self._write(known)

    def reserve(self, record: Record, keeps: Callable[[Record], bool]) -> Record | None:
        """Write a record about to start, unless another service keeps its port: which one."""
        key = record.name.lower()
        with self._lock():
            known = self.records(has_lock=True)
            for other, one in known.items():
                is_meant = other != key and one.spec.port == record.spec.port
                if is_meant and one.place.is_same(record.place) and keeps(one):
                    return one
            self._save({key: record})
        self.reserved = record
        return None

    def ensure(self, record: Record) -> None:
        """Have a start be noted: who rebuilt state.json meanwhile didn't know of it."""
        with contextlib.suppress(OSError), open(self.state_path, "rb", opener=private) as file:
            if record.instance.encode() in file.read():
                return
        with contextlib.suppress(SpmError):  # read-only, full: it is known later on
            self.save({record.name: record})

    def save_end(self, after: Record) -> None:
        """Write how an instance ended, unless another one has begun or it was forgotten."""
        with self._lock():
            now = self.records(has_lock=True).get(after.name.lower())
            if now and run_of(now.instance) == run_of(after.instance):
                self._save({after.name: after})

    def swap(self, was: Record, after: Record, why: str = "") -> Record:
        """Write what follows from a look, unless who wrote since knows better; what holds now."""
        with self._lock():
            now = self.records(has_lock=True).get(was.name.lower(), after)
            if now != was or self.is_supervised(was.name):
                return now
            if why:
                self.write_event("corrected", was.name, after, why)
                reached("corrected")
            self._save({was.name: after})
        return after

    def correct(self, was: Record, found: Record, why: str) -> Record:
        """The same, told as an event; where nothing can be written it is found again each time."""
        with contextlib.suppress(SpmError):
            return self.swap(was, found, why)
        return found

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        path = os.path.join(self.home, "lock")
        if not self.supervises and not os.path.isdir(self.home):
            self.prepare()
        return locked(path, self.lock_wait_s, f"{path} is held by another command")

    def records(self, has_lock: bool = False) -> dict[str, Record]:
        """Every record by key, as a copy; rebuilt first if state.json is missing or damaged."""
        try:
            known = self.read()
            return known if has_lock else {**known, **self._unrecorded(known)}
        except FileNotFoundError:
            why = ""
            if not os.path.isdir(self.home):
                if not records_from_cookies(self.home, []):
                    return {}
                self.prepare()  # removed under a service that still runs
        except ValueError as problem:
            why = str(problem)
        except OSError as error:
            with state_errors(self.state_path):
                raise error
        if not has_lock:
            with self._lock():
                return self.records(has_lock=True)
        if why:
            now = f"{time.strftime('%Y%m%dT%H%M%S')}.{time.time_ns() % 10**9:09}"
            aside = f"{self.state_path}.corrupt-{now}"
            with state_errors(self.state_path):
                replace_file(self.state_path, aside)
            reached("moved_aside")
            moved = f"moved to {os.path.basename(aside)}, rebuilt from services/"
            self.notes.append(f"state.json was damaged ({why}): {moved}")
        records = self._rebuild()
        if records and not why:
            lost = ", ".join(one.name for one in records.values() if one.guessed)
            told = f"; of {lost} only command and directory are known: its options are lost"
            note = "state.json was missing: rebuilt from services/ and what runs"
            self.notes.append(note + told * bool(lost))
        try:
            if records or why:
                self._write(lines_of(records))
        except StateError as error:
            self.notes.append(f"the rebuilt state can't be written: {error.message}")
        return records

    def _unrecorded(self, known: Mapping[str, Record]) -> dict[str, Record]:
        """Who runs and isn't in state.json: it was rebuilt when the disk had no room for them."""
        names: list[str] = []
        if not (self.has_looked or self.supervises):
            self.has_looked = True
            names = [one for one in self.directories() if one not in known]
        # a socket that nobody listens on any more: of a supervisor that was killed
        left = [name for name in names if os.path.lexists(self.path(name, CONTROL_SOCKET))]
        names = [name for name in names if name in left or self.is_supervised(name)]
        with contextlib.suppress(OSError, ValueError):  # mostly it began while we looked
            names = [*{*names} - self._lines().keys()] if names else []
        known = self._rebuild() if names else {}
        found = {k: r for k, r in known.items() if k in names and r.phase in LIVE_PHASES}
        if not found:
            return {}
        try:
            with self._lock():
                missing = {key: one for key, one in found.items() if key not in self._lines()}
                if missing:
                    self._save(missing)
                    told = f"not in state.json, but running: {', '.join(missing)}"
                    self.notes.append(f"{told} (written there again)")
        except (StateError, OSError, ValueError) as error:  # no room yet; the next look has it
            self.notes.append(f"{', '.join(found)} can't be written to state.json: {error}")
        return found

    def _lines(self, is_plain: bool = True) -> dict[str, str]:
        """The JSON of each record in state.json, unchecked if it `is_plain`: a line for each.

        OSError, or ValueError if it is damaged.
        """
        with open(self.state_path, "rb", opener=private) as file:
            if file.seek(0, os.SEEK_END) > STATE_BYTES:
                raise RecordError(f"it has {format_bytes(file.tell())}")
            file.seek(0)
            data = file.read()
        if is_plain and data.startswith(STATE_HEAD) and data.endswith(STATE_END):
            lines = data[len(STATE_HEAD) : -len(STATE_END)].decode().split(",\n")
            found = dict(line.partition(": ")[::2] for line in lines)
            if len(found) == len(lines) and all(re.fullmatch(STATE_KEY, key) for key in found):
                return {key[1:-1]: line for key, line in found.items()}
        document = _object(parse_json(data), "services")
        services = _object(document.get("services"), "services")
        return {key: json.dumps(one) for key, one in services.items()}

    def read(self) -> dict[str, Record]:
        """The records in state.json; as _lines(), and checked."""
        former, lines = self.parsed, self._lines()
        try:  # most are as at the last look
            new = [key for key in lines if key not in former or former[key][0] != lines[key]]
            news = {key: parse_json(lines[key]) for key in new}
        except ValueError:  # edited by hand, or damaged
            lines = self._lines(is_plain=False)
            former, news = {}, {key: parse_json(line) for key, line in lines.items()}
        found = {key: (lines[key], record_of(key, data)) for key, data in news.items()}
        self.parsed = {key: found.get(key) or former[key] for key in lines}
        return {key: record for key, (_, record) in self.parsed.items()}

    def _write(self, lines: Mapping[str, str]) -> None:
        """One line for each service: the file stays legible, and who changes one parses none."""
        text = ",\n".join(f"{json.dumps(key)}: {one}" for key, one in sorted(lines.items()))
        with state_errors(self.state_path):
            write_file(self.state_path, STATE_HEAD + text.encode() + STATE_END)

    def _rebuild(self) -> dict[str, Record]:
        """What the supervisors, the journals and the cookies of living processes know."""
        names = [name for name in self.directories() if re.fullmatch(NAME, name)]
        # Who has no socket yet may be waiting for the lock that we hold; a supervisor would wait
        # for itself.
        heard = [name for name in names if os.path.lexists(self.path(name, CONTROL_SOCKET))]
        asked = {name: self.ask_record(name) for name in heard if name != self.supervises}
        known = {name: asked.get(name) or self.journal_record(name) for name in names}
        found = {key: r for key, r in known.items() if r and r.name.lower() == key}
        found.update(records_from_cookies(self.home, [r.instance for r in found.values()]))
        return found

    # -- the directory of one service

    @contextlib.contextmanager
    def claim(self, name: str, wait_s: float, began: float | None = None) -> Iterator[None]:
        """Hold the lock of the command that starts or stops this service.

        `began`: since when it is waited for, with others before it.
        """
        busy = f"{name}: another command starts or stops it (not done after {wait_s:g} s)"
        left_s = wait_s if began is None else max(began + wait_s - time.monotonic(), 0.0)
        with locked(self.path(name, "lock"), left_s, busy, makes=True):
            self.claims.add(name.lower())
            try:
                yield
            finally:
                self.claims.discard(name.lower())

    def is_claimed(self, name: str) -> bool:
        """Whether another command is starting or stopping this service right now."""
        return name.lower() not in self.claims and self._is_held(name, "lock")

    def is_supervised(self, name: str) -> bool:
        """Whether a supervisor lives: it holds its lock, and the kernel knows."""
        return self._is_held(name, "supervisor.lock")

    def is_behind(self, name: str) -> bool:
        """Whether a supervisor knows what it can't write into state.json, see mark()."""
        return self._is_held(name)

    def _is_held(self, name: str, *lock: str) -> bool:
        try:
            with opened(self.path(name, *lock)) as descriptor:
                return is_locked(descriptor)
        except OSError as error:  # there is no such file; or it can't be told
            if error.errno in NO_ROOM:
                raise
        return False

    def send(self, name: str, request: dict[str, object]) -> socket.socket:
        """A connection over which the request went to the supervisor; OSError if it can't."""
        deadline = time.monotonic() + BEGINS_S
        while True:
            try:
                connection, token = connect_local(self.path(name), HUNG_S)
                break
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):  # or many at once
                if time.monotonic() > deadline or not self.is_supervised(name):
                    raise
                time.sleep(0.002)
        try:
            connection.sendall(json.dumps({**request, "token": token}).encode() + b"\n")
        except OSError:
            connection.close()
            raise
        return connection

    def ask_record(
        self, name: str, operation: str = "status", wait_s: float = HUNG_S, **facts: object
    ) -> Record | None:
        """What a living supervisor knows, None if there is none or it doesn't answer."""
        if not self.is_supervised(name):
            return None
        try:
            with self.send(name, {"op": operation, **facts}) as connection:
                return Record.from_json(receive(connection, wait_s).get("record"))
        except (OSError, ValueError):
            return None

    def write_event(self, event: str, name: str, record: Record | None, why: str = "") -> None:
        """Append to the journal; the record goes along, so that state.json can be rebuilt."""
        line: dict[str, object] = {"at": round(time.time(), 3), "event": event, "why": why}
        line["record"] = record and record.to_json()
        if self.supervises:
            line["by"] = "supervisor"
        with state_errors(self.path(name)):
            append_line(self.path(name, "events.jsonl"), line)
            reached("journalled")

    def _journalled(self, name: str) -> Iterator[tuple[Record | None, object]]:
        """The records in the journal with who wrote them, the last first; None: forgotten."""
        with state_errors(self.path(name)):
            events = json_lines(self.path(name, "events.jsonl"), dict)
        for event in reversed(events):
            with contextlib.suppress(ValueError):
                data = event.get("record")
                yield None if data is None else Record.from_json(data), event.get("by")

    def journal_record(self, name: str) -> Record | None:
        """The last record in the journal; None if there is none or the service was forgotten."""
        return next((record for record, _ in self._journalled(name)), None)

    def journal_main(self, record: Record) -> Identity | None:
        """The last main process of an instance that its supervisor itself wrote down."""
        told = (one for one, by in self._journalled(record.name) if one and by == "supervisor")
        return next((one.main for one in told if one.instance == record.instance), None)

    def journal_end(self, record: Record) -> Record | None:
        """How an instance ended, where its supervisor wrote that down last."""
        told = (one for one, by in self._journalled(record.name) if one and by == "supervisor")
        last = next(told, None)
        is_its_end = last and last.instance == record.instance and last.phase in ENDED_PHASES
        return last if is_its_end else None

    def given_env(self, name: str, of_files: bool = False) -> dict[str, str]:
        """The values given by --env K=V at the last start, or the digests of its env files."""
        path = self.path(name, "env.json")
        try:
            with open(path, "rb", opener=private) as file:
                kept = texts_by_name(parse_json(file.read(STATE_BYTES)), path)
                return {key: kept[key] for key in kept if os.path.isabs(key) is of_files}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            advice = f"start {name} anew, with --replace and its --env options"
            told, is_brief = f"{path} can't be read", may_pass(error)
            raise StateError(told, advice, retryable=is_brief) from error

    def events(self, name: str | None, changed_after: float = 0.0) -> list[Event]:
        """What happened to a service, or (None) to all, oldest first, by journals that changed."""
        found = list[Event]()
        for key in [name.lower()] if name else self.directories():
            path = self.path(key, "events.jsonl")
            # none, or it is just cleaned up, or that is no directory
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                is_new = os.stat(path).st_mtime >= changed_after
                found += json_lines(path, functools.partial(event_in, key=key)) if is_new else ()
        # What happened at once stays in its order; one journal has its own, whatever the clock did.
        return found if name else sorted(found, key=lambda one: one.at)

    def sweep(self) -> None:
        """Remove what writes of ours that were killed left: one that isn't takes no minute."""
        places = [self.home, os.path.join(self.home, "versions")]
        for inner in ("services", "cache"):
            with contextlib.suppress(OSError):
                above = os.path.join(self.home, inner)
                places += [os.path.join(above, name) for name in os.listdir(above)]
        for place in places:
            with contextlib.suppress(OSError):
                for name in os.listdir(place):
                    path = os.path.join(place, name)
                    if re.fullmatch(LEFT, name) and os.stat(path).st_mtime < time.time() - 60:
                        os.unlink(path)

    def failed_exits(self, name: str) -> list[dict[str, object]]:
        """The last 20 failed exits, newest first: an Exit, its `cause` and `log_tail`."""

        def exit_in(line: dict[str, object]) -> dict[str, object]:
            ended, cause = read_exit(line, "exit"), _text(line.get("cause", ""), "exit.cause")
            return {**ended._asdict(), "cause": cause, "log_tail": line.get("log_tail")}

        return json_lines(self.path(name, "exits.jsonl"), exit_in)[:-21:-1]

    # -- what a service wrote

    def last_lines(
        self, name: str, count: int, end: int | None = None, own: int = LONGEST_LOG
    ) -> list[str]:
        """The last lines of its output, from the older file too if the younger has too few."""
        # `end` is where in the younger file they end, None: at its end; `own` the bytes that count.
        most = max(1 << 20, 400 * count)  # bytes; who writes longer lines gets fewer of them
        text = read_tail(self.path(name, LOG_PARTS[0]), most)
        text += read_tail(self.path(name, LOG_PARTS[1]), most, end)
        return as_lines(text[max(0, len(text) - own) :])[-count:] if count else []

    def last_words(self, record: Record, count: int) -> list[str]:
        """The last lines that an instance wrote: before them its log has those of former ones."""
        path = self.path(record.name, LOG_PARTS[1])
        own = self.log_start(record.name) + file_size(path) - record.log_at
        # below 0: somebody emptied the log, so that all in it is younger
        return self.last_lines(record.name, count, own=own if own >= 0 else LONGEST_LOG)

    def log_start(self, name: str) -> int:
        """How many bytes had been written before the present output.log began."""
        return last_sample(self.path(name, "metrics.jsonl")).start

    def lines_since(self, name: str, moment: float, end: int) -> list[str]:
        """The output since a time (seconds since the epoch), as exact as the samples are (5 s)."""
        ends = (None, end)
        parts = [read_tail(self.path(name, p), LONGEST_LOG, e) for p, e in zip(LOG_PARTS, ends)]
        samples = log_samples(self.path(name, "metrics.jsonl"))
        then = max((start + size for at, start, size in samples if at <= moment), default=0)
        start = samples[-1][1] if samples else 0
        return as_lines(b"".join(parts)[max(0, then - start + len(parts[0])) :])


def as_lines(text: bytes) -> list[str]:
    """Output as lines; bytes that aren't UTF-8 are replaced."""
    lines = text.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_tail(path: str, count: int, end: int | None = None) -> bytes:
    """The `count` bytes before `end`, or before the end of the file; fewer if it has fewer."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb", opener=private) as file:
        if not file.seekable():
            raise OSError(errno.ESPIPE, "it is a FIFO", path)
        end = file.seek(0, os.SEEK_END) if end is None else end
        return file.read(end - file.seek(max(0, end - count)))
    return b""


class Output:
    """What a service wrote, read on from where the last look ended, through rotations."""

    def __init__(self, store: Store, record: Record, from_end: bool = False) -> None:
        self.store, self.name = store, record.name
        older, path = self.paths()
        # Counted over all instances. A start begins both files anew, an automatic restart doesn't.
        began = store.log_start(self.name)
        first = max(began - file_size(older), record.log_at)
        self.at = began + file_size(path) if from_end else first

    def paths(self) -> list[str]:
        """The older file and the present one; their home may be renamed at any time."""
        return [self.store.path(self.name, part) for part in LOG_PARTS]

    def read(self) -> bytes:
        """What comes next, a megabyte at most; empty if there is nothing new."""
        began, (older, present) = self.store.log_start(self.name), self.paths()
        is_rotated = self.at < began  # the older file ends where the present one begins
        path = older if is_rotated else present
        end = file_size(path)
        first = began - end if is_rotated else began  # where this file begins in all of it
        self.at = max(self.at, first)
        until = min(end, self.at - first + (1 << 20))
        chunk = read_tail(path, max(0, until - (self.at - first)), until)
        self.at += len(chunk)
        return chunk


def file_size(path: str) -> int:
    """Its size, 0 if there is no such file."""
    with contextlib.suppress(OSError):
        return os.path.getsize(path)
    return 0


class Sample(NamedTuple):
    """How much had been written by when."""

    at: float
    start: int  # bytes before the present file began
    size: int  # bytes in the present file


read_sample = reader(Sample)


def log_samples(path: str) -> list[Sample]:
    """The samples of a log, oldest first."""
    return json_lines(path, lambda line: read_sample(line, "sample"))


def figures(path: str, since: float) -> dict[str, list[tuple[float, float]]]:
    """Of each metric that was measured since a time when it was what, oldest first."""
    found: dict[str, list[tuple[float, float]]] = {key: [] for key in METRICS}
    for line in json_lines(path, dict):
        for key, values in found.items():
            with contextlib.suppress(RecordError):
                at, value = (float(str(_number(line.get(one), one))) for one in ("at", key))
                values += [(at, value)] * (at >= since)
    return {key: values for key, values in found.items() if values}


def last_sample(path: str) -> Sample:
    """The youngest sample, read from the end of the file."""
    lines = list[bytes]()
    with contextlib.suppress(OSError):
        lines = read_tail(path, 1000).splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # torn, where the disk was full
            return read_sample(parse_json(line), "sample")
    return Sample(0.0, 0, 0)


def receive(connection: socket.socket, wait_s: float) -> dict[str, object]:
    """One answer of a supervisor; OSError if none of sense comes, the SpmError of a refusal."""
    # It reads to the end of the line and no further: a second answer may stand behind it.
    received, deadline = bytearray(), time.monotonic() + wait_s
    while not received.endswith(b"\n"):
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        if len(received) > STATE_BYTES or time.monotonic() > deadline:
            raise ConnectionError("the supervisor's answer has no end")
        ahead = connection.recv(65536, socket.MSG_PEEK)
        if not ahead:
            raise ConnectionError("the supervisor closed the connection")
        received += connection.recv(ahead.find(b"\n") + 1 or len(ahead))
    try:
        return accepted(bytes(received))
    except ValueError as error:
        raise ConnectionError(f"the supervisor's answer is nonsense: {error}") from error


def accepted(line: bytes) -> dict[str, object]:
    """A supervisor's answer; raises the SpmError that it tells of, ValueError if it is nonsense."""
    answer = _object(parse_json(line), "answer")
    if answer.get("ok") is not True:
        facts = answer.get("error")
        kinds = {"kind": _text, "message": _text, "advice": _text, "retryable": _flag}
        kind, message, advice, _ = map(str, read_object(facts, "answer.error", kinds))
        error = ERRORS.get(kind, Failed)(message, advice)
        error.facts.update(unknown_keys(facts, kinds))
        raise error
    return answer


def home_now(pid: int, cookie: Cookie) -> str:
    """The home of what bears a cookie: where its open files are, if that was renamed since."""
    directory = os.path.join(os.sep, "services", cookie.service.lower())
    for path in open_files(pid):
        above, name = os.path.split(path)
        home = above.removesuffix(directory)
        if home != above and name in ("supervisor.lock", "output.log"):
            return cookie.home if is_same_home(home, cookie.home) else home
    return cookie.home


def records_from_cookies(home: str, known: Iterable[str]) -> dict[str, Record]:
    """Records made up from processes that bear this home's cookie and that nobody else knows."""
    stats = all_stats()
    mine = [pid for pid, look in stats.items() if look.is_mine and look.memory_bytes]
    mine.sort(key=lambda pid: (stats[pid].identity.born, pid))  # the eldest is the main one
    cookies = {pid: cookie_of(pid) for pid in mine}
    ours = {pid: cookie for pid, cookie in cookies.items() if is_same_home(cookie.home, home)}
    # another home was made in the place of theirs
    away = {pid: one for pid, one in ours.items() if not is_same_home(home_now(pid, one), home)}
    moved = {run_of(one.instance or one.supervises) for one in away.values()}
    ours = {k: c for k, c in ours.items() if run_of(c.instance or c.supervises) not in moved}
    guards = {run_of(c.supervises): pid for pid, c in ours.items() if c.is_supervisor}
    mains: dict[str, int] = {}  # of a supervisor its own child: nobody else can have that
    for pid, cookie in cookies.items():
        run = run_of(ours.get(stats[pid].parent, Cookie()).supervises)
        if guards.get(run) == stats[pid].parent and not is_foreign(cookie, run):
            mains.setdefault(run, pid)
    records: dict[str, Record] = {}
    seen = set(map(run_of, known))
    for pid, cookie in ours.items():
        above = run_of(ours.get(stats[pid].parent, Cookie()).instance)
        instance = cookie.instance or cookie.supervises
        run = run_of(instance)
        main = mains.get(run, 0 if cookie.is_supervisor else pid)  # some have no cookie: nginx
        is_whole = is_instance(instance) and re.fullmatch(NAME, cookie.service)
        if run in (above, *seen) or not is_whole or not main:
            continue
        seen.add(run)
        record = _record_from_process(stats[main].identity, cookie._replace(instance=instance))
        guard = stats[guards[run]].identity if run in guards else None
        records[record.name.lower()] = record._replace(supervisor=guard)
    return records


def other_homes(home: str, program: str) -> dict[str, list[str]]:
    """The other homes in which services live, as cookies tell, with these: of this repository, and
    of the project that the program lies in (who calls it has come from there).
    """
    home, found = os.path.realpath(home), dict[str, set[str]]()
    repositories = {repository_of(home), repository_of(os.path.realpath(program))} - {""}
    looks = all_stats().values()
    for cookie in (cookie_of(look.identity.pid) for look in looks if look.is_mine):
        is_whole = is_instance(cookie.instance or cookie.supervises) and os.path.isabs(cookie.home)
        other = os.path.realpath(cookie.home) if is_whole else home
        if other != home and re.fullmatch(NAME, cookie.service):
            is_beside = os.path.dirname(other) == os.path.dirname(os.path.realpath(program))
            is_near = is_beside or repository_of(other) in repositories
            found.setdefault(other, set()).update([cookie.service] * is_near)
    return {other: sorted(found[other]) for other in sorted(found) if found[other]}


def _record_from_process(main: Identity, cookie: Cookie) -> Record:
    argv: tuple[str, ...] = ("?",)
    cwd, started_at = "/", time.time()
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(main.pid)
        started_at, cwd = process.create_time(), process.cwd()
        title = re.sub("\0+$", "", "\0".join(process.cmdline()))  # its own may be shorter
        argv = tuple(title.split("\0")) if title.strip("\0") else argv
    spec = Spec(argv, cwd, port=recognise_port(argv))
    record = new_record(cookie.service, spec, cookie.instance)
    reason = "found by its cookie: its record was lost"
    record = record._replace(phase="running", started_at=started_at, main=main, reason=reason)
    return record._replace(guessed=True)


def new_record(name: str, spec: Spec, instance: str) -> Record:
    """The record of an instance that is about to start here and now."""
    now = time.time()
    return Record(name, spec, instance, place(), "running", "starting", now, now)


# == Probes ========================================================================================
# Does something answer? A probe has a deadline of its own and says what it saw.

LOOPBACK = ("127.0.0.1", "::1")
TREE_LOOK_S = 0.5  # while loopback refuses: a service may listen on another address
LONGEST_LINE = 65536
MATCH_S = 0.25  # how long matching one line that a service wrote may hold up everything else
REDIRECTS = 5
# Answers before the answer (RFC 9110 section 15.2): Continue, Early Hints; 101 is one itself.
INTERIM = rb"(?s)\A(?:HTTP/1\.\d 1(?!01)\d\d\b.*?\n\n)+"


def probe_tcp(port: int, addresses: Sequence[str] = LOOPBACK) -> tuple[str | None, str]:
    """The first of these addresses that accepts a connection on `port`; and what was seen."""
    seen = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(CONNECT_S)
                probe.connect((address, port))
                # A connect to a free port of the ephemeral range may pick that very port as its
                # source and reach itself (simultaneous open, RFC 9293 section 3.5): nobody's there.
                if probe.getsockname()[:2] != probe.getpeername()[:2]:
                    return address, "connected"
                seen.append(f"{address}: connection refused")
        except OSError as error:
            seen.append(f"{address}: {(error.strerror or str(error)).lower()}")
    return None, ", ".join(seen)


def has_listener(port: int) -> bool:
    """Whether somebody listens on a port, or answers where the system doesn't tell that."""
    ports = listening_ports()
    return probe_tcp(port)[0] is not None if ports is None else port in ports


def is_free(port: int) -> bool:
    """Whether a server could listen on a port: it can be bound, IPv4 and IPv6; nobody answers."""
    option: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    for address, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
        with contextlib.suppress(OSError), socket.socket(family) as probe:  # there may be no IPv6
            probe.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    # An exclusive bind is proof enough; and there a refusal would take its time.
    return option != socket.SO_REUSEADDR or probe_tcp(port)[0] is None


def joined_host(host: str, port: int | None) -> str:
    """`127.0.0.1:80`, `[::1]:80`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def probe_http(url: Check, address: str, spec: Spec, deadline: float) -> tuple[bool, str, int]:
    """Whether a GET is answered as expected, and the status; redirects on the same host count."""
    # By hand: http.client takes 20 ms to import, and a server that drips could hold it for ever.
    for _ in range(REDIRECTS + 1):
        where = f"{url.kind}://{joined_host(url.host, url.port)}{url.text}"
        try:
            head = _http_head(url, address, spec.insecure, deadline)
        except (OSError, ValueError) as error:  # ValueError: a host name that can't be one
            advice = " (--insecure accepts it)" * hasattr(error, "verify_message")
            reason = getattr(error, "strerror", None) or str(error)
            return False, f"{where}: {reason.lower()}{advice}", 0
        match = re.match(rb"HTTP/1\.\d (\d{3})(?is:.*?\nlocation:[ \t]*([!-~\x80-\xff]+))?", head)
        if match is None:
            return False, f"{where}: no HTTP answer", 0
        location = (match[2] or b"").decode("utf-8", "surrogateescape").partition("#")[0]
        status = int(match[1])
        is_path = location[:1] == "/" and location[1:2] != "/"
        onward = url._replace(text=location) if is_path else parse_url(location)
        is_meant = (str(status), "") in re.findall(EXPECTED, spec.expect)  # 302, not 200-399
        is_redirect = 300 <= status < 400 and not is_meant
        if not is_redirect or not onward or onward._replace(text=url.text) != url:
            away = f", which leads to {location[:200]}" if location else ""
            is_good = is_expected(status, spec.expect)
            wanted = "" if is_good else f", expected {spec.expect}"
            return is_good, f"{where}: status {status}{wanted}{away}", status
        url = onward
    return False, f"{where}: more than {REDIRECTS} redirects", 0


def _http_head(url: Check, address: str, insecure: bool, deadline: float) -> bytes:
    """The answer to a GET as far as the end of its headers."""
    left_s = max(deadline - time.monotonic(), 0.001)
    with contextlib.ExitStack() as closing:
        connection = closing.enter_context(
            socket.create_connection((address, url.port or 0), left_s)
        )
        if url.kind == "https":
            import ssl

            context = ssl.create_default_context()
            if insecure:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection, server_hostname=url.host)
            closing.enter_context(connection)
        request = f"GET {url.text} HTTP/1.1\r\nHost: {joined_host(url.host, url.port)}\r\n"
        request += f"User-Agent: simple_process_manager/{__version__}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode("utf-8", "surrogateescape"))
        answer, head, chunk = b"", b"", b"\n"
        while chunk and b"\n\n" not in head and len(answer) < 1 << 16:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = connection.recv(4096)
            answer += chunk
            head = re.sub(INTERIM, b"", answer.replace(b"\r\n", b"\n"))
    return head.partition(b"\n\n")[0]


class LogProbe:
    """Looks for patterns in all that an instance wrote: each line once, an unfinished one anew."""

    def __init__(self, output: Output, *patterns: str) -> None:
        self.output, self.patterns, self.rest, self.count = output, patterns, b"", 0
        self.text = " or ".join(map(repr, patterns))
        self.left: list[bytes] = []  # lines still to look at, the next one last
        self.suspect = -1  # which line the last alarm came in
        self.cpu_s: float | None = None  # of this thread when that was, or the matching began
        self.found: str | None = None  # the pattern that matched: each line is read but once

    def lines(self, deadline: float) -> Iterator[str]:
        """What was written since the last look; what stands behind the last line end is one too."""
        while time.monotonic() < deadline and (self.left or self.fetch()):
            yield self.left.pop()[:LONGEST_LINE].decode("utf-8", "replace").rstrip("\r")

    def fetch(self) -> bool:
        """Whether there is more: the lines of what comes next, and the unfinished one anew."""
        chunk = b""
        with contextlib.suppress(OSError):  # the service put something else in its log's place
            chunk = self.output.read()
        *lines, rest = (self.rest + chunk).split(b"\n")
        self.rest, self.count = rest[:LONGEST_LINE], self.count + len(lines)
        self.left = [self.rest, *reversed(lines)] if chunk else []
        return bool(chunk)

    def look(self, deadline: float) -> tuple[str | None, str]:
        """The first pattern that a line matches; one that takes for ever is used no more."""
        # In the main thread: only a signal gets in between, and all else waits meanwhile.
        self.cpu_s, self.suspect = time.thread_time(), -1
        try:
            alarm(MATCH_S, self._give_up)
            pairs = ((one, line) for line in self.lines(deadline) for one in self.patterns)
            found = self.found or next((one for one, line in pairs if re.search(one, line)), None)
            self.found, self.cpu_s = found, None  # an alarm that is just coming now means nothing
        except TimeoutError:
            found, self.patterns = None, ()
        finally:
            alarm(0.0, self._give_up)
        if not self.patterns:
            return None, f"{self.text} takes too long to match its log: it is used no more"
        where = f"{self.text} in {counted(self.count - len(self.left), 'line')} of its log"
        return found, f"its log matches {found!r}" if found else f"no match of {where}"

    def _give_up(self) -> None:
        if self.cpu_s is None:
            return
        line = self.count - len(self.left)
        if line != self.suspect:  # there are many, and that takes its time
            self.suspect, self.cpu_s = line, time.thread_time()
        elif time.thread_time() - self.cpu_s >= MATCH_S / 2:
            raise TimeoutError
        alarm(MATCH_S, self._give_up)  # or it was the machine that was busy


def probe_exec(text: str, cwd: str, env: Env, deadline: float, is_over: Over) -> tuple[bool, str]:
    """Whether a shell command exits with 0; too late it is killed with all that it started."""
    # Its output isn't kept: it may hold secrets. Its cookie is that of an instance of its own, so
    # it is no part of the service's tree.
    record = new_record("probe", Spec((text,), cwd), os.urandom(16).hex())
    values = {key: value for key, value in env.items() if key not in COOKIE_NAMES}
    values["SPM_INSTANCE"], words, null = record.instance, shell_argv(text), subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            words, -1, None, null, null, null, cwd=cwd, env=values, start_new_session=True
        )
    except OSError as error:
        return False, f"exec {text!r}: {error.filename or words[0]}: {error.strerror}"
    except ValueError as error:  # forged: no command can have such a character
        return False, f"exec {text!r}: {error}"
    look = code = None
    try:
        look, code, pause_s = stat_of(process.pid), exit_code_of(process), 0.001
        while code is None and time.monotonic() < deadline and not is_over():
            time.sleep(pause_s)
            pause_s, code = min(pause_s * 2, 0.02), exit_code_of(process)
    finally:  # Ctrl-C too
        if code is None:
            look = look or stat_of(process.pid)
            record = record._replace(main=look and look.identity)
            drive(end_tree(Tree(record), 0.0, force=True))
            process.returncode = exit_code_of(process) or -9
    how = "it did not end in time and was killed" if code is None else f"exit code {code}"
    return code == 0, f"exec {text!r}: {how}"


class Sight(NamedTuple):
    """What a look at one check saw."""

    is_ok: bool = False
    seen: str = "not looked at yet"
    port: int | None = None
    address: str = ""
    pid: int | None = None
    is_foreign: bool = False  # somebody answers, and it isn't the service
    status: int = 0  # of HTTP


class Checks:
    """The checks of one instance, or of nobody's port, and what the last look at each saw."""

    def __init__(
        self, store: Store, record: Record | None, checks: Sequence[Check], spec: Spec, ask: Ask
    ) -> None:
        self.record, self.checks, self.spec, self.ask = record, checks, spec, ask
        logs = [check for check in checks if record and check.kind == "log"]
        self.logs = {c: LogProbe(Output(store, record), c.text) for c in logs if record}
        self.sights = dict.fromkeys(checks, Sight())
        self.tree_at = dict.fromkeys(checks, 0.0)

    def waiting(self) -> list[Check]:
        """The checks that didn't hold when they were looked at last."""
        return [check for check in self.checks if not self.sights[check].is_ok]

    def look(self, check: Check, env: Env, deadline: float, is_over: Over) -> Sight:
        """Look at one check, until the deadline or until it is over with the service."""
        sight, spec = self.sights[check], self.spec
        condition = CONDITIONS.get(condition_of(self.record.main)) if self.record else None
        if self.record and self.record.spec.type == "forking":
            condition = condition or CONDITIONS.get(self.record.phase)
        if condition:  # the kernel goes on to accept connections for it
            sight = Sight(False, condition)
        elif check.kind in ("log", "mcp"):  # what was written once stays written
            is_done = sight.is_ok and check.kind == "log"
            sight = sight if is_done else self.ask(self, check, deadline)
        elif check.kind == "exec":
            values = {**env, "PORT": str(spec.port)} if spec.port else env
            sight = Sight(*probe_exec(check.text, spec.cwd, values, deadline, is_over))
        else:
            sight = self._find_listener(check)
        if sight.is_ok and check.kind in ("http", "https"):
            host = check.host or ("localhost" if sight.address in LOOPBACK else sight.address)
            url = check._replace(host=host, port=sight.port)
            is_ok, seen, status = probe_http(url, sight.address, spec, deadline)
            sight = sight._replace(is_ok=is_ok, seen=seen, status=status)
        sight = self.sights[check] = sight._replace(seen=mask_secrets(sight.seen))
        return sight

    def read(self, check: Check, deadline: float) -> Sight:
        """Look at the log for a check."""
        found, seen = self.logs[check].look(deadline)
        return Sight(found is not None, seen)

    def _find_listener(self, check: Check) -> Sight:
        """Where to connect to: of a service's own port only where its own tree listens."""
        port, now = check.port or self.spec.port, time.monotonic()
        if check.host not in ("", "localhost", *LOOPBACK):
            return Sight(True, "", port, check.host)
        answering, seen = None, "it listens on no port yet"
        if port:
            hosts = (check.host,) if check.host in LOOPBACK else LOOPBACK
            answering, seen = probe_tcp(port, hosts)
            seen = f"port {port}: {seen}" if self.record else seen  # else that is its name
        if self.record is None or (check.host and port != self.spec.port):
            return Sight(answering is not None, seen, port, answering or "")
        if port and not answering and now < self.tree_at[check] and not self.sights[check].is_ok:
            return Sight(False, seen, port)
        self.tree_at[check] = now + TREE_LOOK_S
        for number, listened, pid, _ in own_listeners(self.record, port):
            for at in reached_at(listened):
                is_meant = check.host in ("", at) or (check.host == "localhost" and at in LOOPBACK)
                if is_meant and (at == answering or probe_tcp(number, (at,))[0]):
                    return Sight(True, f"{joined_host(at, number)} answers", number, at, pid)
        if port and answering:
            seen = f"{look_at(port_holder(port, answering))} answers there"
        return Sight(False, seen, port, is_foreign=bool(answering))


# == Policies ======================================================================================
# Pure decisions over facts and times: nothing here reads, writes or waits.

LOG_CHECK_S = (0.1, 5.0)
LONGEST_COOLDOWN_S = 900.0
RESTARTED = "machine restarted"
UNSUPERVISED = "its supervisor is gone, the service lives on: start {0.name} takes it back"
HALTED = "its supervisor is stopped (SIGSTOP): kill -CONT {0.supervisor.pid} has it go on"
ALONE = "stopped without its supervisor"  # which has what it adopts end, whoever that became
UNREACHED = "what its supervisor listened in was removed: start {0.name} takes it back"
UNHEARD = "its supervisor is gone, and its pipes with it: the next call starts {0.name} anew"
SPEC_WORDS = {
    "port_declared": "port declared with --port",
    "argv": "command",
    "env_given": "--env",
    "env_taken": "--env",
    "env_files": "--env-file",
    "lease": "--lease",
    "idle_timeout_s": "--idle-timeout",
    "pid_file": "--pid-file",
    "require_env": "--require-env",
    "rules": "environment",
}


class Facts(NamedTuple):
    """What was just seen of a recorded service."""

    here: bool  # its pids mean something here: same boot, host and PID namespace
    same_host: bool
    claimed: bool = False  # another command is starting or stopping it
    supervised: bool = False
    main: str = "gone"  # what condition_of() says
    retry_s: float = 0.0  # until an automatic restart
    halted: bool = False  # its supervisor stands still (SIGSTOP)
    cut_off: bool = False  # its supervisor lives, but what it can be reached by was removed


class Verdict(NamedTuple):
    """The status of a service in one of the status words, and why where that needs saying."""

    status: str
    why: str = ""

    @property
    def is_live(self) -> bool:
        """Whether it runs, or is about to, or is about to end."""
        return self.status in LIVE_PHASES


def status_of(record: Record, facts: Facts) -> Verdict:
    """The one place where a status comes from: the first row that holds."""
    phase, main, supervised = record.phase, record.main, facts.supervised
    is_over = phase == "backoff" and not supervised  # nobody will restart it
    is_well = is_over and is_among(record.exit, record.spec.success_codes)
    waits = format_duration(facts.retry_s) if phase == "backoff" else ""
    alone = "{0.reason}; its supervisor was gone while it waited to restart"
    begins, as_was = phase == "starting" and supervised, "{0.reason}" * (phase == "unhealthy")
    launched = "its launcher ended: {0.reason}" if facts.main == "gone" else CONDITIONS["starting"]
    rows = (  # {0} is the record, {1} how long it waits
        (phase in ENDED_PHASES, phase, "{0.reason}"),
        (not facts.here and facts.same_host, "exited", RESTARTED),
        (not facts.here, "lost", "recorded on host {0.place.host!r} or in another container"),
        (is_over, "exited" if is_well else "failed", alone),
        (phase == "backoff", phase, "restarting in {1} after {0.reason}"),
        (phase == "stopping" and supervised, phase, "{0.reason}"),
        (main is None and (supervised or facts.claimed), "starting", ""),
        (main is None, "failed", "the start was interrupted before anything ran"),
        (phase == "external", phase, "{0.reason}"),
        (facts.halted and facts.main == "alive", phase, HALTED),
        (begins and record.spec.start_seconds, phase, "{0.spec.start_seconds:g} s to live first"),
        (begins, phase, launched),
        (facts.main == "stranger", "lost", "pid {0.main.pid} is another process now, left alone"),
        (facts.main == "gone" and supervised, "exited", "its supervisor hasn't told how it ended"),
        (facts.main == "gone", "exited", "its end was not seen: its supervisor was gone"),
        (facts.main == "zombie", "exited", CONDITIONS["zombie"]),
        (not supervised and record.spec.type == "stdio", "running", UNHEARD),
        (not supervised and facts.cut_off, "running", UNREACHED),
        (not supervised, "running", UNSUPERVISED),
        (True, phase, CONDITIONS.get(facts.main, as_was)),
    )
    status, why = next(row[1:] for row in rows if row[0])
    return Verdict(status, why.format(record, waits))


def went_down(record: Record, verdict: Verdict) -> bool:
    """Whether it ended with the machine, and nobody has stopped it since."""
    return record.wanted == "running" and verdict == ("exited", RESTARTED)


def is_among(ended: Exit | None, codes: str) -> bool:
    """Whether it is one of these exits; None, the end of an unhealthy one, never is."""
    return ended is not None and bool(codes_of(ended.signal or str(ended.code)) & codes_of(codes))


def should_restart(spec: Spec, ended: Exit | None, restarts: Sequence[float], now: float) -> str:
    """`restart`, `no`, or `gave up`: the policy wants to, but it was tried too often."""
    is_failure = not is_among(ended, spec.success_codes)
    is_wanted = spec.restart == "always" or (spec.restart == "on-failure" and is_failure)
    if not is_wanted or is_among(ended, spec.no_restart_codes):
        return "no"
    count = sum(now - at < spec.restart_window_s for at in restarts)
    return "restart" if count < spec.max_restarts else "gave up"


def is_left_down(record: Record) -> bool:
    """Whether it ended and its policy wants a restart: where no supervisor is left, for ever."""
    spec, ended, latest = record.spec, record.exit, max(record.restarted_at, default=0.0)
    is_judged = bool(spec.start_seconds or spec.success_log or spec.failure_log)
    has_begun = bool(ended and ended.errno is None) and not (is_judged and not record.restarts)
    is_wanted = has_begun and record.wanted == "running" and record.phase in ("exited", "failed")
    return is_wanted and should_restart(spec, ended, record.restarted_at, latest) == "restart"


def backoff_s(waits: int, spec: Spec, jitter: float) -> float:
    """Seconds before an automatic restart after so many in a row; jitter is from 0 to 1."""
    return min(spec.backoff_s * 2.0 ** min(waits, 64), spec.backoff_max_s) * (1 - jitter / 4)


def cooldown_until(failures: int, failed_at: float, base_s: float) -> float:
    """When what failed so many times in a row, the last time at failed_at, may be started again."""
    doubled_s = base_s * 2.0 ** min(failures - 1, 64) * (failures > 0)
    return failed_at + min(doubled_s, LONGEST_COOLDOWN_S)


def refused_for_s(record: Record, status: str, base_s: float, now: float) -> float:
    """For how many more seconds what has failed isn't started anew; 0: it is."""
    if status != "failed" or record.failed_at is None:
        return 0.0
    return max(cooldown_until(record.failures, record.failed_at, base_s) - now, 0.0)


def after_end(record: Record, ended: Exit | None, lived_s: float, now: float) -> Record:
    """The record with an end counted that nobody asked for."""
    was_healthy = lived_s >= record.spec.backoff_reset_s
    record = record._replace(backoffs=0 if was_healthy else record.backoffs)
    if is_among(ended, record.spec.success_codes):
        return record._replace(failures=0)
    return record._replace(failures=1 if was_healthy else record.failures + 1, failed_at=now)


def phase_after(phase: str, is_ok: bool, failures: int, retries: int) -> str:
    """ready, unhealthy or as before, after a probe and so many failed ones in a row."""
    if phase not in ("running", "ready", "unhealthy"):
        return phase
    return "ready" if is_ok else "unhealthy" if failures >= retries else phase


def unmet(spec: Spec, env: Env) -> dict[str, str]:
    """What is wrong with the variables it needs, to the keys that say so; no values."""
    return {
        f"{name} {why}": "require_env" if "full_pattern" in rule else f"environment.{name}"
        for name, rule in rules_of(spec)
        for why in [fault_of(env.get(name), rule)]
        if why
    }


def rules_of(spec: Spec) -> list[tuple[str, Mapping[str, object]]]:
    """What must hold of which variables, from --require-env and from a configuration."""
    pairs, rule = (item.partition("=") for item in spec.require_env), {**NO_RULE, "required": True}
    asked = [(name, {**rule, "full_pattern": pattern}) for name, _, pattern in pairs]
    return [*asked, *spec.rules.items()]


def fault_of(value: str | None, rule: Mapping[str, object]) -> str:
    """What is wrong with the value of a variable, "" if nothing is."""
    whole, pattern = str(rule.get("full_pattern", "")), str(rule["pattern"])
    least = float(str(rule["min_length"]))
    if not value:
        return ("is not set" if value is None else "is empty") * bool(rule["required"])
    if not (re.search(pattern, value) and re.fullmatch(whole or "(?s:.*)", value)):
        return f"doesn't match {whole or pattern}"
    return f"is shorter than {least:g} characters" * (len(value) < least)


# The kind, how it ended, and what it wrote (if there is a group `what`, that is all there is to
# say). The first that fits counts: the most specific first.
CAUSE_LINES = 60
UNSET = (
    r"(?:env[a-z ]+ )?(?:is |was )?(?:not set|not defined|undefined|required|missing|must be set)\b"
)
RECOGNISERS = (
    ("command_not_found", "errno E(NOENT|NOTDIR)", ""),
    ("permission_denied", "errno E(ACCES|PERM)", ""),
    ("out_of_memory", "signal SIGKILL oom", ""),
    ("out_of_memory", "", r"of memory$|MemoryError\b|bad_alloc|Cannot allocate memory|ENOMEM"),
    ("killed_by_signal", "signal", ""),
    ("disk_full", "code", r"ENOSPC|No space left on device|not enough space on the disk"),
    ("address_in_use", "code", r"address already in use.*:\d+"),  # the line that names the port
    ("address_in_use", "code", r"EADDRINUSE|(?i:(?:address already|connection) in use)|\b10048\b"),
    ("missing_module", "code", r"(?P<file>can't open file|import module \"|find module '(/|\w:))"),
    ("missing_module", "code", r"(?P<file>Could not read package\.json)"),
    ("missing_module", "code", r"(?P<script>Missing script:)"),
    ("missing_module", "code", r"ModuleNotFoundError|ImportError|No module named"),
    ("missing_module", "code", r"Cannot find (?:module|package)|Could not (?:import|find or load)"),
    ("missing_attribute", "code", r"not found in module "),
    ("missing_module", "code", r"loading shared libraries: "),
    ("syntax_error", "code", r"^(?:Syntax|Indentation|Tab)Error: (?!.*JSON).|: [Ss]yntax error"),
    ("missing_variable", "code", r"\bos(?:\.py|>)\".*\n(?:.*\n){0,4}?KeyError: '(?P<what>\w+)'"),
    ("missing_variable", "code", r"validation errors? for .*\n(?P<what>\S+)\n +Field required"),
    ("missing_variable", "code", rf"\b(?P<what>[A-Z0-9]+(?:_[A-Z0-9]+)+):? {UNSET}"),
    ("missing_variable", "code", r": (?P<what>\w+): (?:parameter not set|unbound variable)"),
    ("missing_variable", "code", r"(?i:missing|required) .{,30}\benv.{,30}\b(?P<what>[A-Z]\w{2,})"),
    ("missing_variable", "code 127", r": line \d+: (?P<what>[A-Z][A-Z0-9_]+): "),
    ("command_not_found", "code 127", r"(?P<bash>\bsource: not found)"),
    ("command_not_found", "code 127", r"not found"),
    ("command_not_found", "code", r"is not recognized as an internal or external command"),
    ("connection_refused", "code", r"ECONNREFUSED|(?i:connection ?refused)|\b(?:111|10061)\]"),
    ("permission_denied", "code", r"EACCES|(?i:permission ?denied)|PermissionError|EPERM"),
    ("timeout", "code", r"TimeoutError|ETIMEDOUT|(?i:timed out|timeout expired)"),
    ("protocol_error", "code", r"HPE_INVALID|HTTP/0\.9|(?i:wrong.version.number)|invalid response"),
    ("protocol_error", "code", r"BadStatusLine|RemoteDisconnected|(?i:protocol error)|EPROTO"),
    ("needs_terminal", "code", r"failed tty get|Inappropriate ioctl for device|\bENOTTY\b"),
    ("needs_terminal", "code", r"(?i:(?:not|n't) a (?:tty|terminal)\b)"),
    ("needs_terminal", "code", r"^EOFError: EOF when reading"),
    ("command_not_found", "code 127", ""),
    ("permission_denied", "code 126", ""),
    ("killed_by_signal", "code 1(29|3[0-9]|43)", ""),  # as a shell reports it
    ("unknown", "", ""),
)
CAUSE_ADVICE = {
    "command_not_found": "check the spelling and PATH, or give the whole path",
    "permission_denied": "give this user the right, or make the file executable (chmod +x)",
    "out_of_memory": "give it more memory or less to do; see the limits of its container or shell",
    "killed_by_signal": "if nobody ended it on purpose: see its last lines, dmesg, its core file",
    "disk_full": "free some disk space, then start it again",
    "address_in_use": "see who it is: port N; stop that service, or take another port: --port auto",
    "missing_module": "install it where this command looks (pip, npm install), or mend its name",
    "missing_attribute": "mend the name that the command asks for, or define it in that module",
    "syntax_error": "mend the file and line that its last lines name",
    "missing_variable": "set it with --env or --env-file; --require-env checks before the start",
    "needs_terminal": "it gets no stdin and no terminal: answer with its options or with --shell "
    "'echo y | COMMAND', or give it a window: --terminal auto",
    "connection_refused": "start what it depends on first and wait for that, then start it again",
    "timeout": "see whether what it waited for runs and is reachable, then start it again",
    "protocol_error": "check that address and port are of the server it means to talk to",
    "unknown": "read its last lines",
}
NO_FILE = "no such file or module below {cwd}: check --cwd and the name"
SIGNS = {  # what is told of a sign with a group of that name, and its advice
    "file": ("missing file or module", NO_FILE),
    "script": (
        "missing script",
        "check --cwd ({cwd}) and the name: `npm run` there tells the names",
    ),
    "bash": (
        "command not found",
        "/bin/sh has no source: write . FILE, or name the program itself, as .venv/bin/python",
    ),
}
LITERAL = r"~/\S+|(?=.*\w)[\w./-]*[*?][\w./*?-]*"  # a whole word that a shell would have replaced
NEEDS_SHELL = "{} was taken literally, ~ and * need a shell: give the full path, or add --shell"
IGNORES_PORT = (
    "it takes another port than {0}, which is free: write {{port}} into the command, or declare "
    "the port it takes with --port"
)
FIND_PORT = "find the port in its last lines, then see who holds it with `port`, and stop that"
LITERAL_PORT = "take another port: -", "put {port} into the command and add -"  # where it has one
SILENT = "see whether it has a log file of its own, or start it with an option to say more"
RETRYABLE = "out_of_memory killed_by_signal disk_full address_in_use connection_refused timeout"


class Cause(NamedTuple):
    """Why a service failed; retryable: the same start may succeed later."""

    kind: str
    message: str
    advice: str
    retryable: bool


def cause_of(ended: Exit, tail: Sequence[str], is_heard: bool = True) -> Cause:
    """Why it failed, by how it ended and its last lines; not heard: it has a window to write to."""
    how = f"signal {ended.signal}{' oom' * ended.oom}" if ended.signal else f"code {ended.code}"
    how = f"errno {errno.errorcode.get(ended.errno)}" if ended.errno else how
    how = "code" if ended.because else how  # whatever signal that took, what it wrote says more
    text = "\n".join(line[:500] for line in tail[-CAUSE_LINES:])
    fitting = [(kind, sign) for kind, end, sign in RECOGNISERS if re.match(rf"(?:{end})\b", how)]
    looks = ((kind, sign, list(re.finditer(sign, text, re.M))[-1:]) for kind, sign in fitting)
    kind, sign, found = next(look for look in looks if not look[1] or look[2])
    message = ended.because or str(ended) + ", core dumped" * ended.core
    facts = found[0].groupdict() if sign else {}
    known = next((SIGNS[key] for key in facts if key in SIGNS), None)
    if sign:
        line = text[text.rfind("\n", 0, found[0].start()) + 1 :].partition("\n")[0].strip()
        what = known[0] if known else kind.replace("_", " ")
        told = f"{what}: {facts.get('what') or line}"
        message = f"{ended.because}; {told}" if ended.because else told
    elif how != "code" and ended.signal == "SIGKILL" and not ended.oom:
        message += ", which nobody here sent: out of memory?"
    elif how.startswith("code"):
        message += f"; it last wrote: {tail[-1]}" if tail else "; it wrote nothing" * is_heard
    advice = SILENT if kind == "unknown" and not tail else CAUSE_ADVICE[kind]
    advice = known[1] if known else advice
    return Cause(kind, masked_line(message), advice, kind in RETRYABLE.split())


def changed_fields(old: Spec, new: Spec) -> dict[str, tuple[object, object]]:
    """What of a spec is asked for otherwise: field by field what was and what is."""

    def asked(spec: Spec, key: str) -> object:
        port = spec.port or spec.port_asked or None
        return {"argv": spec.words, "port": port, "port_asked": ""}.get(key, getattr(spec, key))

    pairs = {key: (asked(old, key), asked(new, key)) for key in SPEC}
    return {key: (was, now) for key, (was, now) in pairs.items() if was != now}


# What a supervisor takes over while its service runs, or what matters at the next start only.
LIVE_FIELDS = (
    *("health_interval_s", "call_cooldown_s", "restart", "no_pause", "sample_s", "idle_timeout_s"),
    *("health_timeout_s", "cooldown_s", "require_env", "alerts", "backoff_s", "backoff_max_s"),
    *("health_retries", "success_codes", "no_restart_codes", "restart_window_s", "backoff_reset_s"),
    *("connect_timeout_s", "success_log", "failure_log", "max_restarts", "start_seconds", "rules"),
)


def spec_differences(old: Spec, new: Spec) -> list[str]:
    """How two specs differ, one text for each field."""

    def shown(value: object) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        text = join_command(value) if isinstance(value, tuple) else str(value)
        return "none" if value in (None, (), {}) else mask_secrets(text)

    rows = changed_fields(old, new).items()
    return [f"{SPEC_WORDS.get(key, key)}: {shown(was)} → {shown(now)}" for key, (was, now) in rows]


def refusal(
    record: Record, meant: Identity | None, members: Sequence[Member], spare: Iterable[int]
) -> Refused | None:
    """Why a service must not be ended now: the caller means another process, or stands in it."""
    if meant != record.main and (meant is None or meant != record.launcher):  # it left just now
        return Refused(
            f"state.json names pid {meant and meant.pid} as {record.name}, but its supervisor runs "
            f"pid {record.main and record.main.pid}: forged or damaged, nothing was signalled",
            "the record has been corrected from the supervisor's memory: run the command again",
        )
    inside = [member.identity.pid for member in members if member.identity.pid in spare]
    if inside:
        text = f"{record.name} (pid {inside[0]}) is above this command; nothing was signalled"
        return Refused(text, f"run it from a shell that {record.name} didn't start")
    return None


# Who may hold a port, the least touchable first, and what a person can do about it.
NOT_OURS, THIS, LEFTOVER = "not ours to touch", "this service", "a leftover of this project"
HERE, ELSEWHERE, FOREIGN = "another service of this home", "a service of another home", "foreign"
HOLDER_KINDS = {
    NOT_OURS: "leave it to its owner",
    ELSEWHERE: "stop {service} --home {home}",
    HERE: "stop {service}",
    FOREIGN: "if it may go: port {port} --free --on-conflict kill, or by hand: kill {pids}",
    LEFTOVER: "have it ended: port {port} --free",
    THIS: "have it ended with --on-conflict auto",
}
SYSTEM_PROGRAMS = r"(?i)(com\.)?(docker|containerd|podman|conmon|rootless|slirp4netns|pasta|system)"
# Whom --on-conflict ends.
ON_CONFLICT = {"auto": (THIS, LEFTOVER), "kill": (THIS, LEFTOVER, FOREIGN), "fail": (), "next": ()}
parse_conflict = one_of(*ON_CONFLICT)
AUTO_PORTS = range(20000, 30000)  # below what systems give out by themselves


def classify_holder(holder: Holder, name: str, home: str, in_project: bool) -> str:
    """Of which kind the holder of a port is for the service `name` that wants it."""
    cookie, pid = holder.cookie, holder.identity.pid if holder.identity else 0
    is_system = re.match(SYSTEM_PROGRAMS, holder.name) or (holder.user, holder.cwd) == ("root", "/")
    if pid <= 1 or not holder.is_ours or is_system or cookie.supervises:
        return NOT_OURS
    if cookie.home and cookie.home != home:
        return ELSEWHERE
    if cookie.home:
        return THIS if cookie.service.lower() == name.lower() else HERE
    return LEFTOVER if in_project else FOREIGN


def port_decision(kind: str, flag: str, production: bool) -> str:
    """What to do about a held port: take back, end, next port, fail or refuse."""
    if production:
        return "refuse"
    if kind in ON_CONFLICT.get(flag, ()):
        return "end" if kind == FOREIGN else "take back"
    return "next port" if flag == "next" else "fail"


def is_production(*environs: Env) -> bool:
    """Whether nothing may be ended for a port."""
    pairs = [(one, name) for one in environs for name in ("ENVIRONMENT", "SPM_ENVIRONMENT")]
    return any(one.get(name, "").lower() == "production" for one, name in pairs)


def kept_port(spec: Spec, old: Spec, is_running: bool, flag: str) -> Spec:
    """The spec with the port that its service was given before, if it asks for the same."""
    asked = spec.port_asked or (str(spec.port) if flag == "next" and is_running else "")
    is_same = asked and asked == old.port_asked
    return spec._replace(port=old.port, port_asked=asked) if is_same else spec


def port_choices(spec: Spec, seed: int) -> Iterator[int]:
    """The ports to try: the one it had or asked for, then upward from it or (auto) the seed's."""
    if spec.port:
        yield spec.port
    if spec.port_asked == "auto":
        yield from (AUTO_PORTS[(seed + step) % len(AUTO_PORTS)] for step in range(len(AUTO_PORTS)))
    elif spec.port:
        yield from range(spec.port + 1, min(spec.port + 1000, 65536))


def granted(record: Record, owner: Identity | None, owner_name: str, now: float) -> Record:
    """The record with what its lease comes to from now on; `now` is steady_s() here and below."""
    seconds = lease_s(record.spec.lease)
    until = None if seconds is None else now + seconds
    return record._replace(owner=owner, owner_name=owner_name, lease_until=until, active_at=now)


def left_s(record: Record, now: float) -> tuple[float | None, float | None]:
    """Seconds until the lease is over, and until the idle timeout; None where nothing counts."""
    until, active, idle = record.lease_until, record.active_at, record.spec.idle_timeout_s
    lease_left = None if until is None else until - now
    return lease_left, None if active is None or idle is None else active + idle - now


def lease_over(record: Record, owner_alive: bool, now: float) -> str | None:
    """Why it has lived for long enough, else None."""
    left, idle_left = left_s(record, now)
    if record.owner and not owner_alive:
        return f"its owner is gone: pid {record.owner.pid} ({record.owner_name})"
    if left is not None and left <= 0:
        return f"its lease of {record.spec.lease} is over"
    if idle_left is None or idle_left > 0:
        return None
    limit = record.spec.idle_timeout_s or 0.0
    return f"idle for {format_duration(limit - idle_left)} (idle timeout {format_duration(limit)})"


def probe_pause_s(waited_s: float) -> float:
    """Seconds between two probes of a starting port: few at first, rarer later."""
    return 0.002 if waited_s < 5 else 0.01 if waited_s < 30 else 0.05


def lazy_pause_s(waited_s: float) -> float:
    """Seconds between two looks where nobody waits, or where each disturbs the service."""
    return min(max(0.02, waited_s / 20), 0.5)


def log_check_s(size: int, grown: int, elapsed_s: float, most: int) -> float:
    """Seconds until the log should be looked at again."""
    # When it will be full at the present rate, but at most twice as late as the last time: who has
    # just started may begin to write any moment.
    expected_s = (most - size) * elapsed_s / grown if grown > 0 else LOG_CHECK_S[1]
    return max(LOG_CHECK_S[0], min(expected_s, 2 * elapsed_s, LOG_CHECK_S[1]))


CALLS_ALERT = "call_errors>10"  # percent of those of the last minute
DEFAULT_ALERTS = ("cpu>90 for 60s", "memory_mb>1074 for 30s", "probe_ms>5000 for 30s", CALLS_ALERT)
BARS = "▁▂▃▄▅▆▇█"
SPARK_CELLS = 24
RANKS = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}


class Alert(NamedTuple):
    """Where a rule stands."""

    text: str = ""  # of what was measured when it became active; "": it isn't
    since: float | None = None  # from when on what is measured contradicts that
    told: bool = False  # it acted since it became active
    acted_at: float | None = None


def judge(alert: Alert, rule: Rule, value: float | None, now: float) -> tuple[Alert, str]:
    """Where the rule stands after a measurement; `alert` if it is to act, `alert_cleared`, or "".

    It becomes active, or ceases to be, when the contrary held for as long as the rule says.
    """
    if value is None:  # not known: what was seen before has no continuation
        return alert._replace(since=None), ""
    is_beyond, news = value > rule.limit if rule.sign == ">" else value < rule.limit, ""
    since = now if alert.since is None else alert.since
    alert = alert._replace(since=None if is_beyond == bool(alert.text) else since)
    if alert.since is not None and now - alert.since >= rule.for_s:
        news = "alert_cleared" * alert.told
        told = mask_secrets(rule.text)
        text = f"{rule.severity}: {rule.metric} is {value:.10g} ({told})" * is_beyond
        alert = Alert(text, acted_at=alert.acted_at)
    has_rested = alert.acted_at is None or now - alert.acted_at >= rule.every_s
    if alert.text and is_beyond and not alert.told and has_rested:
        alert, news = alert._replace(told=True, acted_at=now), "alert"
    return alert, news


def thinned(lines: Sequence[bytes], now: float) -> list[bytes]:
    """Lines of samples: of the last hour all, of the day before it one a minute, no more."""
    # Where that is still near the bound of the file, the younger half of it.
    kept: dict[float, bytes] = {}
    for number, line in enumerate(lines):
        at = float((re.match(rb'{"at": (\d+)', line) or "00")[1])
        if at >= now - 86400:
            kept[at // 60 if at < now - 3600 else -number] = line
    left = list(kept.values())
    return left[len(left) // 2 * (sum(map(len, left)) > JOURNAL_BYTES * 0.8) :]


def summary(values: Sequence[float]) -> dict[str, float]:
    """The least, median, 95th percentile and greatest: each a value that was measured."""
    ordered = sorted(values)
    return {key: ordered[max(0, int(rank * len(ordered) - 1e-9))] for key, rank in RANKS.items()}


def sparkline(points: Sequence[tuple[float, float]]) -> str:
    """The course of a metric: in each cell the greatest value of its time, blank if none."""
    cells: list[list[float]] = [[] for _ in points[:SPARK_CELLS]]
    began, values = points[0][0], [value for _, value in points]
    step, least = (points[-1][0] - began) / len(cells), min(values)
    span = (max(values) - least) or 1.0
    for at, value in points:
        cells[max(0, min(int((at - began) / (step or 1.0)), len(cells) - 1))].append(value)
    heights = [round((max(c) - least) / span * (len(BARS) - 1)) if c else None for c in cells]
    return "".join(" " if one is None else BARS[one] for one in heights).rstrip()


# == Supervisor ====================================================================================
# The parent of one service: spawns it, waits, records its end, ends its tree when asked. It is told
# (SIGCHLD, pidfd, socket) and polls only what no system call tells of; its timers are those that
# were asked for, and one for the log's size and the samples. While it lives it alone writes the
# record of its service. It meets the commands in files and on its socket only.

SOON_S = 0.03
BUSY_S = 1.0  # how long a supervisor waits for who writes state.json before it goes on
TICK_S = 1.0  # where nobody tells of an adopted process's end
PATIENT_S = 60.0  # for the descriptors of others to be closed, where the whole system has no more
ROOM = 6  # descriptors: the loop's four, and what is just looked at or written
AGAIN_S = 0.2  # until state.json, which could not be written, may be: nobody else knows so long
REQUEST_BYTES = 16 << 20  # a record with as long a command as the system takes
STOP_TIMEOUT_S = 10.0
LAUNCHER_S = 1.0  # an external tool's launcher that lives longer is taken for the tool itself
ALERT_S = 60.0  # an alert's command that takes longer is killed
HOME_S = 5.0  # how long after its launcher's end a daemon may write its pid file, a tool appear
EXEC_S = 0.5  # and how long it may show no cookie, in the middle of exec
SEARCH_S = 0.05
NOTHING_LEFT = {"forking": ("exited", ""), "external": ("external", "can't be followed: ")}
LEFT_PHASES = ("stopping", "backoff", "exited", "failed")
ACTIVE_SAVE_S = 5.0
# each an on_…()
OPERATIONS = ("status", "touch", "settings", "notify", "watch", "ready", "join", "stop")
NEXT_PHASES = {
    "starting": ("starting", "running", "external", *LEFT_PHASES),
    "running": ("starting", "running", "ready", "unhealthy", *LEFT_PHASES),
    "ready": ("starting", "running", "unhealthy", *LEFT_PHASES),
    "unhealthy": ("starting", "running", "ready", *LEFT_PHASES),
    "backoff": ("starting", "stopping", "failed"),
    "stopping": ("stopped", "running", *LEFT_PHASES),
    "exited": ("stopping",),
    "failed": ("stopping",),
}


class Order(NamedTuple):
    """What a supervisor is launched for."""

    home: str
    record: Record
    env: dict[str, str]  # what the start adds to the inherited environment
    adopt: bool
    command: int = 0  # the pid of who launched us, if that is our parent


class StopRequest(NamedTuple):
    """A request to end the service."""

    main: Identity | None  # whom the caller means
    spare: tuple[int, ...]  # the caller and its ancestors
    timeout_s: float
    force: bool


read_order = reader(Order, record=Record.from_json, env=texts_by_name)
read_stop_request = reader(StopRequest)


class Log:
    """The output file of a service: the service writes it, we only keep it from growing."""

    def __init__(self, store: Store, name: str, most: int) -> None:
        self.move_to(store.path(name))
        self.most, self.descriptor, self.start, self.size = most, -1, 0, 0
        self.checked_at = self.due_at = time.monotonic()

    def move_to(self, directory: str) -> None:
        """Have what we write beside the log, and look for, in this directory."""
        self.path = os.path.join(directory, "output.log")
        self.samples = os.path.join(directory, "metrics.jsonl")

    def open(self, anew: bool) -> None:
        """Open the file the service writes to; `anew`: without what earlier instances wrote."""
        with state_errors(self.path):
            for path in (self.path, self.path + ".1") if anew else ():
                with contextlib.suppress(FileNotFoundError, PermissionError):  # Windows: still open
                    os.unlink(path)
            # O_APPEND: after a truncation the service goes on at the new end, not its old offset
            self.descriptor = private(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        _, start, size = last_sample(self.samples)
        self.start, self.size = (start + size, 0) if anew else (start, size)
        self.grow()
        self.sample()

    def reopen(self) -> None:
        """Go on in a new file where somebody removed this one: nobody could read what came next."""
        former = self.descriptor
        if not os.path.lexists(self.path):
            with contextlib.suppress(SpmError):  # its directory is gone, too
                self.open(anew=False)
                os.close(former)

    def grow(self) -> int:
        """Note its size; by how much it has grown."""
        size = os.fstat(self.descriptor).st_size
        if size < self.size:  # somebody emptied it: what was in it counts, readers go on behind it
            self.start, self.size = self.start + self.size, 0
        grown, self.size = size - self.size, size
        return grown

    def check(self, now: float, figures: Mapping[str, object] = NOTHING) -> None:
        """Rotate the file when it is full, note its size, and say when to look again."""
        grown, size = self.grow(), self.size
        if size >= self.most:
            self.rotate()
        if figures or (grown and size < self.most):
            self.sample(figures)
        elapsed_s = (now if grown else max(now, self.due_at)) - self.checked_at
        self.due_at = now + log_check_s(self.size, grown, elapsed_s, self.most)
        self.checked_at = now

    def rotate(self) -> None:
        """Copy the youngest bytes to the older file, then empty this one."""
        # The service holds it open, so it can't be renamed. What is written between the last look
        # at its size and the truncation, two system calls, is lost; and more of what is written
        # faster than it can be copied. To close the older file takes ext4 up to a millisecond.
        position, most = max(0, self.size - self.most), self.size + 4 * self.most
        with contextlib.ExitStack() as stack:  # closed at its end
            # OSError: no room for the older file, but bounding the disk matters more.
            with contextlib.suppress(OSError):
                write_file(self.path + ".1", b"", durable=False)  # Windows renames no open file
                older = stack.enter_context(open(self.path + ".1", "wb", 0, opener=private))
                while position < min(os.fstat(self.descriptor).st_size, most):
                    position += older.write(read_at(self.descriptor, 1 << 20, position))
            with contextlib.suppress(OSError):  # Windows: not before its restart
                os.ftruncate(self.descriptor, 0)
                # What could not be copied counts too: readers go on behind it.
                self.start, self.size = self.start + max(position, self.size), 0
        self.sample()

    def sample(self, figures: Mapping[str, object] = NOTHING) -> None:
        """Note how much there is by now, so that `logs --since` finds its place; and figures."""
        with contextlib.suppress(OSError):  # a full disk costs `--since` its precision, no more
            at = round(time.time(), 3)
            line = {**Sample(at, self.start, self.size)._asdict(), **figures}
            append_line(self.samples, line, lambda lines: thinned(lines, at))


class Client:
    """A connection to the control socket, the request it sends, and what comes behind that."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.received, self.behind = connection, b"", b""

    def answer(self, document: dict[str, object], hang_up: bool = True) -> None:
        """Send one line; who doesn't read it, or left, misses it."""
        with contextlib.suppress(OSError):
            self.connection.settimeout(1.0)
            self.connection.sendall(json.dumps(document).encode() + b"\n")
        if hang_up:
            self.connection.close()


# How much longer a start may take: 90 s, systemd-system.conf(5)'s DefaultTimeoutStartSec.
START_FACTOR = 3


class Prober:
    """Asks apart from the loop whether a service is ready, then whether it still works."""

    # A thread: it only looks, and leaves what it saw to the loop, which alone changes the record.

    def __init__(self, store: Store, record: Record, env: dict[str, str], wake: socket.socket):
        from collections import deque

        self.record, self.wake, self.env = record, wake, {**os.environ, **env}
        self.ready, self.health = (
            Checks(store, record, [parse_check(text) for text in texts], record.spec, self.ask)
            for texts in (record.spec.readiness, record.spec.health)
        )
        self.news: deque[tuple[bool, str]] = deque()
        self.asked: deque[tuple[Checks, Check, Callable[[Sight], None]]] = deque()
        self.took_s: float | None = None  # the last probe
        self.halt = threading.Event()
        self.thread = threading.Thread(target=self.run, name="prober", daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Readiness until it holds, then liveness."""
        began = told_at = time.monotonic()
        is_due = False  # what is to be ready by its liveness may hang before it ever was
        while not self.probe(self.ready, self.ready.waiting(), is_due):
            if self.halt.wait(lazy_pause_s(time.monotonic() - began)):
                return
            now, is_alone = time.monotonic(), not self.record.spec.ready
            is_due = is_alone and now - told_at >= START_FACTOR * self.interval_s
            told_at = now if is_due else told_at
        while self.health.checks and not self.halt.wait(self.interval_s):
            self.probe(self.health, self.health.checks, True)

    @property
    def interval_s(self) -> float:
        """Between two looks at its liveness; it may be changed meanwhile."""
        return max(self.record.spec.health_interval_s, 0.01)

    def probe(self, checks: Checks, due: Sequence[Check], counts: bool) -> bool:
        """Whether these hold; the loop is told, of those that don't only if that counts."""
        began = time.monotonic()
        deadline = began + self.record.spec.health_timeout_s
        try:
            sights = [checks.look(check, self.env, deadline, self.halt.is_set) for check in due]
        except OSError as error:  # no descriptor is left, for one: the next look may see more
            sights = [Sight(False, error.strerror or str(error))]
        self.took_s = time.monotonic() - began
        failed = [sight for sight in sights if not sight.is_ok]
        if not failed or counts:
            self.news.append((not failed, "; ".join(sight.seen for sight in failed or sights)))
            self.rouse()
        return not failed

    def rouse(self) -> None:
        """Have the loop look at what we left."""
        with contextlib.suppress(OSError):  # it is full: then the loop is awake, or gone
            self.wake.send(b"\0")

    def ask(self, checks: Checks, check: Check, deadline: float) -> Sight:
        """Have the loop look: it alone speaks with the service, and can interrupt a pattern."""
        import queue

        answers: queue.SimpleQueue[Sight] = queue.SimpleQueue()
        self.asked.append((checks, check, answers.put))
        self.rouse()
        while not self.halt.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                return answers.get(timeout=0.1)
        return Sight(False, "no answer in time")


class Sampler:
    """What the processes of one instance use, and where its alerts stand."""

    def __init__(self, spec: Spec) -> None:
        self.every_s = max(spec.sample_s, 0.05) if spec.sample_s else float("inf")
        self.due_at = time.monotonic() if spec.sample_s else self.every_s
        self.at, self.cpu_s, self.shared, self.shared_until = 0.0, 0.0, 0, 0.0
        self.pids: list[int] = []
        self.counts: list[tuple[float, int, int]] = []  # of the last minute
        own = [parse_rule(text) for text in spec.alerts]
        known = {rule.metric for rule in own}  # a rule of its own stands for the default
        own += [rule for rule in map(parse_rule, DEFAULT_ALERTS) if rule.metric not in known]
        self.alerts = dict.fromkeys(own, Alert())

    def call_errors(self, now: float, calls: int, errors: int) -> float | None:
        """How many of the last minute's calls failed by the service, in percent."""
        recent = [one for one in self.counts if one[0] >= now - 60]
        self.counts = [*recent, (now, calls, errors)]
        calls, errors = calls - self.counts[0][1], errors - self.counts[0][2]
        return round(100 * errors / calls, 1) if calls else None

    def measure(self, record: Record, now: float, probe_s: float | None) -> dict[str, float | None]:
        """The figures of now; cpu only from the second time on."""
        stats, cpu = descendants(os.getpid()), None  # who leaves its parent comes to a subreaper
        if record.main is None or record.main.pid not in stats:  # adopted: look at all there is
            stats = all_stats()
        looks = [stats[member.identity.pid] for member in tree_of(record, stats)]
        cpu_s = sum(look.cpu_s + look.waited_s for look in looks)
        if self.at:
            cpu = round(100 * max(0.0, cpu_s - self.cpu_s) / (now - self.at), 1)
        self.at, self.cpu_s, self.due_at = now, cpu_s, now + self.every_s
        if not looks:
            return {}
        pids, used = [one.identity.pid for one in looks], sum(one.memory_bytes for one in looks)
        if now >= self.shared_until or pids != self.pids or used < self.shared:
            began = time.thread_time()
            self.shared = used - sum(pss_of(o.identity.pid) or o.memory_bytes for o in looks)
            # Of much memory that takes long: a thousandth of the time. What grows isn't shared.
            self.pids, self.shared_until = pids, now + 1000 * (time.thread_time() - began)
        return {
            "cpu": cpu,
            "memory_mb": round((used - self.shared) / 1e6, 2),
            "processes": len(looks),
            "threads": sum(look.threads for look in looks),
            "files": sum(len(links_of(pid)) for pid in pids) or None,
            "probe_ms": None if probe_s is None else round(probe_s * 1000, 1),
            "restarts": record.restarts,
        }


if TYPE_CHECKING:

    class _Pipes(Protocol):  # who has the stdin and stdout of a service: the relay
        due_at: float
        calls: int
        faults: int

        def open(self) -> list[int]: ...
        def listen(self) -> None: ...
        def look(self) -> None: ...
        def join(self, client: Client) -> None: ...
        def close_stdin(self) -> None: ...
        def ended(self, ended: Exit) -> bool: ...
        def fail(self, why: str, cause: str) -> None: ...
        def is_busy(self) -> bool: ...
        def ping(self, answer: Callable[[Sight], None]) -> None: ...
        def facts(self) -> dict[str, object]: ...


RELAYS: dict[str, Callable[[Supervisor], _Pipes]] = {}  # by type of service; see the next room


class Supervisor:
    """One service while it lives: its record, its control socket, its loop."""

    def __init__(self, store: Store, record: Record, is_subreaper: bool) -> None:
        look = stat_of(os.getpid())
        self.store = store
        self.record = record._replace(supervisor=look and look.identity, alerts=())
        self.lock = self._take_lock()
        self.is_subreaper, self.is_childless = is_subreaper, False
        self.child: int | None = None  # None: adopted, somebody else is its parent
        self.ending: Generator[float, bool, Ended] | None = None
        self.outcome: Ended | None = None
        self.said_ready: str | None = None  # as it told before it was running
        self.hands_over = False  # its last record, to whoever asked for a stop
        self.step_at, self.hurry_at = 0.0, float("inf")
        self.because: str | None = None  # why we end it unasked; its policy decides what then
        self.waiters: list[Client] = []
        self.watchers: list[Client] = []  # they hear of each phase; with them it isn't idle
        self.finished, self.oom_kills = False, (oom_kills(),) * 2
        self.pause = False  # its window waits, or waited, for a key
        self.key: int | socket.socket = 0  # that tells of it
        is_external, now = record.spec.type == "external", time.monotonic()
        self.search_until = now + LAUNCHER_S if is_external else None
        self.leaves_until = now + HOME_S  # whoever ends well before that was but a launcher
        self.before: Sequence[Member] = ()  # what matched already when it wasn't yet started
        self.save_at: float | None = None  # when the record is to be written (again)
        self.marks = -1  # the descriptor of who sees that it could not be
        self.open_at: float | None = None  # and the control socket is to be made
        self.prober: Prober | None = None
        self.probe_at: float | None = None  # and when it is to be begun again
        self.complaints: list[str] = []  # of what alerts executed
        self.env: dict[str, str] | None = None  # for checks; none yet: it is too early for them
        self.failures = 0  # of liveness, in a row
        for text in (*record.spec.ready, *record.spec.health):
            parse_check(text)  # a state that was forged: better now than in the thread
        self.mains: set[Identity | None] = set()  # of former instances
        self.must_restart = False  # whatever the policy says: an alert's rule asks for it
        self.since = steady_s()  # of this instance
        self.judge_until: float | None = None  # while it is to be seen whether it has started
        self.hears_owner = self.hears_main = False  # the system tells when they end
        self.log = Log(store, record.name, record.spec.log_bytes)
        self.sampler = Sampler(record.spec)
        relay = RELAYS.get(record.spec.type)
        self.pipes = relay(self) if relay else None

    def listen(self) -> None:
        """Hear of signals, of ended children and of commands; what came before counts too."""
        PATIENCE_S[0] = PATIENT_S
        # After the answer to the start: what this imports takes a tenth of a start's time.
        self.events = patiently(selectors.DefaultSelector)
        self.wake, self.waker = patiently(socket.socketpair)
        self.wake.setblocking(False)
        self.waker.setblocking(False)
        patiently(self.hear, self.wake, self.on_wake)
        self.open_control()
        watch(self.waker)
        self.waker.send(b"\0")
        self.hears_main = self.child is None and self.hears_end(self.record.main)
        if self.pipes:
            self.pipes.listen()

    def open_control(self) -> None:
        """Make the control socket; where that can't be done now it is tried again at each tick."""
        self.follow()
        try:
            self.server, self.token = listen_local(self.store.path(self.record.name))
        except OSError:  # read-only, full
            is_there = self.follow() or os.path.isdir(self.store.home)
            self.open_at = time.monotonic() + TICK_S if is_there else None
            return
        self.open_at = None
        patiently(self.hear, self.server, self.on_connect)

    def hear(self, source: int | socket.socket, act: Callable[..., object]) -> None:
        """Have `act` called with the source whenever that can be read."""
        self.events.register(source, selectors.EVENT_READ, act)

    def hears_client(self, client: Client, act: Callable[..., object]) -> bool:
        """Whether we are woken when it says something; else it is let go, as in NO_ROOM."""
        with contextlib.suppress(OSError):
            self.hear(client.connection, act)
            return True
        client.connection.close()
        return False

    def hears_end(self, identity: Identity | None) -> bool:
        """Whether we are woken when a process ends that isn't our child; else it is looked at."""
        descriptor = death_watch(identity) if identity else None
        if descriptor is None:
            return False
        with contextlib.suppress(OSError):  # as in NO_ROOM
            self.hear(descriptor, self.heard_end)
            return True
        os.close(descriptor)
        return False

    def heard_end(self, descriptor: int) -> None:
        """Once is enough: the loop looks itself what has ended."""
        self.events.unregister(descriptor)
        os.close(descriptor)

    def _take_lock(self) -> int:
        """The descriptor of supervisor.lock, held for life; a predecessor may still be leaving."""
        name = self.record.name
        with state_errors(self.store.path(name)):
            descriptor = private(self.store.path(name, "supervisor.lock"), os.O_RDWR | os.O_CREAT)
            is_held = lock_within(descriptor, 5.0)
        if not is_held:
            raise Refused(f"{name} has another supervisor", f"end it first: stop {name}")
        return descriptor

    # -- how it begins

    def check_room(self) -> None:
        """OSError if fewer files may be open than the loop will need: better now than in it."""
        spec, tried = self.record.spec, list[int]()
        is_busy = spec.ready or spec.health or spec.alerts  # those have files of their own
        self.null = os.open(os.devnull, os.O_RDWR)  # in the place of its pipes, see supervise()
        try:
            tried.extend(os.dup(self.lock) for _ in range(ROOM + 4 * bool(is_busy)))
        finally:
            for descriptor in tried:
                os.close(descriptor)

    def spawn(self, env: dict[str, str]) -> None:
        """Execute the command; StartFailed, with the record saying so, if that can't be done."""
        record, spec, self.said_ready = self.record, self.record.spec, None
        if self.log.descriptor < 0:  # the log begins anew at starts that were asked for
            self.log.open(anew=True)
        values = {key: value for key, value in os.environ.items() if key not in COOKIE_NAMES}
        # A Python service that is killed would otherwise take its buffered last words along.
        values.setdefault("PYTHONUNBUFFERED", "1")
        # The cookie is inherited by whatever the service starts and finds what escapes its tree. A
        # program that clears its environment drops it; on Linux the subreaper still has that one.
        cookie = dict(zip(COOKIE_NAMES, (record.instance, record.name, self.store.home)))
        values, output = {**values, **env, **cookie}, -1 if spec.terminal else self.log.descriptor
        self.before, id_ = matching(spec.match, record) if spec.match else (), record.instance
        pipes = list[int]()
        try:
            pipes = self.pipes.open() if self.pipes else pipes
            if self.env is None:
                self.check_room()
            self.child = launch_service(spec.words, spec.cwd, values, output, id_, pipes)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if getattr(error, "filename", None) == spec.cwd:  # not the program is missing
                reason = f"{spec.cwd}: {reason}"
            ended = Exit(time.time(), errno=getattr(error, "errno", None))
            self.record = record._replace(exit=ended)
            if self.env is not None:  # the loop runs: it leaves, or tries again
                self.decide(None, "failed", f"it could not be executed: {reason}")
                return
            self.note_failure(ended)
            self.record = after_end(self.record, None, 0.0, steady_s())
            self.change("start_failed", "failed", reason)
            self.leave()
            text = f"{record.name} could not be started: {reason}"
            raise StartFailed(text, errno=ended.errno) from error
        finally:
            for descriptor in pipes:
                os.close(descriptor)
        reached("launched")
        look, self.since = stat_of(self.child), steady_s()
        main = look.identity if look else Identity(self.child, "")
        self.record = record._replace(main=main)
        phase = "starting" if spec.type in NOTHING_LEFT else self.first_phase()
        self.change("restarted" if record.restarts else "started", phase, record.reason)
        if self.pipes and self.env is not None:  # else listen() is still to come
            self.pipes.listen()

    def first_phase(self) -> str:
        """The phase of a main process that has just come up; with --start-seconds it is judged."""
        spec = self.record.spec
        signs = [sign for sign in (spec.failure_log, spec.success_log) if sign]
        self.judged, lives_s = LogProbe(Output(self.store, self.record), *signs), spec.start_seconds
        self.judge_until = time.monotonic() + lives_s if lives_s else None
        return "starting" if lives_s else "running"

    def adopt(self) -> None:
        """Take back a service whose supervisor is gone; we aren't its parent."""
        if not is_alive(self.record.main):
            self.leave()
            raise NotFound(f"{self.record.name} ended just now", f"start {self.record.name} again")
        main, me = self.record.main, self.record.supervisor
        # we have just been started, so that is how long it has lived
        lived_s = max(me.born - main.born, 0.0) / BORN_PER_S if me and main and main.born else 0.0
        self.since -= lived_s
        self.log.open(anew=False)
        with state_errors(self.log.path):
            self.check_room()
        phase, self.leaves_until = self.record.phase, 0.0
        is_up = phase != "starting" or self.record.spec.type == "simple" or self.record.launcher
        if phase == "ready" and not self.record.spec.readiness:  # it says so but once
            self.said_ready = self.record.reason
        phase = "running" if phase != "starting" else self.first_phase() if is_up else phase
        self.judge_until = self.judge_until and self.judge_until - lived_s
        self.change("adopted", phase, "its former supervisor was gone")

    # -- the one door for changes

    def change(self, event: str, phase: str, why: str = "") -> None:
        """Table, record, journal, state.json: in that order."""
        if phase not in NEXT_PHASES[self.record.phase]:
            raise AssertionError(f"{self.record.phase} → {phase} isn't in the table")
        is_asked = phase in ("stopping", "stopped") and self.because is None
        wanted = "stopped" if is_asked else self.record.wanted
        if phase == "ready":
            self.record = self.record._replace(failures=0)
        if phase in ENDED_PHASES:  # there is nothing else to do; hundreds may end at once
            self.store.lock_wait_s = 4 * BUSY_S
        self.record = self.record._replace(phase=phase, reason=why, wanted=wanted)
        self.tell(event, why)
        for client in self.watchers:
            client.answer(self.heard(), hang_up=False)
        # What ends within milliseconds needs no "stopping" in state.json on the way.
        self.save_at = time.monotonic() + SOON_S
        if event != "stopping":
            self.save()
        if phase == "running" and self.env is not None:
            self.begin_probing()
        if phase == "running" and self.said_ready is not None:
            said, self.said_ready = self.said_ready, None
            self.change("ready", "ready", said)

    def tell(self, event: str, why: str) -> None:
        """Append to the journal; a full disk costs the event, no more."""
        self.follow()
        with contextlib.suppress(SpmError, OSError):
            self.store.write_event(event, self.record.name, self.record, why)

    def save(self) -> None:
        """Write the record; what can't be written now is tried again soon."""
        self.follow()
        try:
            self.store.save({self.record.name: self.record})
            self.save_at = None
            self.mark(False)
        except (SpmError, OSError):  # a home that was removed is nothing to wait for
            self.mark(True)
            is_there = self.follow() or os.path.isdir(self.store.home)
            self.save_at = time.monotonic() + AGAIN_S if is_there else None
            self.hands_over = self.hands_over or not is_there

    def mark(self, is_behind: bool) -> None:
        """Have commands ask us for as long as state.json lacks what we know."""
        # A lock on our directory (Windows: none) needs no room on a full disk, and ends with us.
        if self.marks >= 0 and not is_behind:
            os.close(self.marks)
            self.marks = -1
        elif self.marks < 0 and is_behind:
            directory = self.store.path(self.record.name)
            with contextlib.suppress(OSError), opened(directory) as descriptor:
                if lock_within(descriptor, SOON_S):
                    self.marks = os.dup(descriptor)

    def follow(self) -> bool:
        """Whether our home was renamed: we go on there. Another may be in its place by now."""
        lock, former = self.store.path(self.record.name, "supervisor.lock"), self.store.home
        is_here = False
        with contextlib.suppress(OSError):  # what is in its place may not be looked at
            is_here = is_same_file(self.lock, lock)
        path = "" if is_here else path_of(self.lock)
        home = path.removesuffix(lock[len(former) :])
        with contextlib.suppress(OSError):  # nor may it
            # else it was removed
            if home not in (path, former) and is_same_file(self.lock, path):
                self.store.move_to(home)
                self.log.move_to(self.store.path(self.record.name))
                self.tell("moved", f"{former} was renamed: it is {home}")
        return self.store.home != former

    # -- the loop

    def run(self) -> None:
        """Until the service and everything of it is gone and that is written down."""
        self.hears_owner = not self.record.owner or self.hears_end(self.record.owner)
        while not self.finished or self.save_at:
            for key, _ in self.events.select(self._wait_s()):
                key.data(key.fileobj)
            self.take_note()
            self.end_if_over()
            self.take_news()
            if self.search_until and not self.ending:
                self.search(self.search_until)
            if self.judge_until and not (self.ending or self.search_until):
                self.judge(self.judge_until)
            for due_at, act in self.timers():
                if due_at is not None and time.monotonic() >= due_at:
                    act()
        self.leave()

    def timers(self) -> Iterator[tuple[float | None, Callable[[], None]]]:
        """What is done when, if nothing changes before that."""
        if self.record.phase == "backoff" and not self.ending:
            # it is recorded by a clock that commands have, too
            wait_s = (self.record.retry_at or 0.0) - steady_s()
            yield time.monotonic() + wait_s, self.respawn
        yield self.step_at if self.ending else None, self.step
        yield self.hurry_at if self.ending else None, self.hurry
        yield min(self.log.due_at, self.sampler.due_at), self.take_sample
        if self.pipes:
            yield self.pipes.due_at, self.pipes.look
        yield self.save_at, self.save
        yield self.open_at, self.open_control
        yield self.probe_at, self.begin_probing

    def _wait_s(self) -> float:
        looks = [TICK_S if self.child is None and not self.hears_main else None]
        if self.is_leased():
            looks += [*left_s(self.record, steady_s()), None if self.hears_owner else TICK_S]
        if not self.ending:
            looks.append(SEARCH_S if self.search_until or self.judge_until else None)
        looks += [due_at and due_at - time.monotonic() for due_at, _ in self.timers()]
        return max(0.0, min(look for look in looks if look is not None))

    def leave(self) -> None:
        """Free what others wait for, then answer them."""
        reached("leaving")
        self.follow()
        with contextlib.suppress(OSError):
            os.unlink(self.store.path(self.record.name, CONTROL_SOCKET))
        if self.pipes:
            self.pipes.fail("is gone", "server_died")
        os.close(self.lock)
        if self.prober:  # a command that it runs is to be killed
            self.prober.halt.set()
            checks = (*self.record.spec.ready, *self.record.spec.health)
            has_command = any(text.startswith("exec:") for text in checks)
            self.prober.thread.join(1.0 if has_command else 0.0)
        self.answer_waiters()

    def on_wake(self, _: object) -> None:
        """A child ended, or somebody signalled us."""
        why = asks_to_stop(self.wake.recv(4096), self.record.spec.terminal is not None)
        if why and self.finished:
            self.save_at = None  # what can't be written isn't waited for any longer
        elif why and not self.pause:  # a window that waits for a key ends by itself
            self.end(why, ASKED_S)
        self.step_at = 0.0  # something changed: look at once

    def take_note(self) -> None:
        """Reap every child that ended, the adopted ones too; leave when nothing is left."""
        self.reap()
        if self.child is None and self.record.exit is None and not is_alive(self.record.main):
            self.main_ended(Exit(time.time()))
        if self.record.phase in ("exited", "failed") and not tree_of(self.record):
            self.finished = self.is_empty() is not False and not self.keeps_window()

    def keeps_window(self) -> bool:
        """Whether its window stays open until a key is pressed: somebody may read why it failed."""
        record = self.record
        wanted = record.spec.terminal and not record.spec.no_pause and record.phase == "failed"
        if wanted and not self.pause:
            self.pause = True
            with contextlib.suppress(OSError):  # it was closed, or we aren't in it
                text = f"\r\n[{record.name}: {record.reason}] press a key to close this window"
                self.key = await_key(text)
                self.hear(self.key, self.events.unregister)
        return bool(wanted) and self.key in self.events.get_map()

    def reap(self) -> None:
        """Hear of the children that ended."""
        ended, self.is_childless = reap()
        for pid, code, signal, core in ended:
            if pid == self.child:
                self.main_ended(Exit(time.time(), code, signal, core))

    def is_empty(self, besides: frozenset[int] = frozenset()) -> bool | None:
        """Whether the kernel says that nothing of the service is left; None if it can't know."""
        # Whatever descends from a child subreaper and was orphaned is its child.
        self.reap()
        if self.child is None or not self.is_subreaper:
            return None
        if self.is_childless:
            return True
        return None if has_guests(os.getpid(), self.record, besides) else False

    def begin_probing(self) -> None:
        """Have readiness and liveness of the process that is the main one now looked at."""
        self.probe_at = None
        if self.prober:
            self.prober.halt.set()
        if self.record.phase == "running" and self.record.spec.readiness:
            try:
                self.prober = Prober(self.store, self.record, self.env or {}, self.waker)
            except RuntimeError:  # no more threads for this user
                self.probe_at = time.monotonic() + TICK_S

    def take_news(self) -> None:
        """What the prober saw becomes a phase; while the service ends, nothing."""
        while self.prober and self.prober.asked:
            checks, check, answer = self.prober.asked.popleft()
            if check.kind == "log":
                answer(checks.read(check, time.monotonic() + SOON_S))
            elif self.pipes:
                self.pipes.ping(answer)
        while self.prober and self.prober.news:
            is_ok, seen = self.prober.news.popleft()
            self.failures = 0 if is_ok else self.failures + 1
            retries = self.record.spec.health_retries
            phase = phase_after(self.record.phase, is_ok, self.failures, retries)
            if phase != self.record.phase:
                self.change(phase, phase, seen)
            if phase == "unhealthy" and self.record.spec.restart != "no" and not self.ending:
                self.end(seen, because=f"unhealthy: {seen}")

    def main_ended(self, ended: Exit) -> None:
        """The main process is gone; what it left behind is watched until it is gone too."""
        reached("exited")
        if self.prober:
            self.prober.halt.set()
        self.hears_main = False
        self.mains |= {self.record.main, None}
        oom = ended.signal == "SIGKILL" and oom_kills() > self.oom_kills[0]
        ended = ended._replace(oom=oom, lived_s=round(steady_s() - self.since, 3))
        if self.pipes and self.pipes.ended(ended):
            self.tell("exited", f"{ended} before it was greeted; it is asked the older way")
            self.spawn(self.env or {})
            return
        self.record = self.record._replace(exit=ended)
        if self.ending:
            return
        spec, type_ = self.record.spec, self.record.spec.type
        is_well = is_among(ended, spec.success_codes) or (ended.code, ended.signal) == (None, None)
        is_young = self.record.phase == "starting" or time.monotonic() < self.leaves_until
        if type_ in NOTHING_LEFT and is_well and is_young:
            self.launcher_ended(ended)
            return
        left = tree_of(self.record)
        if ended.code == 0 and type_ == "simple" and not left:  # a daemon that is just forking?
            left = self.look_again()
        remark = f"; {counted(len(left), 'process')} of its tree left alive" if left else ""
        if left and ended.code == 0 and type_ == "simple":
            remark += " (a daemon? start it with --type forking, or in the foreground)"
        self.decide(ended, "exited" if is_well else "failed", f"{ended}{remark}")

    def look_again(self) -> list[Member]:
        """What lives on after all: a look may fall between two forks, and see neither process."""
        began, left = time.monotonic(), list[Member]()
        for pause_s in (0.002, 0.004, 0.008, 0.016, 0.05, 0.1, 0.2):
            is_empty = self.is_empty()
            is_over = is_empty is None and time.monotonic() > began + SOON_S
            if left or is_empty or is_over:
                break
            time.sleep(pause_s)
            left = tree_of(self.record)
        return left

    # -- what its policy makes of its end

    def decide(self, ended: Exit | None, phase: str, story: str) -> None:
        """Another instance after a while, or that was it; None: we ended it as a failed one."""
        record, spec, now = self.record, self.record.spec, steady_s()
        is_start = self.judge_until is not None and not record.restarts
        is_last = is_start or record.wanted == "stopped"  # a stop that failed is meant all the same
        if self.judge_until is not None and ended:
            phase, story = "failed", f"{story}; it was to live for {spec.start_seconds:g} s first"
            ended = ended if is_among(ended, spec.no_restart_codes) else None  # whatever it was
        if phase == "failed" and record.exit:
            self.note_failure(record.exit)
        self.judge_until = self.search_until = None
        record = self.record = after_end(record, ended, now - self.since, now)
        recent = tuple(at for at in record.restarted_at if now - at < spec.restart_window_s)
        verdict = "no" if is_last else should_restart(spec, ended, recent, now)
        verdict, self.must_restart = "restart" if self.must_restart else verdict, False
        if verdict == "restart":
            window = format_duration(spec.restart_window_s)
            story += f" (restart {len(recent) + 1} of {spec.max_restarts} in {window})"
            wait_s = backoff_s(record.backoffs, spec, os.urandom(1)[0] / 255)
            record = record._replace(retry_at=now + wait_s, backoffs=record.backoffs + 1)
            self.record = record._replace(restarted_at=(*recent, now))
            self.end(story, because="")
            return
        if verdict == "gave up":
            span = format_duration(now - min(recent, default=now))
            phase, tries = "failed", counted(len(recent), "restart")
            story += f", {tries} in {span}: gave up" if recent else ", --max-restarts 0: gave up"
        self.change("start_failed" if is_start else "exited", phase, story)

    def note_failure(self, ended: Exit) -> None:
        """Keep how it failed and its last words, cut so that 20 of them survive append_line()."""
        self.follow()
        with contextlib.suppress(OSError):  # a full disk: the history lacks this one
            tail = self.store.last_words(self.record, CAUSE_LINES)
            kept: dict[str, object] = {"log_tail": list(map(masked_line, tail[-20:]))}
            kept.update(ended._asdict(), cause=cause_of(ended, tail).kind)
            append_line(self.store.path(self.record.name, "exits.jsonl"), kept)

    def respawn(self) -> None:
        """Begin another instance, with the environment of the start."""
        former = self.record
        self.failures, self.leaves_until = 0, time.monotonic() + HOME_S
        self.sampler.at, self.sampler.cpu_s = 0.0, 0.0  # other processes begin at nothing
        self.oom_kills = (oom_kills(),) * 2
        instance = f"{run_of(former.instance)}.{os.urandom(8).hex()}"
        self.follow()
        self.log.check(time.monotonic())
        self.log.reopen()
        log_at, count = self.log.start + self.log.size, former.restarts + 1
        former = former._replace(main=None, launcher=None, exit=None, instance=instance)
        if former.spec.type == "external":
            self.search_until = time.monotonic() + LAUNCHER_S
        self.record = former._replace(restarts=count, log_at=log_at, started_at=time.time())
        self.change("restarting", "starting")
        reached("restarting")
        self.spawn(self.env or {})

    def judge(self, until: float) -> None:
        """Whether it has started: the first match in its log decides, else that it lives."""
        spec, now, patterns = self.record.spec, time.monotonic(), self.judged.patterns
        sign, why = self.judged.look(now + SOON_S) if patterns else (None, "")
        if patterns != self.judged.patterns:
            self.tell("pattern_failed", why)
        if sign and sign == spec.failure_log:
            self.end(why, because=why)
        elif sign or now >= until:
            self.judge_until = None
            why = why if sign else f"it lives after {spec.start_seconds:g} s"
            self.change("running", "running", why)

    # -- programs that leave home

    def launcher_ended(self, ended: Exit) -> None:
        """What was executed has done its work; who goes on? Until that is known: starting."""
        if self.record.launcher is None:
            self.record = self.record._replace(launcher=self.record.main)
            self.leaves_until = time.monotonic() + HOME_S
        self.search_until = self.leaves_until
        missing = "; its pid file names no process of it yet" * bool(self.record.spec.pid_file)
        self.change("launcher_exited", "starting", f"{ended}{missing}")
        self.search(self.search_until)

    def search(self, until: float) -> None:
        """Look for the process that goes on, and decide when the time is over."""
        spec, is_over = self.record.spec, time.monotonic() >= until
        if self.record.exit is None:  # the launcher itself goes on
            if is_over and self.record.phase == "starting":
                self.change("followed", self.first_phase(), "its launcher has not returned")
            self.search_until = None if is_over else until
            return
        members = tree_of(self.record)
        found = self.named_by_pid_file(members)
        if found is None and (spec.pid_file is None or is_over):
            found = eldest(members)
        pattern = None if members or self.before else spec.match
        if pattern:
            found = eldest(matching(pattern, self.record, self.record.born))
        empty, is_early = self.is_empty(), time.monotonic() < until - HOME_S + EXEC_S
        may_come = empty is False or (empty is None and (spec.pid_file or is_early))
        if found:
            self.move_to(found)
        elif is_over or not (members or pattern or may_come):
            self.nothing_left()

    def named_by_pid_file(self, members: Sequence[Member]) -> Member | None:
        """The process that the pid file names, if that certainly belongs to this instance."""
        path = self.record.spec.pid_file
        real = os.path.realpath(path or "")  # it is the user's own: it may be a link
        # OSError, ValueError: not written yet, or not whole
        with contextlib.suppress(OSError, ValueError), open(real, "rb", opener=private) as f:
            pid = int((f.read(32).split() or [b""])[0])
            look, inside = stat_of(pid), pid in [member.identity.pid for member in members]
            if look is None or look.is_dead or pid < 2:
                return None
            # Without a subreaper a daemon that dropped the cookie is in no tree.
            is_free = cookie_of(pid).instance in ("", self.record.instance)
            is_young = look.is_mine and look.identity.born >= self.record.born
            if inside or (is_free and is_young and not self.is_subreaper):
                return Member(look.identity, f"named by {path}")
        return None

    def move_to(self, member: Member) -> None:
        """From now on that process is the main one."""
        main, look = member.identity, stat_of(member.identity.pid)
        self.child = main.pid if look and look.parent == os.getpid() else None
        self.record = self.record._replace(main=main, exit=None)
        self.search_until = None
        event = "daemonized" if self.record.spec.type == "forking" else "followed"
        self.change(event, self.first_phase(), f"pid {main.pid} goes on ({member.why})")
        self.hears_main = self.child is None and self.hears_end(main)

    def nothing_left(self) -> None:
        """The launcher's end was all that can be seen of it."""
        record, self.search_until = self.record, None
        phase, why = NOTHING_LEFT[record.spec.type]
        last = record.main if record.main != record.launcher else None
        why += f"its launcher{f' and pid {last.pid}' if last else ''} ended with {record.exit}"
        before = f"; {counted(len(self.before), 'process')} matched before" if self.before else ""
        if not self.is_subreaper and record.spec.type == "forking" and not record.spec.pid_file:
            before = "; a daemon that overwrites its environment is found by its --pid-file alone"
        self.finished = phase == "external"
        why += f" and left no process{before}"
        if self.finished:
            self.judge_until = None
            self.change(phase, phase, why)
        else:
            self.decide(record.exit, phase, why)
            self.take_note()  # nothing else would wake us for it

    # -- how long it may live

    def is_leased(self) -> bool:
        """Whether the end of a lease would be the end of the service."""
        return self.record.wanted == "running" and not self.ending and not self.finished

    def end_if_over(self) -> None:
        """End the service when its lease is over, or when nobody needed it for too long."""
        if self.watchers or (self.pipes and self.pipes.is_busy()):
            self.record = self.record._replace(active_at=steady_s())
        is_owned = is_alive(self.record.owner) or self.hand_on()
        why = lease_over(self.record, is_owned, steady_s())
        if why and self.is_leased():
            self.end(why)

    def hand_on(self) -> bool:
        """Give it to the next one who still uses it; whether there is one."""
        heirs = [*filter(is_alive, self.record.sharers)]
        if not heirs:
            return False
        name, is_run = self.record.owner_name, self.record.owner_name == "run"
        with contextlib.suppress(psutil.Error):  # another session's has another name
            name = name if is_run else psutil.Process(heirs[0].pid).name()
        self.record = self.record._replace(owner=heirs[0], owner_name=name)
        self.record = self.record._replace(sharers=tuple(heirs[1:]))
        self.hears_owner = self.hears_end(heirs[0])
        self.save()
        return True

    # -- what it uses

    def take_sample(self) -> None:
        """Look at the log and, if it is time, at the processes: one wakeup for both."""
        figures: dict[str, float | None] = {}
        now = time.monotonic()
        if now >= self.sampler.due_at:
            # A kill counts as ours while it is new: others of this cgroup have theirs.
            self.oom_kills = self.oom_kills[1], oom_kills()
            took_s = self.prober.took_s if self.prober else None
            figures = self.sampler.measure(self.record, now, took_s)
            if self.pipes and figures:
                counts = self.pipes.calls, self.pipes.faults
                figures["call_errors"] = self.sampler.call_errors(now, *counts)
            if self.is_leased():
                self.take_alerts(figures, now)
        self.follow()
        self.log.check(now, figures)

    def take_alerts(self, figures: Mapping[str, float | None], now: float) -> None:
        """Note which alerts came or went, and do what the rules of those that came ask for."""
        alerts = self.sampler.alerts
        while self.complaints:
            self.tell("alert_failed", mask_secrets(self.complaints.pop(0)))
        for rule, was in list(alerts.items()):
            alerts[rule], event = judge(was, rule, figures.get(rule.metric), now)
            text = alerts[rule].text or was.text
            if event:
                self.tell(event, text)
            if event == "alert":
                self.act(rule, text, figures[rule.metric])
        texts = tuple(alert.text for alert in alerts.values() if alert.text)
        if texts != self.record.alerts:
            self.record, self.save_at = self.record._replace(alerts=texts), now

    def act(self, rule: Rule, text: str, value: float | None) -> None:
        """What a rule asks for; nobody waits for its command, which has a minute."""
        verb, _, line = rule.action.partition(" ")
        if verb == "restart":
            self.must_restart = True
            self.end(f"alert: {text}", because=f"alert: {text}")
        elif verb == "stop":
            self.end(f"alert: {text}")
        elif verb == "exec":
            where = {"service": self.record.name, "home": self.store.home}
            facts = {**rule._asdict(), **where, "name": rule.text, "value": value}
            env = {f"SPM_ALERT_{key.upper()}": str(fact) for key, fact in facts.items()}
            env, until = {**os.environ, **(self.env or {}), **env}, time.monotonic() + ALERT_S
            cwd = self.record.spec.cwd

            def carry_out() -> None:
                is_ok, seen = probe_exec(line, cwd, env, until, bool)  # bool(): it is never over
                self.complaints.extend([] if is_ok else [seen])

            try:
                threading.Thread(target=carry_out, name="alert", daemon=True).start()
            except RuntimeError as error:  # no more threads for this user
                self.complaints.append(f"exec {line!r}: {error}")

    # -- ending it

    def end(
        self,
        why: str,
        timeout_s: float = STOP_TIMEOUT_S,
        force: bool = False,
        because: str | None = None,
        tree: Tree | None = None,
    ) -> None:
        """Start to end the tree (as it was just seen), or hurry an ending that goes on."""
        # `because`: it failed, why its policy decides; "": it did, what is left of it is ended.
        if self.ending and self.because is None:
            self.hurry_at = min(self.hurry_at, time.monotonic() + timeout_s * (not force))
            return
        self.because, self.hurry_at, quiet_s = because, float("inf"), 0.0
        tree = tree or Tree(self.record)
        if self.pipes:
            quiet_s, timeout_s = STDIO_END_S, min(timeout_s, STDIO_END_S)
            self.pipes.close_stdin()
        self.ending = end_tree(tree, timeout_s, force, self.is_empty, quiet_s)
        self.step_at = time.monotonic() + next(self.ending)
        phase = "backoff" if because == "" else "stopping"
        self.change(phase, phase, why)

    def hurry(self) -> None:
        """Go over to SIGKILL: who asked for the end since gave it no longer."""
        self.hurry_at = float("inf")
        self.step(force=True)

    def step(self, force: bool = False) -> None:
        """One step of the ending; the last one records what came of it."""
        assert self.ending
        try:
            self.step_at = time.monotonic() + self.ending.send(force)
        except StopIteration as done:
            self.take_note()
            reached("ended")
            self.ending, self.outcome = None, done.value
            self.all_ended(", ".join(map(str, done.value.left)))

    def all_ended(self, left: str) -> None:
        """All of the instance is gone, or can't be ended."""
        why, self.because = self.because, None
        if left:
            phase = "running" if why is None and self.record.exit is None else "failed"
            self.change("stop_failed", phase, f"pid {left} outlived {FORCE}")
        elif why != "":  # else it but waits to restart
            ended = (self.record.exit or Exit(time.time()))._replace(because=why or "")
            self.record = self.record._replace(exit=ended)
            self.finished = why is None
            if why:
                self.decide(None, "failed", why)
            else:
                killed = self.outcome and self.outcome.killed
                how = f"; it took {FORCE}, which ended it" if killed else ""
                self.change("stopped", "stopped", self.record.reason + how)
        if left or self.save_at:  # else they hear of it when we have left
            self.answer_waiters()

    def answer_waiters(self) -> None:
        """Tell everybody who asked for the end what came of it."""
        ended, unsaved = self.outcome and self.outcome._asdict(), self.save_at is not None
        for client in self.waiters:
            client.answer(self.told(ended=ended, unsaved=unsaved, yours=self.hands_over))
        self.waiters.clear()

    def told(self, **facts: object) -> dict[str, object]:
        """An answer with the record."""
        return {"ok": True, "record": self.record.to_json(), **facts}

    # -- requests

    def on_connect(self, _: object) -> None:
        """A command connects."""
        try:
            connection, _address = self.server.accept()
        except OSError:  # no descriptor is left, or the caller has gone
            time.sleep(0.05)
            return
        is_crowd = len(self.events.get_map()) >= most_connections()  # else nothing can be opened
        if is_crowd or not is_own_peer(connection):
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection)
        self.hears_client(client, lambda _: self.on_data(client))

    def on_data(self, client: Client) -> None:
        """A part of a request, the whole of one, or the end of the connection."""
        chunk = b""
        with contextlib.suppress(OSError):
            chunk = client.connection.recv(1 << 16)
        client.received += chunk
        is_whole = b"\n" in chunk
        if chunk and not is_whole and len(client.received) < REQUEST_BYTES:
            return
        self.events.unregister(client.connection)
        client.received, _, client.behind = client.received.partition(b"\n")
        if is_whole:
            self.handle(client)
        else:
            client.connection.close()

    def handle(self, client: Client) -> None:
        """Answer one request, at once or when it is done."""
        try:
            request = parse_json(client.received)
            if not isinstance(request, dict) or request.get("token", "") != self.token:
                raise RecordError("request.token: not the one in the state directory")
            operation = _one_of(*OPERATIONS)(request.get("op"), "request.op")
            getattr(self, f"on_{operation}")(client, request)
        except (SpmError, ValueError) as error:  # a later version may ask for what we don't know
            told = error if isinstance(error, SpmError) else UsageError(str(error))
            client.answer({"ok": False, "error": told.to_json()})

    def on_status(self, client: Client, request: dict[str, object]) -> None:
        """What is, with what state.json doesn't hold."""
        self.take_note()
        client.answer(self.told(relay=self.pipes and self.pipes.facts()))

    def on_join(self, client: Client, request: dict[str, object]) -> None:
        """Somebody wants to talk to a stdio service."""
        self.pipes.join(client) if self.pipes else client.connection.close()

    def active(self) -> None:
        """It is used: remembered at once, written down at most every few seconds."""
        self.record = self.record._replace(last_active=time.time(), active_at=steady_s())
        if self.save_at is None and not self.ending:
            self.save_at = time.monotonic() + ACTIVE_SAVE_S

    def on_touch(self, client: Client, request: dict[str, object]) -> None:
        """A heartbeat; with a record: a start that renews the lease, or has taken it over."""
        if "record" in request:
            self.take_note()  # it may just have ended
            asked, former = Record.from_json(request["record"]), self.record.owner
            spec = self.record.spec._replace(lease=asked.spec.lease)
            self.record = self.record._replace(spec=spec, lease_until=asked.lease_until)
            if self.record.phase in UP_PHASES:  # it may have outlived a stop
                self.record = self.record._replace(wanted="running")
            if asked.owner != former and asked.owner and is_alive(former):
                request.setdefault("sharer", asked.owner._asdict())  # who asks had an old look
            elif asked.owner != former:
                self.record = self.record._replace(owner=asked.owner, owner_name=asked.owner_name)
                self.hears_owner = not asked.owner or self.hears_end(asked.owner)
        if "sharer" in request:
            sharer = read_owner(request["sharer"], "request.sharer")
            living = [one for one in self.record.sharers if one != sharer and is_alive(one)]
            self.record = self.record._replace(sharers=(*living, sharer))
        if "leaver" in request:  # one after another: the last of them finds nobody else
            leaver = read_owner(request["leaver"], "request.leaver")
            left = [one for one in self.record.sharers if one != leaver]
            self.record = self.record._replace(sharers=tuple(left))
            if self.record.owner == leaver:
                self.hand_on()  # without one its lease ends with the leaver
        self.active()
        self.save()
        client.answer(self.told())

    def on_settings(self, client: Client, request: dict[str, object]) -> None:
        """A changed configuration: take over what needs no new instance."""
        asked, was = Spec.from_json(request.get("spec")), self.record.spec
        live = {key: getattr(asked, key) for key in LIVE_FIELDS}
        config = str(_text(request.get("config", self.record.config), "request.config"))
        is_watched_anew = (asked.alerts, asked.sample_s) != (was.alerts, was.sample_s)
        self.sampler = Sampler(asked) if is_watched_anew else self.sampler
        alerts = () if is_watched_anew else self.record.alerts
        self.record = self.record._replace(spec=was._replace(**live), config=config, alerts=alerts)
        if self.prober:
            self.prober.record = self.record
        self.tell("settings", "; ".join(spec_differences(was, self.record.spec)))
        self.save()
        client.answer(self.told())

    def on_notify(self, client: Client, request: dict[str, object]) -> None:
        """What the service says of itself; `alive` is a heartbeat."""
        state = str(_one_of(*NOTICES)(request.get("state"), "request.state"))
        message = str(_text(request.get("message"), "request.message"))
        if state == "alive":
            self.on_touch(client, {})
            return
        is_believed = self.record.phase == "running" and not self.record.spec.readiness
        if state == "ready" and is_believed:  # else the checks decide
            self.change("ready", "ready", message)
        else:  # by no name of a status: it hasn't got that one
            is_early = state == "ready" and self.record.phase == "starting"
            self.said_ready = message if is_early and not self.record.spec.readiness else None
            self.tell("notice", f"it says {state}" + f": {message}" * bool(message))
        client.answer(self.told())

    def heard(self) -> dict[str, object]:
        """What watchers are told."""
        return {"ok": True, "phase": self.record.phase, "why": self.record.reason}

    def on_watch(self, client: Client, request: dict[str, object]) -> None:
        """Somebody waits for it, or works with it, until the connection ends."""

        def left(_: object) -> None:
            self.events.unregister(client.connection)
            client.connection.close()
            self.watchers.remove(client)
            self.active()

        client.answer(self.heard(), hang_up=False)
        if self.hears_client(client, left):
            self.watchers.append(client)

    def on_ready(self, client: Client, request: dict[str, object]) -> None:
        """A command that waited saw readiness before the prober did."""
        is_same = request.get("instance") == self.record.instance  # it may have begun anew since
        if is_same and self.record.phase == "running" and self.record.spec.readiness:
            self.change("ready", "ready", "seen by the command that waited")
        client.answer(self.told())

    def on_stop(self, client: Client, request: dict[str, object]) -> None:
        """End the service; refused if the caller means another process or stands in the tree."""
        asked = read_stop_request(request, "request")
        # Whoever read state.json just before a restart means the former main process.
        meant = self.record.main if asked.main in self.mains else asked.main
        tree = Tree(self.record)
        error = refusal(self.record, meant, tree.members, asked.spare)
        if error and not self.finished:
            self.save()
            raise error
        client.answer({"ok": True}, hang_up=False)
        self.waiters.append(client)
        if self.finished:  # only its record waits to be written: who asks does that
            self.save_at, self.outcome, self.hands_over = None, Ended(0, 0.0, False, ()), True
        else:
            self.end("stop was asked for", asked.timeout_s, asked.force, tree=tree)


def order_in_window(directory: str) -> tuple[bytes, int]:
    """The order for a supervisor that a terminal started, and where its answer goes."""
    connection, _ = connect_local(directory, HUNG_S)
    with connection:
        with connection.makefile("rb") as file:
            line = file.readline()
        connection.settimeout(None)  # of a long answer no more than a part would be taken
        return line, connection.detach()


def take_environment(callers: dict[str, str]) -> None:
    """Have the environment of who started it: what a tmux server hands down may be days old."""
    own = (*WINDOW_VARIABLES, *COOKIE_NAMES)
    kept = {key: value for key, value in os.environ.items() if key in own}
    os.environ.clear()
    os.environ.update({key: value for key, value in callers.items() if key not in own}, **kept)


def is_awaited(order: Order) -> bool:
    """Whether somebody waits for what is ordered: a command that was killed has begun nothing."""
    return order.adopt or order.command in (0, os.getppid())


def supervise(order: Order, is_subreaper: bool, answer_to: int) -> None:
    """The life of a supervisor, from the order of the command that launched it."""
    store = Store(order.home, lock_wait_s=BUSY_S)
    store.supervises = order.record.name.lower()
    try:
        supervisor = Supervisor(store, order.record, is_subreaper)
        if is_awaited(order):
            store.ensure(supervisor.record)
        if not is_awaited(order):
            return  # another command may have done something else since
        supervisor.adopt() if order.adopt else supervisor.spawn(order.env)
    except SpmError as error:
        reply({"ok": False, "error": error.to_json()}, answer_to)
        return
    reached("noted")
    reply({"ok": True, "record": supervisor.record.to_json()}, answer_to)
    for descriptor in (0, 1, 2) if answer_to == 1 else (answer_to,):  # it waits for their end
        os.dup2(supervisor.null, descriptor)
    try:
        supervisor.listen()
        supervisor.env = order.env
        supervisor.begin_probing()
        supervisor.run()
    except Exception as error:  # the last chance to say why: nobody reads its stderr any more
        import traceback

        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        why = f"{type(error).__name__} at line {line}: {error}"
        store.write_event("supervisor_failed", order.record.name, supervisor.record, why)
        raise


def obey() -> None:
    """All that the process of a supervisor does."""
    window = "".join(sys.argv[3:4])  # where a supervisor in a window gets its order
    settle(in_window=bool(window))
    is_subreaper = become_subreaper()
    _ = json.loads, re.compile  # imported while the command is still about to write its order
    line, to = order_in_window(window) if window else (sys.stdin.buffer.readline(), 1)
    if line.endswith(b"\n"):  # else the command that launched us is gone
        order = json.loads(line)
        sys.path[:] = order["sys_path"]
        if window:
            take_environment(order["environ"])
        supervise(read_order(order, "order"), is_subreaper, to)


def reply(document: dict[str, object], descriptor: int) -> None:
    """One line to the command that launched us; it may be gone, the start is done all the same."""
    with contextlib.suppress(OSError):
        os.write(descriptor, json.dumps(document).encode() + b"\n")


# == Relay =========================================================================================
# JSON-RPC over the pipes of one service, for many callers. It owns the ids: what a caller calls 1
# the service knows by a number of ours, and each answer goes to who asked. Nothing here waits: what
# can't be written yet is kept, within bounds, and a caller who doesn't read is let go.

MESSAGE_BYTES = 64 << 20  # of one message, and of what may wait for a reader before the next
WIDER = 4  # the most that JSON grows in ASCII: 1e15 is written out, "я" is \u044f
PENDING_REQUESTS, KNOWN_TOOLS, DISCOVER_S = 1000, 500, 2.0
CLOSED_S = 1.0  # between the end of a service's stdout and its own
HANDSHAKE, MODERN = "2025-11-25", "2026-07-28"  # the latest revision of either era
HANDSHAKES = (HANDSHAKE, "2025-06-18", "2025-03-26", "2024-11-05", "2024-10-07")
META = "io.modelcontextprotocol/"
SUBSCRIPTION = META + "subscriptionId"  # the id of the request that asked for it
LISTEN = "subscriptions/listen"  # under way for as long as its client likes
END = "notifications/spm/end"  # of `connect`: its stdin has ended, what is under way may finish
TOO_LONG = f"this message is longer than {MESSAGE_BYTES >> 20} MiB"
TOO_DEEP = "not to be written as JSON: nested too deeply"
NEVER_SENT, UNSURE = "it was never sent", "it may or may not have happened"
GAVE_UP = "notifications/spm/gave_up"  # of `call`: the answer took too long
NO_METHOD, INVALID_PARAMS, RELAY_ERROR, UNSUPPORTED_VERSION = -32601, -32602, -32000, -32022
CALLERS_FAULTS = (-32600, NO_METHOD, INVALID_PARAMS, -32800)  # invalid request; cancelled
ABILITY = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation"}
ABOUT = {"notifications/progress": "progressToken", "notifications/cancelled": "requestId"}
NEWS_ABILITIES = ("subscribe", "listChanged")
SET_LEVEL = "logging/setLevel"
LOG_LEVELS = (  # RFC 5424, from the most verbose on
    *("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"),
)
SWALLOWED = ("notifications/initialized", "notifications/roots/list_changed")
CLIENT = {"name": "simple_process_manager", "version": __version__}
HARMLESS = ("initialize", "ping", "server/discover", "resources/read")


def as_object(value: object) -> Message:
    """The JSON object that a value is, or an empty one."""
    return value if isinstance(value, dict) else {}


def messages_in(line: bytes | None) -> list[Message | None]:
    """The messages of a line, a batch taken apart; None for what is no message."""
    try:
        document = None if line is None else parse_json(line) if line.strip() else []
    except ValueError:
        return [None]
    items = document if isinstance(document, list) else [document]
    return [item if isinstance(item, dict) else None for item in items]


def is_harmless(era: object, method: object, tool: object, known: object) -> bool:
    """Whether a request may be sent twice; `known`: the tools that say they have no effect."""
    is_known = method == "tools/call" and isinstance(known, list) and tool in known
    return era != "jsonrpc" and (is_known or method in HARMLESS or str(method).endswith("/list"))


def is_below(message: Message, least: str) -> bool:
    """Whether it is a log message that matters less than what was asked for."""
    level = as_object(message.get("params")).get("level")
    is_log = message["method"] == "notifications/message" and level in LOG_LEVELS
    return bool(least) and is_log and LOG_LEVELS.index(str(level)) < LOG_LEVELS.index(least)


def number_in(value: object) -> int | None:
    """Which number of ours a service means: JSON has one kind of them, 5.0 is 5."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def failure(id_: object, code: int, message: str, **data: object) -> Message:
    """A JSON-RPC error."""
    return {"jsonrpc": "2.0", "id": id_, "error": {"code": code, "message": message, "data": data}}


def envelope(version: str) -> Message:
    """The `_meta` of a request of the modern era."""
    facts = {"protocolVersion": version, "clientInfo": CLIENT, "clientCapabilities": {}}
    return {META + key: value for key, value in facts.items()}


def older_abilities(capabilities: Message) -> Message:
    """What a modern service can do for clients that shake hands: they have no way to listen."""
    return {
        what: {key: one for key, one in as_object(how).items() if key not in NEWS_ABILITIES}
        for what, how in capabilities.items()
        if what != "logging"
    }


def roots_of(spec: Spec) -> Message:
    """What answers roots/list."""
    return {"roots": [{"uri": pathlib.Path(path).as_uri()} for path in spec.root]}


class Frames:
    """The lines in a stream of bytes, in whatever pieces it comes."""

    def __init__(self, most: int = MESSAGE_BYTES) -> None:
        self.most, self.size = most, 0
        self.parts: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """The lines that a piece completes; None for one that was too long and is lost."""
        lines: list[bytes | None] = []
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            is_lost = self.size + len(end) > self.most
            lines.append(None if is_lost else b"".join([*self.parts, end]))
            self.parts, self.size = [], 0
        self.size += len(rest)
        self.parts.append(rest)
        if self.size > self.most:
            self.parts.clear()
        return lines


class Channel:
    """JSON lines over a socket that never blocks, or one for each way: what can't be written yet
    waits here.
    """

    def __init__(
        self,
        events: selectors.BaseSelector,
        connection: socket.socket,
        writer: socket.socket | None = None,
    ) -> None:
        from collections import deque

        self.events, self.connection, self.frames = events, connection, Frames()
        self.writer = writer or connection
        self.queue: deque[memoryview] = deque()
        self.queued = self.sent = 0  # bytes
        self.abilities: Message = {}  # the capabilities that a client declared
        self.level = ""  # of the log messages that a client asked for; "": of all there are
        self.mask, self.is_open, self.is_leaving = 1, True, False
        self.allows_nan = True  # which is no JSON, but what some services answer
        self.connection.setblocking(False)
        self.writer.setblocking(False)

    def listen(self, hear: Callable[[Channel, list[bytes | None] | None], None]) -> None:
        """Have somebody told of the lines that come, and (None) of the end of either way."""
        self.hear = hear
        self.events.register(self.connection, self.mask, self.on_ready)
        try:
            if self.writer is not self.connection:
                self.events.register(self.writer, self.mask, self.on_writer)
        except OSError:  # it may be tried again
            self.events.unregister(self.connection)
            raise

    def on_ready(self, _: object = None) -> bool:
        """Write what waits, read what has come; whether something had come."""
        self.flush()
        try:
            chunk = self.connection.recv(1 << 18) if self.is_open else None
        except BlockingIOError:
            self.hear(self, [])
            return False
        except OSError:
            chunk = b""
        if chunk:
            self.hear(self, self.frames.feed(chunk))
        elif chunk is not None:
            self.close()
            self.hear(self, None)
        return bool(chunk)

    def on_writer(self, _: object = None) -> None:
        """Write what waits; there is nothing to read there but the end of who reads it."""
        self.flush()
        try:
            is_over = not self.writer.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over and self.writer.fileno() >= 0:  # else it was closed just now
            self.events.unregister(self.writer)
            self.writer.close()
            self.hear(self, None)

    def send(self, message: Mapping[str, object]) -> bool:
        """Write a message, or keep it until it can be written; False if it is none in JSON."""
        try:
            text = json.dumps(message, separators=(",", ":"), allow_nan=self.allows_nan)
        except (RecursionError, ValueError):
            return False
        data = text.encode() + b"\n"
        if self.queued <= 2 * MESSAGE_BYTES:  # who reads nothing at all misses something
            self.queue.append(memoryview(data))
            self.queued += len(data)
        if len(self.queue) == 1:
            self.flush()
        return True

    def flush(self) -> None:
        """Write as much as is taken now."""
        try:
            while self.queue and self.is_open:
                count = self.writer.send(self.queue[0])
                self.queued, self.sent = self.queued - count, self.sent + count
                rest = self.queue.popleft()[count:]
                self.queue.extendleft([rest] if rest else [])
        except BlockingIOError:
            pass
        except OSError:  # nobody reads there any more: the end of what we read will tell
            self.queue.clear()
            self.queued = 0
        mask = 3 if self.queue else 1  # EVENT_WRITE, EVENT_READ
        if mask != self.mask and self.is_open and self.writer.fileno() >= 0:
            self.mask = mask
            is_one = self.writer is self.connection
            self.events.modify(self.writer, mask, self.on_ready if is_one else self.on_writer)

    def finish(self, until: float, latest: float) -> None:
        """Let go of it when what waits is written; `until` a time, or `latest` if it is taken."""
        with contextlib.suppress(OSError):  # it took too long, too
            for rest in self.queue if self.is_open else ():
                while rest:
                    self.connection.settimeout(max(until - time.monotonic(), 0.001))
                    rest, until = rest[self.connection.send(rest) :], latest
        self.close()

    def close(self) -> None:
        """Let go of it."""
        ours = {self.connection, self.writer} if self.is_open else ()
        self.is_open = False
        for one in ours:
            if one.fileno() >= 0:
                self.events.unregister(one)
                one.close()


class Pending(NamedTuple):
    """A request that the service has not answered yet."""

    method: str
    start: int  # where in all that was sent to the service it begins
    caller: Channel | None = None  # None: it is ours
    id: object = None  # the caller's own
    token: object = None  # the caller's own progress token
    tool: object = None


class Relay:
    """The conversation with one stdio service; see _Pipes for what its supervisor wants of it."""

    server: Channel

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor, self.name = supervisor, supervisor.record.name
        self.numbers, self.calls, self.errors = itertools.count(1), 0, 0
        self.faults = 0  # calls that failed by the service, not by what the caller asked for
        self.pending: dict[int, Pending] = {}
        self.asked: dict[str, Channel] = {}  # who has to answer a request of the service, by its id
        self.watching: dict[str, set[Channel]] = {}  # who subscribed to a resource, by its URI
        self.callers: list[Channel] = []
        self.joining: list[Client] = []
        self.protocol = self.era = self.version = ""
        self.greeting: Message = {}  # what the service said of itself
        self.problem: SpmError | None = None
        self.due_at = self.give_up_at = float("inf")
        self.offered = ""  # the version of our handshake
        self.closed = ""  # what the service closed, stdin or stdout
        self.has_died = False  # with but the probe before it?
        self.answer: Callable[[Sight], None] | None = None  # who wants to know whether it answers

    def open(self) -> list[int]:
        """The two descriptors for a process that is about to be spawned."""
        self.connection, self.writer, *ends = service_pipes()
        return ends

    def listen(self) -> None:
        """The process runs: find out how it wants to be spoken to."""
        self.server = Channel(self.supervisor.events, self.connection, self.writer)
        patiently(self.server.listen, self.hear)
        self.server.allows_nan = False
        spec = self.supervisor.record.spec
        self.give_up_at = time.monotonic() + spec.connect_timeout_s
        self.era, self.problem, self.offered, self.has_listed = "", None, "", False
        self.asked, self.watching, self.closed = {}, {}, ""
        has_died = self.has_died or spec.extra.get("probe") == "died"
        self.protocol = "handshake" if has_died and spec.protocol == "auto" else spec.protocol
        if self.protocol == "jsonrpc":
            self.settle("jsonrpc", "", {})
        elif self.protocol == "handshake":
            self.shake_hands()
        else:
            self.discover(MODERN)

    def discover(self, version: str) -> None:
        """Ask as the modern era does; who is silent may still be starting, or be of the other."""
        self.version, wait_s = version, float("inf") if self.protocol == "modern" else DISCOVER_S
        self.ask("server/discover", {"_meta": envelope(version)})
        self.due_at = min(self.give_up_at, time.monotonic() + wait_s)

    def shake_hands(self, version: str = HANDSHAKE) -> None:
        """Begin as the era of the handshake does; once more in another version, if need be."""
        if not self.offered or version != HANDSHAKE:
            self.offered, self.due_at = version, self.give_up_at
            asked: Message = {"protocolVersion": version, "clientInfo": CLIENT}
            abilities: Message = {"roots": {}, "sampling": {}, "elicitation": {}}
            self.ask("initialize", {**asked, "capabilities": abilities})

    def on_greeting(self, method: str, message: Message) -> None:
        """The answer to server/discover (only the modern era knows -32022), or to initialize."""
        if self.era:
            self.answers(f"it answered {method}")
            return
        result, error = as_object(message.get("result")), as_object(message.get("error"))
        codes = (UNSUPPORTED_VERSION, *[INVALID_PARAMS] * (method == "initialize"))
        data = as_object(error.get("data")) if error.get("code") in codes else {}
        listed = result.get("supportedVersions", data.get("supported"))
        known = [v for v in listed if isinstance(v, str)] if isinstance(listed, list) else []
        best = MODERN if MODERN in known else max(known, default="")
        common = [v for v in HANDSHAKES[1:] if v in known]
        if method == "initialize" and result:
            self.tell("notifications/initialized")
            self.settle("handshake", str(result.get("protocolVersion") or ""), result)
        elif best >= MODERN and result:
            self.settle("modern", best, result)
        elif best > MODERN and self.version == MODERN:  # asked once more, not for ever
            self.discover(best)
        elif method == "initialize" and common and self.offered == HANDSHAKE:
            self.shake_hands(common[0])
        elif method == "initialize" and self.protocol != self.supervisor.record.spec.protocol:
            self.protocol = "modern"  # it wasn't the probe that it died of
            self.discover(MODERN)
        elif method == "initialize" or self.protocol == "modern":
            told = f"answered {method} with {json.dumps(error or result):.200}"
            if method == "initialize" and known:
                ours = ", ".join((MODERN, *HANDSHAKES))
                told = f"speaks MCP {', '.join(known):.200}; this program speaks {ours}"
            self.give_up(told, "protocol", CLOSED_S)
        else:
            self.shake_hands()

    def settle(self, era: str, version: str, greeting: Message) -> None:
        """It is known how to speak: let in who waits.

        Of a modern service a greeting is made for clients that would rather shake hands.
        """
        if era == "modern":
            info = as_object(greeting.get("_meta")).get(META + "serverInfo")
            kept = {k: v for k, v in greeting.items() if k == "instructions"}
            anonymous: Message = {"name": self.name, "version": ""}
            able = older_abilities(as_object(greeting.get("capabilities")))
            greeting = {"capabilities": able, **kept, "serverInfo": info or anonymous}
        self.era, self.version, self.greeting = era, version, greeting
        if self.has_died and era == "handshake":  # only now: it may have died of its own bug
            self.remember("probe", "died")
        self.has_died = False
        self.due_at, self.problem = float("inf"), None
        self.let_in()
        self.answers(f"it was greeted ({era} {version or 'without a version'})")

    def let_in(self) -> None:
        """Those who wait."""
        joining, self.joining = self.joining, []
        for client in joining:
            self.join(client, waited=True)

    def ping(self, answer: Callable[[Sight], None]) -> None:
        """Have it answer something that does nothing; whom it works for sees whether it does."""
        self.answer = answer
        if self.era and any(one.method != LISTEN for one in self.in_flight()):
            self.answers("it has requests in flight")
        elif self.era:
            method = "server/discover" if self.era == "modern" else "ping"
            kept = {n: one for n, one in self.pending.items() if one.caller or one.method != method}
            self.pending = kept  # without the last one, if that has no answer yet
            self.ask(method, {})

    def answers(self, seen: str) -> None:
        """It has given a sign of life."""
        answer, self.answer = self.answer, None
        if answer:
            answer(Sight(True, seen))

    def look(self) -> None:
        """A time is over."""
        self.due_at = float("inf")
        if self.problem and self.server.is_open:  # what was given up lives on
            self.give_up(self.problem.message.partition(" ")[2], "protocol")
        elif self.closed:
            self.give_up(f"closed its {self.closed}, but lives", "server_died")
        elif time.monotonic() < self.give_up_at:
            self.shake_hands()
        else:
            limit = format_duration(self.supervisor.record.spec.connect_timeout_s)
            self.give_up(f"didn't answer in {limit}", "timeout")

    def give_up(self, why: str, cause: str, wait_s: float = 0.0) -> None:
        """It lives, but nobody can speak with it; within wait_s it may end by itself, as failed."""
        self.fail(why, cause)
        record = self.supervisor.record
        is_up = record.phase in UP_PHASES and not self.supervisor.ending
        if is_up and not record.spec.keep_alive and wait_s:
            self.due_at = time.monotonic() + wait_s
        elif is_up and not record.spec.keep_alive:
            self.supervisor.end(f"it {why}")

    def close_stdin(self) -> None:
        """The service is to end: what is under way may still be answered."""
        with contextlib.suppress(OSError, AttributeError):  # it has gone, or never began
            self.writer.shutdown(1)  # SHUT_WR

    def ended(self, ended: Exit) -> bool:
        """The service has ended; True if it is to be spawned again: the probe was too much."""
        until = time.monotonic() + CLOSED_S
        for _ in range(64):  # what it has left; a child of it may go on writing for ever
            if not self.server.on_ready() or time.monotonic() > until:
                break
        if self.server.is_open:
            self.server.close()
            self.hear(self.server, None)
        if self.era or self.offered or self.protocol != "auto" or self.supervisor.ending:
            probed = self.supervisor.record.spec.extra.get("probe")
            if probed == "died" and not (self.era or self.supervisor.ending):
                self.remember("probe", "unknown")  # it dies without that question, too
            self.has_died = False
            self.fail(f"ended ({ended})", "server_died", ended)
            return False
        self.has_died = True
        return True

    def remember(self, key: str, value: object) -> None:
        """Something about the command of the service, for its next start."""
        record = self.supervisor.record
        spec = record.spec._replace(extra={**record.spec.extra, key: value})
        self.supervisor.record = record._replace(spec=spec)

    def fail(self, why: str, cause: str, ended: Exit | None = None) -> None:
        """Nothing more will come: everybody hears so at once, and who comes later."""
        tail: list[str] = []
        with contextlib.suppress(OSError):  # the service may have put something in its log's place
            tail = self.supervisor.store.last_lines(self.name, 20)
        facts: Message = {"cause": cause, "log_tail": tail, "exit": ended and ended._asdict()}
        other = "if it is no MCP server: --protocol jsonrpc"
        advice = f"see why: explain {self.name}; {other}"
        kind: type[SpmError] = Failed
        if cause == "timeout":
            kind = TimedOut
            again = "call it again when it has answered; more time for that: --connect-timeout"
            http = "if it speaks HTTP: no --type stdio"
            advice = f"{again}; {other}; {http}; its output: logs {self.name}"
        is_cut_off = self.closed and not ended
        anew = f"start it anew: restart {self.name}; see why: explain {self.name}"
        advice = anew if is_cut_off else advice
        self.problem, self.due_at = kind(f"{self.name} {why}", advice, **facts), float("inf")
        facts.update({"advice": anew} if is_cut_off else {})
        for number, one in [*self.pending.items()]:
            is_new = one.start >= self.server.sent
            happened = NEVER_SENT if is_new else UNSURE
            text = f"{self.name} {why} before it answered {one.method}: {happened}"
            known = self.supervisor.record.spec.extra.get("repeatable")
            repeat = is_new or is_harmless(self.era, one.method, one.tool, known)
            if one.caller:  # what we asked is kept: a late greeting is welcome
                self.pending.pop(number, None)  # unless its caller has just been let go
                self.faults += 1
                answer = failure(one.id, RELAY_ERROR, text, **facts, repeat=repeat)
                self.to_caller(one.caller, answer)
        now = time.monotonic()
        for caller in sorted(self.callers, key=lambda one: one.queued):
            caller.finish(now + CLOSED_S, now + 2 * CLOSED_S)
        self.callers = []
        self.let_in()

    def is_busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self.joining or self.in_flight())

    def in_flight(self) -> list[Pending]:
        """The requests of callers that wait for an answer."""
        return [one for one in self.pending.values() if one.caller]

    def facts(self) -> Message:
        """What `status` tells."""
        how = {"era": self.era, "version": self.version, "server": self.greeting.get("serverInfo")}
        counts = {"calls": self.calls, "errors": self.errors}
        counts["in_flight"] = len(self.in_flight())
        return {**how, **counts, "callers": len(self.callers)}

    def join(self, client: Client, waited: bool = False) -> None:
        """Let somebody in, as soon as it is known how to speak to the service."""
        error, supervisor = self.problem, self.supervisor
        if supervisor.ending or supervisor.record.phase not in UP_PHASES:
            advice = f"start it again: start {self.name}"
            error = NotFound(f"{self.name} is ending", advice, waited=waited)
        if error:
            client.answer({"ok": False, "error": error.to_json()})
        elif not self.era:
            self.joining.append(client)
        else:
            how = {"era": self.era, "version": self.version, **roots_of(supervisor.record.spec)}
            client.answer({"ok": True, **how}, hang_up=False)
            caller = Channel(supervisor.events, client.connection)
            try:
                caller.listen(self.hear)
            except OSError:  # as in NO_ROOM
                client.connection.close()
                return
            self.callers.append(caller)
            supervisor.active()  # else it may idle out before the request is here
            self.hear(caller, caller.frames.feed(client.behind))

    def drop(self, caller: Channel, why: str = "the caller went away") -> None:
        """A caller is gone, or is let go: nobody waits for its answers any more."""
        caller.close()
        self.callers = [one for one in self.callers if one is not caller]
        for number in [n for n, one in self.pending.items() if one.caller is caller]:
            self.cancel(number, why)
        for key in [key for key, asked in self.asked.items() if asked is caller]:
            del self.asked[key]
            self.server.send(failure(json.loads(key), RELAY_ERROR, why))
        for uri in [uri for uri, watching in self.watching.items() if caller in watching]:
            if self.unwatch(caller, uri):
                self.ask("resources/unsubscribe", {"uri": uri})
        level = self.lowest_level()
        if caller.level and level not in ("", self.lowest_level(caller)):
            self.ask(SET_LEVEL, {"level": level})
        in_use = self.callers or self.joining or self.supervisor.record.spec.keep_alive
        if not (in_use or self.problem):
            self.supervisor.end("its call is done")

    def unwatch(self, caller: Channel, uri: str) -> bool:
        """A caller watches a resource no longer; whether nobody else does."""
        watching = self.watching.get(uri, set[Channel]())
        watching.discard(caller)
        if not watching:
            self.watching.pop(uri, None)
        return not watching

    def lowest_level(self, *more: Channel) -> str:
        """The most verbose level that any caller asked for, "" if none did."""
        asked = [one.level for one in (*self.callers, *more) if one.level]
        return min(asked, key=LOG_LEVELS.index, default="")

    def cancel(self, number: int, why: str) -> None:
        """Have the service stop working on a request."""
        if self.pending.pop(number, None) and self.era != "jsonrpc":
            self.tell("notifications/cancelled", requestId=number, reason=why)

    def to_caller(self, caller: Channel, message: Mapping[str, object]) -> None:
        """Write to a caller; one that has let too much pile up is let go."""
        if caller.queued > MESSAGE_BYTES:
            self.to_log(b"a caller was disconnected: it doesn't read what it asked for")
            self.drop(caller, "the caller doesn't read")
        elif caller.is_open and not caller.send(message):
            facts = {"cause": "protocol", "repeat": False}
            caller.send(failure(message.get("id"), RELAY_ERROR, TOO_DEEP, **facts))
        self.part(caller)

    def part(self, caller: Channel) -> None:
        """Let a caller go whose stdin has ended, as soon as it has its answers."""
        asked = (one for one in self.pending.values() if one.method != LISTEN)
        mine = (one.caller is caller for one in asked)
        if caller.is_leaving and caller.is_open and not caller.queue and not any(mine):
            self.drop(caller)

    # -- what is heard

    def hear(self, channel: Channel, lines: list[bytes | None] | None) -> None:
        """Lines of the service or of a caller, or (None) the end of what it says."""
        is_server = channel is self.server
        if lines is None and is_server and channel.is_open and self.supervisor.ending:
            return  # it was told to go
        if lines is None and is_server:
            self.due_at = time.monotonic() + CLOSED_S
            self.closed = "stdin" if channel.is_open else "stdout"
            # its last words may have no line end
            lines = [] if channel.is_open else channel.frames.feed(b"\n")
        elif lines is None:
            self.drop(channel)
        elif not lines:
            self.part(channel)
        said = ((line, message) for line in lines or () for message in messages_in(line))
        for line, message in said:
            if not (channel.is_open or is_server):  # let go: nothing more is done in its name
                return
            if message is None and is_server:
                self.to_log(b"on stdout, not JSON-RPC: " + (line or b"(too long)"))
                if line is None:
                    self.lose()
            elif message is None:
                told = "not a JSON-RPC message" if line is not None else TOO_LONG
                self.to_caller(channel, failure(None, -32700, told))
            else:
                with contextlib.suppress(RecursionError):  # nested just too deeply to be written
                    self.on_message(channel, message, is_server)

    def lose(self) -> None:
        """What the service said was too long: it answered the one request in flight, if any."""
        asked = [number for number, one in self.pending.items() if one.caller]
        if len(asked) == 1:  # else nobody knows whose it was
            told = f"the answer of {self.name} is longer than {MESSAGE_BYTES >> 20} MiB"
            facts = {"cause": "protocol", "repeat": False}
            self.on_answer(failure(asked[0], RELAY_ERROR, told, **facts))

    def on_message(self, channel: Channel, message: Message, is_server: bool) -> None:
        """A request, a notification or an answer, of the service or of a caller."""
        if "method" not in message and is_server:
            self.on_answer(message)
        elif "method" not in message:
            key = json.dumps(message.get("id"))
            if self.asked.get(key) is channel:  # else it is another caller's to answer
                del self.asked[key]
                self.server.send(message)
        elif is_server:
            (self.on_question if "id" in message else self.on_news)(message)
        else:
            (self.on_request if "id" in message else self.on_note)(channel, message)

    def on_note(self, caller: Channel, message: Message) -> None:
        """What a caller lets the service know."""
        method, params = message["method"], as_object(message.get("params"))
        mine = {n: one.id for n, one in self.pending.items() if one.caller is caller}
        if method == GAVE_UP:
            self.faults += len(mine)
        elif method == END:
            caller.is_leaving = True
            self.part(caller)
        elif method == "notifications/cancelled" and self.era != "jsonrpc":
            meant = json.dumps(params.get("requestId"))  # 1 isn't "1", nor 1.0
            for number in [number for number, id_ in mine.items() if json.dumps(id_) == meant]:
                self.cancel(number, str(params.get("reason", "")))
        elif method not in SWALLOWED or self.era == "jsonrpc":
            self.server.send(message)

    def on_request(self, caller: Channel, message: Message) -> None:
        """A request of a caller: answered here if it is about the connection, else sent on."""
        method, id_, params = message["method"], message["id"], as_object(message.get("params"))
        in_flight = len(self.in_flight())
        self.supervisor.active()
        if method == "initialize" and self.era != "jsonrpc":
            caller.abilities = as_object(params.get("capabilities"))
            latest = HANDSHAKE if self.era == "modern" else self.version
            spoken = min(str(params.get("protocolVersion") or latest), latest)  # an older client's
            result = {**self.greeting, **({"protocolVersion": spoken} if latest else {})}
            self.to_caller(caller, {"jsonrpc": "2.0", "id": id_, "result": result})
        elif method == "ping" and self.era == "modern":
            self.to_caller(caller, {"jsonrpc": "2.0", "id": id_, "result": {}})
        elif method == "server/discover" and self.era == "handshake":
            self.to_caller(caller, failure(id_, NO_METHOD, "Method not found"))
        elif method == "resources/unsubscribe" and not self.unwatch(caller, str(params.get("uri"))):
            self.to_caller(caller, {"jsonrpc": "2.0", "id": id_, "result": {}})
        elif in_flight >= PENDING_REQUESTS or self.server.queued > MESSAGE_BYTES:
            text = f"{self.name} has {in_flight} requests in flight: too many"
            self.calls, self.faults = self.calls + 1, self.faults + 1
            self.to_caller(caller, failure(id_, RELAY_ERROR, text, cause="flood", repeat=True))
        else:
            self.forward(caller, message, params)

    def forward(self, caller: Channel, message: Message, params: Message) -> None:
        """Send a request on under a number of ours, its progress token too."""
        number, meta = next(self.numbers), as_object(params.get("_meta"))
        method, token, tool = str(message["method"]), meta.get("progressToken"), params.get("name")
        start = self.server.sent + self.server.queued
        self.pending[number] = Pending(method, start, caller, message["id"], token, str(tool))
        self.calls += 1
        if method == "resources/subscribe" and self.era == "handshake":
            self.watching.setdefault(str(params.get("uri")), set()).add(caller)
        if method == SET_LEVEL and self.era == "handshake" and params.get("level") in LOG_LEVELS:
            caller.level = str(params["level"])  # the others may need more of them
            message = {**message, "params": {**params, "level": self.lowest_level(caller)}}
        meta = {**meta, "progressToken": number} if token is not None else meta
        meta = {**envelope(self.version), **meta} if self.era == "modern" else meta
        if meta and self.era != "jsonrpc":
            message = {**message, "params": {**params, "_meta": meta}}
        if not self.server.send({**message, "id": number}):
            del self.pending[number]
            self.to_caller(
                caller, failure(message["id"], INVALID_PARAMS, f"{TOO_DEEP}, or not finite")
            )
        if method == "tools/call" and self.era != "jsonrpc" and not self.has_listed:
            self.has_listed = True
            self.ask("tools/list", {})  # which have no effect, in case it dies

    def ask(self, method: str, params: Message) -> int:
        """A request of our own, and its number."""
        number = next(self.numbers)
        self.pending[number] = Pending(method, self.server.sent)
        params = {"_meta": envelope(self.version)} if self.era == "modern" else params
        self.server.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        return number

    def tell(self, method: str, **params: object) -> None:
        """A notification of our own."""
        self.server.send({"jsonrpc": "2.0", "method": method, "params": params})

    def to_log(self, text: bytes) -> None:
        """A warning in the log of the service."""
        with contextlib.suppress(OSError):  # no room: it is lost, as what the service writes is
            os.write(self.supervisor.log.descriptor, b"[WARN] " + text[:10000] + b"\n")

    def on_answer(self, message: Message) -> None:
        """An answer; one that nobody waits for, late, wrong or twice, is dropped."""
        number, result = number_in(message.get("id")), as_object(message.get("result"))
        one = None if number is None else self.pending.pop(number, None)
        if one is None:
            if message.get("id") is None:  # its own log, or a complaint about what we wrote
                what = b"an error about no request" if "error" in message else b"not JSON-RPC"
                self.to_log(b"on stdout, %s: %s" % (what, json.dumps(message).encode()))
            return
        if self.supervisor.record.called:  # a success: its end will be no failed start
            self.supervisor.record = self.supervisor.record._replace(called=False, failures=0)
        if one.method == "tools/list" and self.era != "jsonrpc":
            self.learn(result.get("tools"))
        if one.caller is None:
            self.on_greeting(one.method, message)
            return
        self.supervisor.active()
        error = message.get("error")  # null, as in JSON-RPC 1.0, is none
        self.errors += error is not None or result.get("isError") is True
        self.faults += error is not None and as_object(error).get("code") not in CALLERS_FAULTS
        meta = as_object(result.get("_meta"))
        if SUBSCRIPTION in meta:
            message = {**message, "result": {**result, "_meta": {**meta, SUBSCRIPTION: one.id}}}
        self.to_caller(one.caller, {**message, "id": one.id})

    def learn(self, tools: object) -> None:
        """Remember which tools say they have no effect: callers ask when we have been killed."""
        self.has_listed = True
        old = self.supervisor.record.spec.extra.get("repeatable")
        known = set(map(str, old)) if isinstance(old, list) else set()
        for tool in map(as_object, tools if isinstance(tools, list) else ()):
            hints, name = as_object(tool.get("annotations")), str(tool.get("name"))
            says = True in (hints.get("readOnlyHint"), hints.get("idempotentHint"))
            is_kept = says and len(name) < 200 and len(known) < KNOWN_TOOLS
            (known.add if is_kept else known.discard)(name)
        if sorted(known) != old:
            self.remember("repeatable", sorted(known))
            self.supervisor.save()

    def on_question(self, message: Message) -> None:
        """A request of the service: answered here, or by a client whose request is in flight."""
        method, id_ = str(message["method"]), message["id"]
        callers = [one.caller for one in reversed(list(self.pending.values())) if one.caller]
        able = [one for one in callers if ABILITY.get(method) in one.abilities]
        if method in ("ping", "roots/list") and self.era != "jsonrpc":
            result = roots_of(self.supervisor.record.spec) if method == "roots/list" else {}
            self.server.send({"jsonrpc": "2.0", "id": id_, "result": result})
        elif able:
            self.asked[json.dumps(id_)] = able[0]
            self.to_caller(able[0], message)
        else:
            why = f"Method not found: no client that supports {method} waits for an answer"
            self.server.send(failure(id_, NO_METHOD, why))

    def on_news(self, message: Message) -> None:
        """About a request: to its caller alone, under the caller's own ids. Else: to everybody."""
        params, key = as_object(message.get("params")), ABOUT.get(str(message["method"]))
        meta = as_object(params.get("_meta"))
        if message["method"] == "notifications/tools/list_changed":
            self.has_listed = False
            if self.supervisor.record.spec.extra.get("repeatable"):  # until it says so again
                self.remember("repeatable", [])
                self.supervisor.save()
        if key == "progressToken" and self.era == "jsonrpc":  # there it is a caller's own
            key = None
        if key == "requestId" and self.era != "modern":  # it gives up a question of its own
            asked = self.asked.pop(json.dumps(params.get(key)), None)
            self.to_caller(asked, message) if asked else None
            return
        if key is None and SUBSCRIPTION not in meta:
            for caller in self.callers:
                if not is_below(message, caller.level):
                    self.to_caller(caller, message)
            return
        number = number_in(params.get(key) if key else meta[SUBSCRIPTION])
        one = None if number is None else self.pending.get(number)
        if number is None or one is None or one.caller is None:
            return
        if key == "requestId":  # a subscription that the service ends
            del self.pending[number]
        changed = {key: one.token if key == "progressToken" else one.id} if key else {}
        changed = changed or {"_meta": {**meta, SUBSCRIPTION: one.id}}
        self.to_caller(one.caller, {**message, "params": {**params, **changed}})


RELAYS["stdio"] = Relay

# == Config ========================================================================================
# What a service may be asked to be, in one table: options of `start`, keys of spm.json, its schema.
# Files become a Config or one ConfigError with every problem; nothing here starts or stops.

COOLDOWN_S = 60.0  # where there is a restart policy
JUDGED_S = 10.0  # --start-seconds where only the patterns are given
IDLE_S = 3600.0  # of a stdio service: the next call starts it again
PING_S = 60.0  # between two questions to a stdio service whether it still answers
parse_type, parse_restart, parse_protocol = one_of(*TYPES), one_of(*RESTARTS), one_of(*PROTOCOLS)


class Option(NamedTuple):
    """An option or, without dashes, a positional argument (+, *, ? as in argparse)."""

    words: str
    metavar: str = ""  # none: it is a switch
    kind: Callable[[str], object] = str
    default: object = None  # a list: it may be given several times
    help: str = ""


def shown_path(path: str, start: str = os.curdir) -> str:
    """A path as short as it can be written from here, or from a directory."""
    with contextlib.suppress(ValueError, OSError):  # on another Windows drive, or here is gone
        relative = os.path.relpath(path, start)
        return path if relative.startswith("..") else relative
    return path


def kept(parse: Callable[[str], object]) -> Callable[[str], str]:
    """A parser that returns the text itself, if it can be parsed."""
    return lambda text: (parse(text), text)[1]


HTTP_OPTIONS = (
    Option("--expect", "CODES", parse_expect, help="http status that is good (200-399)"),
    Option("--insecure", help="accept any TLS certificate"),
)


def parse_terminal(text: str) -> str:
    """What can open a window, or UsageError."""
    with contextlib.suppress(ValueError):  # a quotation without end
        if text in ("auto", "tmux", *TERMINALS) or ("{}" in text and split_command(text)):
            return text
    known = ", ".join(("auto", "tmux", *TERMINALS))
    raise UsageError(f"{text!r} is no terminal", f"write --terminal {known} or 'PROGRAM {{}}'")


START_OPTIONS = (
    Option("name?", "NAME", help="what the service is called"),
    Option(
        "command*", "COMMAND", help="one quoted string, split as a shell would, run without one"
    ),
    Option("--cwd", "DIR", help="directory to run in (default: here)"),
    Option("--env", "K=V", default=[], help="set a variable; K alone: the caller's, at each start"),
    Option("--env-file", "FILE", default=[], help="read variables from a dotenv file"),
    Option("--require-env", "N[=REGEX]", parse_required, [], "no start unless it is set, and fits"),
    Option("--port", "N", parse_port_or_auto, help="its port or auto; it is PORT and {port}"),
    Option("--on-conflict", "HOW", parse_conflict, "auto", "if it is held: auto, kill, fail, next"),
    Option("--shell", help="run COMMAND in the shell"),
    Option("--replace", help="end what runs under this name with another spec"),
    Option("--force", help="start though the port is held, or in spite of a cooldown"),
    Option("--log-size", "SIZE", parse_size, None, "rotate the log at this size (10MB)"),
    Option(
        "--lease", "LEASE", parse_lease, help="how long it may live: forever, 2h, session, or a PID"
    ),
    Option("--idle-timeout", "D", parse_duration, help="end it when nothing used it for so long"),
    Option("--wait", "[D]", parse_duration, help="return when it is ready, or after D (30s)"),
    Option("--ready", "CHECK", kept(parse_check), [], f"when it is ready: {CHECKS}"),
    Option("--health", "CHECK", kept(parse_check), [], "what has to go on to hold while it runs"),
    Option("--health-interval", "D", parse_duration, help="between two looks (10s; mcp 60s)"),
    Option("--health-timeout", "D", parse_duration, 5.0, "how long one look may take (5s)"),
    Option("--health-retries", "N", parse_count, 3, "failures in a row: unhealthy (3)"),
    *HTTP_OPTIONS,
    Option("--type", "TYPE", parse_type, help="simple (default), forking, external or stdio"),
    Option("--pid-file", "FILE", help="forking: where the daemon writes its pid"),
    Option("--match", "REGEX", parse_pattern, help="external: what its command line looks like"),
    Option("--terminal", "WHERE", parse_terminal, help="in a window: auto, tmux, xterm, 'PROG {}'"),
    Option("--no-pause", help="close that window at once, after a failure too"),
    Option(
        "--restart", "WHEN", parse_restart, "no", "after its end: no (default), on-failure, always"
    ),
    Option("--max-restarts", "N", parse_count, 5, "so many in --restart-window: failed (5)"),
    Option("--restart-window", "D", parse_duration, 600.0, "the time they are counted in (10m)"),
    Option("--success-codes", "CODES", parse_codes, "0", "exits that are no failure: 0,SIGTERM"),
    Option("--no-restart-codes", "CODES", parse_codes, "", "exits after which it stays ended"),
    Option("--backoff", "D", parse_duration, 0.5, "wait before a restart, doubled each time"),
    Option("--backoff-max", "D", parse_duration, 60.0, "the longest such wait (60s)"),
    Option(
        "--backoff-reset", "D", parse_duration, 60.0, "it begins anew after so long a life (60s)"
    ),
    Option(
        "--cooldown", "BASE", parse_pause, help="no start soon after a failure (--restart: 60s)"
    ),
    Option("--start-seconds", "D", parse_pause, help="exit 4 unless it lives so long (0)"),
    Option("--success-log", "REGEX", parse_pattern, help="a match in its log: it has started"),
    Option("--failure-log", "REGEX", parse_pattern, help="a match in its log: end it, it failed"),
    Option("--all-previous", help="start all that ran when the machine went down"),
    Option("--sample-interval", "D", parse_pause, 5.0, "between samples of what it uses (5s)"),
    Option("--alert", "RULE", kept(parse_rule), [], "as 'memory_mb>500 for 30s critical: stop'"),
    Option("--protocol", "P", parse_protocol, "auto", "stdio: auto, modern, handshake, jsonrpc"),
    Option("--no-keep-alive", help="stdio: end it when its last caller is gone"),
    Option("--root", "DIR", default=[], help="stdio: a directory that it may ask for"),
    Option("--connect-timeout", "D", parse_duration, 30.0, "stdio: for its first answer (30s)"),
)

# The key that each field of a spec has its value from, which is the name of an option, too.
FIELD_KEYS = {field: field.removesuffix("_s") for field in SPEC}
FIELD_KEYS.update(argv="command", env_given="env", env_taken="env", env_files="env_file")
FIELD_KEYS.update(log_bytes="log_size", port_declared="port", port_asked="port", alerts="alert")
FIELD_KEYS.update(sample_s="sample_interval", rules="environment", call_cooldown_s="cooldown")


def key_of(option: Option) -> str:
    """Its name as an argument, and as a key of a configuration."""
    return option.words.split()[-1].strip("-+*?").replace("-", "_")


def start_defaults() -> dict[str, object]:
    """What the arguments of a start are when nothing is given."""
    values = {key_of(one): one.default if one.metavar else False for one in START_OPTIONS}
    return {**values, "command": [], "tail": None}


def misfits(args: argparse.Namespace) -> Iterator[SpmError]:
    """Options that don't go together."""
    for option, given, needed, has in (
        ("--pid-file", args.pid_file, "--type forking", args.type == "forking"),
        ("--match", args.match, "--type external", args.type == "external"),
        ("--terminal", args.terminal, "--type simple", args.type in (None, "simple")),
        ("--protocol", args.protocol != "auto", "--type stdio", args.type == "stdio"),
        ("--no-keep-alive", args.no_keep_alive, "--type stdio", args.type == "stdio"),
        ("--root", args.root, "--type stdio", args.type == "stdio"),
        ("--connect-timeout", args.connect_timeout != 30, "--type stdio", args.type == "stdio"),
        ("mcp", "mcp" in args.ready + args.health, "--type stdio", args.type == "stdio"),
        ("--no-pause", args.no_pause, "--terminal", args.terminal),
        ("--restart", args.restart != "no", "a type but external", args.type != "external"),
    ):
        if given and not has:
            yield UsageError(f"{option} goes with {needed} only", f"add {needed}, or leave it out")
    if args.alert and not args.sample_interval:
        yield UsageError("--alert needs samples", "leave --sample-interval 0 out")


def spec_of(name: str, args: argparse.Namespace) -> tuple[Spec, dict[str, str]]:
    """The spec that the arguments ask for, and the values given with --env K=V."""
    pairs = [item.partition("=") for item in args.env]
    bad = [key for key, _, _ in pairs if not re.fullmatch(VARIABLE, key)]
    if bad:
        raise UsageError("--env: what precedes = is no name", "write --env NAME=value")
    for misfit in misfits(args):
        raise misfit
    argv = command_words(name, args)
    recognised = recognise_port(argv[-1].split() if args.shell else argv)
    if args.port is None and any(re.search(PORT_MARK, word) for word in argv):
        raise UsageError("{port} stands in the command for no port", "add --port N or --port auto")
    cwd = full_path(args.cwd or "")
    cooldown_s = COOLDOWN_S * (args.restart != "no")
    lives_s = JUDGED_S * bool(args.success_log or args.failure_log)
    is_mcp = args.type == "stdio" and args.protocol != "jsonrpc" and not (args.ready or args.health)
    health = ("mcp",) if is_mcp else tuple(args.health)
    given = {field: getattr(args, key, None) for field, key in FIELD_KEYS.items()}
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    asked = {key: value for key, value in given.items() if value is not None}  # else as usual
    spec = Spec(**{**asked, "argv": argv, "cwd": cwd})._replace(
        port={None: recognised, "auto": None}.get(args.port, args.port),
        port_declared=args.port is not None,
        env_given=tuple(sorted({key for key, equals, _ in pairs if equals})),
        env_taken=tuple(sorted({key for key, equals, _ in pairs if not equals})),
        env_files=tuple(map(full_path, args.env_file)),
        idle_timeout_s=args.idle_timeout or (IDLE_S if args.type == "stdio" else None),
        port_asked="auto" * (args.port == "auto"),
        health=health,
        health_interval_s=args.health_interval or (PING_S if "mcp" in health else 10.0),
        pid_file=os.path.join(cwd, args.pid_file) if args.pid_file else None,
        cooldown_s=cooldown_s if args.cooldown is None else args.cooldown,
        call_cooldown_s=COOLDOWN_S if args.cooldown is None else args.cooldown,
        start_seconds=lives_s if args.start_seconds is None else args.start_seconds,
        keep_alive=not args.no_keep_alive,
        root=tuple(map(full_path, args.root)),
    )
    return spec, {key: value for key, equals, value in pairs if equals}


def in_foreground(text: str) -> str:
    """A command without what sends it and its output into the background of a shell."""
    bare = re.sub(r"\s*&\s*$|^\s*nohup\s+", "", text)
    return re.sub(r"\s*(?:\d*|&)>>?\s*(?:&\d|[^\s\"';|&<>]+)", "", bare)


def command_words(name: str, args: argparse.Namespace) -> tuple[str, ...]:
    """The words to execute, from a quoted string, from bare words or from behind `--`."""
    words, tail = args.command, args.tail
    how = f'write: start {name} "COMMAND"'
    if bool(words) == bool(tail):
        raise UsageError("there are two commands" if words else "the command is missing", how)
    text = words[0] if len(words) == 1 else join_command(tail or words)
    try:
        argv = tuple(tail or words if tail or len(words) > 1 else split_command(text))
    except ValueError as error:
        raise UsageError(f"the command can't be split: {error}", "close its quotes") from error
    if not argv or not argv[0]:
        raise UsageError("the command is empty", how)
    if args.shell:
        return shell_argv(text)
    sign = shell_sign(text) if len(words) == 1 else None
    if sign:
        advice = "add --shell, or quote what is meant literally"
        if text.rstrip().endswith("&"):
            advice, bare = "leave the & out: start returns at once anyway", in_foreground(text)
            if not (shell_sign(bare) or re.search("[\"'=]", text)):  # nor are values repeated
                advice += f", and logs {name} has its output: start {name} {join_command([bare])}"
        elif "\n" in text:  # it would be shown as two characters
            advice = "add --shell to have its lines run as a script, or write it in one line"
        elif sign.endswith("="):
            advice = f"set it with --env {sign}…, or add --shell"
        elif "=" not in text:  # values aren't repeated
            advice += f": start {name} --shell {join_command([text])}"
        shown = sign.strip() or "a line break"
        raise UsageError(f"the command needs a shell for {shown}, and none is used unasked", advice)
    return argv


# -- spm.json


def typed(*types: str, **more: object) -> Schema:
    """The schema of a value of one of these types."""
    return {"type": [*types] if types[1:] else types[0], **more}


def closed(properties: Mapping[str, object], **more: object) -> Schema:
    """The schema of an object that has these keys and no others."""
    return {**typed("object"), "properties": properties, "additionalProperties": False, **more}


NAMED = {  # what its pattern takes, in words
    NAME: "1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit",
    VARIABLE: "letters, digits, '_' and '.', the first a letter or '_'",
}


def named(pattern: str, each: Schema, **more: object) -> Schema:
    """The schema of an object whose keys are names."""
    names = {"pattern": f"^{pattern}$", "description": NAMED[pattern]}
    keys = {"propertyNames": names, "additionalProperties": each}
    return {**typed("object"), **keys, **more}


def written(pattern: str, *types: str, **more: object) -> Schema:
    """The schema of a text, or a number, of that pattern; or of what becomes one: `${NAME}`."""
    return typed("string", *types, pattern=rf"^(?:{pattern})$|\$\{{", **more)


NO_KEYS = ("name", "replace", "force", "wait", "all_previous", "no_keep_alive")
KEYS = {key_of(one): one for one in START_OPTIONS if key_of(one) not in NO_KEYS}
STAGES = ("ready", "started", "exited")
HIDDEN = "what its ${…} stand for can't be taken here"
# A default ends at the first }, so it has no reference of its own.
REFERENCE = rf"\$\$\{{|\$\{{(?:env:)?(?:({VARIABLE})(?::-((?:(?!\$\{{)[^}}])*))?\}})?"
TEXT, SWITCH = typed("string"), typed("boolean")
TEXTS, PATTERN = typed("array", items=TEXT), typed("string", format="regex")
TIME = DURATION.replace("(?a)", "").replace(r"\d", "[0-9]")
SPAN = written(TIME, "number", exclusiveMinimum=0)
SCHEMAS: dict[object, Schema] = {  # by parser; a text where there is none
    parse_duration: SPAN,
    parse_pause: written(TIME, "number", minimum=0),
    parse_size: written(SIZE.replace("(?a)", ""), "integer", minimum=1000),
    parse_count: written("[0-9]+", "integer", minimum=0),
    parse_port_or_auto: written("auto|[0-9]+", "integer", minimum=1, maximum=65535),
    parse_codes: typed("string", "integer"),
    parse_pattern: PATTERN,
}
WORDS: dict[object, Iterable[str]] = {parse_type: TYPES, parse_restart: RESTARTS}
WORDS.update({parse_protocol: PROTOCOLS, parse_conflict: ON_CONFLICT})
SCHEMAS.update(
    (key, typed("string", anyOf=[{"enum": [*words]}, {"pattern": r"\$\{"}]))
    for key, words in WORDS.items()
)
VARIABLE_RULE = {"required": SWITCH, "pattern": PATTERN, "secret": SWITCH}
VARIABLE_RULE["min_length"] = typed("integer", minimum=0)
ALIVE = {"enabled": SWITCH, "timeout": SPAN, "check_interval": SPAN}
SHAPES: dict[str, Schema] = {  # keys whose JSON isn't what the option takes; keys without option
    "command": typed("string", "array", items=TEXT, minItems=1),
    "env": named(VARIABLE, typed("string", "number", "null")),
    "keep_alive": closed(ALIVE, type=["boolean", "object"]),
    "depends_on": named(NAME, {"enum": [*STAGES]}, type=["string", "array", "object"], items=TEXT),
    "environment": named(VARIABLE, closed(VARIABLE_RULE)),
    "disabled": SWITCH,
}
SHAPE_HELP = {
    "command": "a line, split as a shell would, or a list: the very words",
    "env": "variables; null: the caller's, at each start",
    "keep_alive": "of a stdio service; false: it ends with the call that started it",
    "depends_on": "what comes first; ready where it says when it is, else started",
    "environment": "what variables must be like, checked at each start",
    "disabled": "up doesn't start it",
}
AGENT_SHAPES: dict[str, object] = {  # keys of agents' files, most of which mean nothing here
    "args": TEXTS,
    **dict.fromkeys(("type", "transport", "url", "httpUrl", "envFile", "description"), TEXT),
    **dict.fromkeys(("headers", "timeout", "autoApprove", "alwaysAllow", "disabledTools"), NOTHING),
    "tools": NOTHING,
}
AGENT_KEYS = (*AGENT_SHAPES, "command", "env", "cwd", "disabled", "keep_alive")


def schema_of(key: str) -> Schema:
    """The schema of a key of a service: its shape, or what its option takes."""
    if key in SHAPES:
        return {**SHAPES[key], "description": SHAPE_HELP[key]}
    option = KEYS[key]
    one = SCHEMAS.get(option.kind, TEXT) if option.metavar else SWITCH
    if isinstance(option.default, list):
        one = typed("string", "array", items=TEXT)
    usual = {"default": option.default} if isinstance(option.default, (str, float, int)) else {}
    return {**one, **usual, "description": option.help}


def document_schema() -> Schema:
    """The JSON Schema of spm.json."""
    keys = {key: schema_of(key) for key in dict.fromkeys((*KEYS, *SHAPES))}
    free = {key: one for key, one in keys.items() if key not in ("command", "depends_on")}
    kinds = {"defaults": closed(free), "service": closed(keys, required=["command"])}
    kinds["server"] = closed({**keys, **AGENT_SHAPES})
    refs = {kind: {"$ref": f"#/$defs/{kind}"} for kind in kinds}
    properties = {
        "$schema": TEXT,
        "version": typed("integer", enum=[1]),
        "defaults": refs["defaults"],
        "services": named(NAME, refs["service"]),
        "mcpServers": named(NAME, refs["server"]),
        "alerts": {**TEXTS, "description": "rules for every service, beside its own"},
        "include": {**TEXTS, "description": "agents' files, for their mcpServers"},
    }
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": kinds}
    return {**dialect, "title": "spm.json of simple_process_manager", **closed(properties)}


MEANT_KEYS = {"cmd": "command", "dir": "cwd", "working_dir": "cwd", "healthcheck": "health"}
JSON_TYPES: dict[object, tuple[str, tuple[type, ...]]] = {
    "string": ("a string", (str,)),
    "boolean": ("true or false", (bool,)),
    "null": ("null", (type(None),)),
    "integer": ("a whole number", (int,)),
    "number": ("a number", (int, float)),
    "array": ("a list", (list,)),
    "object": ("an object", (dict,)),
}


def digits_of(value: object) -> str:
    """A value as text, a number with all its digits and no exponent: 1e-07 is 0.0000001."""
    if not isinstance(value, float) or "e" not in repr(value):
        return str(value)
    from decimal import Decimal

    return format(Decimal(repr(value)), "f")


def text_of(value: object) -> str:
    """A value as it would be written on the command line."""
    text = digits_of(value)
    return text.removesuffix(".0") if isinstance(value, float) else text


def as_list(value: object) -> list[object]:
    """A list as it is, anything else as the only item of one."""
    return value if isinstance(value, list) else [value]


def nearest(word: str, known: Iterable[str], least: float = 0.6) -> str:
    """`did you mean start? `, or nothing if no known word is near."""
    import difflib

    words = list(known)
    near = [one for one in words if sorted(one) == sorted(word)]  # pu is up, strat isn't stats
    near += difflib.get_close_matches(word, words, 1, least)
    return f"did you mean {near[0]}? " if near else ""


def shape_of(where: str) -> str:
    """What is to be written at a path of a configuration where an object is missing."""
    service = '{"command": "…"}'
    is_one = re.fullmatch(r"services\.[^.[]+", where)
    whole = f': write {{"NAME": {service}}}' * (where == "services")
    return f": write {service}" if is_one else whole


def faults(value: object, schema: Schema, where: str, defs: Schema) -> Iterator[tuple[str, str]]:
    """Where a value isn't what a schema asks for, and why.

    What a text must be like (pattern, anyOf) is left to its parser, which says it better.
    """
    schema = as_object(defs.get(str(schema.get("$ref")).rpartition("/")[2])) or schema
    kinds = [JSON_TYPES[kind] for kind in as_list(schema.get("type", []))]
    is_bool = isinstance(value, bool)
    if kinds and not any(isinstance(value, one) and is_bool == (bool in one) for _, one in kinds):
        yield where, " or ".join(word for word, _ in kinds) + " was expected" + shape_of(where)
    elif value not in as_list(schema.get("enum", [value])):
        yield where, f"{schema['enum']} was expected"
    elif isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        yield where, "it has a character that no command and no variable can have"
    elif isinstance(value, float) and value - value != 0:  # NaN, Infinity
        yield where, "a finite number was expected"
    elif len(re.findall(r"[.[]", where)) > 40:
        yield where, "nested too deeply"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(item, as_object(schema.get("items")), f"{where}[{index}]", defs)
    elif isinstance(value, dict):
        known, more = as_object(schema.get("properties")), schema.get("additionalProperties")
        names = as_object(schema.get("propertyNames"))
        pattern = str(names.get("pattern", "(?s).*"))
        lacking = [key for key in as_list(schema.get("required", [])) if key not in value]
        yield from ((where, f"{key} is missing") for key in lacking)
        for key, item in value.items():
            path = f"{where}.{key}".lstrip(".")
            if not re.fullmatch(pattern, key):
                yield path, f"that is no name: {names['description']}"
            elif key in known or more is not False:
                yield from faults(item, as_object(known.get(key, more)), path, defs)
            else:
                near = nearest(MEANT_KEYS.get(key) or key, known)
                yield path, f"unknown key; {near}".rstrip("; ")


class Problem(NamedTuple):
    """Something wrong in a configuration: in which file, at which key or line, and what."""

    file: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (shown_path(self.file), self.path, self.message)))


def config_error(problems: Sequence[Problem]) -> ConfigError:
    """The error with every problem."""
    more = f" (and {counted(len(problems) - 1, 'more problem')})" * bool(problems[1:])
    facts = [one._asdict() for one in problems]
    return ConfigError(f"{problems[0]}{more}", "mend that: nothing was changed", problems=facts)


class Wanted(NamedTuple):
    """A service as a configuration wants it."""

    name: str
    spec: Spec
    given_env: dict[str, str]  # values: for env.json, never shown
    depends_on: dict[str, str]  # names to ready, started or exited
    conflict: str  # what --on-conflict says
    disabled: bool
    source: Source
    config: str  # the path of the configuration

    @property
    def is_brought_up(self) -> bool:
        """Whether `up` has it run: else nothing does, or each call."""
        return self.spec.keep_alive and not self.disabled


def in_order(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """The names, each behind those that it needs; graphlib.CycleError if that can't be."""
    import graphlib

    return list(graphlib.TopologicalSorter(needs).static_order())


def cycles(needs: Mapping[str, Iterable[str]]) -> Iterator[list[str]]:
    """Names of which each needs the next, and the last one is the first; none is in two of them."""
    left = dict(needs)
    while True:
        try:
            in_order(left)
            return
        except ValueError as error:  # graphlib.CycleError
            found = error.args[1][::-1]
        yield found
        for name in found[1:]:
            del left[name]


class Source(NamedTuple):
    """Where a service was read, and its keys as they are there, with the defaults."""

    name: str
    keys: dict[str, object]
    file: str
    path: str
    defaults: Schema
    config: str  # where those are

    def place(self, key: str) -> tuple[str, str]:
        """The file and the path of a key: it may be that of the defaults."""
        top, *inner = re.split(r"[.[]", key, maxsplit=1)  # a variable's name may have dots
        own, usual = self.keys.get(top), self.defaults.get(top, self)
        if top == "env" and inner:  # that of the defaults and its own are one
            own, usual = as_object(own)[inner[0]], as_object(usual).get(inner[0], self)
        is_own = own is not usual
        return (self.file, f"{self.path}.{key}") if is_own else (self.config, f"defaults.{key}")


class Config(NamedTuple):
    """A configuration that is valid."""

    path: str
    services: dict[str, Wanted]  # in the order of the file
    notes: tuple[str, ...]
    document: dict[str, object]  # all of it as one spm.json, each ${…} as it was written
    files: tuple[str, ...]  # those it came from
    text: str | None = None  # as people wrote it, None if it came from other options too
    is_part: bool = False  # the text says more than the document, see Version

    def order(self) -> list[str]:
        """The names, each behind those that it depends on."""
        return in_order({name: one.depends_on for name, one in self.services.items()})

    def named(self, name: str) -> Wanted | None:
        """The service of that name: names are compared without case."""
        return next((o for o in self.services.values() if o.name.lower() == name.lower()), None)


def has_names(value: object) -> bool:
    """Whether there is a ${NAME} in it."""
    return "${" in json.dumps(value)


COMMENTS = r'(?s)"(?:[^"\\\n]|\\.)*"?|//[^\r\n]*|/\*.*?\*/'


def blanked(text: str) -> str:
    """The text with its comments as spaces: what follows them stays in its line and column."""

    def blank(found: re.Match[str]) -> str:
        return found[0] if found[0][0] == '"' else re.sub(r"[^\r\n]", " ", found[0])

    return re.sub(COMMENTS, blank, text)


def is_special(path: str) -> bool:
    """Whether it is there and no regular file: a FIFO would keep us waiting."""
    return os.path.exists(path) and not os.path.isfile(path) and path != os.devnull


def find_config(given: str | None, home: str) -> str:
    """The configuration: given, SPM_CONFIG, else spm.json beside .spm or in the project root."""
    explicit = given or os.environ.get("SPM_CONFIG")
    return full_path(explicit or os.path.join(root_of(home), "spm.json"))


def read_config(
    path: str,
    servers: Sequence[str] = (),
    procfile: str | None = None,
    expands: bool = True,
    lacking: Lacking | None = None,
) -> Config:
    """The Config of a file, of agents' files and of a Procfile; ConfigError with every problem."""
    reading = Reading(path, expands, lacking)
    if not (os.path.lexists(path) or servers or procfile):
        text = f"there is no {os.path.basename(path)} in {os.path.dirname(path)}"
        problem = Problem(path, "", "No such file or directory")._asdict()
        how = "write one (init --config writes a first one), or name it with --config FILE"
        raise ConfigError(text, how, problems=[problem])
    reading.take(reading.load(path) if os.path.lexists(path) else {})
    for file in servers:
        reading.take_servers(full_path(file))
    if procfile:
        reading.take_procfile(full_path(procfile))
    reading.text = None if servers or procfile else reading.text
    return reading.config()


def config_of(document: object, path: str, expands: bool = True) -> Config:
    """The Config of a document that was kept; `path` is where it belongs."""
    reading = Reading(path, expands)
    reading.take(document)
    return reading.config()


def read_instead(path: str, file: str) -> Config:
    """The Config of a file that may take the place of the one at `path`."""
    reading = Reading(file)
    reading.base = os.path.dirname(path)
    reading.take(reading.load(file))
    config = reading.config()
    services = {name: one._replace(config=path) for name, one in config.services.items()}
    return config._replace(path=path, services=services)


class Reading:
    """One reading of a configuration: what was found so far, and what is wrong with it."""

    def __init__(self, path: str, expands: bool = True, lacking: Lacking | None = None) -> None:
        self.path, self.base = path, os.path.dirname(path)
        self.lacking = lacking  # tells what else is wrong, if something is
        self.expands = expands  # else what has a ${NAME} in it stays so, and isn't looked at
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.files: list[str] = []
        self.text: str | None = None
        self.sources: list[Source] = []
        self.names: dict[str, Source] = {}  # in lower case
        self.defaults: dict[str, object] = {}
        self.alerts: list[str] = []
        self.asked: dict[str, Iterable[str]] = {}  # whom each service depends on
        self.variables: dict[tuple[str, ...], dict[str, str]] = {}  # by env files
        self.schema = document_schema()
        self.defs = as_object(self.schema["$defs"])

    def fault(self, file: str, path: str, message: str) -> None:
        """Note a problem, once."""
        problem = Problem(file, path, message)
        if problem not in self.problems:
            self.problems.append(problem)

    def load(self, file: str, parse: Parse | None = None, place: tuple[str, ...] = ()) -> object:
        """What is in a file, None if it can't be read or is no JSON; `place`: who asks for it."""
        self.files.append(file)

        def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
            found: dict[str, object] = {}
            for key, value in pairs:
                if key in found:
                    self.fault(file, "", f"the key {key!r} is there twice in one object")
                found[key] = value
            return found

        try:
            if is_special(file):
                raise ValueError("not a regular file")
            with open(file, encoding="utf-8-sig", newline="") as stream:
                text = stream.read()
            if parse:
                return parse(text)
            self.text = text if file == self.path else self.text
            return json.loads(blanked(text), object_pairs_hook=unique)
        except (OSError, ValueError, RecursionError, ConfigError) as error:
            line = getattr(error, "lineno", None)
            where = f"line {line}, column {getattr(error, 'colno', 0)}" if line else ""
            told = getattr(error, "msg", None) or getattr(error, "strerror", None) or str(error)
            if told == "Expecting value" and getattr(error, "pos", 1) == 0:
                told += ": a configuration is JSON, as `init --config` writes a first one"
            told = f"{file}: {told}".replace(": , line", ", line") if place else told
            file, where = place or (file, where)
            self.fault(file, where, told)
        return None

    @contextlib.contextmanager
    def faults_at(self, file: str, path: str, hides: bool = False) -> Iterator[None]:
        """What is raised here is a problem at that key; `hides`: the message would tell a value."""
        try:
            yield
        except UsageError as error:
            typed = "(?s): start (?:.* --shell|returns at once) .*"  # for a command line
            told = re.sub(typed, "", f"{error.message}: {error.advice}")
            told = HIDDEN if hides else told
            # in the words of a configuration: --pid-file is pid_file here
            told = told.replace("--no-keep-alive", "keep_alive: false")
            words = re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda m: m[1].replace("-", "_"), told)
            self.fault(file, path, words)
        except RecordError as error:
            self.fault(file, path, str(error).partition(": ")[2])

    def take(self, data: object) -> None:
        """What spm.json says, and the files that it includes."""
        bad = list(faults(data, self.schema, "", self.defs))
        # null is what load() says when it has said why the file can't be read
        for where, why in bad if data is not None or not self.problems else ():
            self.fault(self.path, where, why)
        top = as_object(data)

        def sound(value: object, where: str) -> dict[str, object]:
            inner = (path[len(where) + 1 :] for path, _ in bad if path.startswith(f"{where}."))
            wrong = {re.split(r"[.[]", path)[0] for path in inner}
            return {key: one for key, one in as_object(value).items() if key not in wrong}

        for text in map(str, as_list(top.get("alerts", []))):
            with self.faults_at(self.path, "alerts"):
                self.alerts.append(text if has_names(text) else parse_rule(text).text)
        self.defaults = sound(top.get("defaults"), "defaults")
        for name, keys in as_object(top.get("services")).items():
            where = f"services.{name}"
            self.add(name, sound(keys, where), self.path, where, self.defaults)
        for name, keys in as_object(top.get("mcpServers")).items():
            where = f"mcpServers.{name}"
            self.add_server(name, sound(keys, where), self.path, where)
        for file in map(str, as_list(top.get("include", []))):
            path = os.path.join(self.base, file)
            if os.path.exists(path):
                self.take_servers(path)
            else:
                self.files.append(path)  # for who waits until it is there
                self.notes.append(f"[INFO] include: there is no {file}")

    def take_servers(self, file: str) -> None:
        """The servers of an agent's file, whose other keys are none of our business."""
        top = as_object(self.load(file))
        kind = "mcpServers" if "mcpServers" in top else "servers"  # as in .vscode/mcp.json
        if not isinstance(top.get(kind), dict):
            self.notes.append(f"[INFO] {shown_path(file)} has no mcpServers")
        for name, entry in as_object(top.get(kind)).items():
            where = f"{kind}.{name}"
            keys = {k: v for k, v in as_object(entry).items() if k in AGENT_KEYS}
            bad = list(faults(keys, as_object(self.defs["server"]), where, self.defs))
            for path, why in bad:
                self.fault(file, path, why)
            foreign = re.search(r"(?<!\$)\$\{(?!env:)\w+:(?!-)", json.dumps(keys))
            if foreign:  # ${input:NAME}: only the editor can ask for it
                told = f"{where} has {foreign[0]}…}}, which only the editor knows: skipped"
                self.notes.append(f"[INFO] {shown_path(file)}: {told}")
            elif name.lower() in self.names or not is_name(name):
                why = "is known already" if name.lower() in self.names else "is no service name"
                self.notes.append(f"[INFO] {shown_path(file)}: {where} {why}: skipped")
            elif not bad:
                self.add_server(name, keys, file, where)

    def add_server(self, name: str, keys: dict[str, object], file: str, where: str) -> None:
        """A stdio server as a service; one that is reached by a URL is nobody's to start."""
        kind = keys.get("transport", keys.get("type", "stdio"))
        is_here = kind in ("stdio", "local")  # as Copilot calls it, too
        if not is_here or "url" in keys or "httpUrl" in keys:
            self.notes.append(f"[INFO] {shown_path(file)}: {where} is a remote server: skipped")
            return
        if "command" not in keys:
            self.fault(file, where, "command is missing")
        program = str(keys.get("command"))
        first, *more = program.split(None, 1) or [""]
        if more and not shutil.which(program) and shutil.which(first):
            self.fault(file, f"{where}.command", f"{first!r} only: put the arguments into args")
        own = {key: one for key, one in keys.items() if key not in AGENT_SHAPES}
        own.update({"env_file": keys["envFile"]} if "envFile" in keys else {})
        words = [*as_list(keys.get("command", [])), *as_list(keys.get("args", []))]
        self.add(name, {**own, "command": words, "type": "stdio"}, file, where)

    def take_procfile(self, file: str) -> None:
        """The processes of a Procfile: a shell runs them, .env beside it is read."""
        folder = os.path.dirname(file)
        env_file = os.path.join(folder, ".env")
        self.files.append(env_file)
        always: dict[str, object] = {"shell": True}
        always.update({"cwd": folder} if folder != self.base else {})
        always.update({"env_file": env_file} if os.path.exists(env_file) else {})
        for number, line in enumerate(str(self.load(file, str) or "").splitlines(), 1):
            match = re.fullmatch(r"\s*([\w.-]+)\s*:\s*(\S.*)", line)
            if match and re.fullmatch(NAME, match[1]):
                keys = {"command": match[2].replace("${", "$${"), **always}
                keys.update({"port": "auto"} if re.search(r"\$\{?PORT\b", line) else {})
                self.add(match[1], keys, file, f"line {number}", self.defaults)
            elif line.strip() and not line.lstrip().startswith("#"):
                self.fault(file, f"line {number}", "not NAME: COMMAND")

    def add(
        self, name: str, keys: Mapping[str, object], file: str, path: str, more: Schema = NOTHING
    ) -> None:
        """A service; `more` are the defaults."""
        if re.fullmatch(NO_NAME, name):
            what = "a port" if name.isdigit() else "a device of Windows, or '.' at its end"
            self.fault(file, path, f"that is no name: {what}")
        full = {**more, **keys}
        alive = full.get("keep_alive")
        if isinstance(alive, dict):  # check_interval: our timer is exact, it needs none
            idle = {"idle_timeout": alive["timeout"]} if "timeout" in alive else {}
            stronger = keys if "keep_alive" in keys else full  # than it, where both say that
            full = {**full, **idle, **stronger, "keep_alive": alive.get("enabled", True)}
        env = {**as_object(more.get("env")), **as_object(keys.get("env"))}
        full.update({"env": env} if env else {})
        interval = text_of(full.get("sample_interval", "5s"))
        if self.alerts and re.search(r"[1-9$]", interval):  # with 0 there is nothing to judge
            full["alert"] = [*as_list(full.get("alert", [])), *self.alerts]
        self.sources.append(Source(name, full, file, path, self.defaults, self.path))
        known = self.names.setdefault(name.lower(), self.sources[-1])
        if known is not self.sources[-1]:
            self.fault(file, path, f"{known.name} has that name already, see {known.path}")

    # -- what it means

    def config(self) -> Config:
        """The Config, or ConfigError with every problem."""
        found = {one.name: one for one in map(self.wanted, self.sources) if one}
        services: dict[str, Wanted] = {}
        for name, one in found.items() if not self.problems else ():
            usual = {n: "ready" if found[n].spec.readiness else "started" for n in one.depends_on}
            needs = {each: asked or usual[each] for each, asked in one.depends_on.items()}
            services[name] = one._replace(depends_on=needs)
        for names in cycles(self.asked):  # also of those of which something else is wrong
            where = self.names[names[0].lower()].place("depends_on")
            self.fault(*where, f"each waits for the next: {' → '.join(names)}")
        if self.problems:
            told = {one[:2] for one in self.problems}
            more = self.lacking(found.values()) if self.lacking else ()
            wrong = config_error([*self.problems, *(one for one in more if one[:2] not in told)])
            wrong.facts["files"] = self.files
            raise wrong
        kept = {one.name: one.keys for one in self.sources}
        document: dict[str, object] = {"version": 1, "services": kept}
        return Config(
            self.path, services, tuple(self.notes), document, tuple(self.files), self.text
        )

    def wanted(self, source: Source) -> Wanted | None:
        """The service of a source, as far as it can be read; None if that isn't far enough."""
        place = source.place
        keys = {k: self.expanded(source, v, k) for k, v in source.keys.items()}
        for key in [k for k in keys if self.expands and k != "env"]:
            for name, _ in re.findall(REFERENCE, json.dumps(source.keys[key])):
                if re.fullmatch(SECRET_NAME, name):
                    told = f"[WARN] {Problem(*place(key), f'the value of ${{{name}}}')} will stand"
                    self.notes.append(f"{told} in state.json, a command's in `ps`; use env for it")
        if not self.expands:  # type and restart decide what others are where they aren't given
            plain = KEYS.keys() - {"type", "restart"}
            keys = {k: v for k, v in keys.items() if k in plain or not has_names(v)}
        args = {**start_defaults(), "name": source.name}
        for key, value in keys.items():
            option, found = KEYS.get(key), list[object]()
            is_parsed = option and option.metavar and (self.expands or not has_names(value))
            for one in as_list(value) if option and key not in SHAPES else ():
                with self.faults_at(*place(key), hides=value != source.keys[key]):
                    found.append(option.kind(text_of(one)) if option and is_parsed else one)
            if option and found:
                args[key] = found if isinstance(option.default, list) else found[0]
        args["cwd"] = os.path.join(self.base, str(args["cwd"] or ""))
        for key in ("env_file", "root"):
            args[key] = [os.path.join(self.base, str(one)) for one in as_list(args[key])]
        env, words = as_object(keys.get("env")), keys.get("command")
        args["env"] = [k if v is None else f"{k}={digits_of(v)}" for k, v in env.items()]
        is_line = isinstance(words, str) and (self.expands or not has_names(words))
        args.update({"command": [words]} if is_line else {"tail": words and as_list(words)})
        args["no_keep_alive"] = keys.get("keep_alive") is False
        rules: dict[str, Mapping[str, object]] = {}
        file, path = place("environment")
        for name, rule in as_object(keys.get("environment")).items():
            with self.faults_at(file, f"{path}.{name}"):
                rules.update(env_rules({name: rule}, path))
        needs, asked = self.needs(keys.get("depends_on", []), source), argparse.Namespace(**args)
        for misfit in (unfit := [*misfits(asked)]):
            with self.faults_at(source.file, source.path):
                raise misfit
        if "command" not in keys:  # it was said
            return None
        written = source.keys["command"]  # what needs a shell there is no value
        is_value = words != written and not shell_sign(re.sub(REFERENCE, "", str(written)))
        with self.faults_at(*place("command"), hides=is_value):
            if unfit:
                command_words(source.name, asked)
                return None
            spec, given = spec_of(source.name, asked)
            spec, off = spec._replace(rules=rules), keys.get("disabled") is True
            return Wanted(
                source.name, spec, given, needs, asked.on_conflict, off, source, self.path
            )
        return None

    def expanded(self, source: Source, value: object, key: str) -> object:
        """A value with what its ${NAME} stand for."""
        if isinstance(value, dict):
            return {k: self.expanded(source, v, f"{key}.{k}") for k, v in value.items()}
        if isinstance(value, list):
            return [self.expanded(source, v, f"{key}[{i}]") for i, v in enumerate(value)]
        if not (isinstance(value, str) and "${" in value and self.expands):
            return value

        def meant(found: re.Match[str]) -> str:
            if found[0] == "$${":
                return "${"
            usual = os.environ.get(found[1] or "", None if found[2] is None else "")
            value = self.variables_of(source).get(found[1], usual)  # Windows: ${Path} is PATH
            if found[1] is None:
                told = "${ begins no ${NAME} (whose default has no other one in it); "
                told += "write $${ for these two characters"
                self.fault(*source.place(key), told)
            elif value is None and source.keys.get("disabled") is not True:
                told = f"${{{found[1]}}} is not set here, and it has no :-default"
                self.fault(*source.place(key), told)
            return value or found[2] or ""

        return re.sub(REFERENCE, meant, value)

    def variables_of(self, source: Source) -> dict[str, str]:
        """What ${NAME} may stand for: the caller's environment and the service's env files."""
        files = tuple(map(str, as_list(source.keys.get("env_file", []))))
        if files not in self.variables:
            self.variables[files] = {**os.environ, "workspaceFolder": self.base}
            for file in files:  # its own name may only be made of what the caller has
                path = os.path.join(self.base, str(self.expanded(source, file, "env_file")))
                if source.keys.get("disabled") is True and not os.path.lexists(path):
                    continue  # nor need its variables be set
                values = self.load(path, lambda t: parse_env_text(t, ""), source.place("env_file"))
                self.variables[files].update(values if isinstance(values, dict) else {})
        return self.variables[files]

    def needs(self, asked: object, source: Source) -> dict[str, str]:
        """What has to be started before a service, and what it must be then ("": the usual)."""
        given = asked if isinstance(asked, dict) else dict.fromkeys(map(str, as_list(asked)), "")
        self.asked[source.name] = given
        for name in given:
            place, other = source.place("depends_on"), self.names.get(name.lower())
            if other is None or other.name != name:
                near = nearest(name, [one.name for one in self.sources])
                told = f"there is no service {name!r}; {near}".rstrip("; ")
                is_value = self.expands and has_names(source.keys["depends_on"])
                self.fault(*place, HIDDEN if is_value else told)
            elif other.keys.get("disabled") is True and source.keys.get("disabled") is not True:
                self.fault(*place, f"{name} is disabled")
        return given


# -- what has to be done for it


class Known(NamedTuple):
    """A service that is recorded, and what is true of it."""

    record: Record
    status: str
    is_live: bool
    is_supervised: bool
    given: dict[str, str]  # values
    stale: tuple[str, ...] = ()  # its env files that say something else now


class Step(NamedTuple):
    """What `up` does about a service: start, restart, settings, stop or keep."""

    action: str
    name: str
    why: str = ""
    keys: tuple[str, ...] = ()  # those that changed
    wanted: Wanted | None = None
    result: str = ""  # what came of it: done, failed or skipped
    error: SpmError | None = None
    is_once: bool = False  # others wait for its end

    @property
    def may_end(self) -> bool:
        """Whether it has done its work once it has ended well."""
        spec = self.wanted and self.wanted.spec
        is_let = spec and (spec.restart == "on-failure" or spec.type == "external")
        return bool(self.is_once or is_let)

    @property
    def acts(self) -> bool:
        """Whether it starts something."""
        return self.action in ("start", "restart")

    def __str__(self) -> str:
        said = "adjust" if self.action == "settings" else self.action
        return " ".join(filter(None, (said, self.name, self.why)))

    @property
    def data(self) -> dict[str, object]:
        """Its JSON object."""
        return {k: getattr(self, k) for k in ("action", "name", "why", "keys", "result")}


def plan_of(
    config: Config, known: Mapping[str, Known], names: Sequence[str] = (), left: Iterable[str] = ()
) -> list[Step]:
    """What has to be done so that the services are as configured; of some: with what they need.

    `known` and `left` (which go, too, if they are ours and in it no more) are in lower case. What
    was started by hand is let be unless it is named.
    """
    named, order = {name.lower() for name in names}, config.order()
    chosen = set(named)
    for name in reversed(order):
        if name.lower() in chosen:
            chosen.update(need.lower() for need in config.services[name].depends_on)
    live = [one.record for one in known.values() if one.is_live]
    ours = [record.name for record in live if record.config == config.path]
    gone = [one for one in ours if not ((names and one.lower() not in left) or config.named(one))]
    why = "because it wasn't applied then" if config.is_part else "because removed"
    steps = [Step("stop", name, why) for name in gone]
    needs = [need for one in config.services.values() for need in one.depends_on.items()]
    for name in order if not names else [name for name in order if name.lower() in chosen]:
        it, is_once = known.get(name.lower()), (name, "exited") in needs
        steps.append(step_of(config.services[name], it, name.lower() in named, is_once))
    return sorted(steps, key=lambda step: step.action != "stop")


def step_of(wanted: Wanted, known: Known | None, is_named: bool, is_once: bool) -> Step:
    """What has to be done about one service; `is_once`: others wait for its end."""

    def step(action: str, why: str = "", keys: Iterable[str] = ()) -> Step:
        said = why and f"because {why}"
        return Step(action, wanted.name, said, tuple(keys), wanted, is_once=is_once)

    is_live = known is not None and known.is_live
    if known and (known.status, known.record.wanted) == ("stopping", "stopped"):
        is_live = False  # it will be, before another one begins
    if wanted.disabled:
        is_theirs = known is None or known.record.config != wanted.config
        return step("stop" if is_live and not is_theirs else "keep", "disabled")
    if known is None or not (is_live or wanted.spec.keep_alive):
        return step("start") if wanted.spec.keep_alive else step("keep", "each call starts it")
    old, is_ours = known.record, known.record.config == wanted.config
    fields = changed_fields(old.spec, kept_port(wanted.spec, old.spec, is_live, wanted.conflict))
    base, files = os.path.dirname(wanted.config), wanted.spec.env_files
    stale = [shown_path(path, base) for path in known.stale if path in files]
    is_small = set(fields) <= set(LIVE_FIELDS) and known.given == wanted.given_env and not stale
    keys = dict.fromkeys(FIELD_KEYS[field] for field in fields)
    keys.update({} if known.given == wanted.given_env else {"env": None})
    keys.update({"env_file": None} if stale else {})
    if not is_live:
        was = (known.status, old.phase, old.wanted)  # else it was cut off, or `down` came since
        is_done = is_once and is_ours and not keys and was == ("exited", "exited", "running")
        is_done = is_done and not is_named
        return step("keep", "it has done its work") if is_done else step("start")
    if not is_ours and not is_named:
        whose = f"it was started {f'for {old.config}' if old.config else 'by hand'}"
        whose = "its record was lost" if old.guessed else whose
        return step("keep", f"{whose}: name it to have it taken over", keys)
    if not known.is_supervised and known.status != "external":
        return step("start", "its supervisor is gone", keys)
    if known.status == "backoff" and is_small:
        return step("start", "it waits for its restart", keys)
    why = f"{', '.join(keys)} changed".replace("env_file", " ".join(["env_file", *stale]))
    return step("settings" if is_small else "restart", why, keys) if keys else step("keep")


# -- what was applied

RESULTS = ("applying", "done", "failed", "rolled back", "cut off")


class Version(NamedTuple):
    """A configuration that was applied, and what came of it."""

    number: int
    at: float
    config: str  # its path
    hash: str  # of the document
    result: str  # applying: it is being, or who did was killed
    plan: tuple[dict[str, object], ...]  # its steps; `result`: done, failed, skipped or not yet
    names: tuple[str, ...]  # what `up` was called with
    document: dict[str, object]
    text: str | None = None  # the file as people wrote it, None if there were others beside it
    of: int | None = None  # the version that it went back to
    is_part: bool = False  # the text says more than was applied: it was `up NAME`

    @classmethod
    def from_json(cls, data: object, number: int) -> Version:
        """The Version of a JSON object, or RecordError."""
        version = cls._make(read_object(data, "version", VERSION, cls._field_defaults))
        if (version.number, version.hash) != (number, hash_of(version.document)):
            raise RecordError("number and hash are those of another one")
        if not isinstance(version.document.get("services"), dict):
            raise RecordError("document.services: an object was expected")
        return version

    @property
    def data(self) -> dict[str, object]:
        """What is told of it: all but what it says."""
        return {k: v for k, v in self._asdict().items() if k not in ("document", "text")}


VERSION = kinds_of(Version, result=_one_of(*RESULTS), plan=_list_of(_object), document=_object)


def hash_of(document: object) -> str:
    """What tells one document from another."""
    import hashlib

    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def with_env(document: Schema, instead: str = "…") -> dict[str, object]:
    """A document with something else instead of the values under env; {}: a variable's name."""

    def shown(name: str, value: object) -> object:
        found = re.fullmatch(rf"\$\{{(?:env:)?({VARIABLE})(?::-(.*))?\}}", str(value))
        is_value = value is not None and not (found and not found[2])  # a default is one, too
        return instead.format(found[1] if found else name) if is_value else value

    services = {name: dict(as_object(one)) for name, one in as_object(document["services"]).items()}
    for keys in services.values():
        env = as_object(keys.get("env")).items()
        keys.update({"env": {name: shown(name, value) for name, value in env}} if env else {})
    return {**document, "services": services}


def masked(value: object) -> object:
    """A value of a document with what looks like a secret in its texts replaced."""
    if isinstance(value, dict):
        return {key: masked(one) for key, one in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return mask_secrets("\x1f".join(value)).split("\x1f")  # an option's may be the next word
    if isinstance(value, list):
        return [masked(one) for one in value]
    return mask_secrets(value) if isinstance(value, str) else value


def spelled_out(config: Config) -> dict[str, object]:
    """A document with the defaults too, the same for all that mean the same."""
    services = {name: keys_of(one) for name, one in config.services.items()}
    document: dict[str, object] = json.loads(json.dumps({"version": 1, "services": services}))
    return document


def keys_of(wanted: Wanted) -> dict[str, object]:
    """The keys of a service with its defaults; what has a ${NAME} as it was written."""
    spec, source, base = wanted.spec, wanted.source.keys, os.path.dirname(wanted.config)
    env = as_object(source.get("env")).items()
    keys = {key: getattr(spec, field) for field, key in FIELD_KEYS.items()}
    keys.update(
        command=spec.argv[-1] if spec.shell else spec.argv,
        cwd=shown_path(spec.cwd, base),
        port=(spec.port_asked or spec.port) if spec.port_declared else None,
        env={name: value if value is None else digits_of(value) for name, value in env},
        env_file=[shown_path(path, base) for path in spec.env_files],
        root=[shown_path(path, base) for path in spec.root],
        pid_file=spec.pid_file and shown_path(spec.pid_file, spec.cwd),
        cooldown=spec.cooldown_s if spec.cooldown_s == spec.call_cooldown_s else None,
    )
    keys.update(on_conflict=wanted.conflict, environment=spec.rules)
    keys.update(depends_on=wanted.depends_on, disabled=wanted.disabled)
    raw = {key: value for key, value in source.items() if key != "env" and has_names(value)}
    return {**{key: value for key, value in keys.items() if value is not None}, **raw}


def changes_of(old: Schema, new: Schema) -> dict[str, object]:
    """What is otherwise in the second of two documents that are spelled out; no secrets."""

    def flat(document: Schema) -> dict[str, dict[str, object]]:
        found = {
            name: dict(as_object(one)) for name, one in as_object(document["services"]).items()
        }
        for keys in found.values():
            keys.update({f"env.{k}": v for k, v in as_object(keys.pop("env", None)).items()})
        return found

    shown = (as_object(masked(with_env(one))) for one in (old, new))
    was, now, *seen = map(flat, (old, new, *shown))
    changed = {
        name: {
            key: [one[name].get(key) for one in seen]
            for key in {**was[name], **now[name]}
            if was[name].get(key, was) != now[name].get(key, was)
        }
        for name in sorted(was.keys() & now.keys())
    }
    return {
        "added": [name for name in now if name not in was],
        "removed": [name for name in was if name not in now],
        "changed": {name: keys for name, keys in changed.items() if keys},
    }


def change_lines(changes: Mapping[str, object]) -> list[str]:
    """The changes, one a line."""

    def shown(value: object) -> str:
        if isinstance(value, list) and value:
            return join_command(list(map(str, value)))
        return value or '""' if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    lines = [f"+ {name}" for name in as_list(changes["added"])]
    lines += [f"- {name}" for name in as_list(changes["removed"])]
    for name, keys in as_object(changes["changed"]).items():
        for key, pair in as_object(keys).items():
            lines.append(f"~ {name}.{key}: {' → '.join(map(shown, as_list(pair)))}")
    return lines or ["[OK] nothing differs"]


# == Commands ======================================================================================
# One function a command, its options beside it: takes arguments, returns a Result, prints nothing.
# What goes on over time (a log that is followed) is returned as an iterator.

CLAIM_S = 30.0
BOOT_S = 10.0
# What a process that went on from bytecode has to know: see go_on_lean()
LEAN_S, _, LEAN_FILE = os.environ.pop("SPM_LEAN", "").partition(" ")
IS_OUTERMOST = not sys._getframe().f_back  # else a debugger, `python -m`, a copy by `vendor`
IS_LEAN = bool(LEAN_FILE) and __file__.endswith("-whole.pyc")
SELF = LEAN_FILE if IS_LEAN else __file__
with contextlib.suppress(OSError):  # the current directory was removed: who needs it says so
    SELF = os.path.abspath(SELF)
NOT_OF_A_SPEC = {"name", "replace", "force", "on_conflict", "lease", "idle_timeout", "wait"}
NOT_IN_RUN = ("name?", "--lease", "--all-previous")
LOCAL_PROGRAMS = (".venv/bin", "venv/bin", "node_modules/.bin")
PORT_GRACE_S = 5.0
MOST_NAMES = 20
SHELL_WORDS = ("cd", "export", "source", ".", "ulimit")
START_ONE = 'start one: start NAME "COMMAND"'
ROOM_BYTES = 1 << 17  # a start needs as much of the disk
MEND = "mend the cause, then: {} (or, if the command is wrong: {})"
ANYWAY = ", or start anyway with --force"
OTHER_WAYS = f", take another port (--on-conflict next, --port auto){ANYWAY}"
START_ADVICE = {
    "ENOENT": "check the spelling and PATH, or give the whole path",
    "EACCES": "it has to be a file that is executable (chmod +x); or name its interpreter",
    "ENOEXEC": "it is no program: give it a first line such as #!/bin/sh, or name its interpreter",
    "EAGAIN": "raise the limit of processes (ulimit -u), or end some; then start it again",
    "EMFILE": "raise the limit of open files (ulimit -n): its supervisor needs some; then start it",
}
# Programs by whose names no similar one is meant, and how they are had.
HOW_TO_HAVE = {
    **dict.fromkeys(("pnpm", "yarn"), "enable it: corepack enable {0}, or: npm install -g {0}"),
    **dict.fromkeys(("npm", "npx"), "{0} is a part of Node.js: install that"),
    **dict.fromkeys(("bun", "deno"), "install it: npm install -g {0}"),
    **dict.fromkeys(
        ("uv", "uvicorn", "gunicorn", "hypercorn", "flask", "celery", "poetry", "pipenv"),
        "activate the environment that has {0}, or: pip install {0}",
    ),
    **dict.fromkeys(
        ("cargo", "cmake", "docker", "go", "make", "mongod", "mysqld", "nginx", "php", "podman"),
        "{0} isn't installed: your system's package manager has it",
    ),
}


class Result(NamedTuple):
    """What a command has to say: a JSON document, and the same for people."""

    data: dict[str, object]
    lines: Sequence[str] = ()
    table: Sequence[tuple[str, ...]] = ()  # the first row has the column names
    error: SpmError | None = None
    stream: Iterator[str] | None = None
    is_raw: bool = False  # the stream is for the terminal as it is


def error_lines(error: SpmError) -> list[str]:
    """All that is told of an error: what it is, the last lines or the problems, what to do."""
    problems = as_list(error.facts.get("problems", []))[1:]
    # of a configuration; those of variables are in the message
    told = [str(Problem(**one)) for one in problems if isinstance(one, dict)]
    tail = as_list(error.facts.get("log_tail") or told)
    lines = [f"[ERROR] {mask_secrets(error.message)}"]
    lines += [f"  | {mask_secrets(str(line))}" for line in tail]
    cause = as_object(error.facts.get("cause"))
    if cause.get("kind", "unknown") != "unknown" and cause["advice"] != error.advice:
        lines += [f"  cause: {cause['message']}", f"  → {cause['advice']}"]
    return lines + [f"  → {mask_secrets(error.advice)}"] * bool(error.advice)


def error_data(error: SpmError) -> dict[str, object]:
    """The JSON of an error; it may repeat what was typed, or show a command line, or a log."""
    words = {"message": mask_secrets(error.message), "advice": mask_secrets(error.advice)}
    data = {**error.to_json(), **words}
    if isinstance(data.get("log_tail"), list):
        data["log_tail"] = [mask_secrets(str(line)) for line in as_list(data["log_tail"])]
    return data


def about(error: SpmError, name: str) -> SpmError:
    """The error, in whose message stands which service it is about."""
    error.facts.setdefault("name", name)
    if not re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", error.message):
        error.message = f"{name}: {error.message}"
    return error


class Boot(NamedTuple):
    """A supervisor's interpreter that waits for its order."""

    home: str
    name: str
    instance: str
    pid: int
    order: int  # descriptors
    answer: int


BOOTED: list[Boot] = []  # what boot_early() started, until a start takes it


class Command(NamedTuple):
    """What the command line needs to know of a command."""

    run: Run
    options: tuple[Option, ...]

    @property
    def help(self) -> str:
        """The first line of its docstring."""
        line = (self.run.__doc__ or "").partition("\n")[0].rstrip(".")
        return line[:1].lower() + line[1:]


COMMANDS: dict[str, Command] = {}


def command(name: str, *options: Option) -> Callable[[Run], Run]:
    """Declare a function as a command; the first line of its docstring is its help."""

    def declare(run: Run) -> Run:
        COMMANDS[name] = Command(run, options)
        return run

    return declare


class Asked(NamedTuple):
    """What a start is asked for."""

    name: str
    spec: Spec
    given: dict[str, str]  # values, of --env
    conflict: str = "auto"  # --on-conflict, or force
    config: str = ""  # the path of the configuration it comes from
    owner: Owner | None = None
    called: bool = False  # by a call that needs it


class Seen(NamedTuple):
    """A record and what is true of it right now."""

    record: Record
    facts: Facts
    verdict: Verdict


def observe(store: Store, record: Record) -> Seen:
    """Hold a record against the system; where they differ, its supervisor knows better."""
    seen = _look(store, record)
    is_heard = bool(record.main) or os.path.lexists(store.path(record.name, CONTROL_SOCKET))
    is_past = is_heard and record.phase == "starting" and seen.facts.main == "gone"
    if is_past or (seen.facts.supervised and store.is_behind(record.name)):
        # Its launcher has ended; or it is long past that, and state.json was written by somebody
        # else, or can't be written.
        record = told_record(store, record) or record
        seen = _look(store, record)
    # A supervisor that left just now, also between our two looks, wrote why before it did; a main
    # process with threads is a zombie some moments before anybody can wait for it.
    # Again and again: of what lives for milliseconds the next one may be gone by the next look.
    for pause_s in (0.0, 0.005, 0.02, *[0.1] * 8):
        is_live = record.phase in LIVE_PHASES and seen.facts.here
        is_there = seen.facts.main in ("alive", "stopped") or seen.verdict.is_live
        if not is_live or is_there or seen.facts.halted:
            break
        time.sleep(pause_s)
        record = told_record(store, record) or store.record(record.name) or record
        seen = _look(store, record)
        if not seen.facts.supervised:
            break
    if seen.facts.main == "stranger" and not seen.facts.supervised:
        main = store.journal_main(record)
        if main != record.main and is_alive(main):
            why = f"recorded pid {record.main and record.main.pid}, which isn't {record.name}; "
            why += f"found pid {main and main.pid}"
            return _look(store, store.correct(record, record._replace(main=main), why))
    if seen.facts.here and record.phase in LIVE_PHASES and seen.verdict.status in ENDED_PHASES:
        begun = None if seen.facts.supervised else unnoted_start(store, record)
        if begun and begun.main:
            how = "running" if begun.instance == record.instance else "restarted"
            why = f"recorded {record.phase}, found {how}: pid {begun.main.pid}"
            return _look(store, store.correct(record, begun, why))
        told = None if seen.facts.supervised else store.journal_end(record)
        if told:  # its supervisor was gone before it could write that into state.json
            why = f"recorded {record.phase}, found {told.phase} in its journal"
            return _look(store, store.correct(record, told, why))
        status, why = seen.verdict
        after = record._replace(phase=status, reason=why, exit=record.exit or Exit(time.time()))
        now = store.correct(record, after, f"recorded {record.phase}, found dead: {why}")
        return seen._replace(record=after) if now == after else _look(store, now)
    return seen


def observed(store: Store) -> list[Seen]:
    """Every service as it is now, in the order of their names."""
    return [observe(store, record) for _, record in sorted(store.records().items())]


def unnoted_start(store: Store, record: Record) -> Record | None:
    """The record of what its supervisor, now gone, began and could not write down: a start, when
    it was killed just then, or an automatic restart.
    """
    mine = [look.identity for look in all_stats().values() if look.is_mine and look.memory_bytes]
    former = record.main and record.instance  # what is left of that is no start
    elders: dict[str, Identity] = {}  # of each instance
    for one in sorted(mine, key=lambda one: (one.born, one.pid)):
        cookie = cookie_of(one.pid)
        is_meant = run_of(cookie.instance) == run_of(record.instance) != ""
        is_meant = is_meant and cookie.instance != former
        if is_meant and is_same_home(cookie.home, store.home):
            elders.setdefault(cookie.instance, one)
    if not elders:
        return None
    instance, main = max(elders.items(), key=lambda pair: pair[1].born)
    return record._replace(instance=instance, main=main, launcher=None, phase="running")


def told_record(store: Store, record: Record) -> Record | None:
    """What its supervisor says, unless that stands still."""
    is_hung = condition_of(record.supervisor) == "stopped"
    return None if is_hung else store.ask_record(record.name)


def copied_from(store: Store, record: Record) -> str:
    """The other home whose cookie the recorded processes bear; "": none, or it was moved here."""
    known = (record.main, record.supervisor) if record.phase in LIVE_PHASES else ()
    cookies = ((one.pid, cookie_of(one.pid)) for one in known if one and is_alive(one))
    pid, cookie = next((pair for pair in cookies if pair[1].home), (0, Cookie(home=store.home)))
    home = cookie.home
    is_there = home != store.home and os.path.isdir(home)
    if not is_there or os.path.samefile(home, store.home):
        return ""
    # no lock is copied: it was moved here, and another home was made in its old place
    was_moved = store.is_supervised(record.name) and not Store(home).is_supervised(record.name)
    return "" if was_moved or is_same_home(home_now(pid, cookie), store.home) else home


def is_proven(store: Store, record: Record, look: Stat, supervised: bool) -> bool:
    """Whether what runs under the recorded identity certainly is the service's main process.

    What state.json says can be forged. Witnesses: its environment has the cookie (unless the
    program overwrote it), its parent is the supervisor, or what that wrote into the journal, or
    says.
    """
    main, instance = record.main, record.instance
    own = cookie_of(look.identity.pid)
    if own.is_supervisor or own.instance == instance:  # a supervisor: of what the service started
        return not own.is_supervisor
    guard = cookie_of(look.parent)
    if guard.is_supervisor and run_of(guard.supervises) == run_of(instance):
        return True
    if store.journal_main(record) == main:
        return True
    known = store.ask_record(record.name) if supervised else None
    return known is not None and (known.main, known.instance) == (main, instance)


def _look(store: Store, record: Record) -> Seen:
    here = place()
    is_here, same_host = record.place.is_same(here), record.place._replace(boot=here.boot) == here
    if not is_here and record.place._replace(host=here.host).is_same(here):
        is_here = store.is_supervised(record.name)  # a laptop's host name changes with its network
    away = copied_from(store, record) if is_here else ""
    if away:
        verdict = Verdict("lost", f"this directory is a copy: it runs for {away}")
        return Seen(record, Facts(here=False, same_host=True), verdict)
    facts = Facts(is_here, same_host)
    if facts.here and record.phase in LIVE_PHASES:
        claimed = record.main is None and store.is_claimed(record.name)
        supervised = store.is_supervised(record.name)
        look = record.main and stat_of(record.main.pid)
        main = condition_from(look, record.main)
        if look and main != "stranger" and not is_proven(store, record, look, supervised):
            now = stat_of(look.identity.pid)  # who is just ending has no environment any more
            main = "stranger" if now and now.memory_bytes else "gone"
        facts = facts._replace(claimed=claimed, supervised=supervised, main=main)
        halted = supervised and condition_of(record.supervisor) == "stopped"
        is_removed = not (supervised or os.path.lexists(store.path(record.name, "supervisor.lock")))
        facts = facts._replace(halted=halted, cut_off=is_removed and is_alive(record.supervisor))
    if record.phase == "backoff":
        facts = facts._replace(retry_s=max((record.retry_at or 0.0) - steady_s(), 0.0))
    return Seen(record, facts, status_of(record, facts))


def find(store: Store, name: str) -> Seen:
    """A service as it is now; NotFound, with the nearest names, if there is none."""
    record = store.record(name) if re.fullmatch(NAME, name) else None
    if record:  # one of an earlier version may have a name that isn't taken any more
        return observe(store, record)
    raise NotFound(f"no service {name!r} in {store.home}", meant_service(store, check_name(name)))


def meant_service(store: Store, name: str) -> str:
    """What to do about a name that no service here has."""
    records = sorted(store.records().values(), key=lambda one: one.phase not in LIVE_PHASES)
    owners = [one.name for one in records if str(one.spec.port) == name]
    if owners:
        return f"port {name} is that of {', '.join(owners)}: write the name instead"
    for one in records:
        if one.main and str(one.main.pid) == name and one.phase in LIVE_PHASES:
            return f"{name} is the pid of {one.name}: write the name instead"
    with contextlib.suppress(SpmError):  # what is wrong with a file `config validate` tells
        if known_start(store, name):
            return f"the configuration has it: start {name}, or all of them: up"
    for home, names in other_homes(store.home, SELF).items():
        if name.lower() in map(str.lower, names):
            return f"it runs in another home: add --home {join_command([shown_path(home)])}"
    told = services_here(name, [one.name for one in store.records().values()])
    return told + "; cleanup ends them all" * (bool(records) and name.lower() == "all")


def services_here(name: str, names: Sequence[str]) -> str:
    """Which services there are, one that is near to that name first."""
    some, rest = names[:MOST_NAMES], len(names) - MOST_NAMES
    told = ", ".join(some) or f'none; start one: start {name} "COMMAND"'
    return f"{nearest(name, names)}services here: {told}" + f" and {rest} more: list" * (rest > 0)


def shown_command(spec: Spec) -> str:
    """The command as it could be typed again, but for its secrets."""
    return mask_secrets(spec.words[-1] if spec.shell else join_command(spec.words))


def port_origin(spec: Spec) -> str | None:
    """How the port is known: chosen, declared, recognised, or not at all."""
    declared = "chosen" if spec.port_asked else "declared"
    return None if spec.port is None else declared if spec.port_declared else "recognised"


# -- start


@command("start", *START_OPTIONS)
def start(store: Store, args: argparse.Namespace) -> Result:
    """Start a service: NAME "COMMAND", or NAME [options] -- ARG…, or NAME alone: as last time."""
    if args.all_previous:
        return start_previous(store, args)
    result = start_service(store, args)
    record = store.record(args.name) if args.wait else None
    if record is None:
        return result
    try:
        with contextlib.closing(Target(store, record)) as target:
            waited = wait_for([target], args.wait, args.progress)
    except SpmError as error:
        return result._replace(error=error)
    phase = (store.ask_record(record.name) or find(store, record.name).record).phase
    data = {**result.data, **waited.data, "status": phase}
    return result._replace(data=data, lines=[*result.lines, *waited.lines])


def start_service(store: Store, args: argparse.Namespace, owner: Owner | None = None) -> Result:
    """Start a service, unless it runs already."""
    if not args.name:
        how = 'write: start NAME "COMMAND"; or start NAME, as last time; or start --all-previous'
        raise UsageError("the name of the service is missing", how)
    words = args.command or ["NAME"]
    if len(args.name.split()) > 1 and not args.tail and len(words) == 1 and is_name(words[0]):
        is_run, line = hasattr(args, "with"), join_command([args.name])
        how = f"{'run' if is_run else 'start'} {words[0]} {line}{' -- TESTS' * is_run}"
        what = "comes first, then the command" if args.command else "is missing"
        raise UsageError(f"the name of the service {what}", f"write: {how}")
    name, is_again = check_name(args.name), asked_of(args) <= NOT_OF_A_SPEC
    if name.isdigit() and not store.record(name):
        check_new_name(name)

    def again() -> Asked | None:
        asked = known_start(store, name) if is_again else None
        return asked and with_options(asked, args, owner)

    asked = again()
    if asked is None:
        if not (args.command or args.tail or store.record(name)):
            raise unknown_service(store, args, name, bool(owner))
        asked = with_options(Asked(name, *spec_of(name, args)), args, owner)
    remarks = remarks_on(store, asked, bool(owner)) if is_again else []
    try:
        result = bring(store, asked, args.replace, again)
    except SpmError:
        store.notes += remarks  # they may say why
        raise
    return result._replace(lines=[*(f"[WARN] {one}" for one in remarks), *result.lines])


def with_options(asked: Asked, args: argparse.Namespace, owner: Owner | None) -> Asked:
    """With what is given at each start."""
    lives = {"lease": args.lease, "idle_timeout_s": args.idle_timeout}
    spec = asked.spec._replace(**{key: value for key, value in lives.items() if value is not None})
    conflict = asked.conflict if args.on_conflict == "auto" else args.on_conflict
    return asked._replace(spec=spec, conflict="force" if args.force else conflict, owner=owner)


def config_behind(store: Store, path: str) -> Config | None:
    """The configuration that a service comes from, or that of the project; None: there is none
    that can be read.
    """
    with contextlib.suppress(SpmError):  # what is wrong with a file `up` tells
        return read_config(path or find_config(None, store.home))
    return None


def remarks_on(store: Store, asked: Asked, in_run: bool) -> list[str]:
    """What the configuration that it comes from gives to think of, where it is started alone."""
    config, record = config_behind(store, asked.config), store.record(asked.name)
    wanted = config and config.named(asked.name)
    changes = outdated(record, asked.given, config) if record else []
    if not (config and wanted and asked.config):
        return changes
    return [*changes, *absent_needs(store, config, wanted, in_run)]


def outdated(record: Record, given: dict[str, str], config: Config | None) -> list[str]:
    """A remark if the configuration wants it otherwise than it would run again."""
    wanted, name = config and config.named(record.name), record.name
    if record.guessed:
        how = f"up {name}" if wanted else f'start {name} "COMMAND" --replace, with them'
        lost = f"{name}: its options were lost with its record (--port, --env, --ready …)"
        return [f"{lost}; to have them again: {how}"]
    step = wanted and step_of(wanted, Known(record, "running", True, True, given), True, False)
    if not (wanted and step and step.keys):
        return []
    keys, where = ", ".join(step.keys), shown_path(wanted.config)
    told = f"{name}: {keys} changed in {where} since it was applied"
    if not record.config:
        told = f"{name} was last started by hand, otherwise than {where} says ({keys})"
    return [f"{told}; to apply that: up {name}"]


def absent_needs(store: Store, config: Config, wanted: Wanted, in_run: bool) -> list[str]:
    """A remark if what it depends on isn't there: who starts it alone has to see to that."""
    absent, told, runs = list[str](), list[str](), list[str]()
    for need, stage in wanted.depends_on.items():
        record = store.record(need)
        seen = observe(store, record) if record else None
        status = seen.verdict.status if seen else ""
        is_once, is_live = stage == "exited", seen is not None and seen.verdict.is_live
        is_met = status == "exited" if is_once else is_live
        if not is_met and config.services[need].is_brought_up:
            is_what = f"it is {status}" if seen else "it was never started"
            told.append(f"{need} to {'have ended well' if is_once else 'run'} ({is_what})")
            absent.append(need)
            runs += [] if is_once else [f"--with {need}"]
    advice = f"to start what it needs, too: up {wanted.name}"
    if in_run:
        with_ = f"add {' '.join(runs)}, or " if len(runs) == len(absent) else ""
        advice = f"{with_}before it: {join_command(['up', *absent, '--wait'])}"
    return [f"{wanted.name} needs {', '.join(told)}; {advice}"] if told else []


def known_start(store: Store, name: str) -> Asked | None:
    """A start as the last time, or as the configuration wants it; None if neither knows it."""
    record = store.record(name)
    if record:
        return Asked(record.name, record.spec, store.given_env(name), config=record.config)
    path = find_config(None, store.home)
    one = read_config(path).named(name) if os.path.lexists(path) else None
    return one and Asked(one.name, one.spec, one.given_env, one.conflict, one.config)


def unknown_service(store: Store, args: argparse.Namespace, name: str, in_run: bool) -> UsageError:
    """The error of a name alone that nobody knows."""
    names, path = [one.name for one in store.records().values()], find_config(None, store.home)
    names += read_config(path).services if os.path.lexists(path) else ()
    how = f'start {name} "COMMAND"'
    if in_run:
        how = f'run {name} "COMMAND" -- …' if hasattr(args, "with") else f'--with {name}="COMMAND"'
    near = nearest(name, names)
    advice = f"{near}A new one: {how}" if near else f"a new one: {how}"
    return UsageError(f"no service {name!r} is known", advice)


def bring(
    store: Store,
    asked: Asked,
    may_replace: bool = True,
    again: Callable[[], Asked | None] = lambda: None,
) -> Result:
    """Have a service run with this spec: keep it, take it back, replace it or start it.

    `again` says as what it is to run as the last time: another command may just change that.
    """
    name = asked.name
    store.prepare()
    with store.claim(name, CLAIM_S):
        record, asked = store.record(name), again() or asked
        spec = asked.spec
        seen = observe(store, record) if record else None
        is_running = seen is not None and seen.verdict.status in UP_PHASES
        if record:
            spec = kept_port(spec, record.spec, is_running, asked.conflict)
            asked = asked._replace(spec=spec)
        if seen and is_running:
            alike = spec if may_replace else with_lease_of(seen.record.spec, spec)
            differences = differences_of(store, seen.record, alike, asked.given)
            if differences and not may_replace:
                text = f"{name} runs already with another spec: {'; '.join(differences)}"
                advice = f"add --replace to end it and start this one, or stop {name} first"
                is_other = seen.record.spec.cwd != spec.cwd
                advice += "; to have both, give this one another name" * is_other
                raise Refused(text, advice, differences=differences)
            kept = None if differences else keep_running(store, seen, asked)
            if kept:
                return kept
        return begin(store, asked, seen, "started")


def start_previous(store: Store, args: argparse.Namespace) -> Result:
    """Start again what was wanted to run when the machine went down."""
    results, errors = list[Result](), list[SpmError]()
    if asked_of(args) != {"all_previous"}:
        raise UsageError("--all-previous starts each as it was", "leave the rest out")
    for record in sorted(store.records().values(), key=lambda one: one.started_at):
        verdict = observe(store, record).verdict
        if went_down(record, verdict):
            asked = {**vars(args), **start_defaults(), "name": record.name}
            try:
                result = start_service(store, type(args)(**asked))
                results.append(result._replace(data={**result.data, "error": None}))
            except SpmError as error:
                errors.append(about(error, record.name))
                status = find(store, record.name).verdict.status
                data = {"name": record.name, "status": status, "pid": None}
                results.append(Result({**data, "error": error_data(error)}))
    lines = [line for one in results for line in one.lines]
    lines += [] if results else ["[OK] nothing ran when the machine went down"]
    services = [one.data for one in results]
    return with_errors(Result({"services": services, "lines": lines}, lines), errors)


def asked_of(args: argparse.Namespace) -> set[str]:
    """The options of a start that were given."""
    return {k for k, v in start_defaults().items() if getattr(args, k, v) != v}


def with_lease_of(giver: Spec, spec: Spec) -> Spec:
    """The spec with the lease of another one: how long it may live isn't what it is."""
    return spec._replace(lease=giver.lease, idle_timeout_s=giver.idle_timeout_s)


def renewed(record: Record, lease: str, owner: Owner | None) -> Record:
    """A running service that was asked for again: who owns it stays its owner while alive."""
    is_pid_1s = record.owner is None and record.spec.lease == "session"
    if is_pid_1s or is_alive(record.owner):
        return record._replace(active_at=steady_s())
    if record.owner:
        record = record._replace(spec=record.spec._replace(lease=lease))
    owner = (record.owner and owner) or owner_of(record.spec.lease)
    return granted(record, *owner, steady_s())


def kept_owner(record: Record) -> Owner | None:
    """Who goes on to own what is started again; a session's belongs to the one that does it."""
    is_kept, lease = is_alive(record.owner), record.spec.lease
    if lease.isdigit() and not is_kept:  # another one may have its number now
        advice = f"start it with another one: start {record.name} --lease …"
        raise UsageError(f"--lease {lease}: no such process lives any more", advice)
    is_kept = is_kept and lease != "session"
    return (record.owner, record.owner_name) if is_kept else None


def lease_data(record: Record, is_live: bool) -> dict[str, object]:
    """The JSON of how long a service may live."""
    left = left_s(record, steady_s()) if is_live else (None, None)
    lease_left, idle_left = (None if one is None else round(max(one, 0.0), 3) for one in left)
    owner = record.owner and {"pid": record.owner.pid, "name": record.owner_name}
    lease = record.spec.lease
    if record.owner and lease == "forever":  # it is a `run`'s
        lease = str(record.owner.pid)
    data = {"lease": lease, "owner": owner, "lease_left_s": lease_left}
    return {**data, "idle_timeout_s": record.spec.idle_timeout_s, "idle_left_s": idle_left}


def lease_lines(record: Record) -> list[str]:
    """How long a service may live, in a line for people; none if that is for ever."""
    left, idle_s = left_s(record, steady_s())[0], record.spec.idle_timeout_s
    lives = record.owner and f"as long as pid {record.owner.pid} ({record.owner_name}) lives"
    lives = lives or "as long as pid 1 lives" * (record.spec.lease == "session")
    while_s = left and f"for {format_duration(left)}"
    idle = idle_s and f"until it is idle for {format_duration(idle_s)}"
    parts = [part for part in (lives, while_s, idle) if part]
    return [f"[INFO] lease: {', '.join(parts)}"] if parts else []


def differences_of(store: Store, old: Record, spec: Spec, given: dict[str, str]) -> list[str]:
    """How what runs differs from what is asked for; values of variables aren't shown."""
    differences = spec_differences(old.spec, spec)
    with contextlib.suppress(StateError):  # damaged: what it was started with isn't known
        known = store.given_env(old.name) if old.spec.env_given == spec.env_given else given
        others = [f"--env {key}: another value" for key in given if known.get(key) != given[key]]
        stale = [path for path in stale_files(store, old.name) if path in spec.env_files]
        return [*differences, *others, *(f"--env-file {path}: it has changed" for path in stale)]
    return [*differences, "--env: the recorded values can't be read"]


def digests_of(salts: Mapping[str, str]) -> dict[str, str]:
    """Digests of env files, salted, so that nothing of what they say is kept."""
    found = {}
    for path, salt in salts.items():
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if os.path.isfile(path):  # a FIFO could be read but once
                with open(path, encoding="utf-8") as file:
                    found[path] = f"{salt} {hash_of([salt, file.read()])}"
    return found


def stale_files(store: Store, name: str) -> list[str]:
    """The env files of a service that say something else than at its start."""
    was = store.given_env(name, of_files=True)
    now = digests_of({path: one.partition(" ")[0] for path, one in was.items()})
    return [path for path in was if was[path] != now.get(path)]


def environment_of(spec: Spec, given: dict[str, str]) -> dict[str, str]:
    """What a start adds to the caller's environment; ConfigError names every problem at once."""
    values: dict[str, str] = {}
    taken = [key for key in spec.env_taken if key not in os.environ]
    problems = {f"{key} is not set": f"env.{key}" for key in taken}  # to the key it is about
    absent: list[str] = []
    for path in spec.env_files:
        try:
            with open(path, encoding="utf-8-sig") as file:
                values.update(parse_env_text(file.read(), path))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            absent += [path] if isinstance(error, FileNotFoundError) else []
            problems[f"{path}: {why}"] = "env_file"
        except ConfigError as error:
            problems[error.message] = "env_file"
    if spec.port_declared:
        values["PORT"] = str(spec.port or AUTO_PORTS[0])  # one is chosen later
    values.update(given)
    problems.update(unmet(spec, {**os.environ, **values}))
    if problems:
        advice, keys = "mend that and start again; nothing was started", [*problems.values()]
        if taken:
            advice = f"export {taken[0]}, or give --env {taken[0]}=VALUE; nothing was started"
        elif absent:
            advice = f"write {absent[0]}, or leave that env file out; nothing was started"
        raise ConfigError("; ".join(problems), advice, problems=[*problems], keys=keys)
    return values


def sources_of(spec: Spec, values: Iterable[str], config: str) -> dict[str, str]:
    """Where each variable came from that a start was given; never its value."""
    file, sources = "configuration" * bool(config), dict.fromkeys(spec.env_taken, "caller")
    files = ", ".join(shown_path(path, os.path.dirname(config)) for path in spec.env_files)
    sources.update(dict.fromkeys(values, f"env_file {files}" if file else "--env-file"))
    sources.update({"PORT": file or "--port"} if spec.port_declared else {})
    return {**sources, **dict.fromkeys(spec.env_given, file or "--env")}


def added_values(spec: Spec, given: dict[str, str]) -> dict[str, str]:
    """What a start would add to the caller's environment, as far as that can be had."""
    with contextlib.suppress(ConfigError):
        return environment_of(spec._replace(env_taken=(), require_env=(), rules={}), given)
    return given


def keep_running(store: Store, seen: Seen, asked: Asked) -> Result | None:
    """The same service runs already: its lease renewed; None if it just ends, or isn't its own."""
    spec, record = asked.spec, renewed(seen.record, asked.spec.lease, asked.owner)
    other = spec_differences(record.spec, with_lease_of(spec, record.spec))
    if spec.lease == record.spec.lease == "session" and record.owner != session_owner()[0]:
        other = ["--lease: another session's"]
    kept = f"[WARN] {record.name} keeps the lease it was started with: {'; '.join(other)}"
    notes = [f"{kept}; --replace starts it anew"] * bool(other)
    me, others = asked.owner and asked.owner[0], record.owner_name == "run"
    sharer = me if others and me != record.owner else None  # of what another `run` has started
    if seen.facts.supervised:
        record = touched(store, seen, record, sharer=sharer)
        is_kept = record.wanted == "running" and record.phase in UP_PHASES
        return started(store, record, "already running", notes) if is_kept else None
    if trusted(seen).main is None:
        return None
    retire_supervisor(record)
    config = asked.config or record.config
    if record.spec.type == "stdio":  # its pipes went with its supervisor
        asked = asked._replace(name=record.name, conflict="auto", config=config)
        return begin(store, asked, seen, "started anew")
    sharers = (*record.sharers, *([sharer] if sharer else []))
    record = record._replace(last_active=time.time(), sharers=sharers, config=config)
    record = launch(store, record, added_values(record.spec, asked.given), adopt=True)
    how = "already running, its supervisor was gone: taken back (its exit code will not be known)"
    return started(store, record, how, notes)


def started(store: Store, record: Record, how: str, notes: Sequence[str] = ()) -> Result:
    """The result of a start."""
    spec, log = record.spec, store.path(record.name, "output.log")
    pid = record.main.pid if record.main and record.phase != "external" else None
    port = f", port {spec.port}" if spec.port else ""
    origins = {"recognised": " recognised in the command", "chosen": " chosen"}
    port += origins.get(port_origin(spec) or "", "")
    why = "" if how.startswith("already") else record.reason  # by now it may be about a check
    port += f", {spec.type}: {why or record.phase}" if spec.type in NOTHING_LEFT else ""
    port += f", in its window: {why or record.phase}" if spec.terminal else ""
    data: dict[str, object] = {"name": record.name, "status": record.phase, "pid": pid, "log": log}
    data.update(already_running=how.startswith("already"), type=spec.type, why=record.reason)
    data.update(port=spec.port, port_origin=port_origin(spec), **lease_data(record, is_live=True))
    line = f"[OK] {record.name} {how} (pid {pid or 'not known'}{port})"
    line += f", log: {shown_path(log)}" * (not spec.terminal)  # a window keeps its output
    return Result(data, [*notes, line, *lease_lines(record)])


def check_here(store: Store, seen: Seen) -> None:
    """Refused if it lives where this command can't see: on another host, in another container."""
    name = seen.record.name
    if not seen.facts.here and store.is_supervised(name):
        advice = f"see to it there, or call this one another name than {name}"
        raise Refused(f"{name} runs elsewhere: {seen.verdict.why}", advice, name=name)


def begin(store: Store, asked: Asked, former: Seen | None, how: str) -> Result:
    """Check what can be checked, end the former instance, start a new one."""
    notes = list[str]()
    try:
        return begun(store, asked, former, how, notes)
    except SpmError:
        store.notes += [note.partition(" ")[2] for note in notes]  # what was ended before
        raise


def begun(store: Store, asked: Asked, former: Seen | None, how: str, notes: list[str]) -> Result:
    """The result of `begin`; the notes get what was done on the way."""
    name, spec, given, conflict, config, owner, called = asked
    check_here(store, former) if former else None
    owner = owner or owner_of(spec.lease)
    failures, failed_at = failures_before(store, former, asked)
    if not os.path.isdir(spec.cwd):
        is_again = former is not None and former.record.spec.cwd == spec.cwd
        advice = place_advice(store, name, config) if is_again else "check --cwd"
        raise StartFailed(f"{name}: no such directory: {spec.cwd}", advice)
    digests = digests_of(dict.fromkeys(spec.env_files, os.urandom(16).hex()))
    values = environment_of(spec, given)
    if former and former.verdict.is_live:
        check_successor(store, asked, former.record.spec.port, values)
    notes += end_former(store, former) if former else []
    if former and former.record.spec.argv == spec.argv:  # what was learnt about this command
        spec = spec._replace(extra={**former.record.spec.extra, **spec.extra})
    is_booted = bool(BOOTED) and BOOTED[0].name == name
    instance = BOOTED[0].instance if is_booted else os.urandom(16).hex()
    record = new_record(name, spec, instance)._replace(failures=failures, failed_at=failed_at)
    old = former.record if former and former.record.spec == spec else record
    users = (old.owner, *old.sharers) if owner[0] and old.wanted == "running" else ()
    sharers = tuple(one for one in users if one and one != owner[0] and is_alive(one))
    record = record._replace(environment=sources_of(spec, values, config), config=config)
    record = granted(record._replace(sharers=sharers, called=called), *owner, steady_s())
    record = with_port(store, record, conflict, values, notes)
    if record.spec.port != spec.port and "PORT" not in given:
        values = {**values, "PORT": str(record.spec.port)}  # files aren't read anew: no FIFO can be
    notes += [f"[WARN] {record.spec.port_doubt}"] * bool(record.spec.port_doubt)
    with state_errors(store.home):
        write_file(store.path(name, "env.json"), json.dumps({**given, **digests}).encode())
    try:
        launched = launch_in_window if spec.terminal else launch
        return started(store, settled(store, launched(store, record, values)), how, notes)
    except StartFailed as error:
        error.message += f" ({shown_command(spec)})"
        code = error.facts.get("errno")  # None: it was executed, and ended too soon
        advice = unnamed(name, spec, values) if code else ""
        error.advice = advice or start_advice(spec, values, code) or error.advice
        error.facts.update(failure_facts(store, store.record(name), error.advice))
        cause = as_object(error.facts["cause"])
        again = f"restart {name}" + " --force" * bool(spec.cooldown_s)
        mend = MEND.format(again, corrected(record))
        mend = str(cause["advice"]) if cause.get("kind") == "unknown" else mend
        error.advice = error.advice or mend
        raise


def config_now(store: Store, config: str) -> str:
    """The present path of a recorded configuration: beside the home, if the project was renamed."""
    there, name = os.path.split(config)
    root, home = os.path.split(store.home)  # one of another name may be that of many projects
    here = os.path.join(root, "spm.json")
    was_renamed = (home, name) == (".spm", "spm.json") and not os.path.lexists(there)
    return here if was_renamed and os.path.lexists(here) else config


def place_advice(store: Store, name: str, config: str) -> str:
    """What starts it elsewhere than where it ran: its directory is gone, or was moved."""
    if config and os.path.lexists(config):
        return f"check cwd in {shown_path(config)}, then: up {name}"
    here = config_now(store, config)
    if here != config:
        there = f"{os.path.dirname(config)} was renamed or moved to {os.path.dirname(here)}"
        return f"{there}: up {name} starts it there"
    return f'from the directory that it shall run in: start {name} "COMMAND" --replace'


def corrected(record: Record) -> str:
    """What starts it with another command: to start it again repeats the old one."""
    if record.config:
        return f"correct it in {shown_path(record.config)}, then: up {record.name}"
    return f'start {record.name} "CORRECTED COMMAND"'


def failures_before(store: Store, former: Seen | None, asked: Asked) -> tuple[int, float | None]:
    """How often in a row and when the same failed before; Cooldown if it is too soon after that."""
    if former is None:
        return 0, None
    was, (status, why) = former.record, former.verdict
    is_known = status in ("failed", "backoff") and was.place.is_same(place())
    at = was.failed_at if is_known else None
    spec = with_lease_of(was.spec, asked.spec)
    if at is None or differences_of(store, was, spec, asked.given):
        return 0, None
    base_s = spec.call_cooldown_s if asked.called and was.called else spec.cooldown_s
    left_s = refused_for_s(was, status, base_s, steady_s())
    if left_s:
        count, left = counted(was.failures, "time"), format_duration(left_s)
        told = f"{was.name} failed {count} in a row ({why}); cooldown: {left} left"
        if asked.conflict != "force":
            facts = {"retry_at": round(time.time() + left_s, 3), "seconds_left": round(left_s, 3)}
            advice = f"why it fails says: explain {was.name}; mend that, then wait, or "
            advice += f"start it now: start {was.name} --force" if asked.called else "add --force"
            raise Cooldown(told, advice, name=was.name, reason=why, count=was.failures, **facts)
        store.write_event("forced", was.name, was, told)
    return was.failures, at


def settled(store: Store, record: Record) -> Record:
    """The record as soon as it is known whether it has started, and what of it can be followed."""
    spec, name = record.spec, record.name
    deadline = time.monotonic() + BOOT_S + spec.start_seconds
    waits, is_supervised = spec.type == "external" or spec.start_seconds > 0, True
    while waits and is_supervised and record.phase in ("starting", "stopping"):
        is_supervised = store.is_supervised(name)  # before the look: it writes, then it leaves
        now = store.record(name)
        if now is None or run_of(now.instance) != record.instance or time.monotonic() > deadline:
            break
        record = now
        time.sleep(0.005)
    ended_phases = ("stopping", *ENDED_PHASES) if spec.start_seconds else ("failed",)
    if waits and record.phase in ended_phases:
        tail = store.last_lines(name, 20)
        ended = record.exit and record.exit._asdict()
        what = "its launcher failed" if spec.type == "external" else "it did not start"
        raise StartFailed(f"{name}: {what}: {record.reason}", log_tail=tail, exit=ended)
    return record


def port_state(port: int) -> str:
    """`port 8000 is free`, or who holds it."""
    if not has_listener(port):
        return f"port {port} is free"
    return f"port {port} is held by {look_at(port_holder(port))}"


def full_disk(store: Store) -> list[str]:
    """A line if logs and state can't be written: nothing that is written there tells of that."""
    left = free_bytes(store.home)
    told = f"the disk of {shown_path(store.home)} is full ({format_bytes(left)} left)"
    return [f"{told}: what services write to their logs is lost"] * (left < ROOM_BYTES)


def failure_facts(store: Store, record: Record | None, advice: str = "") -> dict[str, object]:
    """The `cause` of a failed service, None for others; `advice` where somebody knows better."""
    if record is None or record.phase not in ("failed", "backoff") or record.exit is None:
        return {"cause": None}
    if record.phase == "backoff" and is_among(record.exit, record.spec.success_codes):
        return {"cause": None}
    words = store.last_words(record, CAUSE_LINES)
    cause = cause_of(record.exit, words, is_heard=not record.spec.terminal)
    cause, placed = in_its_place(store, record, cause, record.exit)
    for told in full_disk(store) if cause.kind == "unknown" else ():  # its last words are lost
        message = f"{cause.message}; {told}"
        cause = Cause("disk_full", message, CAUSE_ADVICE["disk_full"], retryable=True)
    return {"cause": advised(cause, record, placed or advice)._asdict()}


def in_its_place(store: Store, record: Record, cause: Cause, ended: Exit) -> tuple[Cause, str]:
    """The cause and advice where it wasn't the program that is missing, but its directory."""
    if ended.errno not in (errno.ENOENT, errno.ENOTDIR) or os.path.isdir(record.spec.cwd):
        return cause, ""
    cause = cause._replace(message=f"no such directory: {record.spec.cwd}")
    return cause, place_advice(store, record.name, record.config)


def advised(cause: Cause, record: Record, advice: str) -> Cause:
    """A cause with what holds for this service: who has the port, where a file was looked for."""
    named = re.findall(r"[:,] ?(\d{2,5})\b", cause.message)
    port = as_port(named[-1]) if named else record.spec.port
    holder = f"; {port_state(port)}" if port and cause.kind == "address_in_use" else ""
    ignored = record.spec.port_declared and not named and holder and not has_listener(port or 0)
    advice = advice or (IGNORES_PORT.format(port) if ignored else cause.advice)
    if "port N;" in advice:
        advice = advice.replace("port N;", f"port {port};") if port else FIND_PORT
    advice = advice.replace("{cwd}", record.spec.cwd)
    may_be = not record.spec.shell and cause.kind in ("unknown", "missing_module")
    words = record.spec.argv if may_be else ()
    for word in (one for one in words if re.fullmatch(LITERAL, one) and one in cause.message):
        advice = NEEDS_SHELL.format(word)
    if recognise_port(record.spec._replace(port=None).plain_words):
        advice = advice.replace(*LITERAL_PORT)
    return cause._replace(message=cause.message + holder, advice=advice)


def former_end(store: Store, record: Record) -> tuple[Exit, list[str]] | None:
    """How the instance failed that was restarted as this one, and its last lines."""
    for one in store.failed_exits(record.name)[:1] if record.restarts else ():
        ended = read_exit({key: one[key] for key in Exit._fields}, "exit")
        return ended, [str(line) for line in as_list(one["log_tail"])]
    return None


def ends_told(store: Store, record: Record) -> str:
    """`; it ended 3 times since its start, last with exit code 1`, "" if it never did."""
    count = record.restarts + (record.phase == "backoff")
    before = former_end(store, record) if record.phase != "backoff" else None
    last = f", last with {before[0]}" if before else ""
    return f"; it ended {counted(count, 'time')} since its start{last}" * bool(count)


def doubt_facts(store: Store, record: Record) -> dict[str, object]:
    """The `cause` of what isn't ready: a failure's or, a guess, what this instance last wrote."""
    facts, before = failure_facts(store, record), former_end(store, record)
    if facts["cause"]:
        return facts
    cause = cause_of(Exit(0.0, 1), store.last_words(record, CAUSE_LINES))
    how, advice = "its last lines look like: ", ""
    if cause.kind == "unknown" and before:
        cause, advice = in_its_place(store, record, cause_of(*before), before[0])
        how = "it ended before: "
    if cause.kind == "unknown":
        return facts
    cause = advised(cause, record, advice)
    return {"cause": {**cause._replace(message=how + cause.message)._asdict(), "guess": True}}


def check_successor(store: Store, asked: Asked, port: int | None, values: dict[str, str]) -> None:
    """Fail before anything is ended, if what is to replace it has no program, room or port."""
    name, spec, program = asked.name, asked.spec, asked.spec.argv[0]
    with state_errors(store.home):  # a full disk
        write_file(store.path(name, "room"), bytes(ROOM_BYTES), durable=False)
        os.unlink(store.path(name, "room"))
    where = os.path.join(spec.cwd, program) if os.path.dirname(program) else program
    if not shutil.which(where, path=search_path(spec.cwd, values)):
        is_there = bool(os.path.dirname(program)) and os.path.exists(where)
        advice = start_advice(spec, values, errno.EACCES if is_there else errno.ENOENT)
        raise StartFailed(f"{name}: {program} can't be executed; what runs was left alone", advice)
    is_new = spec.port_declared and spec.port != port and asked.conflict != "force"
    held = held_port(store, spec.port, name) if spec.port and is_new else None
    flag = "next" if spec.port_asked else asked.conflict
    decision = port_decision(held.kind, flag, is_production(os.environ, values)) if held else ""
    if held and decision in ("fail", "refuse"):
        raise port_error(held, decision, "; what runs was left alone", OTHER_WAYS)


def end_former(store: Store, seen: Seen) -> list[str]:
    """End what an earlier instance left, if it is here and certainly ours."""
    try:
        limit_s = STDIO_END_S if seen.record.spec.type == "stdio" else STOP_TIMEOUT_S
        record, ended = drive(stop_steps(store, seen, limit_s, force=False))
    except Refused as error:
        if "nothing_runs" not in error.facts:
            raise
        return [f"[WARN] {error.message}"]
    if ended is None and seen.verdict.status == "external":
        return [f"[INFO] {record.name}: its former window, if it is still open, can't be followed"]
    count = counted(ended.processes, "process") if ended and ended.processes else ""
    return [f"[INFO] {record.name}: {count} of its former instance ended"] if count else []


class Held(NamedTuple):
    """A port that somebody listens on: by whom, the least touchable first."""

    port: int
    kind: str  # of the first
    holders: list[Holder]

    def __str__(self) -> str:
        kind = "another process of yours" if self.kind == FOREIGN else self.kind
        return f"port {self.port} is held: {', '.join(map(str, self.holders))}, {kind}"


def held_port(store: Store, port: int, name: str) -> Held | None:
    """Who listens on a port that the service `name` wants; None, in a millisecond, if nobody."""
    answers = has_listener(port)
    holders = holders_of(port) if answers or listen_sockets() else []
    if not (answers or holders):
        return None
    mains = {record.main: record for record in store.records().values() if record.main}
    ranked = []
    for holder in holders or [Holder()]:
        owner = mains.get(holder.identity) if holder.identity else None
        # It cleared its environment, and its supervisor is gone.
        if owner and not holder.cookie.home and trusted(observe(store, owner)).main:
            holder = holder._replace(cookie=Cookie(owner.instance, owner.name, store.home))
        home = home_now(holder.identity.pid, holder.cookie) if holder.identity else ""
        home = store.home if is_same_home(home, store.home) else home  # maybe behind a link
        holder = holder._replace(cookie=holder.cookie._replace(home=home))
        inside = bool(holder.cwd) and is_in_project(holder.cwd, store.home)
        kind = classify_holder(holder, name, store.home, inside)
        ranked.append(holder._replace(kind=kind, command=mask_secrets(holder.command)))
    ranked.sort(key=lambda one: list(HOLDER_KINDS).index(one.kind))
    return Held(port, ranked[0].kind, ranked)


def port_error(held: Held, decision: str, more: str = "", way: str = "") -> SpmError:
    """The error of a held port, with the facts and the way on."""
    pids = " ".join(str(one.identity.pid) for one in held.holders if one.identity)
    holders = [holder.to_json() for holder in held.holders]
    facts = {"port": held.port, "decision": decision, "holders": holders}
    if decision == "refuse":
        more = f"; this is production: nothing is ended for a port{more}"
        advice = f"a person who is sure could run: kill {pids}" if pids else "ask its owner"
        return Refused(f"{held}{more}", advice, **facts)
    cookie, known = held.holders[0].cookie, {"port": held.port, "pids": pids}
    known.update(service=cookie.service, home=join_command([cookie.home]))
    # another user's process, but in a service of ours: its supervisor can end it
    is_in_ours = held.kind == NOT_OURS and cookie.instance and is_own(cookie.home)
    kind = ELSEWHERE if is_in_ours else held.kind
    return PortConflict(f"{held}{more}", HOLDER_KINDS[kind].format(**known) + way, **facts)


def clear_port(store: Store, held: Held, name: str) -> str:
    """End who holds a port, each with its descendants; what was done, once nobody listens there."""
    began, trees = time.monotonic(), list[Tree]()
    for holder in held.holders:
        record = new_record(holder.name, Spec(("?",), "/"), holder.cookie.instance)
        record = record._replace(main=holder.identity)
        trees.append(Tree(record))
        error = refusal(record, record.main, trees[-1].members, lineage())
        if error:
            raise error
    ended = [drive(end_tree(tree, PORT_GRACE_S, force=False)) for tree in trees]
    count = counted(sum(one.processes for one in ended), "process") + " ended"
    count += f", {FORCE} was used" * any(one.killed for one in ended)
    after = held_port(store, held.port, name)
    if after:
        raise port_error(after, "fail", f"; {count} before")
    seconds = format_duration(time.monotonic() - began)
    return f"{held}: {count} in {seconds}".replace(" is held:", " was held:", 1)


def with_port(
    store: Store, record: Record, flag: str, values: Mapping[str, str], notes: list[str]
) -> Record:
    """The record with a port that it can have, after what has to be done for that.

    For a port that was only recognised nobody is ended but stale processes of this very service.
    """
    spec = record.spec

    def tell(event: str, why: str, note: str = "[WARN] ") -> None:
        store.write_event(event, record.name, store.record(record.name), why)
        notes.extend([note + why] if note else [])

    may_move = spec.port_declared and (flag == "next" or bool(spec.port_asked))
    is_named = spec.port_asked != "auto"
    held = held_port(store, spec.port, record.name) if spec.port and is_named else None
    if held:
        way = "next" if may_move else flag
        decision = port_decision(held.kind, way, is_production(os.environ, values))
        is_stale = (held.kind, decision) == (THIS, "take back")
        if flag == "force" or not (spec.port_declared or is_stale):
            hint = "" if spec.port_declared else " (declare it with --port to have that settled)"
            tell("port_held", str(held).replace(" is held:", " is held already:", 1) + hint)
            return record
        tell("port_held", f"{held}: {decision}", note="")
        if decision in ("fail", "refuse"):
            raise port_error(held, decision, "; nothing was started", OTHER_WAYS)
        if decision != "next port":
            tell("port_freed", clear_port(store, held, record.name))
    if may_move:
        record = reserve_port(store, record)
    elif spec.port and spec.port_declared and flag != "force":
        reserve_declared(store, record)
    if record.spec.port != spec.port:
        taken = f"port {spec.port} is another service's, or can't be bound"
        why = held or taken * (spec.port_asked != "auto")
        tell("port_chosen", f"{why or 'auto'}: took port {record.spec.port}", "[WARN] " * bool(why))
    return record


def reserve_declared(store: Store, record: Record) -> None:
    """Note the start; PortConflict if a service that lives has the port, though nobody listens."""
    dead, phases = set[str](), (*UP_PHASES, "backoff")
    while other := store.reserve(
        record, lambda one: one.spec.port_declared and one.phase in phases and one.name not in dead
    ):
        status = observe(store, other).verdict.status
        if status in phases:
            facts = {"port": record.spec.port, "decision": "fail", "service": other.name}
            text = f"port {record.spec.port} is kept for {other.name}, which is {status}"
            store.write_event("port_held", record.name, store.record(record.name), text)
            advice = f"stop {other.name}{OTHER_WAYS}"
            raise PortConflict(f"{text}; nothing was started", advice, **facts)
        dead.add(other.name)


def reserve_port(store: Store, record: Record) -> Record:
    """The record with the first port that is free and that no other service here has."""
    spec = record.spec
    seed = zlib.crc32(os.fsencode(f"{store.home}\0{record.name.lower()}"))
    for port in port_choices(spec, seed):
        asked = spec.port_asked or str(spec.port) * (port != spec.port)
        chosen = record._replace(spec=spec._replace(port=port, port_asked=asked))
        if is_free(port) and not store.reserve(chosen, lambda one: one.wanted == "running"):
            return chosen
    first = spec.port or AUTO_PORTS[0]
    raise PortConflict(f"{record.name}: no port is free from {first} on", "give another --port")


@command(
    "port",
    Option("port", "N", parse_port, help="the port"),
    Option("--free", help="end who listens there, if it is a leftover of this project"),
    Option(
        "--on-conflict", "HOW", parse_conflict, "auto", "kill: --free ends any process of yours"
    ),
)
def show_port(store: Store, args: argparse.Namespace) -> Result:
    """Who listens on a port, and what would be done about it; --free does it."""
    held = held_port(store, args.port, "")
    lines, free = [f"[OK] port {args.port} is free"], {"port": args.port, "free": True}
    if held is None:
        return Result(free, lines)
    decision = port_decision(held.kind, args.on_conflict, is_production(os.environ))
    ends, records = decision in ("take back", "end"), store.records().values()
    # in the journal of whose port it is; if it is nobody's, in one of its own
    names = [one.name for one in records if one.spec.port == args.port] or [f"port-{args.port}"]

    def tell(event: str, why: str) -> None:
        is_told = ends or os.path.isdir(store.home)  # for a refusal alone no directory is made
        with contextlib.suppress(SpmError, OSError):
            store.prepare() if is_told else None
            for name in names * is_told:
                os.makedirs(store.path(name), mode=0o700, exist_ok=True)
                store.write_event(event, name, store.record(name), why)

    error = port_error(held, decision)
    tell("port_held", f"{held}: {decision}") if args.free else None
    if args.free and ends:
        why = clear_port(store, held, "")
        tell("port_freed", why)
        return Result(free, [f"[WARN] {why}", *lines])
    if args.free:
        raise error
    lines = [f"  pid {one.identity.pid}: {one.command}" for one in held.holders if one.identity]
    lines.append(f"[INFO] port {args.port} --free would: {decision}")
    error = PortConflict(str(held), error.advice, **error.facts)
    return Result({**free, "free": False}, lines, error=error)


def supervisors_environment(store: Store, name: str, instance: str) -> dict[str, str]:
    """The caller's environment, with a supervisor's own cookie."""
    own = {"SPM_SUPERVISOR": instance, "SPM_SERVICE": name, "SPM_HOME": store.home}
    return {**{k: v for k, v in os.environ.items() if k not in COOKIE_NAMES}, **own}


def boot(store: Store, name: str, instance: str, compiled: bool, in_window: bool = False) -> Boot:
    """Start the interpreter of a supervisor; it waits for its order, or goes away without one."""
    environ = supervisors_environment(store, name, instance)
    program = supervisors_program(store) if compiled else SELF
    ends = launch_supervisor(supervisor_command(program, name), environ, in_window)
    return Boot(store.home, name, instance, *ends)


def boot_early(argv: Sequence[str]) -> Boot | None:
    """A supervisor for a plain `start`, which boots while we parse; main() dismisses it unused."""
    # No pattern yet: until the supervisor boots beside us, importing re would hold up both.
    name = "".join(argv[1:2]).replace(".", "").replace("_", "").replace("-", "")
    if len(argv) < 3 or argv[0] != "start" or argv[1].startswith("-") or not name.isalnum():
        return None
    with contextlib.suppress(OSError, SpmError):  # whatever it is, the start itself will tell
        store = Store(find_home(None))
        if any(word.startswith("--home") for word in argv) or not os.path.isdir(store.home):
            return None
        if "--replace" not in argv and store.is_supervised(argv[1]):  # it runs already
            return None
        store.prepare()  # before anything in it is executed
        return boot(store, argv[1], os.urandom(16).hex(), compiled=True)
    return None


def launch(
    store: Store, record: Record, env: dict[str, str], adopt: bool = False, has_retry: bool = True
) -> Record:
    """The record after a new supervisor took it over; its interpreter starts while we write."""
    wanted = (store.home, record.name, record.instance)
    in_window = bool(record.spec.terminal) and not adopt
    is_early = bool(BOOTED) and BOOTED[0][:3] == wanted and not in_window
    booted = BOOTED.pop() if is_early else boot(store, *wanted[1:], has_retry, in_window)
    try:
        if not adopt and store.reserved != record:
            store.save({record.name: record})  # if that fails the pipe closes and it goes away
            reached("intended")
        order = {"home": store.home, "record": record.to_json(), "env": env, "adopt": adopt}
        order["command"] = os.getpid()
        with contextlib.suppress(OSError), open(booted.order, "wb", closefd=False) as file:
            file.write(json.dumps({**order, "sys_path": sys.path}).encode() + b"\n")
        reached("ordered")
        line = read_answer(booted.answer, BOOT_S)
    finally:
        os.close(booted.order)
        os.close(booted.answer)
    answer, is_whole, _ = line.partition(b"\n")
    if not (line.startswith(b"{") and is_whole):  # the end of a traceback, or nothing
        dismiss(booted.pid)
        if not adopt:  # it may have died between launching the service and telling us
            retire_supervisor(record)  # its child is one, too, until it has executed the service
            drive(end_tree(Tree(record), 0.0, force=True))
        if has_retry:
            with contextlib.suppress(OSError):  # another start was faster, or it is read-only
                os.unlink(compiled_path(store))  # it may be damaged
            store.reserved = None  # what the first one noted isn't so any more
            return launch(store, record, env, adopt, has_retry=False)
        why = line.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise StartFailed(f"the supervisor of {record.name} died: {why or 'it gave no reason'}")
    return Record.from_json(accepted(answer).get("record"))


def launch_in_window(store: Store, record: Record, env: dict[str, str]) -> Record:
    """The record after a supervisor inside a new window took it over."""
    # It is the terminal's child: order (with values: never in a file) and answer go over a socket.
    name, asked = record.name, record.spec.terminal or ""
    line, label = terminal_line(asked), f"{name}-{record.instance[:4]}".replace(".", "_")
    if line is None:
        raise StartFailed(f"{name}: no window can be opened here (--terminal {asked})", NO_WINDOW)
    if not line:  # the system opens one for a supervisor
        return launch(store, record._replace(reason="console"), env)
    inherited = supervisors_environment(store, name, record.instance)
    own = [f"{key}={inherited.pop(key)}" for key in COOKIE_NAMES if key in inherited]
    meeting, log = store.path(name, "window"), store.path(name, "window.log")
    words = ["env", "-u", "SPM_INSTANCE", *own]
    words += [*supervisor_command(supervisors_program(store), name), meeting]
    how = line.partition(" ")[0] if " -d " not in line else f"tmux attach -t {label}"
    record = record._replace(reason=how)
    store.save({name: record})
    with state_errors(meeting), contextlib.ExitStack() as closing:
        os.makedirs(meeting, mode=0o700, exist_ok=True)
        closing.callback(shutil.rmtree, meeting, ignore_errors=True)
        server = closing.enter_context(listen_local(meeting)[0])
        argv = in_words(line.replace("{name}", label), words)
        errors = closing.enter_context(open(log, "wb", opener=private))
        null = subprocess.DEVNULL
        window = subprocess.Popen(
            argv, env=inherited, stdin=null, stdout=errors, stderr=errors, start_new_session=True
        )
        connection = closing.enter_context(meet(server, window, f"{name}: {argv[0]}", log))
        order = {"home": store.home, "record": record.to_json(), "env": env, "adopt": False}
        order.update(sys_path=sys.path, environ=inherited)
        try:
            connection.sendall(json.dumps(order).encode() + b"\n")
            return Record.from_json(receive(connection, BOOT_S).get("record"))
        except OSError as error:
            raise StartFailed(f"the supervisor of {name} died in its window") from error


def in_words(line: str, words: Sequence[str]) -> list[str]:
    """The words of a line with {}: alone it becomes these words, inside of one their line."""
    quoted = join_command(words)
    if line == TERMINALS["Terminal.app"]:  # AppleScript's own way to quote
        quoted = quoted.replace("\\", "\\\\").replace('"', '\\"')
    parts = [(word, [word.replace("{}", quoted)]) for word in split_command(line)]
    return [one for word, same in parts for one in (words if word == "{}" else same)]


def meet(
    server: socket.socket, window: subprocess.Popen[bytes], who: str, log: str
) -> socket.socket:
    """The connection of the supervisor in the new window; StartFailed if none comes."""
    deadline = time.monotonic() + BOOT_S
    server.settimeout(0.02)
    while True:
        with contextlib.suppress(OSError):  # nobody yet
            connection = server.accept()[0]
            window.returncode = 0  # it goes on without us; Popen must neither wait nor warn
            return connection
        if window.poll() or time.monotonic() > deadline:
            why = read_tail(log, 400).decode("utf-8", "replace").strip().rpartition("\n")[2]
            code = "nothing came of its window" if window.poll() is None else "it failed"
            window.kill()
            window.wait()
            raise StartFailed(f"{who}: {code}: {why or 'it gave no reason'}", "see --terminal")


def supervisor_command(program: str, name: str) -> list[str]:
    """The words that start a supervisor."""
    # Neither site-packages nor PYTHON* variables of the caller take part; what psutil needs of
    # sys.path goes along with the order.
    if not interpreter():
        raise StartFailed("Python doesn't know where it is itself", "call Python by its whole path")
    return [interpreter(), "-S", "-E", program, "supervise", name]


SUPERVISES = ("Config", "obey()\nos._exit(0)\n")
VENDORED = "# Written by `vendor`: "
QUOTES = "'" * 3  # such a line would end the program in its copy
WHOLE = f"    PROGRAM_TEXT = r{QUOTES}\n"
ENDS_COPY = f"""{QUOTES}
    exec(cached_code(__file__, PROGRAM_TEXT))  # noqa: S102
except KeyboardInterrupt:
    raise SystemExit(130) from None
"""


def parts_of_this_file() -> tuple[str, int, str]:
    """Its first comments, the number of lines above the program, the program: see vendor()."""
    with open(SELF, encoding="utf-8-sig") as file:
        text = file.read()
    above, vendored, program = text.partition(f"\n{WHOLE}")
    if vendored:
        program = program.rpartition(f"\n{QUOTES}")[0] + "\n"
        return above.partition(VENDORED)[0], above.count("\n") + 2, program
    above = text.partition('"""')[0]
    return above, above.count("\n"), text[len(above) :]


def cached_code(path: str, program: str, above: int = -1, optimize: int = -1) -> types.CodeType:
    """The code of a program, from the user's cache; all copies of a version share it.

    What isn't there is compiled and put there. It counts only where nobody else can write; without
    a cache it is compiled each time. `above`: the lines above it (-1: it stands as a string right
    above this call). `optimize` is compile()'s.
    """
    # Only what is part of the interpreter: the user's own directory is still on sys.path.
    import _imp
    import _thread
    import marshal
    import os
    import sys
    import time

    if above < 0:
        above = sys._getframe(1).f_lineno - program.count("\n") - 2
    if optimize < 0:
        optimize = sys.flags.optimize
    asked = f"{sys.version} {optimize} {above} {program}"
    key = _imp.source_hash(0, asked.encode("utf-8", "surrogatepass")).hex()
    bases = [os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("LOCALAPPDATA", "")]
    base = next(filter(os.path.isabs, [*bases, os.path.expanduser("~/.cache")]), "")
    own = base and os.path.join(base, "simple_process_manager")  # to look at "" is an error
    user, kept = getattr(os, "geteuid", int)(), ""
    try:
        for parent, place in ((os.path.dirname(base), base), (base, own)) if base else ():
            if not os.path.lexists(place) and os.stat(parent).st_uid == user:
                os.mkdir(place, 0o700)
        facts = os.lstat(own)
        # a directory, and on POSIX (where modes tell) one that only this user can enter
        bits = facts.st_mode & (0o170077 if hasattr(os, "geteuid") else 0o170000)
        if facts.st_uid == user and bits == 0o040000:
            kept = os.path.join(own, f"{sys.implementation.cache_tag}-{key}.code")
            with open(kept, "rb") as file:
                seal, data = file.read(8), file.read()
            if seal == _imp.source_hash(1, data):
                code: types.CodeType = marshal.loads(data)
                if hasattr(_imp, "_fix_co_filename"):  # another copy may have compiled it
                    _imp._fix_co_filename(code, path)
                return code
    except OSError:  # it isn't there
        pass
    code = compile("\n" * above + program, path, "exec", dont_inherit=True, optimize=optimize)
    temporary = kept and f"{kept}.{os.getpid()}.{_thread.get_ident()}"
    try:
        data = marshal.dumps(code)
        with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(_imp.source_hash(1, data) + data)
        os.replace(temporary, kept)
        for old in os.scandir(own):
            age_s = time.time() - old.stat(follow_symlinks=False).st_mtime
            if ".code" in old.name and age_s > 30 * 86400:  # of a copy that is no more
                os.unlink(old)
    except OSError:  # no room: the next call compiles it again
        if os.path.lexists(temporary):
            os.unlink(temporary)
    return code


def compile_rooms(target: str, until: str = "", act: str = "") -> None:
    """Write the bytecode of this file, or of the rooms before one and what is done then."""
    import marshal

    _, above, program = parts_of_this_file()
    rooms = program.partition(f"\n# == {until} ==")[0]
    optimize = 2 if act else 0  # the help of commands is their docstrings
    code = cached_code(SELF, f"{rooms}\n{act}", above, optimize)
    write_file(target, sealed(marshal.dumps(code)), durable=False)


def sealed(code: bytes) -> bytes:
    """A .pyc with its own checksum; Python asks neither for that nor for the source."""
    import binascii
    import importlib.util

    # PEP 552: flags 1 is a hash of the source that isn't checked
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(4)
    return header + binascii.crc32(code).to_bytes(4, "little") + code


def supervisors_program(store: Store) -> str:
    """What supervisors start from: bytecode in the state directory, compiled here if need be."""
    target = compiled_path(store)
    if not os.path.exists(target):
        own = os.path.dirname(target)
        # no room, or no source but bytecode: this file does as well, only slower
        with contextlib.suppress(OSError, ValueError, SyntaxError):
            make_private(own)
            compile_rooms(target, *SUPERVISES)
            for other in os.scandir(os.path.dirname(own)):
                if other.path != own and other.stat().st_mtime < time.time() - 86400:
                    shutil.rmtree(other.path, ignore_errors=True)
    return target if os.path.exists(target) else SELF


def compiled_path(store: Store) -> str:
    """Where the compiled form of this very file is, for this interpreter."""
    facts = os.stat(SELF)
    tag = f"{sys.implementation.cache_tag}-{facts.st_mtime_ns:x}-{facts.st_size:x}"
    return os.path.join(store.home, "cache", tag, "simple_process_manager.pyc")


def is_sound(path: str) -> bool:
    """Whether bytecode is there and is what was written."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        data = file.read()
        return len(data) > 16 and data == sealed(data[16:])
    return False


def go_on_lean(store: Store, began: float = 0.0) -> None:
    """Do this command again from bytecode, in this very process; returns where that can't be.

    CPython keeps the syntax tree of a script until its end, some 30 MB. To give them back takes
    milliseconds, which at the end of a wait nobody has. `began`: when it did, monotonic seconds.
    """
    words = getattr(sys, "orig_argv", [])  # Python 3.9 doesn't tell
    can_exec = HAS_EXEC and bool(words) and IS_OUTERMOST and not __file__.endswith(".pyc")
    if not (can_exec and interpreter() and os.path.isdir(store.home)):
        return
    target = f"{compiled_path(store)[:-4]}-whole.pyc"
    words = [interpreter(), *words[1 : -len(sys.argv)], target, *sys.argv[1:]]
    with contextlib.suppress(OSError):  # no room: only slower
        if not is_sound(target):
            make_private(os.path.dirname(target))
            compile_rooms(target)
        hold_interrupts(True)  # a Python that just begins would answer with a traceback
        try:
            os.execve(words[0], words, {**os.environ, "SPM_LEAN": f"{began!r} {SELF}"})
        finally:
            hold_interrupts(False)


def search_path(cwd: str, values: Mapping[str, str]) -> str:
    """The PATH of a service, as it is searched from its directory."""
    path = values.get("PATH", os.environ.get("PATH", os.defpath))
    return os.pathsep.join(os.path.join(cwd, one) for one in path.split(os.pathsep))


def start_advice(spec: Spec, values: dict[str, str], code: object) -> str:
    """What to do about a command that couldn't be executed."""
    program = spec.argv[0]
    advice = START_ADVICE.get(errno.errorcode.get(code, "") if isinstance(code, int) else "", "")
    if code != errno.ENOENT:
        return advice
    first, path = program.split(" ")[0], search_path(spec.cwd, values)
    if first != program and shutil.which(first, path=path):
        line = f"{program} {join_command(spec.argv[1:])}".rstrip()
        return f"quote the command as a whole: {join_command([line])}"
    if re.fullmatch(LITERAL, program):
        return NEEDS_SHELL.format(program)
    if os.path.dirname(program):
        path = os.path.join(spec.cwd, program)
        missing = f"its first line (#!) names a program that doesn't exist: {path}"
        return missing if os.path.exists(path) else f"there is no {path}: check the spelling"
    for where in LOCAL_PROGRAMS:
        if os.path.exists(os.path.join(spec.cwd, where, program)):
            return f"it is in {where}: write {where}/{program}, or activate that environment"
    if os.path.isfile(os.path.join(spec.cwd, program)):
        here = f"{program} is here, where no program is looked for"
        return f"{here}: write ./{program}, or its interpreter before it"
    if program in HOW_TO_HAVE:
        return f"{HOW_TO_HAVE[program].format(program)}. Otherwise {advice}"
    names = set[str]()  # of what is on the PATH
    for directory in path.split(os.pathsep):
        with contextlib.suppress(OSError):
            names.update(os.listdir(directory))
    near = nearest(program, names, 0.8)
    return f"{near}Otherwise {advice}" if near else advice


def unnamed(name: str, spec: Spec, values: dict[str, str]) -> str:
    """What to do where a program was taken for the name, `start python app.py`; "" otherwise."""
    is_file = os.path.isfile(os.path.join(spec.cwd, spec.argv[0]))
    if not (is_file and shutil.which(name, path=search_path(spec.cwd, values))):
        return ""
    line = join_command([join_command([name, *spec.argv])])
    return f"{name} was taken for the service's name: write start NAME {line}"


def touched(
    store: Store,
    seen: Seen,
    lease: Record | None = None,
    wait_s: float = HUNG_S,
    sharer: Identity | None = None,
) -> Record:
    """The record with last_active renewed, by whoever writes it; the lease as in another record."""
    if seen.facts.supervised:  # one that hangs isn't worth failing for: stop and status tell
        facts: dict[str, object] = {"record": lease.to_json()} if lease else {}
        facts.update({"sharer": sharer._asdict()} if sharer else {})
        return store.ask_record(seen.record.name, "touch", wait_s, **facts) or seen.record
    record = seen.record._replace(last_active=time.time(), active_at=steady_s())
    return store.swap(seen.record, record)


def is_supervisor_of(record: Record, process: Identity | None) -> bool:
    """Whether a process lives and says that it is this instance's supervisor."""
    cookie = cookie_of(process.pid) if process and is_alive(process) else Cookie()
    return cookie.is_supervisor and run_of(cookie.supervises) == run_of(record.instance)


def retire_supervisor(record: Record) -> None:
    """End this instance's supervisor: it hangs, lost its directory, or was never noted."""
    noted = record.supervisor if is_supervisor_of(record, record.supervisor) else None
    looks = all_stats().values() if noted is None else ()
    for guard in (noted, *(look.identity for look in looks if look.is_mine)):
        if guard and is_supervisor_of(record, guard):
            send_signal(guard, force=True)
            wait_while(functools.partial(is_alive, guard), 2.0, 0.001)


# -- stop, restart, cleanup


@command(
    "stop",
    Option("names+", "NAME", help="the services"),
    Option("--force", help="SIGKILL at once"),
    Option("--timeout", "D", parse_duration, STOP_TIMEOUT_S, "how long SIGTERM may take (10s)"),
    Option("--dry-run", help="list what would be signalled, and why"),
)
def stop(store: Store, args: argparse.Namespace) -> Result:
    """End services and everything that belongs to them."""
    names = [check_name(name) for name in args.names]
    if not args.dry_run:
        return stop_all(store, names, args.timeout, args.force)
    lines, data, errors = list[str](), list[object](), list[SpmError]()
    for name in {name.lower(): name for name in names}.values():
        try:
            seen = find(store, name)
            looked = tree_of(trusted(seen)) if seen.facts.here else []
            check_stop(seen, looked)
        except SpmError as error:
            error.facts.setdefault("name", name)
            errors.append(error)
            continue
        members = [member_data(member) for member in looked]
        data.append({"name": seen.record.name, "processes": members})
        count = counted(len(members), "process")
        lines.append(f"[INFO] stop {seen.record.name} would signal {count}")
        lines += [f"  pid {one['pid']}: {one['why']}: {one['command']}" for one in members]
    return with_errors(Result({"dry_run": True, "services": data}, lines), errors)


def member_data(member: Member) -> dict[str, object]:
    """The JSON of a process of a tree."""
    pid = member.identity.pid
    return {"pid": pid, "why": member.why, "command": mask_secrets(command_line(pid))}


def stop_all(store: Store, names: Sequence[str], timeout_s: float, force: bool) -> Result:
    """Stop side by side: what came of it."""
    reports, errors = stop_each(store, names, timeout_s, force)
    lines = [line for _, line in reports]
    tell_others(store, filter(None, map(store.record, names)))
    return with_errors(Result({"services": [data for data, _ in reports]}, lines), errors)


def tell_others(store: Store, records: Iterable[Record]) -> bool:
    """Whether what became another user's outlived a stop: that is told, and it is let be."""
    runs = {run_of(one.instance) for one in records if one.reason == ALONE} - {""}
    looks = [] if my_user_id or not runs else all_stats().values()  # root alone sees their cookies
    others = [look.identity.pid for look in looks if not look.is_mine and look.memory_bytes]
    cookies = {pid: cookie_of(pid) for pid in others}
    ours = {pid: one for pid, one in cookies.items() if run_of(one.instance) in runs}
    pids = [pid for pid, cookie in ours.items() if is_same_home(cookie.home, store.home)]
    told = "{} is left: it became another user's; if it may go: kill {}"
    store.notes += [told.format(look_at(pid), pid) for pid in pids]
    return bool(pids)


def stop_each(
    store: Store,
    names: Sequence[str],
    timeout_s: float,
    force: bool,
    keeps: Callable[[Record], bool] | None = None,
) -> tuple[list[tuple[dict[str, object], str]], list[SpmError]]:
    """Stop side by side but for those it keeps: ask every supervisor first, then wait for each."""
    reports, errors = list[tuple[dict[str, object], str]](), list[SpmError]()
    written = {name.lower(): name for name in names}  # as it was typed, then as it is known
    began = time.monotonic()

    def stopping(key: str) -> Iterator[float]:
        name = written[key] = find(store, written[key]).record.name
        if not (force and store.is_supervised(name)):  # else it overtakes a polite stop
            claims.enter_context(store.claim(name, timeout_s, began))
        seen = find(store, name)
        check_here(store, seen)
        if not (keeps and keeps(seen.record)):
            stopped = yield from stop_steps(store, seen, timeout_s, force)
            reports.append(stop_report(seen, *stopped))

    # One order for all: no deadlock.
    under_way = {key: stopping(key) for key in sorted(written)}
    with contextlib.ExitStack() as claims:
        for key in stop_order([*under_way]):
            try:
                next(under_way[key], None)
            except SpmError as error:
                error.facts.setdefault("name", written[key])
                errors.append(error)
    return reports, errors


def news_of(reports: Sequence[tuple[dict[str, object], str]]) -> list[str]:
    """The lines of those that ran, or that are forgotten."""
    return [line for one, line in reports if not one["already_stopped"] or "forgotten" in one]


def stop_order(names: Sequence[str]) -> list[str]:
    """Each name three times: asked, heard when some more are asked, waited for when all are."""
    none = [""] * 4  # more at once would wait for a processor until they seem to hang
    pairs = zip([*names, *none], [*none, *names])
    return [name for pair in pairs for name in pair if name] + [*names]


def with_errors(result: Result, errors: Sequence[SpmError]) -> Result:
    """The result of what was done to several services, with what failed for some of them."""
    if not errors:
        return result
    lines = [*result.lines, *(error_lines(one)[0] for one in errors[1:])]
    data = {**result.data, "errors": [*map(error_data, errors)]}
    return Result(data, lines, error=errors[0])


def stop_steps(
    store: Store, seen: Seen, timeout_s: float, force: bool
) -> Generator[float, bool, Stopped]:
    """Ask the supervisor to end its service, hear that it does, then what came of it: three steps.

    One that doesn't answer is put aside. Others are asked between the steps, which need no wait.
    """
    name, connection, is_begun = seen.record.name, None, False
    recorded = store.record(name) or seen.record
    # The start that would have noted it was broken off, or what goes on could not be written.
    if recorded.main is None or condition_of(recorded.main) in ("gone", "zombie"):
        recorded = store.ask_record(name) or recorded
    main = recorded.main  # what state.json says: if its supervisor knows better, it was forged
    if store.is_supervised(name):
        request = {"op": "stop", "main": main and main._asdict(), "spare": lineage()}
        with contextlib.suppress(OSError):
            connection = store.send(name, {**request, "timeout_s": timeout_s, "force": force})
    with connection or contextlib.nullcontext():
        yield 0.0
        with contextlib.suppress(OSError):
            if connection:
                receive(connection, HUNG_S)
                is_begun = True
                reached("stop_asked")
        yield 0.0
        stopped = (
            finish_stop(store, seen, connection, timeout_s) if connection and is_begun else None
        )
        if stopped:
            return stopped
    if is_begun or store.is_supervised(name):  # it died or hangs: the rest is ours to do
        retire_supervisor(seen.record)
    # What was seen is old where its supervisor has just left: it may have written how it ended.
    return stop_unsupervised(store, find(store, name), timeout_s, force)


def finish_stop(
    store: Store, seen: Seen, connection: socket.socket, timeout_s: float
) -> Stopped | None:
    """What came of a stop, as the supervisor tells; None if it doesn't."""
    name = seen.record.name
    try:
        with connection:
            answer = receive(connection, timeout_s + GIVE_UP_AFTER_KILL_S + HUNG_S)
        ended = read_ended(answer.get("ended"), "answer.ended")
        after = Record.from_json(answer.get("record"))
        if is_alive(seen.record.main) and not ended.left:
            raise ConnectionError("somebody else answers in its supervisor's place")
    except (OSError, RecordError):
        return None
    check_ended(name, ended)
    is_unsaved = answer.get("unsaved")
    if is_unsaved or answer.get("yours"):
        try:  # its home may be another by now: who moves a project takes the state along
            store.save_end(after)
        except SpmError:  # its journal has it
            text = f"{shown_path(store.state_path)} can't be written now; {name}'s supervisor will"
            store.notes += [f"{text} go on trying"] * bool(is_unsaved)
    return after, ended


def check_ended(name: str, ended: Ended) -> None:
    """Failed if something outlived even SIGKILL."""
    if ended.left:
        who = ", ".join(map(str, map(look_at, ended.left)))
        looks = [look for look in map(stat_of, ended.left) if look]
        is_ours = not looks or not my_user_id or any(look.is_mine for look in looks)
        why = f"outlived {FORCE}" if is_ours else "can't be signalled by this user"
        text = f"{name} didn't end in {format_duration(ended.seconds)}: {who} {why}"
        advice = "it waits in the kernel (disk, network) or belongs to another user: look with ps"
        raise Failed(text, advice, left=list(ended.left))


def trusted(seen: Seen) -> Record:
    """The record, without its main process unless that lives and certainly is the service's."""
    is_its_own = seen.facts.main in ("alive", "stopped", "zombie")
    return seen.record if is_its_own else seen.record._replace(main=None)


def check_stop(seen: Seen, members: Sequence[Member]) -> None:
    """Refused where nothing of a service runs here, or somebody above us is part of it."""
    name, main, is_stranger = seen.record.name, seen.record.main, seen.facts.main == "stranger"
    if not members and (seen.verdict.status == "lost" or is_stranger):
        found = look_at(main.pid) if main and seen.facts.here else None
        who = f"{found} isn't {name}" if found and found.identity else ""  # None: it has just ended
        advice = f"nothing of {name} runs here: start {name} anew, or forget it with cleanup"
        text = f"{name}: {who or seen.verdict.why}; nothing was signalled"
        raise Refused(text, advice, nothing_runs=True)
    error = refusal(trusted(seen), trusted(seen).main, members, lineage())
    if error:
        raise error


def stop_unsupervised(store: Store, seen: Seen, timeout_s: float, force: bool) -> Stopped:
    """End a service whose supervisor is gone, by its cookie, group and descendants."""
    if seen.record.main is None or seen.facts.main == "stranger":
        retire_supervisor(seen.record)  # that of a start that was broken off may yet come
    record, name = trusted(seen), seen.record.name
    tree = Tree(record) if seen.facts.here else None
    members = tree.members if tree else []
    check_stop(seen, members)
    guard = seen.record.supervisor
    if guard and members and is_supervisor_of(seen.record, guard):
        # Its directory was removed: it hears signals only, and would start what we end again.
        send_signal(guard, force)
        wait_while(lambda: is_alive(guard), timeout_s, 0.001)
        send_signal(guard, force=True)
    ended = drive(end_tree(tree, timeout_s, force)) if tree and members else None
    if ended:
        check_ended(name, ended)
    elif seen.record.phase in ENDED_PHASES:
        return seen.record, None
    why = ALONE if ended else seen.verdict.why
    now = store.record(name)
    is_same = now is None or run_of(now.instance) == run_of(record.instance)  # else it began anew
    last = seen.record.exit or (now and is_same and now.exit) or Exit(time.time())
    after = record if seen.facts.main == "stranger" else seen.record
    after = after._replace(phase="stopped", wanted="stopped", reason=why, exit=last)
    if seen.verdict.status == "external" and not ended:
        after = after._replace(exit=None)  # nobody knows whether it ended
    if is_same:
        store.write_event("stopped", name, after, why)
        store.save({name: after})
    return after, ended


def stop_report(seen: Seen, record: Record, ended: Ended | None) -> tuple[dict[str, object], str]:
    """The JSON of one stopped service, and its line."""
    port, name, how = record.spec.port, record.name, str(record.exit or "it never ran")
    state = port_state(port) if port else ""
    is_free = state.endswith(" is free") if port else None
    remark = f"; {'but ' * (is_free is False)}{state}" if port else ""
    data: dict[str, object] = {"name": name, "status": record.phase, "port": port}
    data.update(already_stopped=ended is None, port_free=is_free)
    data.update(exit=record.exit and record.exit._asdict())
    if ended is None and record.exit is None and seen.verdict.status == "external":
        line = f"[OK] {name} forgotten: nothing of it could be followed; its window, if any, is "
        return {**data, "forgotten": True}, line + "still open" + remark
    if ended is None:
        ago = f" {format_duration(time.time() - record.exit.at)} ago" if record.exit else ""
        if seen.record.phase not in ENDED_PHASES:  # nobody knows when it ended
            return data, f"[OK] {name} was not running: {seen.verdict.why}{remark}"
        return data, f"[OK] {name} was not running: {record.phase}{ago} ({how}){remark}"
    data.update(seconds=round(ended.seconds, 3), processes=ended.processes, killed=ended.killed)
    count = counted(ended.processes, "process") + " ended" + f", {FORCE} was used" * ended.killed
    return data, f"[OK] {name} stopped in {format_duration(ended.seconds)} ({how}, {count}){remark}"


@command(
    "restart",
    Option("name", "NAME", help="the service"),
    Option("--force", help="in spite of a cooldown"),
)
def restart(store: Store, args: argparse.Namespace) -> Result:
    """Stop a service and start it from its recorded spec, with the caller's environment."""
    known = find(store, args.name).record
    name, config = known.name, config_behind(store, known.config)
    with store.claim(name, CLAIM_S):
        seen = find(store, name)
        record, given = seen.record, store.given_env(name)
        conflict = "force" if args.force else "auto"
        asked = Asked(name, record.spec, given, conflict, record.config, kept_owner(record))
        store.notes += outdated(record, given, config)
        return begin(store, asked, seen, "restarted")


def elsewhere(store: Store) -> tuple[dict[str, object], list[str]]:
    """What runs in other homes of this project: the JSON of it, and a line for each home."""
    homes, lines = other_homes(store.home, SELF), []
    repository = repository_of(os.path.realpath(store.home))
    for home, names in homes.items():
        where, is_far = shown_path(home), repository_of(home) != repository or not repository
        how = f"{', '.join(names)} (list them: list --home {join_command([where])})"
        whose = os.path.dirname(SELF) if is_far else "this repository"
        lines.append(f"[INFO] other services of {whose} run in {where}: {how}")
    return {"other_homes": homes} if homes else {}, lines


@command(
    "cleanup",
    Option("--keep", help="don't forget the stopped services"),
    Option("--purge", help="remove their logs too"),
    Option("--session", help="only what was started with --lease session from this session"),
)
def cleanup(store: Store, args: argparse.Namespace) -> Result:
    """Stop everything of this home, verify, and forget what is stopped."""
    if args.session:
        return end_session(store, args)
    where, (beyond, hints) = shown_path(store.home), elsewhere(store)
    records = store.records()
    if not os.path.isdir(store.home):
        line = f"[OK] nothing to clean up: there is no {where}"
        return Result({"services": [], **beyond}, [line, *hints])
    reports, errors = stop_each(store, list(records), STOP_TIMEOUT_S, force=False)
    left = records_from_cookies(store.home, [])
    # what nobody knew, unless it was started since
    known = {run_of(one.instance) for one in (*records.values(), *store.records().values())}
    strays = {key: one for key, one in left.items() if run_of(one.instance) not in known}
    if strays:
        store.save(dict(strays))
        records.update(strays)
        more, others = stop_each(store, list(strays), STOP_TIMEOUT_S, force=False)
        reports, errors = reports + more, errors + others
        left = records_from_cookies(store.home, [])
    failed, lasts = undone(store, errors), tell_others(store, store.records().values())
    if left and not failed:
        failed = [Failed(f"still running: {', '.join(sorted(left))}", "run cleanup again")]
    kept = {*left, *map(named_by, failed)}
    kept.update(records if args.keep else ())
    had = logged(store)
    gone = forget(store, [records[key] for key in records if key not in kept], args.purge)
    purged, stay = had - logged(store), logged(store).intersection(name.lower() for name in gone)
    store.sweep()
    told = news_of(reports)
    count = sum(not one["already_stopped"] for one, _ in reports)
    summary = f"[OK] {counted(count, 'service')} stopped, nothing {'else ' * lasts}of {where} runs"
    summary += f"; {counted(len(gone), 'service')} forgotten" if gone else ""
    summary += f"; {counted(len(purged), 'log')} removed" if purged else ""
    summary += ", logs kept (--purge)" if stay and not args.purge else ""
    data = {"services": [one for one, _ in reports], "forgotten": gone, **beyond}
    return with_errors(Result(data, [*told, *[summary] * (not failed), *hints]), failed)


def logged(store: Store) -> set[str]:
    """The names, known or forgotten, that have a log."""
    names = store.directories()
    return {name for name in names if os.path.exists(store.path(name, "output.log"))}


def end_session(store: Store, args: argparse.Namespace) -> Result:
    """Stop and forget what this session owns, and nothing else."""
    if args.purge:
        raise UsageError("--purge is for everything, --session isn't", "leave one of them out")
    owner, who = session_owner()

    def is_others(one: Record) -> bool:
        is_meant = owner or one.place.is_same(place())  # each container has its own pid 1
        return not (is_meant and one.spec.lease == "session" and one.owner == owner)

    mine = [one for one in store.records().values() if not is_others(one)]
    names = [one.name for one in mine]
    reports, errors = stop_each(store, names, STOP_TIMEOUT_S, force=False, keeps=is_others)
    failed = undone(store, errors)
    kept = set(map(named_by, failed))
    over = [] if args.keep else [one for one in mine if one.name.lower() not in kept]
    gone = forget(store, over, purge=False)
    whose = f"session of pid {owner.pid} ({who})" if owner else "session of pid 1"
    lines = [line for _, line in reports]
    if not failed:
        lines.append(f"[OK] {counted(len(mine), 'service')} of the {whose}; {len(gone)} forgotten")
    data = {"services": [one for one, _ in reports], "forgotten": gone}
    return with_errors(Result(data, lines), failed)


def undone(store: Store, errors: Sequence[SpmError]) -> list[SpmError]:
    """What of a cleanup failed: what is forgotten already, or runs nowhere here, is done."""
    store.notes += [one.message for one in errors if "nothing_runs" in one.facts]
    return [one for one in errors if one.kind != "not_found" and "nothing_runs" not in one.facts]


def named_by(error: SpmError) -> str:
    """The key of the service that an error is about, "" if it is about none."""
    return str(error.facts.get("name", "")).lower()


def forget(store: Store, records: Sequence[Record], purge: bool) -> list[str]:
    """Take services out of the state, unless they were started anew; the names of those."""
    gone, began = list[str](), time.monotonic()
    with contextlib.ExitStack() as claims:
        for record in sorted(records, key=lambda one: one.name.lower()):  # as stop_each() does
            # TimedOut: somebody is starting it, so there is nothing to forget.
            with contextlib.suppress(TimedOut):
                claims.enter_context(store.claim(record.name, HUNG_S, began))
                now = store.record(record.name)
                if now is None or run_of(now.instance) != run_of(record.instance):
                    continue  # an automatic restart meanwhile doesn't count: it was stopped, too
                empty_logs(store, now) if purge else None
                # not known when all was stopped
                if stays(store, now.name) or observe(store, now).verdict.is_live:
                    store.notes.append(f"{now.name} stays known: its supervisor has not left yet")
                else:
                    gone.append(record.name)
        for name in gone:
            # what nobody needs any more; first, so that a full disk has room for the rest
            useless = ("env.json", "exits.jsonl", CONTROL_SOCKET)
            for file in (*useless, *LOG_PARTS * purge):
                with contextlib.suppress(OSError):
                    os.unlink(store.path(name, file))
            store.write_event("forgotten", name, None)
            reached("forgotten")
        store.save(dict.fromkeys(gone)) if gone else None
    if purge:
        names = set(store.directories()) - set(store.records())
        found = {one: os.listdir(path) for one in names if os.path.isdir(path := store.path(one))}
        # a lock alone: of a start that was refused
        ours = [name for name in found if "events.jsonl" in found[name] or found[name] == ["lock"]]
        for name in ours:
            with contextlib.suppress(TimedOut), store.claim(name, HUNG_S, began):
                if store.record(name) or stays(store, name):
                    continue
                told = store.journal_record(name)
                if told and told.name.lower() == name and is_alive(told.main):
                    store.save({name: told})  # its record was lost, and it runs
                else:
                    shutil.rmtree(store.path(name), ignore_errors=True)
    return gone


def empty_logs(store: Store, record: Record) -> None:
    """Make room for a supervisor that can't write the end of its service: else it doesn't leave."""
    if record.phase not in LIVE_PHASES or observe(store, record).verdict.is_live:
        return  # its end was noted, or is still to come
    for file in LOG_PARTS:  # it has the one open: to unlink that frees nothing
        with contextlib.suppress(OSError):
            os.close(private(store.path(record.name, file), os.O_RDWR | os.O_TRUNC))


def stays(store: Store, name: str) -> bool:
    """Whether it has a supervisor that isn't just leaving: then nothing of it is forgotten."""
    return wait_while(lambda: store.is_supervised(name), HUNG_S, 0.005)


# -- list, status, logs, touch


WATCH = Option("--watch", "[D]", parse_duration, help="again and again, each D (2s), until q")


@command("list", WATCH)
def list_services(store: Store, args: argparse.Namespace) -> Result:
    """Every service, in one table."""
    seen = observed(store)
    if not seen:
        path = find_config(None, store.home)
        how = f"start what {shown_path(path)} says: up" if os.path.lexists(path) else START_ONE
        hint = f"[INFO] no services in {shown_path(store.home)}; {how}"
        others, told = elsewhere(store)
        return Result({"home": store.home, "services": [], **others}, [hint, *told])
    tell_others(store, [one.record for one in seen])
    services = [service_data(one) for one in seen]
    open_ones = [one for one in seen if one.verdict.is_live or one.verdict.status == "lost"]
    news = [(one, one.verdict.why) for one in open_ones]
    news += [(one, text) for one in seen for text in active_alerts(one)]
    over = [one for one in seen if one.record.phase in ("exited", "failed")]
    over = [one for one in over if one.facts.here and store.is_supervised(one.record.name)]
    news += [(one, one.record.reason) for one in over if tree_of(one.record)]  # a daemon, mostly
    alone = [one for one in seen if one.facts.here and is_left_down(one.record)]
    news += [(one, left_down(one)) for one in alone if not store.is_supervised(one.record.name)]
    lines = [f"[WARN] {one.record.name}: {text}" for one, text in news if text]
    lines += [f"[WARN] {text}" for text in full_disk(store)]
    if any(went_down(one.record, one.verdict) for one in seen):
        lines.append(f"[WARN] {RESTARTED}: start --all-previous brings back what ran")
    keys = ("name", "status", "pid", "port", "uptime_s", "cpu_percent", "memory_bytes", "command")
    table = [tuple(key.partition("_")[0] for key in keys)]
    for data in services:
        guess = "?" * (data["port_origin"] == "recognised")
        table.append(tuple(shown(key, data[key]) + guess * (key == "port") for key in keys))
    return Result({"home": store.home, "services": services}, lines, table)


def left_down(seen: Seen) -> str:
    """That nobody restarts what its policy would have restarted, and what does."""
    policy, why = seen.record.spec.restart, seen.record.reason
    return f"{why}; nobody restarts it now (--restart {policy}): {restart_line(seen)}"


def active_alerts(seen: Seen) -> list[str]:
    """The alerts that are active as far as its supervisor knows."""
    return list(seen.record.alerts) if seen.facts.supervised and seen.verdict.is_live else []


def service_data(seen: Seen) -> dict[str, object]:
    """The JSON of one service; of its process it takes one more read of /proc/PID/stat."""
    record, spec, (status, why) = seen.record, seen.record.spec, seen.verdict
    look = stat_of(record.main.pid) if record.main and seen.verdict.is_live else None
    look = None if look and (look.identity != record.main or look.is_dead) else look
    uptime_s = max(time.time() - record.started_at, 0.001)
    data: dict[str, object] = {"name": record.name, "status": status, "type": spec.type, "why": why}
    data.update(supervised=seen.facts.supervised, pid=look and look.identity.pid)
    data.update(port=spec.port, port_origin=port_origin(spec))
    data.update(uptime_s=round(uptime_s, 3) if look else None)
    data.update(cpu_percent=round(100 * look.cpu_s / uptime_s, 1) if look else None)
    data.update(memory_bytes=look and look.memory_bytes, alerts=active_alerts(seen))
    data.update(exit=record.exit and record.exit._asdict(), restarts=record.restarts)
    data.update(retry_in_s=round(seen.facts.retry_s, 3) if status == "backoff" else None)
    return {**data, "command": shown_command(spec)}


def moment(at: float) -> str:
    """`2026-11-21 08:00:42 (3 m 4 s ago)`."""
    if not 0 <= at < 3e10:  # Windows knows no time after the year 3000
        return str(at)
    ago = format_duration(max(time.time() - at, 0))
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))} ({ago} ago)"


SHOWN: dict[str, Callable[..., str]] = {
    **dict.fromkeys(("uptime_s", "lease_left_s", "idle_timeout_s", "idle_left_s"), format_duration),
    "lived_s": format_duration,
    **dict.fromkeys(("at", "since", "started_at", "last_active"), moment),
    "cpu_percent": "{:.1f}%".format,
    "memory_bytes": format_bytes,
}


def shown(key: str, value: object) -> str:
    """A value of a JSON document as people read it; lists of objects take a line for each."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "".join(f"\n    {shown('', item)}" for item in value)
    if isinstance(value, dict) and key == "cause":
        return f"{value['message']}\n  → {value['advice']}"
    if isinstance(value, dict):
        pairs = [(k, v) for k, v in value.items() if v not in (None, "") and v is not False]
        return ", ".join(f"{k} {shown(k, v)}" for k, v in pairs)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None or isinstance(value, str):
        text = cut(value) if value and key == "command" else value or "-"
        return text.replace("\n", "\\n")
    return SHOWN.get(key, str)(value)


def restart_line(seen: Seen) -> str:
    """What starts it again, in spite of a cooldown if there is one."""
    record, status = seen.record, seen.verdict.status
    left_s = refused_for_s(record, status, record.spec.cooldown_s, steady_s()) * seen.facts.here
    how = f"--force (cooldown: {format_duration(left_s)} left)" if left_s else ""
    return f"restart {record.name} {how}".strip()


def is_daemon(record: Record, members: Sequence[Member]) -> bool:
    """Whether it seems to have gone into the background, and was started as what stays."""
    is_well = record.exit is not None and record.exit.code == 0
    return bool(members) and is_well and (record.phase, record.spec.type) == ("exited", "simple")


# Of a spec: what is told otherwise on the command line, and what a daemon has nothing of.
TOLD_ELSEWHERE = (
    *("argv", "port", "port_declared", "port_asked", "env_given", "call_cooldown_s"),
    *("type", "terminal", "no_pause", "rules", "extra"),
)


def options_of(spec: Spec) -> list[str]:
    """The words that ask `start` for a daemon with the same options; no values of --env."""
    usual, port = Spec._field_defaults, spec.port_asked or spec.port
    is_judged = spec.success_log or spec.failure_log
    changed = {key: value for key, value in spec._asdict().items() if value != usual.get(key)}
    told = {
        FIELD_KEYS[key]: value if isinstance(value, tuple) else (value,)
        for key, value in changed.items()
        if key not in TOLD_ELSEWHERE
    }
    told["port"] = (port,) if spec.port_declared else ()
    told["on_conflict"] = ("next",) if spec.port_asked.isdigit() else ()
    told["cwd"] = tuple({shown_path(spec.cwd)} - {os.curdir})
    told.update(cooldown=(spec.cooldown_s,)) if spec.restart != "no" else None  # else it has one
    told.update(start_seconds=(spec.start_seconds,)) if is_judged else None
    pairs = [(f"--{key.replace('_', '-')}", one) for key, values in told.items() for one in values]
    return [word for flag, one in pairs for word in (flag, text_of(one))[: 1 if one is True else 2]]


def again_line(seen: Seen, members: Sequence[Member]) -> str:
    """What starts it again; to repeat how a daemon was started would end the same way."""
    record, spec = seen.record, seen.record.spec
    if not is_daemon(record, members):
        return restart_line(seen)
    if record.config:
        return f"make it type forking in {shown_path(record.config)}, then: up {record.name}"
    # {port} as it was written, for another one may be chosen
    text = cut(shown_command(spec._replace(port_declared=False)))
    options = mask_secrets(join_command(options_of(spec)) + " " * bool(options_of(spec)))
    values = f" (and with --env {', '.join(spec.env_given)} as before)" if spec.env_given else ""
    return f"start {record.name} --type forking {options}{typed_word(text)}{values}"


def ways_back(store: Store, seen: Seen, members: Sequence[Member]) -> list[str]:
    """What starts it again; where its directory is gone, what can be done about that."""
    record, cwd = seen.record, seen.record.spec.cwd
    if os.path.isdir(cwd) or not seen.facts.here:
        return [again_line(seen, members)]
    anew = f"make {shown_path(cwd)} anew (it is gone), then: {restart_line(seen)}"
    return [anew, place_advice(store, record.name, record.config)]


@command("status", Option("name", "NAME", help="the service"), WATCH)
def status(store: Store, args: argparse.Namespace) -> Result:
    """Everything about one service (exit 3: it isn't running)."""
    seen, relay = with_news(store, find(store, args.name))
    record, spec, verdict = seen.record, seen.record.spec, seen.verdict
    stats = all_stats() if seen.facts.here else {}
    members = tree_of(trusted(seen), stats) if stats else []
    guard = record.supervisor if seen.facts.supervised else None
    data = {**service_data(seen), **failure_facts(store, record)}
    data.update(instance=record.instance, wanted=record.wanted)
    data.update(lease_data(record, verdict.is_live and seen.facts.here))
    data.update(identity=record.main and record.main._asdict(), supervisor=guard and guard.pid)
    data.update(started_at=record.started_at, last_active=record.last_active)
    data["tree"] = [member_data(member) for member in members]
    pids = {member.identity.pid for member in members}  # whose dead they don't collect
    dead = [(pid, look.parent) for pid, look in stats.items() if look.is_dead]
    data["zombies"] = [{"pid": pid, "parent": parent} for pid, parent in dead if parent in pids]
    data.update(cwd=spec.cwd, env=sorted({*spec.env_given, *spec.env_taken}))
    data.update(env_files=list(spec.env_files))
    data.update({key: [*map(mask_secrets, getattr(spec, key))] for key in ("ready", "health")})
    data.update(environment=dict(record.environment), log=store.path(record.name, "output.log"))
    data.update({"relay": relay} if spec.type == "stdio" else {})
    events = store.events(record.name)[-10:]
    data["events"] = [{"at": one.at, "event": one.event, "why": one.why} for one in events]
    if verdict.is_live or verdict.status == "external":
        return Result(data, page_of(data, 16))
    why = f"{verdict.status} ({verdict.why})" if verdict.why else verdict.status
    advice = f"its output: logs {record.name}; start it again: {ways_back(store, seen, members)[0]}"
    advice += f", or stop {record.name}" * is_daemon(record, members)
    error = NotFound(f"{record.name} is not running: {why}", advice)  # 3, as LSB's status has it
    return Result(data, page_of(data, 16), error=error)


def page_of(data: Mapping[str, object], width: int) -> list[str]:
    """A document as people read it: a line for each key that says anything."""
    facts = [(key, value) for key, value in data.items() if value not in (None, "", [], {})]
    return "\n".join(f"{key + ':':{width}}{shown(key, value)}" for key, value in facts).split("\n")


def with_news(store: Store, seen: Seen) -> tuple[Seen, object]:
    """As its supervisor knows it, who writes later; and what its relay knows, or None."""
    if seen.facts.supervised and not seen.facts.halted:
        with contextlib.suppress(OSError, ValueError):
            with store.send(seen.record.name, {"op": "status"}) as connection:
                told = receive(connection, HUNG_S)
            record = Record.from_json(told.get("record"))
            return observe(store, record), told.get("relay")
    return seen, None


@command(
    "stats",
    Option("name", "NAME", help="the service"),
    Option("--since", "D", parse_duration, 3600.0, "in the last D (1h); a day is kept"),
)
def stats(store: Store, args: argparse.Namespace) -> Result:
    """What a service and all that it started use, and used."""
    seen = find(store, args.name)
    name = seen.record.name
    found = figures(store.path(name, "metrics.jsonl"), time.time() - args.since)
    facts: dict[str, object] = {"name": name, "status": seen.verdict.status, "since_s": args.since}
    metrics, table = {}, [("metric", "now", *RANKS, "course")]
    for key, points in found.items():
        last = points[-1][1] if seen.verdict.is_live else None
        data = {"now": last, **summary([value for _, value in points])}
        metrics[key] = {**data, "samples": len(points)}
        numbers = ("-" if value is None else f"{value:.10g}" for value in data.values())
        table.append((key, *numbers, sparkline(points)))
    return Result({**facts, "metrics": metrics}, table=table)


@command("alerts", Option("name?", "NAME", help="this service alone"))
def show_alerts(store: Store, args: argparse.Namespace) -> Result:
    """Which alerts are active, and which were."""
    active, past, lines = [], [], []
    for seen in [find(store, args.name)] if args.name else observed(store):
        name = seen.record.name
        active += [{"service": name, "alert": text} for text in active_alerts(seen)]
        lines += [f"[WARN] {name}: {text}" for text in active_alerts(seen)]
        told = [one for one in store.events(name) if one.event.startswith("alert")]
        past += [{"service": name, "event": e.event, "at": e.at, "why": e.why} for e in told]
    table: list[tuple[str, ...]] = [("service", "event", "at", "why")]
    table += [tuple(shown(key, row[key]) for key in table[0]) for row in past]
    lines = lines or ["[INFO] no alert is active"]
    return Result({"active": active, "past": past}, lines, table if past else ())


@command(
    "logs",
    Option("name", "NAME", help="the service"),
    Option("-n --lines", "N", parse_count, help="how many lines at most (100; all of --since)"),
    Option("-f --follow", help="go on until the service ends"),
    Option("--since", "D", parse_duration, None, "only what was written in the last D (to 5 s)"),
    Option("--raw", help="control characters and colours as they are, not written out"),
)
def logs(store: Store, args: argparse.Namespace) -> Result:
    """What a service wrote."""
    record = find(store, args.name).record
    store.notes += full_disk(store)
    name, path = record.name, store.path(record.name, "output.log")
    if record.spec.terminal:
        store.notes.append(f"the output of {name} goes to its window and isn't kept")
    output = Output(store, record, from_end=True)
    end = max(0, output.at - store.log_start(name))
    most: int = (sys.maxsize if args.since else 100) if args.lines is None else args.lines
    with state_errors(path):
        # Who follows reads on where the last line begins, if that isn't whole yet.
        is_cut = args.follow and most
        begun = read_tail(path, 1 << 20, end).rpartition(b"\n")[2] if is_cut else b""
        output.at, end, count = output.at - len(begun), end - len(begun), most - bool(begun)
        if args.since:
            lines = store.lines_since(name, time.time() - args.since, end)
        else:
            lines = store.last_lines(name, count, end)
    lines = lines[max(0, len(lines) - count) :]
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    more = follow(store, name, lambda: decode(output.read())) if args.follow else ()
    stream = itertools.chain((line + "\n" for line in lines), more)
    return Result({"name": name, "log": path, "lines": lines}, stream=stream, is_raw=args.raw)


def follow(store: Store, name: str | None, news: Callable[[], str]) -> Iterator[str]:
    """What is new from now on, until the service has ended; None: without end."""
    while True:
        with state_errors(store.home):
            record = store.record(name) if name else None
            is_live = not name or bool(record and observe(store, record).verdict.is_live)
            is_live = is_live or bool(name and store.is_claimed(name))  # it is being restarted
            text = news()
        if not (text or is_live):
            return
        yield text  # nothing, too: who prints it sees then whether anybody reads it
        time.sleep(0.0 if text else 0.1)


@command("touch", Option("name", "NAME", help="the service"))
def touch(store: Store, args: argparse.Namespace) -> Result:
    """A heartbeat: renew last_active."""
    seen = find_live(store, args.name)
    if seen.facts.halted:  # it would answer OK, and have noted nothing
        raise halted_error(seen.record)
    name, record = seen.record.name, touched(store, seen)
    return Result({"name": name, "last_active": record.last_active}, [f"[OK] {name} touched"])


def halted_error(record: Record) -> Failed:
    """Nothing could be noted: its supervisor stands still."""
    told, _, how = HALTED.format(record).partition(": ")
    return Failed(f"{record.name}: {told}", how)


def find_live(store: Store, name: str, *also: str) -> Seen:
    """A service that runs, or has one of these statuses; NotFound if it doesn't."""
    seen = find(store, name)
    if not (seen.verdict.is_live or seen.verdict.status in also):
        name, status = seen.record.name, seen.verdict.status
        raise NotFound(f"{name} is not running: {status}", f"start it: start {name}")
    return seen


@command(
    "notify",
    Option("name?", "NAME", help="the service; it knows its own name"),
    Option("state", "ready|alive|stopped", one_of(*NOTICES), help="what it says"),
    Option("--message", "TEXT", default="", help="goes into the event"),
)
def notify(store: Store, args: argparse.Namespace) -> Result:
    """A service tells of itself: ready, alive (a heartbeat) or stopped; inside it NAME is known."""
    inside = os.environ.get("SPM_SERVICE", "")
    if not (args.name or inside):
        raise UsageError("whose notice is it?", f"outside a service: notify NAME {args.state}")
    record = find_live(store, args.name or inside, "external").record
    name = record.name
    instance = os.environ.get("SPM_INSTANCE", "") if name.lower() == inside.lower() else ""
    if instance not in ("", record.instance):
        what = f"this process is of an earlier instance of {name}, not of the one that runs"
        raise Refused(what, "end it: it outlived a restart")
    facts = {"state": args.state, "message": args.message}
    if record.phase == "external":  # nobody else could know
        why = f"it says {args.state}" + f": {args.message}" * bool(args.message)
        store.write_event("notice", name, record, why)
        stop_all(store, [name], 0.0, force=False) if args.state == "stopped" else None
        after = store.record(name)
    else:
        after = store.ask_record(name, "notify", **facts)
    if after is None:
        if condition_of(record.supervisor) == "stopped":
            raise halted_error(record)
        raise Failed(f"{name} has no supervisor that could note it", f"start {name} takes it back")
    has_checks = after.spec.readiness or after.spec.health
    shown = "process and its checks show" if has_checks else "process shows"
    but = f"; it is {after.phase}, as its {shown}"
    line = f"[OK] {name}: {args.state} noted" + but * (args.state not in ("alive", after.phase))
    return Result({"name": name, **facts, "status": after.phase}, [line])


# -- explain, events


def pending(store: Store, seen: Seen) -> list[str]:
    """What it still has to fulfil, and what a look sees; no command is run for that."""
    record, waits = seen.record, seen.facts.here and seen.verdict.status in ("starting", "running")
    pairs = [(text, parse_check(text)) for text in record.spec.readiness if waits]
    looks = Checks(store, record, [one for _, one in pairs], record.spec, Checks.read)
    for one in (check for _, check in pairs if check.kind not in ("exec", "mcp")):
        looks.look(one, {}, time.monotonic() + 0.5, lambda: False)
    relay = with_news(store, seen)[1] if any(one.kind == "mcp" for _, one in pairs) else None
    heard = Sight(bool(as_object(relay).get("era")), "it hasn't answered on its stdout yet")
    sights = [(text, heard if one.kind == "mcp" else looks.sights[one]) for text, one in pairs]
    return [f"{mask_secrets(text)}: {sight.seen}" for text, sight in sights if not sight.is_ok]


@command("explain", Option("name", "NAME", help="the service"))
def explain(store: Store, args: argparse.Namespace) -> Result:
    """One page: status, cause, advice, failed exits, last lines."""
    seen = find(store, args.name)
    store.notes += full_disk(store)
    record, spec, verdict, name = seen.record, seen.record.spec, seen.verdict, seen.record.name
    members = tree_of(trusted(seen)) if seen.facts.here else []
    own = {one.port for one in listeners(member.identity.pid for member in members)}
    ended = None if verdict.is_live else record.exit
    data: dict[str, object] = {"name": name, "status": verdict.status, "why": verdict.why}
    data["waits_for"] = pending(store, seen)
    is_unready = verdict.status in ("starting", "unhealthy") or (
        verdict.status == "running" and (spec.readiness or (spec.port and spec.port not in own))
    )
    facts = (doubt_facts if is_unready and seen.facts.here else failure_facts)(store, record)
    since = None if went_down(record, verdict) else record.started_at  # nobody saw its end
    data.update(since=ended.at if ended else since, **facts)
    data.update(command=shown_command(spec), cwd=spec.cwd)
    data.update(environment=dict(record.environment), listens_on=sorted(own), port=spec.port)
    state = port_state(spec.port) if spec.port and spec.port not in own else None
    data.update(port_state=state, log=store.path(name, "output.log"))
    exits, tail = store.failed_exits(name), [*map(masked_line, store.last_lines(name, 20))]
    after = [f"logs {name} -n 100"] * (not spec.terminal) + [f"events {name}"]
    is_failed = verdict.status in ("failed", "backoff")
    is_alone = verdict.status == "running" and not seen.facts.supervised and spec.type != "stdio"
    after += [f"start {name} (takes it back)"] * is_alone
    after += [f"wait-healthy {name}"] * (verdict.is_live and not is_failed)
    after += ways_back(store, seen, members) if is_failed or not verdict.is_live else []
    after += [f"stop {name}"] * (verdict.is_live or is_daemon(record, members))
    after += [f"{corrected(record)} (if the command is wrong)"] * (verdict.status == "failed")
    # 34 lines of facts, the newest exits first, 21 of output, 5 of what to do next
    brief = [{k: v for k, v in one.items() if k != "log_tail"} for one in exits]
    page = page_of({**data, "exits": brief}, 14)[:34]
    page += ["log_tail:", *(f"  | {line}" for line in tail)] if tail else []
    page += ["next:", *(f"  {line}" for line in after)]
    data.update(exits=exits, log_tail=tail, next=after)
    return Result(data, [line if len(line) < 300 else f"{line[:299]}…" for line in page])


@command(
    "events",
    Option("name?", "NAME", help="this service alone"),
    Option("-n --lines", "N", parse_count, 100, "how many lines at most (100)"),
    Option("-f --follow", help="go on until the service ends (without NAME: until Ctrl-C)"),
)
def events(store: Store, args: argparse.Namespace) -> Result:
    """What happened to a service, or to all of them, and why: one line each."""
    name = check_name(args.name) if args.name else None
    told, looked_at = store.events(name), 0.0
    if name and not told:  # else it may be forgotten, or a port's
        find(store, name)
    last, known = told[max(0, len(told) - args.lines) :], set(told)

    def news() -> str:
        nonlocal looked_at
        changed_after, looked_at = looked_at - 2, time.time()  # file times are coarse
        new = [event for event in store.events(name, changed_after) if event not in known]
        known.update(new)
        return "".join(f"{event}\n" for event in new)

    if args.follow:
        first = (f"{event}\n" for event in last)
        return Result({}, stream=itertools.chain(first, follow(store, name, news)))
    return Result({"events": [event._asdict() for event in last]}, list(map(str, last)))


# -- wait-healthy


@command(
    "wait-healthy",
    Option("targets+", "NAME|PORT|URL [TIMEOUT]", help="one or more; TIMEOUT is a duration (30s)"),
    Option("--http", "PATH", help="a GET of this path instead of the recorded readiness"),
    Option("--log", "REGEX", help="a line of the log instead of the recorded readiness"),
    *HTTP_OPTIONS,
)
def wait_healthy(store: Store, args: argparse.Namespace) -> Result:
    """Wait until services, ports or URLs answer."""
    words, timeout_s = list(args.targets), WAIT_S
    if len(words) > 1 and re.fullmatch(DURATION, words[-1]):
        text = words.pop()
        timeout_s = parse_duration(text)
        if (as_port(text) or 0) >= 1024 and not IS_LEAN:  # else it was told before
            told = f"[INFO] {text} is the time to wait ({format_duration(timeout_s)}); "
            args.say(f"{told}for two ports: wait-healthy {join_command([*words, text, '30s'])}")
    elif len(words) > 1 and ":" not in words[-1] and not store.record(words[-1]):
        advice = "write for example: wait-healthy api redis 30s"
        raise UsageError(f"{words[-1]!r} is neither a service here nor a duration", advice)
    began = float(LEAN_S) if IS_LEAN else time.monotonic()  # one clock for all processes
    with contextlib.ExitStack() as left:
        targets = list[Target]()
        for word in dict.fromkeys(words):
            targets.append(left.enter_context(contextlib.closing(target_of(store, word, args))))
        return wait_for_each(store, targets, timeout_s, args, began)


def wait_for_each(
    store: Store,
    targets: Sequence[Target],
    timeout_s: float,
    args: argparse.Namespace,
    began: float,
) -> Result:
    """The Result when all are healthy, mostly after one look at each; else the error."""
    kinds = {check.kind for target in targets for check in target.checks.checks}
    asked = [f"--{key}" for target in targets for key in target.asked]
    if asked and not kinds & {"http", "https"}:
        raise UsageError(f"{asked[0]}: nothing here is asked by http", "add --http PATH")
    for target in targets:
        target.look(began, began + timeout_s)
    if any(target.checks.waiting() for target in targets):
        go_on_lean(store, began)
        if not all(target.record for target in targets):
            __import__("psutil")  # looks at who answers: 15 ms, better now than then
    return wait_for(targets, timeout_s, args.progress, began)


def target_of(store: Store, word: str, args: argparse.Namespace) -> Target:
    """What a word of wait-healthy stands for; a service that is named lives on for it."""
    url, port = parse_url(word), parse_port(word) if word.isdigit() else None
    if ":" in word and not url:
        address = word.rpartition("://")[2].strip("/")
        local = re.fullmatch(r"(?:localhost|127\.0\.0\.1|\[::1\]|0\.0\.0\.0|):(\d+)", address)
        meant = f"http://localhost{address}/" if address[:1] == ":" else f"http://{address}/"
        how = f"write {local[1] + ' or ' if local else ''}{meant}"
        how = how if parse_url(meant) else "write http://HOST:PORT/, the port from 1 to 65535"
        raise UsageError(f"{word!r} is neither a name, a port nor a URL", how)
    if url and args.http:
        raise UsageError(f"--http: {word} is a URL itself", "write the path into it")
    checks = [url] if url else [parse_check(f"http:{args.http}")] if args.http else []
    checks += [parse_check(f"log:{args.log}")] if args.log else []
    if url or port:
        is_local = url is None or url.host in ("localhost", *LOOPBACK)
        seen = claimant(store, (url and url.port) or port or 0) if is_local else None
    else:
        seen = find(store, word)
        if seen.verdict.is_live:  # a supervisor that hangs may not use up the time
            touched(store, seen, wait_s=TOUCH_S)
    if args.log and seen is None:
        raise UsageError(f"--log: {word} is no service's, so it has no log", "leave --log out")
    if seen is None and not url:
        checks = [(checks or [Check("tcp")])[0]._replace(port=port)]
    return Target(store, seen and seen.record, checks, args)


def claimant(store: Store, port: int) -> Seen | None:
    """The service here that declared this port, or seems to use it; a live one before others."""
    known = [one for one in store.records().values() if one.spec.port == port]
    wanted = [one for one in known if one.wanted == "running" or one.phase == "stopping"]
    asked = [one for one in wanted if one.phase != "external"]
    claims = [observe(store, record) for record in asked]
    here = [seen for seen in claims if seen.facts.here]
    return max(here, key=lambda one: (one.verdict.is_live, one.record.started_at), default=None)


WAIT_S = 30.0
TOUCH_S = 0.25
LEAST_S = 0.1
PROBE_S = 5.0  # one look at one check, while others wait for their turn


class Target:
    """What is waited for: a service with its checks, or a port or URL that nobody here claims."""

    def __init__(
        self, store: Store, record: Record | None, given: Sequence[Check] = (), args: object = None
    ) -> None:
        self.store, self.given = store, given
        self.ends = list[str]()  # why it is restarted, as far as its supervisor told us
        self.is_passing = False  # `run` ends it at once when it doesn't become ready
        asked = [(key, getattr(args, key, None)) for key in ("expect", "insecure")]
        self.asked = {key: value for key, value in asked if value}
        self.record: Record | None = None
        self.connection: socket.socket | None = None
        self.follow(record)

    def follow(self, record: Record | None) -> None:
        """Go over to another instance: nothing of it held yet."""
        was, self.record, self.name = self.record, record, record.name if record else None
        spec = (record.spec if record else Spec(("",), os.curdir))._replace(**self.asked)
        checks = self.given or [parse_check(text) for text in spec.readiness] or [Check("tcp")]
        self.checks = Checks(self.store, record, checks, spec, self.ask)
        self.env = dict(os.environ)
        if record and any(check.kind == "exec" for check in checks):
            with contextlib.suppress(StateError):  # what it was given can't be read
                given = self.store.given_env(record.name)
                self.env.update(added_values(record.spec, given))
        self.due_at = dict.fromkeys(checks, 0.0)
        self.after_s: float | None = None  # when everything held
        # The same supervisor goes on telling where it was: nothing is heard twice.
        if not (self.connection and record and was and record.supervisor == was.supervisor):
            self.close()
            self.phase, self.why = (record.phase, record.reason) if record else ("", "")
            self.heard = b""
            with contextlib.suppress(OSError):  # no supervisor: then nothing idles, nobody tells
                self.connection = record and self.store.send(record.name, {"op": "watch"})

    def close(self) -> None:
        """Hear no more of it; only then can the service be idle."""
        if self.connection:
            self.connection.close()
            self.connection = None

    def ask(self, checks: Checks, check: Check, deadline: float) -> Sight:
        """What only the supervisor knows, or what its log says."""
        return checks.read(check, deadline) if check.kind == "log" else self.told()

    def told(self) -> Sight:
        """What the supervisor says of it."""
        if self.phase == "ready" and self.why:
            return Sight(True, self.why)
        why = f": {self.why}" * bool(self.why)
        return Sight(self.phase == "ready", f"{self.name} is {self.phase}{why}")

    def hear(self) -> None:
        """The phases that its supervisor tells of; while it has our connection, it isn't idle."""
        while self.connection:
            try:
                self.connection.setblocking(False)
                chunk = self.connection.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                chunk = b""
            *lines, self.heard = (self.heard + chunk).split(b"\n")
            for line in lines:
                with contextlib.suppress(SpmError):  # an older supervisor knows no watchers
                    news = accepted(line)
                    self.phase, self.why = str(news.get("phase")), str(news.get("why"))
                    self.ends += [self.why] * (self.phase == "backoff")
            if not chunk:
                self.close()

    @property
    def label(self) -> str:
        """Its name, `port 8000` or the URL."""
        one = self.checks.checks[0]
        if self.name or not one.host:
            return self.name or f"port {one.port}"
        return f"{one.kind}://{joined_host(one.host, one.port)}{one.text}"

    @property
    def seen(self) -> str:
        """What the last looks saw of what doesn't hold, or of everything."""
        checks = self.checks.waiting() or self.checks.checks
        return "; ".join(self.checks.sights[check].seen for check in checks)

    def look(self, began: float, deadline: float) -> None:
        """Look at each check that is due; Failed as soon as the service has died."""
        self.hear()
        if self.has_died():
            self.check_alive()
        for check in () if self.has_died() else self.checks.waiting():
            now = time.monotonic()
            if now >= self.due_at[check]:
                until = min(deadline, now + PROBE_S)
                sight = self.checks.look(check, self.env, until, self.has_died)
                is_cheap = check.kind in ("tcp", "log")
                pause_s = (probe_pause_s if is_cheap else lazy_pause_s)(now - began)
                if sight.is_foreign or (check.kind == "tcp" and not sight.port):  # a tree look
                    pause_s = 0.05
                at = time.monotonic() + pause_s
                # no look in the very last moment, which would have no time to see anything
                is_last = not is_cheap and at > deadline - LEAST_S
                self.due_at[check] = deadline + LEAST_S if is_last else at
        is_told = self.phase == "ready" and not (self.given or self.checks.spec.readiness)
        is_sick = self.phase == "unhealthy" and not (self.given or self.checks.waiting())
        if is_told or is_sick or self.phase == "stopping":  # what ends may still answer
            self.checks.sights = dict.fromkeys(self.checks.checks, self.told())
        if self.after_s is None and not self.checks.waiting():
            self.after_s = time.monotonic() - began

    def tell(self) -> None:
        """Let the supervisor know, so that `list` says ready as soon as we do."""
        record = self.record
        if record and record.spec.readiness and not self.given and self.checks.spec == record.spec:
            self.store.ask_record(record.name, "ready", 4 * TOUCH_S, instance=record.instance)

    def has_died(self) -> bool:
        """Whether its main process is gone, or not there yet."""
        return self.record is not None and not is_alive(self.record.main)

    def check_alive(self) -> None:
        """Failed, with how it ended and its last lines, unless it begins anew just now."""
        assert self.record
        name, was = self.record.name, self.record
        is_claimed = self.store.is_claimed(name)
        seen = find(self.store, name)
        if (seen.record.instance, seen.record.main) != (was.instance, was.main):
            self.hear()  # what its supervisor told until now would be lost
            self.follow(seen.record)
        self.due_at = dict.fromkeys(self.due_at, time.monotonic() + SOON_S)
        if seen.verdict.is_live or is_claimed or self.store.is_claimed(name):
            return
        if seen.verdict.status == "external":
            why = f"{name} can't be judged: external ({seen.verdict.why})"
            raise Failed(why, "wait for its port or a URL: wait-healthy PORT", name=name)
        ended, after, tail = seen.record.exit, "", self.store.last_lines(name, 20)
        if ended:  # without lived_s nobody saw it
            lived_s = ended.at - seen.record.started_at if ended.lived_s is None else ended.lived_s
            after = f" {format_duration(lived_s)} after its start"
        text = f"{name} is not running: {seen.verdict.status}{after} ({seen.verdict.why or ended})"
        facts = {**failure_facts(self.store, seen.record), "exit": ended and ended._asdict()}
        cause = as_object(facts["cause"])
        read = f"{'read its last lines above' if tail else SILENT}; "
        if cause.get("advice", SILENT) not in (SILENT, CAUSE_ADVICE["unknown"]):
            read = f"{cause['advice']}; " * (cause["kind"] == "unknown")
        advice = read + MEND.format(restart_line(seen), corrected(seen.record))
        advice = f"{read}mend the cause, then: run this again" if self.is_passing else advice
        if seen.verdict.status == "stopped":
            advice = f"it was stopped ({seen.verdict.why or ended}): start {name}"
        elif went_down(seen.record, seen.verdict):
            advice = f"start it again: {restart_line(seen)}; all that ran: start --all-previous"
        elif ended and ended.code == 0 and seen.verdict.status == "exited":
            advice = "a command that returns by itself needs no start; a daemon: --type forking"
            members = [] if self.is_passing else tree_of(seen.record)
            if is_daemon(seen.record, members):
                again = again_line(seen, members)
                advice = f"it went into the background: {again}; or have it stay in the foreground"
        raise Failed(text, advice, name=name, log_tail=tail, **facts)

    @property
    def answer(self) -> Sight:
        """The first look that is about a port."""
        return next((sight for sight in self.checks.sights.values() if sight.port), Sight())

    def facts(self) -> dict[str, object]:
        """Its part of the result."""
        one, seen = self.answer, [sight.seen for sight in self.checks.sights.values()]
        pid = one.pid or (self.record and self.record.main and self.record.main.pid)
        data = {"name": self.name, "port": one.port, "address": one.address or None, "pid": pid}
        return {**data, "waited_s": round(self.after_s or 0.0, 3), "seen": seen}

    @functools.cached_property
    def answerer(self) -> str:
        """Who answers at a port that no service here claims, as far as it can be seen."""
        one, told = self.answer, "no service here claims this port"
        if one.address not in LOOPBACK:  # another machine's
            return told
        holder = look_at(port_holder(one.port or 0, one.address))
        if holder.identity and is_same_home(holder.cookie.home, self.store.home):
            declared = f"(pid {holder.identity.pid}; declare that with --port {one.port})"
            return f"service {holder.cookie.service} of this home answers there {declared}"
        return f"{told}: {holder} answers"

    def line(self) -> str:
        """Its line when it is healthy."""
        pid, one = self.facts()["pid"], self.answer
        by = f" (pid {pid})" if self.record else f"; {self.answerer}"
        after = f"after {format_duration(self.after_s or 0.0)}{by}"
        if [check.kind for check in self.checks.checks] == ["tcp"] and one.port:
            return f"[OK] {self.label} answers on {joined_host(one.address, one.port)} {after}"
        return f"[OK] {self.label} is ready {after}: {self.seen}"

    def unanswered(self, timeout_s: float) -> SpmError:
        """The error when the time is over for a port or URL that no service here claims."""
        waited, sights = format_duration(timeout_s), self.checks.sights.values()
        here = [one for one in self.checks.checks if one.host in ("", "localhost", *LOOPBACK)]
        mine = {one.port for one in here if one.port}
        ended = [one.name for one in self.store.records().values() if one.spec.port in mine]
        message = f"{self.label} didn't answer in {waited} ({self.seen})"
        advice = "no service here claims this port (see `list`): start one with --port"
        advice = f"start {ended[0]}, whose port it is" if ended else advice
        for one in self.store.records().values():
            if one.main and one.main.pid in mine and one.phase in LIVE_PHASES:
                advice = f"{one.main.pid} is the pid of {one.name}: write the name instead"
        for status in {one.status for one in sights if not one.is_ok} - {0}:
            message = f"{self.label} didn't answer as expected in {waited} ({self.seen})"
            advice = f"status {status} is an answer: are path and --expect right? {self.answerer}"
        return TimedOut(message, advice, name=self.name, port=self.answer.port)

    def way_to_port(self, name: str, port: int, own_ports: Sequence[str]) -> str:
        """What to do about who answers at the port of a service that waits for it."""
        held = held_port(self.store, port, name)
        way = port_error(held, "fail").advice if held else "end that process"
        way += f", or give {name} another port"
        if not own_ports or self.is_passing:  # `run` has ended it by then
            return way
        return f"{way}; or go on with the one it took: wait-healthy {own_ports[0]}"

    def too_late(self, timeout_s: float) -> SpmError:
        """The error when the time is over."""
        waited, record, sights = format_duration(timeout_s), self.record, self.checks.sights
        if record is None:
            return self.unanswered(timeout_s)
        facts: dict[str, object] = {"name": self.name, "port": self.answer.port}
        name, pid = record.name, record.main and record.main.pid
        facts["log_tail"] = self.store.last_lines(name, 20)
        now = self.store.record(name) or record
        facts.update(doubt_facts(self.store, now))
        crashed = ends_told(self.store, now)
        if self.has_died():  # and begins anew again and again
            why = ": ".join(filter(None, find(self.store, name).verdict))
            text = f"{name} did not become healthy in {waited} ({why}){crashed}"
            return TimedOut(text, f"see why: explain {name}; or wait longer", **facts)
        left = "was alive" if self.is_passing else "is alive and left running"
        alive = f"{name} (pid {pid}) {left}"
        ports = dict.fromkeys(str(one.port) for one in own_listeners(record, None))
        port = next((sight.port for sight in sights.values() if sight.is_foreign), None)
        if port:  # maybe another than that of the first check
            message = f"port {port} isn't {name}'s after {waited}: {self.seen}; {alive}"
            message += f" (it listens on {', '.join(ports)})" if ports else ""
            advice = self.way_to_port(name, port, [*ports])
            return PortConflict(message, advice, **{**facts, "port": port})
        where = self.seen + (f"; it listens on {', '.join(ports)}" if ports else "")
        advice = f"read logs {name}, wait longer, or stop {name}"
        if self.is_passing:
            advice = f"read logs {name}; more time: --timeout {max(60, 2 * timeout_s):g}s"
        advice = record.spec.port_doubt or advice
        for status in {one.status for one in sights.values() if not one.is_ok} - {0}:
            advice = f"status {status} is an answer: are path and --expect right? Or {advice}"
        if record.spec.type == "forking" and self.phase == "starting":
            advice = "it seems to stay in the foreground: start it without --type forking"
        elif not (self.given or record.spec.readiness or facts["port"]):
            way = "start it with --ready log:REGEX or --ready exec:COMMAND"
            says = f" says that it is ready with: notify {name} ready, or {way}; "
            says += f"what it wrote: wait-healthy {name} --log REGEX"
            # what `run` has ended by then neither says nor is asked anything any more
            advice += "; what listens on no port" + (f": {way}" if self.is_passing else says)
        if record.main and condition_of(record.main) == "stopped":
            advice = f"it is stopped (SIGSTOP): continue it with kill -CONT {pid}"
        elif self.phase == "stopping":
            advice = f"see how it ends: events {name}; then start it, or wait for it, again"
        message = f"{name} did not become healthy in {waited} ({where}); {alive}{crashed}"
        return TimedOut(message, advice, **facts)


def wait_for(
    targets: Sequence[Target],
    timeout_s: float,
    progress: Callable[[str], None],
    began: float | None = None,
) -> Result:
    """The Result when all are healthy; as soon as one dies or time is over, the error."""
    shown_at = time.monotonic()
    began = shown_at if began is None else began
    waiting, deadline = list(targets), began + timeout_s
    try:
        while waiting:
            for target in targets:
                target.look(began, deadline)
            waiting, now = [one for one in targets if one.checks.waiting()], time.monotonic()
            if waiting and now >= deadline:
                errors = [target.too_late(timeout_s) for target in waiting]
                errors[0].message = "; ".join(error.message for error in errors)
                raise errors[0]
            if waiting and now >= shown_at:
                time_s = f"{now - began:.0f} s of {format_duration(timeout_s)}"
                progress(f"waiting for {waiting[0].label}: {waiting[0].seen:.44} ({time_s})")
                shown_at = now + 0.1
            due = [one.due_at[check] for one in waiting for check in one.checks.waiting()]
            time.sleep(max(0.0, min(*due, deadline) - time.monotonic()) if due else 0.0)
    finally:
        progress("")
    for target in targets:
        target.tell()
    rows, waited_s = [one.facts() for one in targets], round(time.monotonic() - began, 3)
    data = rows[0] if len(rows) == 1 else {"waited_s": waited_s}
    others = [one for one in targets if not one.record and one.answer.address in LOOPBACK]
    told = [f"{one.label}: {one.answerer}" for one in others]  # people read it in the line itself
    data = {**data, "warnings": told} if told else data
    return Result({**data, "targets": rows}, [target.line() for target in targets])


# -- run


def users_of(record: Record) -> list[Identity]:
    """The processes that it lives as long as, the one that owns it first."""
    return [one for one in (record.owner, *record.sharers) if one]


class Chain:
    """Services that live as long as a test command: this process owns them, also killed with -9."""

    def __init__(self, store: Store, args: argparse.Namespace) -> None:
        look = stat_of(os.getpid())
        assert look
        self.store, self.say, self.progress = store, args.say, args.progress
        self.timeout_s: float = args.timeout if args.wait in (None, WAIT_S) else args.wait
        self.me, self.env = look.identity, dict(os.environ)
        self.services: dict[str, dict[str, object]] = {}  # their JSON, in the order of their starts
        self.targets: list[Target] = []  # those that live as far as was seen
        self.started: set[str] = set()  # instances

    def add(self, args: argparse.Namespace) -> None:
        """Start a service, or take the one that runs, and wait until it is ready."""
        # `Api` and `api` are one service
        data = self.services.setdefault(args.name.lower(), {"name": args.name})
        result = start_service(self.store, args, (self.me, "run"))
        data.update(result.data)
        self.say(*result.lines)
        record = find(self.store, args.name).record
        self.started.update([record.instance] if record.owner == self.me else [])
        target = Target(self.store, record)
        self.targets.append(target)
        target.is_passing = record.owner == self.me
        ready = wait_for([target], self.timeout_s, self.progress)
        self.say(*ready.lines)
        port = record.spec.port or ready.data["port"]
        data.update(port=port, waited_s=ready.data["waited_s"], died=None)
        variable = re.sub(r"\W", "_", args.name.upper()) + "_PORT"
        self.env.update(dict.fromkeys(("PORT", variable), str(port)) if port else {})

    def test(self, argv: Sequence[str], stdout: int | None) -> int:
        """The return code of the test command; the services are watched meanwhile."""
        # Raised in the midst of Popen.poll() it would leave its lock behind, which wait() takes.
        held: list[int] = []
        on_ending_signals(lambda number, _: held.append(number))
        try:
            process = subprocess.Popen(argv, env=self.env, stdout=stdout)
        except OSError as error:
            what = f"{argv[0]} can't be executed: {error.strerror}"
            raise UsageError(what, "give it a first line such as #!/bin/sh") from error
        try:
            while held or process.poll() is None:
                if held:
                    raise Leave(held[0])
                self.look()
                time.sleep(0.02)
        except Leave as asked:
            what = f"{os.path.basename(argv[0])} has {format_duration(STOP_TIMEOUT_S)} to end"
            self.say(f"[INFO] interrupted by {asked.name}: {what}, then the services are stopped")
            self.end_tests(process, asked.name, held)
            raise
        except BaseException:  # a state that can't be read any more: nobody would wait for them
            self.end_tests(process, "SIGTERM", held)
            raise
        self.look()
        return process.returncode

    def end_tests(self, process: subprocess.Popen[bytes], cause: str, held: Sequence[int]) -> None:
        """Give interrupted tests their time, then end those of their processes that are left.

        A second Ctrl-C, one more signal that was `held`, gives them no more of it.
        """
        look, until, is_told = stat_of(process.pid), time.monotonic() + STOP_TIMEOUT_S, False
        tests = new_record("tests", Spec(("",), os.curdir), os.urandom(16).hex())
        tests = tests._replace(main=look and look.identity)
        members, count = [member.identity for member in tree_of(tests)], len(held)
        while process.poll() is None or any(map(is_alive, members)):
            # Ctrl-C reaches all of them by itself, but for those whom a shell has run with &
            is_due = cause in ("SIGTERM", "SIGHUP") or process.returncode is not None
            if is_due and not is_told:
                is_told = bool([send_signal(member, force=False) for member in members])
            if time.monotonic() > until or len(held) > count:
                break
            time.sleep(0.02)
        for member in {*members, *(one.identity for one in tree_of(tests))}:
            send_signal(member, force=True)
        process.kill()
        process.wait()

    def look(self) -> None:
        """Warn of services that have died since the last look; keep those in use from idling."""
        for target in list(self.targets):
            target.hear()
            death: SpmError | None = None
            try:
                if target.has_died():
                    target.check_alive()  # not dead if the tests restart it just now
            except (Failed, NotFound) as error:
                death = error
            told = [f"[WARN] {target.name} ended: {why}; the tests go on" for why in target.ends]
            lines = self.store.last_lines(str(target.name), 20) if told else []
            self.say(*told, *(f"  | {mask_secrets(cut(line))}" for line in lines))
            target.ends.clear()
            if death:
                self.targets.remove(target)
                target.close()
                self.services[str(target.name).lower()]["died"] = death.message
                tail = [f"  | {line}" for line in as_list(error_data(death).get("log_tail", []))]
                self.say(f"[WARN] {death.message}; the tests go on", *tail)

    def leave(self, record: Record) -> bool:
        """Give up our part in a service; whether somebody else has one."""
        me = self.me._asdict()
        known = self.store.ask_record(record.name, "touch", leaver=me) or record
        return any(is_alive(one) for one in users_of(known) if one != self.me)

    def stop(self) -> str:
        """Stop what was started here, the last one first; `; stopped: api, db`."""
        shared, failed = list[str](), list[str]()
        for target in self.targets:
            target.close()

        def is_shared(record: Record) -> bool:
            """Leave it, under its claim; whether another `run` still uses it."""
            is_used = record.phase in LIVE_PHASES and self.leave(record)
            shared.extend([record.name.lower()] * is_used)
            return is_used

        for name, data in reversed(self.services.items()):
            record = self.store.ask_record(name) or self.store.record(name)  # it writes later
            has_part = bool(record and self.me in users_of(record))
            is_ours = has_part or bool(record and record.instance in self.started)
            mine = [name] * is_ours
            reports, errors = stop_each(self.store, mine, STOP_TIMEOUT_S, False, is_shared)
            lines = news_of(reports)
            self.say(*lines, *(f"[WARN] {error.message}" for error in errors))
            failed += [name] * bool(errors)
            record = self.store.record(name)
            record = record and observe(self.store, record).record
            is_ours = is_ours and name not in shared
            data["stopped"] = bool(lines)
            is_over = is_ours and record and record.phase in ("exited", "failed")
            if is_over and record and data.get("died", "") is None:  # after the last look
                data["died"] = f"{record.name} ended by itself: {record.reason}"
                self.say(f"[WARN] {data['died']}")
            data["status"] = record and record.phase
            data["exit"] = record and record.exit and record.exit._asdict()
        stopped = [name for name, data in self.services.items() if data["stopped"]]
        others = [one for one in self.services.items() if one[0] not in (*shared, *failed)]
        left = [name for name, data in others if data["status"] in LIVE_PHASES]
        told = [("stopped", stopped), ("left running, as it was before", left)]
        told += [("left to another run", shared), ("could not be stopped", failed)]
        written = {key: str(data["name"]) for key, data in self.services.items()}
        lists = [(word, ", ".join(map(written.__getitem__, keys))) for word, keys in told if keys]
        return "".join(f"; {word}: {names}" for word, names in lists)


def leave(number: int, _: object) -> None:
    """A handler for the signals that ask to leave."""
    raise Leave(number)


def on_ending_signals(act: Callable[[int, object], None] | signal.Handlers) -> None:
    """Handle them so from now on; what is ignored (nohup) stays so."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(own_signals, name, None)
        if number is not None and own_signals.getsignal(number) != own_signals.SIG_IGN:
            own_signals.signal(number, int(act) if isinstance(act, int) else act)


def with_services(args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """The names of --with and their commands; what can't be right is told before any starts."""
    services, names = list[tuple[str, list[str]]](), {args.name.lower()}
    for item in getattr(args, "with"):
        name, equals, text = item.partition("=")
        if len(name.split()) > 1:
            advice = f"write: --with NAME={join_command([item])}"
            raise UsageError("--with: the name of the service is missing", advice)
        if name.lower() in names:
            told = f"{name} is named twice: each service of a run has a name of its own"
            raise UsageError(told, f"write --with OTHER={join_command([text or 'COMMAND'])}")
        if re.search(PORT_MARK, text):
            told = f"{name} (--with): {{port}} stands in its command, and it is given no port"
            raise UsageError(told, "write its port into the command")
        names.add(name.lower())
        services.append((name, [text] if equals else []))
    return services


def shell_advice(word: str) -> str:
    """How to write a test command that only a shell could take, by its first word, else ""."""
    name, equals, _ = word.partition("=")
    if equals and shell_sign(word) == f"{name}=":  # its value isn't repeated
        return f"have env set it: -- env {name}=… COMMAND"
    if shell_sign(word):
        return f"have a shell run it: -- sh -c {join_command([word])}"
    return f"only a shell has {word}: -- sh -c '{word} …'" * (word in SHELL_WORDS)


@command(
    "run",
    Option("name", "NAME", help="what the service is called"),
    *(one for one in START_OPTIONS if one.words not in NOT_IN_RUN),
    Option("--timeout", "D", parse_duration, 30.0, "time for each to become ready (30s)"),
    Option("--with", 'NAME="COMMAND"', default=[], help="another service, started before; or NAME"),
)
def run_tests(store: Store, args: argparse.Namespace) -> Result:
    """Run a test command with services: NAME "COMMAND" … -- TEST… (--json: TEST speaks on stderr).
    stdout is the test command's, so we speak on stderr.
    """
    tests, advice = args.tail, f'write: run {args.name} "COMMAND" -- pytest tests/'
    if not tests:
        raise UsageError("there is no test command", f"put it behind --; {advice}")
    program = shutil.which(tests[0])
    if program is None:
        told = f"the test command {tests[0]!r} can't be found or executed"
        spec = Spec(tuple(tests), working_directory())
        fault = errno.EACCES if os.path.isfile(tests[0]) else errno.ENOENT
        is_quoted = " " in tests[0] and shutil.which(tests[0].partition(" ")[0])
        unquoted = f"leave the quotes of the test command out: -- {' '.join(tests)}"
        advice = start_advice(spec, {}, fault).replace("add --shell", "write -- sh -c '…'")
        advice = unquoted if is_quoted else advice
        raise UsageError(told, shell_advice(tests[0]) or advice)
    defaults, beside = start_defaults(), with_services(args)
    chain, code, failure = Chain(store, args), None, None
    on_ending_signals(leave)
    try:
        for name, words in beside:
            chain.add(type(args)(**{**defaults, "name": name, "command": words}))
        chain.add(type(args)(**{**defaults, **vars(args), "tail": None}))
        code = chain.test([program, *tests[1:]], 2 if args.json else None)
    except SpmError as error:
        failure = error
    except Leave as asked:
        told = f"interrupted by {asked.name}"
        failure = Interrupted.by(asked, told, "run it again; what is left: list")
    finally:
        on_ending_signals(signal.SIG_IGN)
        stopped = chain.stop()
    return tests_result(chain, tests, code, failure, stopped)


def tests_result(
    chain: Chain, tests: Sequence[str], code: int | None, failure: SpmError | None, stopped: str
) -> Result:
    """What came of a chain; its exit code is that of the tests, as a shell tells it."""
    ended = Exit(0.0, code, None if code is None or code >= 0 else f"signal {-code}")
    code = None if code is None else 128 - code if code < 0 else code
    if failure:
        failure.message += stopped
    elif code:
        name = [*chain.services.values()][-1]["name"]
        advice = f"see what they printed; what {name} wrote: logs {name}"
        failure = Failed(f"the tests failed: {ended}{stopped}", advice)
        failure.exit_code = code if code < 2**31 else code - 2**32  # Windows: unsigned
    else:
        chain.say(f"[OK] the tests passed{stopped}")
    data: dict[str, object] = {"tests": list(tests), "exit_code": code}
    data["services"] = [*chain.services.values()]
    return Result(data, error=failure)


# -- call, tools, connect

ASK_S, LONGEST_ASK_S = 60.0, 600.0  # for an answer; each sign of progress renews the first
LEAVING_S = 5.0  # what `connect` was asked for may still come after its stdin has ended
PLAIN_METHODS = ("ping", "initialize")  # methods without a slash: other such words are tools
CAUSES = {-32602: "invalid_params", -32800: "cancelled"}
ADVICE = {"connection": "see: status {}", "server_died": "see why: explain {}"}
ADVICE["cancelled"] = "what came of it may be in: logs {}"
ADVICE["timeout"] = "wait longer with --timeout; progress renews it, up to --max-time"
INPUT_PAUSES_S = (0.05, 0.1, 0.2, *[0.25] * 7)  # between rounds of input_required, as the SDKs do
REPEATED, RETRY_S = ("server_died", "connection", "flood"), 0.1  # doubled each time
CALL_OPTIONS = (  # the first two are those of `connect` too
    Option("--timeout", "D", parse_duration, ASK_S, "start and answer (60s); progress renews it"),
    Option("--no-start", help="fail if it isn't running, instead of starting it"),
    Option("--max-time", "D", parse_duration, help="how long progress may renew it (10m)"),
    Option("--retries", "N", parse_count, 1, "repeat what wasn't sent, or is harmless (1)"),
)


def not_ready(store: Store, name: str, cause: str) -> TimedOut:
    """The error of a service that let nobody join; one that listens may be an HTTP server."""
    record = store.record(name) if cause == "timeout" else None
    ports = sorted({str(one.port) for one in own_listeners(record, None)}) if record else []
    told, advice = "", f"wait longer with --timeout, or see: status {name}"
    if ports:
        told = f": no answer came on its stdout, but it listens on {', '.join(ports)}"
        advice = f"if it speaks HTTP there, start it without --type stdio; else {advice}"
    return TimedOut(f"{name} was not ready for calls in time{told}", advice, cause=cause)


def join(
    store: Store, args: argparse.Namespace, deadline: float, again: bool = False
) -> tuple[socket.socket, Message]:
    """A place among those who talk to a service, and how; it is started first if need be.

    With `again` not if it was stopped: what is repeated, or waited, must not undo that.
    """
    name, has_started, cause = check_name(args.name), False, "connection"
    while time.monotonic() < deadline:
        # it isn't there, or is just ending
        try:
            with contextlib.suppress(OSError), contextlib.ExitStack() as closing:
                connection = closing.enter_context(store.send(name, {"op": "join"}))
                cause = "timeout"  # it lives, and has greeted nobody yet
                how = receive(connection, max(deadline - time.monotonic(), 0.001))
                closing.pop_all()  # it is the caller's
                return connection, how
        except NotFound as error:
            again = again or error.facts.get("waited") is True
        may_start = (False, False) if args.no_start else (True, not again)
        has_started = ensure_running(store, name, deadline, may_start, has_started)
    raise not_ready(store, name, cause)


def ensure_running(
    store: Store, name: str, deadline: float, may_start: tuple[bool, bool], has_started: bool
) -> bool:
    """Start a stdio service that isn't running: one start, however many callers want it.

    Whether that may be, `may_start` says: of one that is wanted, and of one that was stopped.
    """
    asked = known_start(store, name) or Asked(name, find(store, name).record.spec, {})
    name = asked.name
    if asked.spec.type != "stdio":
        advice = "only services started with --type stdio can be called; "
        advice += "one that speaks HTTP is requested at its port"
        raise UsageError(f"{name} doesn't speak JSON-RPC over its pipes", advice)
    store.prepare()
    with store.claim(name, max(deadline - time.monotonic(), 0.0)):
        seen, asked = store.record(name) and find(store, name), known_start(store, name) or asked
        status, why = (seen.verdict.status, seen.verdict.why) if seen else ("never started", "")
        if seen and seen.facts.supervised and status in UP_PHASES:
            time.sleep(0.01)
            return has_started
        if not may_start[bool(seen and seen.record.wanted == "stopped")]:
            raise NotFound(f"{name} is not running: {status}", f"start it: start {name}")
        if has_started:
            facts = {"cause": "server_died", "log_tail": store.last_lines(name, 20)}
            text = f"{name} ended as soon as it was started: {why or status}"
            raise Failed(text, ADVICE["server_died"].format(name), **facts)
        owner = kept_owner(seen.record) if seen and seen.record.wanted == "running" else None
        begin(store, asked._replace(owner=owner, called=True), seen, "started")
        return True


def read_json(text: str) -> object:
    """The JSON of an argument: itself, of `@file`, or of stdin (`-`)."""
    try:
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8-sig") as file:
                return parse_json(file.read())
        return parse_json(sys.stdin.buffer.read() if text == "-" else text)
    except OSError as error:
        told = f"{error.filename or 'stdin'} can't be read: {error.strerror or error}"
        raise UsageError(told, "name a file with JSON behind @") from error
    except ValueError as error:
        raise UsageError(f"not JSON: {error}", "quote it for the shell: '{\"key\": 1}'") from error


def params_of(words: Sequence[str]) -> object:
    """The parameters: one JSON text, or `key=value` and `a.b=value`."""
    if len(words) == 1 and (words[0] == "-" or words[0].startswith(("{", "[", "@"))):
        return read_json(words[0])
    params: Message = {}
    for word in words:
        key, equals, text = word.partition("=")
        *path, last = key.split(".")
        spot = params
        for part in path:
            inner = spot.setdefault(part, {})
            spot = inner if isinstance(inner, dict) else {last: None}
        if not equals or not last or last in spot:
            how = "write key=value, a.b=value for nested ones, or one JSON object"
            raise UsageError(f"{key!r} is no parameter, or it is there twice", how)
        spot[last] = text
        with contextlib.suppress(ValueError):  # JSON where it is JSON
            spot[last] = text if text.strip("-") in ("NaN", "Infinity") else parse_json(text)
    return params


def message_of(args: argparse.Namespace, how: Message) -> Message:
    """The message that a `call` is about, to a service that is spoken to like this."""
    era = how.get("era")
    if args.raw:
        message = as_object(read_json(args.method))
        if "method" not in message:  # nothing would come of it, nor be answered
            told = "--raw: not one JSON-RPC message with a method"
            raise UsageError(told, "pass one: '{\"method\": …}'")
        return message
    method, params = args.method, params_of(args.params)
    if era != "jsonrpc" and "/" not in method and method not in PLAIN_METHODS:
        method, params = "tools/call", {"name": method, "arguments": params}
    if era != "jsonrpc" and isinstance(params, dict) and not args.notification:
        able: Message = {META + "clientCapabilities": {"roots": {}}}
        able = able if era == "modern" and how.get("roots") else {}
        params = {**params, "_meta": {"progressToken": 1, **able, **as_object(params.get("_meta"))}}
    message = {"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})}
    return message if args.notification else {**message, "id": 1}


class Patience:
    """How long to wait for an answer: each sign of progress renews it, up to the most."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.timeout_s, self.began = args.timeout, time.monotonic()
        self.last = self.began + (args.max_time or max(LONGEST_ASK_S, args.timeout))
        self.until = self.began  # exchange() renews it

    def renew(self) -> None:
        """It goes on."""
        self.until = min(time.monotonic() + self.timeout_s, self.last)

    def left_s(self) -> float:
        """What is left of it; socket.timeout if that is nothing."""
        if self.until <= time.monotonic():
            raise socket.timeout
        return max(self.until - time.monotonic(), 0.001)


def ask(connection: socket.socket, message: Message, patience: Patience) -> Message:
    """The answer to a message, {} if it wants none; OSError, BrokenPipeError if it wasn't sent."""
    frames = Frames(WIDER * MESSAGE_BYTES)
    connection.settimeout(patience.left_s())
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except ConnectionError as error:  # without the end of its line nothing comes of it
        raise BrokenPipeError from error
    while "id" in message:
        connection.settimeout(patience.left_s())
        chunk = connection.recv(1 << 18)
        if not chunk:
            raise ConnectionError
        for answer in (as_object(parse_json(line)) for line in frames.feed(chunk) if line):
            if "method" not in answer:
                return answer
            if answer["method"] == "notifications/progress":
                patience.renew()
    return {}


def unanswered(
    store: Store, name: str, era: object, message: Message, patience: Patience, fault: BaseException
) -> Message:
    """What to say of a request without answer, and whether it may be sent again."""
    method, tool = message.get("method"), as_object(message.get("params")).get("name")
    record, waited = store.record(name), format_duration(time.monotonic() - patience.began)
    late, broke = ("timeout", f" in {waited}: cancelled"), ("connection", ": the connection broke")
    broke = ("cancelled", ": interrupted") if isinstance(fault, KeyboardInterrupt) else broke
    cause, why = late if isinstance(fault, socket.timeout) else broke
    is_new, extra = isinstance(fault, BrokenPipeError), record.spec.extra if record else NOTHING
    repeat = is_new or is_harmless(era, method, tool, extra.get("repeatable"))
    text = f"{name} did not answer {method}{why}, {NEVER_SENT if is_new else UNSURE}"
    return failure(None, RELAY_ERROR, text, cause=cause, repeat=repeat)


def exchange(
    store: Store, args: argparse.Namespace, patience: Patience, make: Callable[[Message], Message]
) -> Message:
    """One message and its answer; sent again after a failure only if that can do no harm."""
    name, message, asked = args.name, as_object(None), None
    patience.renew()  # an answer to what was sent before is progress
    if patience.last <= time.monotonic():
        waited = format_duration(time.monotonic() - patience.began)
        raise TimedOut(f"{name} came to no end in {waited}", ADVICE["timeout"], cause="timeout")
    for attempt in itertools.count():
        connection, facts = join(store, args, patience.until, again=attempt > 0)
        with connection:
            message = message or make(facts)  # it may come from stdin: made once
            try:
                answer = ask(connection, message, patience)
            except (OSError, KeyboardInterrupt) as fault:
                asked = fault if isinstance(fault, KeyboardInterrupt) else None
                note = b'{"method": "%s"}\n' % GAVE_UP.encode()
                with contextlib.suppress(OSError):
                    connection.sendall(note if isinstance(fault, OSError) else b"")
                answer = unanswered(store, name, facts.get("era"), message, patience, fault)
        error = as_object(answer.get("error"))
        data = as_object(error.get("data"))
        is_ours = error.get("code") == RELAY_ERROR and "repeat" in data  # services use it, too
        cause = str(data.get("cause")) if is_ours else ""
        repeat = is_ours and data["repeat"] is True
        if attempt >= args.retries or cause not in REPEATED or not repeat:
            break
        time.sleep(max(min(RETRY_S * 2.0**attempt, patience.until - time.monotonic()), 0.0))
    if answer.get("error") is not None and (cause or not getattr(args, "raw", False)):
        code = error.get("code")
        told = f"{error.get('message')} ({code})" if error else json.dumps(answer["error"])
        text = str(error.get("message")) if cause else f"{name}: {told}"
        cause = cause or CAUSES.get(code if isinstance(code, int) else 0, "protocol")
        advice = str(data.get("advice") or "") * is_ours
        advice = advice or ADVICE.get(cause, "see: tools {}").format(name)
        facts = {"cause": cause, "code": code, "retryable": repeat}
        facts.update(data=error.get("data", data), log_tail=data.get("log_tail", []))
        if asked:
            raise Interrupted.by(asked, text, advice, **facts)
        is_late = cause == "timeout" and code == RELAY_ERROR
        raise (TimedOut if is_late else Failed)(text, advice, **facts)
    return answer


def input_for(name: str, method: str, result: Message, how: Message) -> Message:
    """What a service of the modern era asks for before it goes on; Failed if `call` hasn't that."""
    asked = {key: as_object(one) for key, one in as_object(result.get("inputRequests")).items()}
    others = {one.get("method"): one for one in asked.values() if one.get("method") != "roots/list"}
    if others:
        texts = (as_object(one.get("params")).get("message") for one in others.values())
        text = f"{name}: {method} asks for {', '.join(map(str, others))}, which call can't answer"
        advice = f"pass what it asks for as an argument, or have a client use: connect {name}"
        said = "".join(f"; it says: {one}" for one in texts if one)
        raise Failed(f"{text}{said}", advice, cause="input_required", asked=asked)
    roots = {"roots": how.get("roots") or []}
    state = {key: result[key] for key in ("requestState",) if key in result}
    return {"inputResponses": dict.fromkeys(asked, roots), **state}


def conversation(store: Store, args: argparse.Namespace) -> Message:
    """The answer to a call: what a service of the modern era asks for on the way is given to it."""
    message, given, how = as_object(None), as_object(None), as_object(None)
    patience = Patience(args)

    def made(spoken: Message) -> Message:
        how.update(spoken)
        message.update(message or message_of(args, how))  # there is only one on stdin
        params = {"params": {**as_object(message.get("params")), **given}} if given else {}
        return {**message, **params}

    for pause_s in INPUT_PAUSES_S:
        answer = exchange(store, args, patience, made)
        result = as_object(answer.get("result"))
        asks = result.get("resultType") == "input_required" and how.get("era") == "modern"
        if args.raw or not asks:
            return answer
        given = input_for(args.name, args.method, result, how)
        time.sleep(0.0 if given["inputResponses"] else pause_s)
    text = f"{args.name}: {args.method} asked for input {len(INPUT_PAUSES_S)} times, without end"
    raise Failed(text, f"read: logs {args.name}", cause="input_required")


@command(
    "call",
    Option("name", "NAME", help="the service"),
    Option(
        "method", "METHOD|TOOL", help="a method has a slash (tools/list), or is ping, initialize"
    ),
    Option(
        "params*",
        "PARAMS",
        help="key=value… (text 1: k='\"1\"'), a.b=value, JSON, @file, or - for stdin",
    ),
    Option("--notification", help="send it and wait for no answer"),
    Option("--raw", help="METHOD is a whole message, as JSON, @file or -"),
    *CALL_OPTIONS,
)
def call(store: Store, args: argparse.Namespace) -> Result:
    """One request to a stdio service: NAME TOOL key=value…, or NAME METHOD [PARAMS]."""
    answer = conversation(store, args)
    if not answer:  # none was wanted
        return Result({}, [f"[OK] {args.name} was told {args.method}"])
    if args.raw:
        return Result({"answer": answer}, stream=iter([json.dumps(answer) + "\n"]))
    result, error = as_object(answer.get("result")), None
    content = result.get("content")
    texts = [json.dumps(answer.get("result"), indent=2, ensure_ascii=False)]
    if isinstance(content, list) and content:
        items = [as_object(item) for item in content]
        texts = [str(item["text"]) if "text" in item else json.dumps(item) for item in items]
    if result.get("isError") is True:
        text = f"{args.name}: {args.method} answered an error"
        advice = f"its output: logs {args.name}; what it takes: tools {args.name}"
        error = Failed(text, advice, cause="tool")
    stream = (text + "\n" for text in texts)
    return Result({"result": answer.get("result")}, stream=stream, error=error)


def type_in(schema: Message) -> str:
    """What an argument may be, in a word."""
    several = schema.get("anyOf") or schema.get("oneOf")
    several = several if isinstance(several, list) else ["any"]
    kinds = schema.get("type") or [as_object(one).get("type", "any") for one in several]
    return "|".join(map(str, kinds)) if isinstance(kinds, list) else str(kinds)


@command("tools", Option("name", "NAME", help="the service"), *CALL_OPTIONS)
def tools(store: Store, args: argparse.Namespace) -> Result:
    """The tools of a stdio service, and their arguments."""
    found: list[Message] = []
    params: Message = {}
    cursors, patience = list[object](), Patience(args)

    def asked(_: object) -> Message:
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params}

    while True:
        result = as_object(exchange(store, args, patience, asked).get("result"))
        listed, cursor = result.get("tools"), result.get("nextCursor")
        found += map(as_object, listed if isinstance(listed, list) else ())
        if not cursor:  # a page may be empty
            break
        if cursor in cursors:
            store.notes.append(f"{args.name} repeats the cursor {cut(cursor)}: no more was asked")
            break
        params = {"cursor": cursor}
        cursors.append(cursor)
    table = [("tool", "arguments", "description")]
    for tool in found:
        schema = as_object(tool.get("inputSchema"))
        needed, known = str(schema.get("required")), as_object(schema.get("properties"))
        pairs = [(key, f"{key}={type_in(as_object(one))}") for key, one in known.items()]
        words = [text if repr(key) in needed else f"[{text}]" for key, text in pairs]
        text = str(tool.get("description") or "").strip().partition("\n")[0]
        table.append((str(tool.get("name")), " ".join(words) or "-", text))
    return Result({"name": args.name, "tools": found}, [], table)


@command("connect", Option("name", "NAME", help="the service"), *CALL_OPTIONS[:2])
def connect(store: Store, args: argparse.Namespace) -> Result:
    """Join stdin and stdout to a stdio service, as one more client: an MCP client's command."""
    if args.json:
        raise UsageError("connect prints what the service says", "leave --json out")
    connection, _ = join(store, args, time.monotonic() + args.timeout)
    connection.settimeout(None)
    is_over = threading.Event()

    def next_piece() -> bytes:
        try:
            return os.read(sys.stdin.fileno(), 1 << 16)
        except BlockingIOError:  # made so by somebody who shares it
            with selectors.DefaultSelector() as events:
                events.register(sys.stdin, 1)  # EVENT_READ
                events.select()
            return next_piece()
        except OSError:  # EIO: its terminal was closed, which is an end, too
            return b""

    def carry() -> None:
        with contextlib.suppress(OSError):  # the service is gone: the other direction tells
            while chunk := next_piece():
                connection.sendall(chunk)
            is_over.set()
            connection.sendall(b'\n{"jsonrpc": "2.0", "method": "%s"}\n' % END.encode())
            time.sleep(LEAVING_S)
            connection.shutdown(2)  # SHUT_RDWR

    def heard() -> Iterator[str]:
        with connection, contextlib.suppress(ConnectionError):
            while chunk := connection.recv(1 << 18):
                yield chunk.decode("ascii", "replace")
        if not is_over.is_set():
            seen = find(store, args.name)
            now = " (".join(filter(None, seen.verdict)) + ")" * bool(seen.verdict.why)
            text = f"{seen.record.name} has ended this connection; it is {now} now"
            raise Failed(text, f"connect again; what happened: events {seen.record.name}")

    try:
        threading.Thread(target=carry, name="stdin", daemon=True).start()
    except RuntimeError as error:
        connection.close()
        raise Failed(f"{error} for stdin", STATE_ADVICE["EAGAIN"]) from error
    return Result({}, stream=heard())


# -- config

CONFIG_OPTIONS = (
    Option("--config", "FILE", help="instead of SPM_CONFIG, or spm.json in the project root"),
    Option("--mcp-config", "FILE", default=[], help="an agent's file: its stdio servers too"),
    Option("--procfile", "FILE", help="a Procfile: its processes too"),
)


def lacking(services: Iterable[Wanted]) -> list[Problem]:
    """Every variable and env file that is missing or wrong here; ports that two would have."""
    problems, there = list[Problem](), [one for one in services if not one.disabled]
    for one in there:
        special = [path for path in one.spec.env_files if is_special(path)]
        place = one.source.place("env_file")
        problems += [Problem(*place, f"{path}: not a regular file") for path in special]
        try:
            environment_of(one.spec._replace(env_files=()) if special else one.spec, one.given_env)
        except ConfigError as error:
            for key, told in zip(*(as_list(error.facts[fact]) for fact in ("keys", "problems"))):
                problems.append(Problem(*one.source.place(str(key)), str(told)))
    return [*dict.fromkeys([*problems, *contested(there)])]


def contested(there: Sequence[Wanted]) -> list[Problem]:
    """Every port that two of these would have at the same time."""
    problems, holders = list[Problem](), dict[int, str]()
    once = {name for one in there for name, how in one.depends_on.items() if how == "exited"}
    for one in there:
        port = one.spec.port if one.spec.port_declared and one.spec.keep_alive else None
        if port and one.conflict != "next" and one.name not in once:
            first = holders.setdefault(port, one.name)
            told = f"{first} and {one.name} both want port {port}: give one of them another"
            problems += [Problem(*one.source.place("port"), told)] * (first != one.name)
    return problems


def config_at(store: Store, args: argparse.Namespace, expands: bool = True) -> Config:
    """The configuration that the options name."""
    path = find_config(args.config, store.home)
    servers, procfile = args.mcp_config, args.procfile
    if args.config and not os.path.lexists(path):
        servers, procfile = (), None  # that it isn't there is to be said
    try:
        return read_config(path, servers, procfile, expands, lacking if expands else None)
    except ConfigError as error:
        is_named = args.config or os.environ.get("SPM_CONFIG") or servers or procfile
        if os.path.isfile("spm.json") and not (is_named or os.path.lexists(path)):
            error.advice = f"the home is {store.home}; for the spm.json here: --config spm.json"
        raise


def shown_files(config: Config, args: argparse.Namespace) -> str:
    """The files that were read, as they were named; without options: the configuration."""
    given = [*filter(None, [args.procfile]), *args.mcp_config]
    is_there = os.path.lexists(config.path) or not given
    return ", ".join(map(shown_path, [*[config.path] * is_there, *given]))


@command("config schema")
def show_schema(store: Store, args: argparse.Namespace) -> Result:
    """The JSON Schema of spm.json, for editors."""
    schema = document_schema()
    return Result({"schema": schema}, stream=iter([json.dumps(schema, indent=2) + "\n"]))


@command("config validate", Option("file?", "FILE", help="instead of --config"), *CONFIG_OPTIONS)
def validate(store: Store, args: argparse.Namespace) -> Result:
    """Whether a configuration is valid; every problem at once."""
    args.config = args.file or args.config
    config = config_at(store, args)
    error = unready(config.services.values())
    names: list[object] = list(config.services)
    line = f"[OK] {shown_files(config, args)} is valid: {counted(len(names), 'service')}"
    data = {"path": config.path, "services": names, "notes": [note[7:] for note in config.notes]}
    lines = [*config.notes, *[line] * (error is None)]
    return Result({**data}, lines, error=error)


@command("config rules", Option("name?", "NAME", help="this service alone"), *CONFIG_OPTIONS)
def show_rules(store: Store, args: argparse.Namespace) -> Result:
    """What the variables of services must be like, and whether it is met here; no values."""
    is_there = args.config or args.mcp_config or args.procfile
    is_there = is_there or os.path.lexists(find_config(None, store.home))
    wanted = config_at(store, args).services.values() if is_there else ()
    specs = {one.name.lower(): (one.name, one.spec, one.given_env) for one in wanted}
    records = store.records()
    specs.update({key: (one.name, one.spec, {}) for key, one in records.items()})
    if args.name and args.name.lower() not in specs:
        find(store, args.name)
    rows, table = list[object](), [("service", "variable", "rule", "met")]
    for key, (name, spec, given) in sorted(specs.items()):
        asked = rules_of(spec) if (args.name or key).lower() == key else []
        given = store.given_env(key) if asked and key in records else given
        env = {**os.environ, **(added_values(spec, given) if asked else {})}
        for variable, rule in asked:
            why = fault_of(env.get(variable), rule)
            rows.append({"name": name, "variable": variable, **rule, "met": not why, "why": why})
            words = [f"{k} {v}" if v is not True else k for k, v in rule.items() if v]
            table.append((name, variable, ", ".join(words), f"no: it {why}" if why else "yes"))
    none = [] if rows else ["[OK] no environment rules"]
    return Result({"rules": rows}, none, table if rows else ())


# -- versions

MOST_VERSIONS = 100


def version_path(store: Store, name: str = "") -> str:
    """A file among the versions."""
    return os.path.join(store.home, "versions", name)


def version_numbers(store: Store) -> list[int]:
    """The numbers of the versions, newest first."""
    names: list[str] = []
    with state_errors(version_path(store)), contextlib.suppress(FileNotFoundError):
        names = os.listdir(version_path(store))
    numbers = [int(name[:-5]) for name in names if re.fullmatch(r"[0-9]{4,9}\.json", name)]
    return sorted(numbers, reverse=True)


def read_version(store: Store, number: int) -> Version:
    """A version; NotFound, or StateError if it is damaged."""
    path = version_path(store, f"{number:04}.json")
    try:
        with open(path, "rb") as file:
            version = Version.from_json(json.loads(file.read()), number)
        return version._replace(config=os.path.join(os.path.dirname(store.home), version.config))
    except FileNotFoundError as error:
        raise NotFound(f"there is no version {number}", "see: config history") from error
    except (OSError, ValueError, RecursionError) as error:
        told = f"version {number} can't be read: {path}: {getattr(error, 'strerror', 0) or error}"
        raise StateError(told, "take another one: config history") from error


def versions(store: Store) -> Iterator[Version]:
    """Every version, newest first; those that are damaged are named and left out."""
    for number in version_numbers(store):
        try:
            yield read_version(store, number)
        except (NotFound, StateError) as error:
            store.notes += [] if error.message in store.notes else [error.message]


def last_applied(store: Store, config: str) -> Version | None:
    """The version of a configuration that was applied last."""
    mine = (one for one in versions(store) if one.config == config)
    return next((one for one in mine if one.result != "rolled back"), None)


def write_version(store: Store, version: Version, durable: bool = True) -> None:
    """Keep a version, or what came of it since."""
    path = version_path(store, f"{version.number:04}.json")
    if os.path.basename(store.home) == ".spm":  # it moves, or is copied, with its project
        short = shown_path(version.config, os.path.dirname(store.home))
        version = version._replace(config=short)
    with state_errors(path):
        os.makedirs(version_path(store), mode=0o700, exist_ok=True)
        write_file(path, json.dumps(version._asdict()).encode(), durable)


def new_version(
    store: Store, config: Config, steps: Sequence[Step], names: Sequence[str], of: int | None
) -> Version:
    """The next version, which is about to be applied; the oldest ones go, but no last one."""
    numbers, last = version_numbers(store), dict[str, int]()
    number, plan = max([0, *numbers]) + 1, tuple(one.data for one in steps)
    facts = (config.path, hash_of(config.document), "applying", plan, tuple(names))
    new = Version(number, time.time(), *facts, config.document, config.text, of, config.is_part)
    write_version(store, new)
    for one in versions(store) if numbers[MOST_VERSIONS - 1 :] else ():
        if one.result not in ("rolled back", "applying"):
            last.setdefault(one.config, one.number)
    for old in {*numbers[MOST_VERSIONS - 1 :]} - {*last.values()}:
        for name in os.listdir(version_path(store)):
            if re.match(f"{old:04}[.-]", name):
                with contextlib.suppress(OSError):  # the next one tries again
                    os.unlink(version_path(store, name))
    return new


def replace_config(store: Store, path: str, text: str | None) -> list[str]:
    """Write the configuration; the one that was there is kept. What to say of it."""
    path, old, mode, former = os.path.realpath(path), b"", 0o600, ""
    if text is None:
        return ["[WARN] it came from several files, which are as they were: `up` takes them again"]
    if os.path.lexists(path) and not os.path.isfile(path):  # a FIFO would keep us waiting
        raise Refused(f"{shown_path(path)} is no regular file: left as it is", "move it aside")
    with state_errors(path):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            old, mode = file.read(), os.fstat(file.fileno()).st_mode & 0o777
        if old == text.encode():
            return []
        if old:
            number, now_ms = max([0, *version_numbers(store)]), time.time_ns() // 10**6
            former = version_path(store, f"{number:04}-{now_ms}.json")
            os.makedirs(version_path(store), mode=0o700, exist_ok=True)
            write_file(former, old)
        write_file(path, text.encode())
        os.chmod(path, mode)
    kept = f"; the former one is {shown_path(former)}" * bool(former)
    return [f"[INFO] {shown_path(path)} is written{kept}"]


def file_marks(paths: Iterable[str]) -> dict[str, object]:
    """What changes when a file does."""
    marks: dict[str, object] = {}
    for path in paths:
        with contextlib.suppress(OSError):  # it isn't there, or is just being replaced
            one = os.stat(path)
            marks[path] = (one.st_mtime_ns, one.st_size, one.st_ino)
    return marks


@contextlib.contextmanager
def only_one(store: Store, wait_s: float, what: str) -> Iterator[None]:
    """Hold the lock of what changes the configuration; TimedOut that names who holds it."""
    path = os.path.join(store.home, "lock.up")

    def busy() -> str:
        with contextlib.suppress(OSError), open(f"{path}.by", errors="replace") as file:
            return f"another {file.read(80)}; waited {format_duration(wait_s)}"
        return "another command is under way"

    with locked(path, wait_s, busy):
        by = f"`{what}` is under way (pid {os.getpid()} since {time.strftime('%H:%M:%S')})"
        with state_errors(path):
            write_file(f"{path}.by", by.encode(), durable=False)
        yield


def tally(words: Iterable[object]) -> str:
    """`start: 2, keep: 1`."""
    listed = ["adjust" if word == "settings" else str(word) for word in words]
    return ", ".join(f"{word}: {listed.count(word)}" for word in dict.fromkeys(listed))


@command("config history")
def history(store: Store, args: argparse.Namespace) -> Result:
    """The configurations that `up` applied, newest first; * those that hold."""
    rows, table = list[object](), [("version", "when", "result", "plan", "configuration")]
    holding: dict[str, int] = {}
    for one in versions(store):
        is_kept = one.result != "rolled back"
        is_last = is_kept and holding.setdefault(one.config, one.number) == one.number
        rows.append({**one.data, "applied": is_last})
        done = tally(step.get("action") for step in one.plan)
        done += f", only {' '.join(one.names)}" * bool(one.names)
        done += f" (back to {one.of})" * bool(one.of)
        row = (f"{one.number}{'*' * is_last}", moment(one.at), one.result, done)
        table.append((*row, f"{shown_path(one.config)} {one.hash[:8]}"))
    none = [] if rows else ["[OK] no version was applied yet"]
    return Result({"versions": rows}, none, table if rows else ())


def version_asked(store: Store, args: argparse.Namespace, number: int | None) -> Version:
    """The version of that number, None: the one that was applied last."""
    if number is not None:
        return read_version(store, number)
    last = last_applied(store, find_config(args.config, store.home))
    if not last:
        raise NotFound("nothing was applied yet", "bring it up, or name a version: config history")
    return last


@command(
    "config show",
    Option("version?", "V", parse_count, help="its number in the history (the last one)"),
    CONFIG_OPTIONS[0],
)
def show_version(store: Store, args: argparse.Namespace) -> Result:
    """A configuration as it was applied, the values under env and other secrets masked."""
    version = version_asked(store, args, args.version)
    document = masked(with_env(version.document))
    head = f"// version {version.number} of {moment(version.at)}: {version.result}"
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return Result({"version": version.data, "document": document}, [head], stream=iter([text]))


@command(
    "config diff",
    Option("a?", "A", parse_count, help="the number of a version"),
    Option("b?", "B", parse_count, help="the number of another"),
    *CONFIG_OPTIONS,
)
def diff(store: Store, args: argparse.Namespace) -> Result:
    """What differs in meaning: from A (the last one applied) to B (the file)."""
    old = version_asked(store, args, args.a)
    new = read_version(store, args.b) if args.b is not None else None
    ends = [config_of(one.document, one.config, expands=False) for one in (old, new) if one]
    ends += [] if new else [config_at(store, args, expands=False)]
    changes = changes_of(*map(spelled_out, ends))
    data = {"from": old.number, "to": new.number if new else ends[1].path}
    return Result({**data, **changes}, change_lines(changes))


@command(
    "config impact",
    Option("file", "FILE", help="what would take the place of spm.json"),
    CONFIG_OPTIONS[0],
)
def impact(store: Store, args: argparse.Namespace) -> Result:
    """What `up` would do to the services that run, if this were the configuration."""
    config = read_instead(find_config(args.config, store.home), full_path(args.file))
    steps = plan_of(config, known_services(store))
    data: dict[str, object] = {
        action: [one.name for one in steps if one.action == action]
        for action in ("restart", "stop", "settings", "start", "keep")
    }
    told = tally(one.action for one in steps) or "no services"
    restarts = counted(len(as_list(data["restart"])), "service")
    lines = [*(f"  {one}" for one in steps), f"[OK] {restarts} would restart ({told})"]
    return Result({**data, "plan": [one.data for one in steps]}, lines)


@command(
    "config rollback",
    Option("version", "V", parse_count, help="its number in the history"),
    Option("--dry-run", help="print what would be done"),
    Option("--wait", "[D]", parse_duration, help="until all are ready, D at most for each (30s)"),
)
def rollback(store: Store, args: argparse.Namespace) -> Result:
    """Bring the services, and the configuration's file, back to a version; a new version itself."""
    version = read_version(store, args.version)
    args.names, args.rollback_on_failure, text = [], False, version.text
    try:
        config = config_of(version.document, version.config)
    except ConfigError as error:
        error.message = f"version {version.number} can't be applied here: {error.message}"
        raise
    said = f"[INFO] version {version.number} is a part of its file: that is as it was then, whole;"
    notes = (f"{said} the services are as they were applied",) * version.is_part
    is_kept = version.is_part
    with contextlib.suppress(ValueError, RecursionError, ConfigError):
        now = config_of(json.loads(blanked(text or "")), config.path, expands=False)
        is_kept = is_kept or now.document == config.document
    if text and not is_kept:  # what it includes changed
        text = json.dumps(config.document, indent=2) + "\n"
    config = config._replace(text=text, is_part=version.is_part, notes=(*config.notes, *notes))
    result = bring_up(store, config, args, version.number)
    if args.dry_run or result.error:
        return result
    line = f"[OK] back at version {version.number}, as version {result.data['version']}"
    return result._replace(lines=[*result.lines, line])


def is_own_config(path: str) -> bool:
    """Whether a file is a configuration, and no agent's, which would be a valid one, too."""
    with contextlib.suppress(ConfigError):
        text = read_config(path, expands=False).text
        return "services" in as_object(json.loads(blanked(text or "{}")))
    return False


@command(
    "config export",
    Option("file", "FILE", help="-: stdout, where values under env are ${NAME}"),
    Option("--force", help="overwrite a file that is no configuration"),
    *CONFIG_OPTIONS,
)
def export_config(store: Store, args: argparse.Namespace) -> Result:
    """One document with all that holds, defaults spelled out."""
    config = config_at(store, args, expands=False)
    full = spelled_out(config)
    bare = with_env(full, "${{{}}}")
    given = as_object(changes_of(bare, full)["changed"]).values()
    values = sorted({key[4:] for keys in given for key in as_object(keys)})
    names, path = ", ".join(values), full_path(args.file)
    text = json.dumps(bare if args.file == "-" else full, indent=2, ensure_ascii=False) + "\n"
    if args.file == "-":
        lines = [f"[WARN] without the values of {names}: give a FILE to have them"] * bool(values)
        return Result({"document": bare, "values": values}, lines, stream=iter([text]))
    if os.path.realpath(path) in map(os.path.realpath, config.files):
        raise Refused(f"{args.file} is what is exported", "write to another file")
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        raise Refused(f"{args.file} is no regular file: left as it is", "write to another file")
    if os.path.exists(path) and not (args.force or is_own_config(path)):
        told = f"{args.file} is there, and is no configuration of services: left as it is"
        raise Refused(told, "write to another file, or overwrite it with --force")
    with state_errors(path):
        write_file(path, text.encode())
    lines = [f"[WARN] {args.file} has the values of {names}: don't share it"] * bool(values)
    told = f"[OK] {counted(len(config.services), 'service')} written to {args.file}"
    return Result({"path": path, "values": values}, [*lines, told])


@command(
    "config import",
    Option("file", "FILE", help="what takes the place of spm.json"),
    Option("--yes", help="write it without a question"),
    CONFIG_OPTIONS[0],
)
def import_config(store: Store, args: argparse.Namespace) -> Result:
    """Take a file as the configuration: validated, compared, confirmed; `up` applies it."""
    path = find_config(args.config, store.home)
    new = read_instead(path, full_path(args.file))
    old, wanted = dict[str, object](), spelled_out(new)
    with contextlib.suppress(ConfigError):  # none, or a broken one: all is new
        old = spelled_out(read_config(path, expands=False))
    changes = changes_of(old or {"services": {}}, wanted)
    if old == wanted:
        told = f"[OK] nothing differs: {shown_path(path)} is left as it is"
        return Result({"path": path, **changes}, [told])
    args.say(*([] if args.json else change_lines(changes)))
    is_asked = os.isatty(0) and not (args.yes or args.json)
    args.say(*[f"write {shown_path(path)}? y/n"] * is_asked)
    if not (args.yes or (is_asked and key_within(60.0) in ("y", "Y"))):
        raise Refused(f"{shown_path(path)} is as it was", "see what differs, add --yes", **changes)
    store.prepare()
    with only_one(store, CLAIM_S, "config import"):
        lines = replace_config(store, path, new.text)
    told = f"[OK] {shown_path(path)} is {args.file} now; apply it: up"
    return Result({"path": path, **changes}, [*lines, told])


# -- up, down

MOST_STARTS = 16  # at a time: each interpreter that boots takes a processor for 50 ms
AT_ONCE_S = 0.1  # who ends within that has failed to come up, also where nothing is checked
ORDER_S = 1.0


def known_services(store: Store) -> dict[str, Known]:
    """Every recorded service as a plan needs to know it, by name in lower case."""
    found = dict[str, Known]()
    for key, record in store.records().items():
        seen, given, stale = observe(store, record), dict[str, str](), list[str]()
        with contextlib.suppress(StateError):  # damaged: then it differs, and is started anew
            given, stale = store.given_env(key), stale_files(store, key)
        facts = (seen.verdict.status, seen.verdict.is_live, seen.facts.supervised)
        it = seen.record._replace(config=config_now(store, seen.record.config))
        found[key] = Known(it, *facts, given, tuple(stale))
    return found


def in_keys(text: object, wanted: Wanted, was: Record | None = None) -> str:
    """Advice in the words of a configuration: not --env but env, and where that is."""
    flags = "|".join(KEYS).replace("_", "-")
    if was and changed_fields(was.spec, wanted.spec):  # `start NAME` would start it as it was
        text = str(text).replace(ANYWAY, "")
    words = re.sub(rf"--({flags})(?![\w-])", lambda found: found[1].replace("-", "_"), str(text))
    where = f"{wanted.source.path} in {shown_path(wanted.source.file)}"
    if wanted.source.path.startswith("line "):
        where += ", which has no such keys: have an spm.json made of it first, init --config"
    words += f" ({where})" * (words != text)
    bare = rf"(?<!restart {re.escape(wanted.name)} )(?:add )?--force"
    return re.sub(bare, f"`start {wanted.name} --force`", words)


def send_settings(store: Store, name: str, spec: Spec, config: str) -> Record | None:
    """Have a running service take over what needs no restart; None if it doesn't."""
    with store.claim(name, CLAIM_S):  # a restart that has begun would start what it has read
        return store.ask_record(name, "settings", spec=spec.to_json(), config=config)


class Application:
    """A plan that is carried out: steps and waits side by side where none needs another."""

    def __init__(
        self,
        store: Store,
        steps: Sequence[Step],
        known: Mapping[str, Known],
        args: argparse.Namespace,
    ) -> None:
        self.store, self.steps, self.say, self.progress = store, steps, args.say, args.progress
        self.wait_s: float | None = args.wait  # None: until they are started
        self.limit_s, self.began, self.shown_at = self.wait_s or WAIT_S, time.monotonic(), 0.0
        self.named = {one.lower() for one in args.names}  # also those that were started by hand
        self.goes_back = getattr(args, "rollback_on_failure", False)
        config = getattr(args, "config", None)  # a rollback has none
        self.again = join_command(["up", *(["--config", config] if config else [])])
        self.outcomes: dict[str, Step] = {}
        self.has_news = False  # that nobody was told of
        self.reached: dict[str, set[str]] = {}  # stages
        self.acting: dict[str, float] = {}  # until when what is told of later ones is held back
        self.came: list[tuple[Step, Sequence[str], SpmError | None]] = []  # from the threads
        self.lines: dict[str, list[str]] = {step.name: [] for step in steps}  # to be told
        self.waits: dict[str, tuple[Target | None, float]] = {}  # None: for its end; until when
        self.needs = {s.name: s.wanted.depends_on if s.wanted and s.acts else {} for s in steps}
        self.ends = [step.name for step in steps if step.action == "stop"]
        self.records = records = {key: one.record for key, one in known.items()}
        ports = {key: one.spec.port or -1 for key, one in records.items()}
        holders: dict[int | None, str] = {}
        asked = {s.name: s.wanted.spec.port for s in steps if s.wanted and s.acts}
        moving = {ports.get(s.name.lower()): s.name for s in steps if s.action == "restart"}
        for step in steps:  # after who had its port until now, however that goes
            port = asked.get(step.name)
            if port in holders:
                self.needs[step.name] = {holders[port]: "", **self.needs[step.name]}
            elif port in moving and asked[moving[port]] != port:  # they may change places
                self.ends.append(moving[port])
            holders.update({ports.get(step.name.lower(), -1): step.name} if step.acts else {})
        self.ends.sort(key=lambda name: records[name.lower()].started_at, reverse=True)
        self.stages = {pair for needs in self.needs.values() for pair in needs.items()}

    def run(self, tell: Callable[[dict[str, Step]], object] = bool) -> list[Step]:
        """What came of each step, in the order of the plan; `tell` hears of them as they come."""
        pending, tell_at = list(self.steps), 0.0
        for name in self.ends:  # the latest first: they may have needed those before them
            self.say(*stop_all(self.store, [name], STOP_TIMEOUT_S, force=False).lines)
        supervisors_program(self.store)  # compiled here once, not by each start
        while pending or self.acting or self.waits:
            due = [one for one in pending if self.lost(one) or not self.lacks(one)]
            for step in due[: MOST_STARTS - len(self.acting)]:
                pending.remove(step)
                self.take(step)
            while self.came:
                self.finish(*self.came.pop(0))
            for name, (target, until) in list(self.waits.items()):
                self.look(name, target, until)
            self.show(pending)
            now = time.monotonic()
            if self.has_news and now >= tell_at:
                self.has_news = False
                tell(self.outcomes)
                took_s = time.monotonic() - now  # all of them are told: of hundreds that is much
                tell_at = now + max(SOON_S, 11 * took_s)
            if not due or len(self.acting) == MOST_STARTS:
                time.sleep(probe_pause_s(time.monotonic() - self.began))
        there = [one for one in self.steps if one.wanted and one.wanted.is_brought_up]
        there = there if self.wait_s else []
        time.sleep(AT_ONCE_S if any(step.acts for step in there) else 0.0)
        for step in [one for one in there if self.outcomes[one.name].result == "done"]:
            self.look_again(step)
        self.progress()
        tell(self.outcomes)
        return [self.outcomes[step.name] for step in self.steps]

    def settled(self, step: Step) -> Record | None:
        """Its record as soon as that tells whether it stays, or time is over."""
        while True:
            record = self.store.record(step.name)
            if record and record.phase in LIVE_PHASES and not is_alive(record.main):
                record = find(self.store, step.name).record  # its end isn't written down yet
            is_late = time.monotonic() >= self.began + self.limit_s
            if is_late or not (record and step.acts and self.may_end_again(record)):
                return record
            time.sleep(0.02)

    def may_end_again(self, record: Record) -> bool:
        """Whether it was restarted and hasn't yet lived twice as long as before: it may loop."""
        if record.phase != "running" or record.spec.readiness:
            return False
        before = former_end(self.store, record)
        lived_s = (before and before[0].lived_s) or 0.0
        return bool(before) and time.time() - record.started_at < 2 * lived_s + AT_ONCE_S

    def look_again(self, step: Step) -> None:
        """Whether a service is there in the end: what has no checks has to be, too."""
        name, record = step.name, self.settled(step)
        if record and (record.phase == "failed" or (record.phase == "exited" and not step.may_end)):
            with contextlib.closing(Target(self.store, record)) as target:
                self.look(name, target, self.began + 1e9)
            error = self.outcomes[name].error
            if error and step.wanted and record.phase == "exited":
                how = "a daemon: --type forking; a job, which may end well: --restart on-failure"
                error.advice = in_keys(how, step.wanted)
        elif record and record.phase == "backoff":
            told = f"{name} doesn't stay: {observe(self.store, record).verdict.why}"
            self.note(self.outcomes[name], "failed", Failed(told, f"see why: explain {name}"))
        elif record and record.phase == "exited" and step.acts and not step.is_once:
            self.say(f"[INFO] {name} has exited ({record.exit})")

    def show(self, pending: Sequence[Step]) -> None:
        """Tell what came, in the plan's order as far as that delays little; show what goes on."""
        now = time.monotonic()
        for name, lines in self.lines.items():
            self.say(*lines)
            lines.clear()
            if now < self.acting.get(name, 0.0):
                break
        if now >= self.shown_at:
            self.shown_at, news = now + 0.1, dict.fromkeys(self.acting, "is being started")
            for name, (one, _) in self.waits.items():
                news[name] = one.seen if one else "has not ended yet"
            news.update((one.name, f"waits for {', '.join(self.lacks(one))}") for one in pending)
            self.progress(*(f"{k}: {v} ({now - self.began:.0f} s)" for k, v in news.items()))

    def lacks(self, step: Step) -> list[str]:
        """What it depends on and isn't there."""
        needs = self.needs[step.name].items()
        return [name for name, stage in needs if stage not in self.reached.get(name, ())]

    def lost(self, step: Step) -> list[str]:
        """What it depends on and won't come."""
        needs = [name for name, stage in self.needs[step.name].items() if stage]
        outcomes = [self.outcomes[name] for name in needs if name in self.outcomes]
        return [one.name for one in outcomes if one.result != "done"]

    def note(self, step: Step, result: str, error: SpmError | None = None) -> None:
        """Remember what came of a step; why it failed is told in the end."""
        name, wanted = step.name, step.wanted
        self.outcomes[name], self.has_news = step._replace(result=result, error=error), True
        self.reached[name] = {""}
        if error:
            cause = as_object(about(error, name).facts.get("cause"))
            if wanted:
                if "advice" in cause:
                    cause["advice"] = in_keys(cause["advice"], wanted)
                error.advice = in_keys(error.advice, wanted, self.records.get(name.lower()))
            # a restart is its alone, and there is none of what was never there
            if self.goes_back or any(name in needs for needs in self.needs.values()):
                then = f"then: {self.again}"
                error.advice = re.sub(r"\bthen: restart \S+", lambda _: then, error.advice)
            if result == "failed" and (self.acting or self.waits):
                self.lines[name].append(f"[WARN] {name} failed; the others go on")

    def take(self, step: Step) -> None:
        """Do one step, in a thread and with a Store of its own."""

        def work() -> None:
            store, lines, error = Store(self.store.home), list[str](), None
            store.parsed, store.has_looked = self.store.parsed, True  # we have
            try:
                lines += self.act(step, store)
            except Exception as problem:  # one that isn't ours would be lost here
                error = problem if isinstance(problem, SpmError) else Failed(repr(problem))
            self.store.notes += store.notes
            self.came.append((step, lines, error))

        lacking = self.lost(step)
        if lacking:
            told = f"{step.name} was not {step.action}ed: it depends on {', '.join(lacking)}"
            self.note(step, "skipped", Failed(told, f"mend that, then: {self.again}"))
            return
        self.acting[step.name] = time.monotonic() + ORDER_S
        try:
            threading.Thread(target=work, name=f"{step.action} {step.name}", daemon=True).start()
        except RuntimeError:  # no more threads for this user: then one step after another
            work()

    def finish(self, step: Step, lines: Sequence[str], error: SpmError | None) -> None:
        """Note what came of a step, and what is to be waited for then."""
        name = step.name
        self.lines[name] += lines
        del self.acting[name]
        self.note(step, "failed" if error else "done", error)
        if error:
            return
        until, is_awaited = time.monotonic() + self.limit_s, name in {one for one, _ in self.stages}
        record = self.store.record(name) if self.wait_s or is_awaited else None
        has_checks = record and (record.spec.readiness or record.spec.port)
        early = ("failed", *(["exited"] if has_checks else [])) if step.acts else ()
        is_over = record is None or record.phase not in (*LIVE_PHASES, *early)
        self.reached[name].update(STAGES if is_over else ["started"])
        is_job = (name, "exited") in self.stages or (step.is_once and self.wait_s)
        if is_job and not is_over:
            self.waits[name] = (None, until)
        elif record and not is_over and (self.wait_s or (name, "ready") in self.stages):
            if has_checks or record.phase == "failed":
                self.waits[name] = (Target(self.store, record), until)
            self.reached[name].update([] if name in self.waits else ["ready"])

    def act(self, step: Step, store: Store) -> Sequence[str]:
        """Do what a step says; what is to be told of it."""
        wanted, name = step.wanted, step.name
        if step.acts and wanted:
            what = (wanted.spec, wanted.given_env, wanted.conflict, wanted.config)
            return bring(store, Asked(name, *what)).lines
        is_stop, is_named = step.action == "stop", name.lower() in self.named
        known = store.record(name) if is_stop or is_named else None
        if is_stop and known and observe(store, known).verdict.is_live:
            raise Failed(f"{name} could not be stopped", f"see: stop {name}")
        is_taken = known and wanted and not is_stop and known.config != wanted.config
        is_sent = step.action == "settings" or (is_taken and store.is_supervised(name))
        if wanted and is_sent and not send_settings(store, name, wanted.spec, wanted.config):
            raise Failed(f"{name}: its supervisor took nothing over", f"see: status {name}")
        goes_on = f"[OK] {name} goes on, with other settings: {', '.join(step.keys)}"
        return [goes_on] * (step.action == "settings")

    def look(self, name: str, target: Target | None, until: float) -> None:
        """Whether what is waited for has come."""
        is_late = time.monotonic() >= until
        try:
            if target:
                target.look(self.began, until)
                stages = ["ready"] if not target.checks.waiting() else []
            else:
                seen = find(self.store, name)
                stages = [*STAGES] if seen.verdict.status == "exited" else []
                if seen.verdict.status in ("failed", "stopped", "lost"):
                    with contextlib.closing(Target(self.store, seen.record)) as dead:
                        dead.check_alive()
            if is_late and not stages:
                told = f"{name} did not end in {format_duration(self.limit_s)}"
                late = TimedOut(told, "give it longer with --wait")
                raise target.too_late(self.limit_s) if target else late
            if stages:
                self.close(name)  # one that is looked at once more isn't among them
                self.reached[name].update(stages)
                line = target.line() if target else f"[OK] {name} has done its work"
                self.lines[name].append(line)
                if target:
                    target.tell()
        except SpmError as error:
            self.close(name)
            self.note(self.outcomes[name], "failed", error)

    def close(self, *names: str) -> None:
        """Wait for these no longer; for none, if none is named."""
        for name in names or [*self.waits]:
            target, _ = self.waits.pop(name, (None, 0.0))
            if target:
                target.close()


def roll_back(
    store: Store, former: Mapping[str, Known], outcomes: Sequence[Step], say: Callable[..., None]
) -> bool:
    """Bring what a plan has changed, or tried to, back to what it was: whether all of it is."""
    is_whole, acted = True, [one.name for one in outcomes[::-1] if one.acts]
    news = [(name, record) for name in acted for record in [store.record(name)] if record]
    had = {key: one.record.spec.port for key, one in former.items() if one.is_live}
    moved = [name for name, new in news if had.get(name.lower(), new.spec.port) != new.spec.port]
    say(*stop_all(store, moved, STOP_TIMEOUT_S, force=False).lines)
    for step in [one for one in outcomes[::-1] if one.result != "skipped"]:
        was, now = former.get(step.name.lower()), store.record(step.name)
        for path in was.stale if was and step.acts else ():
            say(f"[WARN] {step.name} takes {shown_path(path)} as it is now: the old one isn't kept")
        try:
            if was and was.is_live and now and not step.acts and step.action != "stop":
                spec, config = was.record.spec, was.record.config
                is_other = step.action == "settings" and now.spec != spec
                is_other = is_other or now.config != config  # another one took it over
                if is_other and not send_settings(store, was.record.name, spec, config):
                    raise Failed("its supervisor took nothing over", f"see: status {step.name}")
            elif was and was.is_live and step.action != "keep":
                what = (was.record.spec, was.given, "auto", was.record.config)
                say(*bring(store, Asked(step.name, *what, kept_owner(was.record))).lines)
            elif now and step.acts:
                stopped = stop_all(store, [step.name], STOP_TIMEOUT_S, force=False)
                say(*stopped.lines)
                if stopped.error:
                    raise stopped.error
                forget(store, [] if was else [now], purge=False)
        except SpmError as error:
            told = mask_secrets(error.message)
            say(f"[ERROR] {step.name} is not what it was before: {told}")
            is_whole = False
    return is_whole


@command(
    "up",
    Option("names*", "NAME", help="only these, and what they depend on"),
    Option("--dry-run", help="print what would be done"),
    Option("--wait", "[D]", parse_duration, help="until all are ready, D at most for each (30s)"),
    Option("--rollback-on-failure", help="if one fails, go back to what ran before"),
    Option("--watch", help="go on, and apply the configuration whenever it changes, until q"),
    *CONFIG_OPTIONS,
)
def up(store: Store, args: argparse.Namespace) -> Result:
    """Bring the services of the configuration to what it says; nothing else is touched."""
    config = config_at(store, args)
    if not args.watch or args.dry_run:
        return bring_up(store, config, args)
    return Result({}, stream=keep_up(store, config, args))


def check_named(config: Config, args: argparse.Namespace) -> None:
    """NotFound, with the nearest one, if the configuration has no such service."""
    for name in args.names:
        if not config.named(name):
            told = f"{shown_files(config, args)} has no service {name!r}"
            known = ", ".join(config.services) or "none"
            raise NotFound(told, f"{nearest(name, config.services)}services there: {known}")


def bring_up(
    store: Store, config: Config, args: argparse.Namespace, of: int | None = None
) -> Result:
    """Plan, say so, and do it; `of`: the version to which it goes back."""
    check_named(config, args)
    before = file_marks(config.files)
    with contextlib.ExitStack() as locks:
        if not args.dry_run:
            store.prepare()
            what = "up" if of is None else "config rollback"
            locks.enter_context(only_one(store, args.wait or CLAIM_S, what))
            if of is None and before != file_marks(config.files):  # changed while we waited
                config = config_at(store, args)
                check_named(config, args)
        last, known = last_applied(store, config.path), known_services(store)
        cut = last if last and last.result == "applying" and not args.dry_run else None
        asked = [cut.names, args.names] if cut else [args.names]
        left = {str(one.get("name")).lower() for one in cut.plan} if cut else set()
        plans = [step for names in asked for step in plan_of(config, known, names, left)]
        steps = [*{step.name: step for step in plans}.values()]
        lines = [*config.notes, *(f"  {step}" for step in steps)]
        data: dict[str, object] = {"config": config.path, "plan": [one.data for one in steps]}
        wanted = [one.wanted for one in steps if one.acts and one.wanted]
        error: SpmError | None = unready(wanted)
        if args.dry_run:
            lines = lines or ["[OK] there is nothing to do"]
            return Result(data, [*config.notes] if contested(wanted) else lines, error=error)
        if error:
            args.say(*config.notes)
            raise error
        names = [name for one in asked for name in one] * all(asked)
        config = part_of(config, steps, last) if names else config
        is_same = last is not None and last.hash == hash_of(config.document)
        if cut:
            what = "finished now" if is_same else "undone where the file says otherwise"
            told = f"[INFO] the `up` of version {cut.number} was cut off"
            args.say(f"{told} ({moment(cut.at)}): it is {what}")
        args.say(*lines)
        args.say(*replace_config(store, config.path, config.text) if of else ())
        is_idle = is_same and all(one.action == "keep" for one in steps)
        if not last or not is_idle or last.result != "done":
            last = new_version(store, config, steps, names, of)
        if cut:
            write_version(store, cut._replace(result="cut off"))
        outcomes, came = carry_out(store, last, steps, known, args)
    failed = [one for one in outcomes if one.error]
    rows = [{**one.data, "error": one.error and error_data(one.error)} for one in outcomes]
    data.update(services=rows, version=last.number, **({"cut_off": cut.number} if cut else {}))
    if not failed:
        told = tally(one.action for one in outcomes) or "no services"
        files = shown_path(config.path) if of else shown_files(config, args)
        return Result(data, [f"[OK] {files} is up ({told})"])
    error, is_back = failed[0].error, came == "rolled back"
    if error and args.rollback_on_failure:
        error.message += f"; {'not wholly ' * (not is_back)}rolled back to what ran before"
    args.say(*[line for one in failed[1:] if one.error for line in error_lines(one.error)])
    return Result({**data, "rolled_back": is_back}, error=error)


def part_of(config: Config, steps: Sequence[Step], last: Version | None) -> Config:
    """What holds after a plan for some services: the others are as they were applied last."""
    news, planned = as_object(config.document["services"]), {step.name.lower() for step in steps}
    services = dict(as_object(last.document["services"])) if last else {}
    services = {name: keys for name, keys in services.items() if name.lower() not in planned}
    services.update({name: keys for name, keys in news.items() if name.lower() in planned})
    document = {**config.document, "services": services}
    return config._replace(document=document, is_part=services != news)


def carry_out(
    store: Store,
    version: Version,
    steps: Sequence[Step],
    known: Mapping[str, Known],
    args: argparse.Namespace,
) -> tuple[list[Step], str]:
    """Do what was planned, and note in the version, if it is a new one, what came of it."""

    def note(came: Mapping[str, Step], result: str) -> None:
        if version.result == "applying":
            plan = tuple(came.get(one.name, one).data for one in steps)
            write_version(store, version._replace(plan=plan, result=result), result != "applying")

    def tell(came: Mapping[str, Step]) -> None:
        with contextlib.suppress(StateError):  # it is told at the end, if it goes on
            note(came, "applying")

    with contextlib.closing(Application(store, steps, known, args)) as application:
        outcomes = application.run(tell)
    result = "failed" if any(one.error for one in outcomes) else "done"
    asked = result == "failed" and args.rollback_on_failure
    if asked and roll_back(store, known, outcomes, args.say):
        result = "rolled back"
    note({one.name: one for one in outcomes}, result)
    return outcomes, result


def unready(services: Iterable[Wanted | None]) -> ConfigError | None:
    """What is lacking here for these, as one error."""
    problems = lacking([one for one in services if one])
    return config_error(problems) if problems else None


def files_of(config: Config) -> set[str]:
    """All that a configuration is made of, also what isn't there yet."""
    env_files = (one.spec.env_files for one in config.services.values())
    return {config.path, *config.files, *itertools.chain(*env_files)}


def keep_up(store: Store, config: Config, args: argparse.Namespace) -> Iterator[str]:
    """Apply the configuration now and each time its files have changed, until q or Ctrl-C."""
    files = files_of(config)
    before = file_marks(files)
    applied: dict[str, object] | None = None  # nothing was yet
    told = (
        f"[INFO] watching {shown_files(config, args)}; q or Ctrl-C ends that, the services go on\n"
    )
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            now, news = file_marks(files), set[str]()
            if now == before and now != applied:  # it is whole by now
                try:
                    config = config_at(store, args)
                    news = files_of(config) - files
                    result = Result({}) if news else bring_up(store, config, args)
                except TimedOut as problem:  # another `up` goes on: then it is our turn
                    now, result = {}, Result({}, error=problem)
                except SpmError as problem:
                    news = {*map(str, as_list(problem.facts.get("files", [])))} - files
                    result = Result({}, error=problem)
                files |= news  # they are read again when it is known how they look
                failed = error_lines(result.error) if result.error else []
                if not news:
                    yield "".join(f"{line}\n" for line in (*result.lines, *failed))
                    yield told * (applied is None)
                    applied = now
            before = now
            yield ""  # who prints it sees then whether anybody reads it
            if key_within(0.2) in ("q", "Q"):
                return


@command("down", Option("names*", "NAME", help="only these"), *CONFIG_OPTIONS)
def down(store: Store, args: argparse.Namespace) -> Result:
    """Stop the services of the configuration, those first on which no other depends."""
    with contextlib.ExitStack() as locks:
        if os.path.lexists(store.home):
            store.prepare()
            locks.enter_context(only_one(store, CLAIM_S, "down"))  # an `up` under way is over first
        return bring_down(store, args)


def bring_down(store: Store, args: argparse.Namespace) -> Result:
    """Stop level by level: who depends on others goes before them."""
    path = find_config(args.config, store.home)
    known, others = store.records(), list[Record]()
    records = {key: one for key, one in known.items() if config_now(store, one.config) == path}
    config: Config | None = None
    try:
        config = config_at(store, args)
    except ConfigError:  # then what is recorded is all that is known
        given = filter(None, [args.procfile, *args.mcp_config])
        if not all(os.path.lexists(full_path(file)) for file in given):
            raise
    if args.names:  # what never ran needs no stop
        news = [name for name in args.names if name.lower() not in known]
        never = {name for name in news if config and config.named(name)}
        found = [find(store, name).record for name in args.names if name not in never]
        records = {one.name.lower(): one for one in found}
    ages = sorted(records, key=lambda key: records[key].started_at)
    levels = {key: age for age, key in enumerate(ages)}  # the last one started goes first
    if config:
        levels = dict.fromkeys(records, 0)
        for name in config.order():
            needs = [levels.get(need.lower(), 0) for need in config.services[name].depends_on]
            levels[name.lower()] = max([0, *needs]) + 1
        others = [known[key] for key in map(str.lower, config.services) if key in known]
    lines, data, errors = list[str](), list[object](), list[SpmError]()
    for level in sorted({levels[key] for key in records}, reverse=True):
        names = [one.name for key, one in records.items() if levels[key] == level]
        reports, failed = stop_each(store, names, STOP_TIMEOUT_S, force=False)
        data += [one for one, _ in reports]
        lines += news_of(reports)
        errors += failed
    make_due(store, config, {*records})
    is_there = os.path.lexists(path) or args.procfile or args.mcp_config
    none = f"[WARN] there is no {path}: nothing was stopped; started by hand? stop it by name"
    lines += [] if lines or errors else ["[OK] nothing of it was running" if is_there else none]
    told = "[WARN] {0} runs, but {1}: left alone; stop {0}"
    whose = ("was started by hand or from another file", "its record was lost")
    others = [one for one in others if config_now(store, one.config) != path]
    foreign = others if not args.names else []
    seen = [observe(store, one) for one in foreign]
    live = [one.record for one in seen if one.verdict.is_live]
    lines += [told.format(one.name, whose[one.guessed]) for one in live]
    return with_errors(Result({"config": path, "services": data}, lines), errors)


def make_due(store: Store, config: Config | None, stopped: set[str]) -> None:
    """Have the next `up` do the work of jobs again that was done for what is stopped now."""
    services = config.services.values() if config else ()
    records = store.records()
    live = {key for key, one in records.items() if one.phase in LIVE_PHASES}
    for key, record in records.items():
        users = {one.name.lower() for one in services if record.name in one.depends_on}
        is_due = key in stopped or (users & stopped and not (users - stopped) & live)
        if is_due and (record.phase, record.wanted) == ("exited", "running"):
            with contextlib.suppress(StateError):  # it stays done
                store.swap(record, record._replace(wanted="stopped"))


# -- export, init


TARGETS = ("systemd", "procfile", "compose", "kubernetes", "nomad")
# Fields of a spec that a target has no word for: said where they differ from their defaults.
LOST_EVERYWHERE = (
    "lease idle_timeout_s require_env rules alerts success_log failure_log terminal expect "
    "start_seconds cooldown_s backoff_max_s backoff_reset_s log_bytes sample_s"
)
LOST = dict.fromkeys(TARGETS, "success_codes no_restart_codes")
LOST.update(systemd="health", procfile="restart ready health success_codes no_restart_codes")
LOST["compose"] += " backoff_s restart_window_s"
LOST["kubernetes"] += " backoff_s max_restarts restart_window_s"
RESTART_NOTES = {
    ("kubernetes", "no"): "a Pod that nothing starts again; --restart always makes it a Deployment",
    ("kubernetes", "on-failure"): "a Pod of one node; --restart always makes it a Deployment",
    ("nomad", "on-failure"): "nomad starts it again after a success, too",
}
# Where the values of variables have to be put; only their names are exported.
VALUES_IN = {
    "systemd": "{cwd}/{name}.env, as NAME=value lines, mode 600",
    "procfile": ".env beside the Procfile, as NAME=value lines (honcho -e FILE)",
    "compose": "the environment of docker compose, or .env beside the document",
    "kubernetes": "a secret: kubectl create secret generic {dns}-env --from-env-file=FILE",
    "nomad": "a variable: nomad var put nomad/jobs/{project}/{dns} NAME=value",
}
# A ${NAME} of a configuration while words are quoted: between two characters for private use, which
# each quoting leaves alone, and which a shell's puts between single quotes.
HELD = "\ue000{}\ue001"
IS_HELD = HELD.format(rf"({VARIABLE})")
HOLDS = {"procfile": r"""'"$\1"'""", "kubernetes": r"$(\1)", "nomad": r"$${\1}"}  # others: ${NAME}
UNPRINTABLE = '["\\\\\0-\x1f\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]'
# In a template <key> is a value, a line with a list is repeated, one without a value is left out;
# <key?> is only asked for. systemd.unit(5), systemd.service(5), systemd.exec(5); a service is
# active, for those After= it, when its ExecStartPost= has ended.
SYSTEMD = """\
[Unit]
Description=<name> of <project>
Requires=<needs>.service
After=<needs>.service
StartLimitIntervalSec=<restart_window_s><restarts?>
StartLimitBurst=<burst><restarts?>

[Service]
Type=<type>
PIDFile=<pid_file>
WorkingDirectory=<cwd>
EnvironmentFile=<files>
Environment=PORT=<own_port>
ExecStart=<command>
ExecStartPost=<wait><ready?>
Restart=<restart>
RestartSec=<backoff_s><restarts?>
SuccessExitStatus=<good>
RestartPreventExitStatus=<final>
TimeoutStopSec=<stop>

[Install]
WantedBy=default.target
"""
# The Compose Specification: github.com/compose-spec/compose-spec
COMPOSE = """\
  "<name>":
    image: "${IMAGE_<variable>:?the image of <name>}"
    init: true
    entrypoint: <words>
    working_dir: <cwd>
    env_file: <env_files>
    environment: <environment>
    ports: ["127.0.0.1:<port>:<port>"]
    depends_on:<needs?>
      "<needs>": {condition: service_<conditions>}
    healthcheck:<test?>
      test: <test>
      interval: <health_interval_s>s<test?>
      timeout: <health_timeout_s>s<test?>
      retries: <retries><test?>
    restart: <restart>
    stop_grace_period: <stop>s
"""
# kubernetes.io/docs/reference/kubernetes-api; with service links, api's Service would set API_PORT
# in every container.
KUBERNETES = """\
---
apiVersion: <api>
kind: <kind>
metadata: {name: "<dns>", labels: {app: "<dns>"}}
<pod><is_alone?>
spec:<is_kept?>
  replicas: 1<is_kept?>
  selector: {matchLabels: {app: "<dns>"}}<is_kept?>
  template:<is_kept?>
    metadata: {labels: {app: "<dns>"}}<is_kept?>
    <pod><is_kept?>
---<port?>
apiVersion: v1<port?>
kind: Service<port?>
metadata: {name: "<dns>", labels: {app: "<dns>"}}<port?>
spec: {selector: {app: "<dns>"}, ports: [{port: <port>}]}
"""
POD_SPEC = """\
spec:
  initContainers:<needs?>
    - {name: "wait-<needs>", image: "busybox:1", command: [sh, -c, <waits>]}
  containers:
    - name: "<dns>"
      image: "<dns>:CHANGE-ME"
      command: <words>
      workingDir: <cwd>
      envFrom: [{secretRef: {name: "<dns>-env"}}]<env_files?>
      env:<environment?>
        - {name: PORT, value: "<own_port>"}
        - {name: "<env>", valueFrom: {secretKeyRef: {name: "<dns>-env", key: "<env>"}}}
      ports: [{containerPort: <port>}]
      readinessProbe: {<ready>}
      livenessProbe: {<alive>}
  enableServiceLinks: false
  restartPolicy: <restart>
  terminationGracePeriodSeconds: <stop>
"""
# developer.hashicorp.com/nomad/docs/job-specification; raw_exec has a work_dir since 1.10 only.
NOMAD = """\
  group "<dns>" {
    network {<port?>
      port "main" { static = <port> }
    }<port?>
    service {<port?>
      name = "<dns>"<port?>
      provider = "nomad"<port?>
      port = "main"<port?>
      <checks>
    }<port?>
    restart {
      attempts = <attempts>
      interval = "<restart_window_s>s"
      delay = "<backoff_s>s"
      mode = "fail"
    }
    reschedule {<once?>
      attempts = 0<once?>
      unlimited = false<once?>
    }<once?>
    task "<dns>" {
      driver = "raw_exec"
      kill_timeout = "<stop>s"
      config {
        command = "/bin/sh"
        args = ["-c", "cd \\"$0\\" && exec \\"$@\\"", <command>]
      }
      env { PORT = "<own_port>" }
      template {<env?>
        data = "{{with nomadVar \\"nomad/jobs/<project>/<dns>\\"}}<env_lines>{{end}}"<env?>
        destination = "secrets/env"<env?>
        env = true<env?>
      }<env?>
    }
  }
"""
NOMAD_CHECK = """\
check {
  type = "<type>"
  path = <path><is_http?>
  protocol = "<kind>"<is_http?>
  tls_skip_verify = true<is_insecure?>
  interval = "<health_interval_s>s"
  timeout = "<health_timeout_s>s"
  check_restart { limit = <retries> }<is_alive?>
}"""


def filled(template: str, values: Mapping[str, object]) -> str:
    """A template with its values; those of a line with lists are taken from each in turn."""
    lines = []
    for line in template.splitlines(keepends=True):
        keys = re.findall(r"<(\w+)\??>", line)
        line = re.sub(r"<\w+\?>", "", line)
        used = map(values.get, re.findall(r"<(\w+)>", line))
        lists = [value for value in used if isinstance(value, (list, tuple))]
        for at in range(min(map(len, lists), default=1)) if all(map(values.get, keys)) else ():

            def value_of(found: re.Match[str], at: int = at) -> str:
                value = values[found[1]]
                value = value[at] if isinstance(value, (list, tuple)) else value
                return f"{value:.9g}" if isinstance(value, float) else str(value)

            indent = line[: -len(line.lstrip())]
            text = re.sub(r"<(\w+)>", value_of, line.rstrip("\n")).rstrip("\n")
            lines.append(text.replace("\n", f"\n{indent}") + "\n")
    return "".join(lines)


class Unit(NamedTuple):
    """A service as other engines see it; of variables it has the names."""

    name: str
    dns: str  # the name as DNS takes it
    spec: Spec
    needs: Mapping[str, str]  # the services before it, and what they have to be
    is_awaited: bool  # somebody waits for its end
    program: str  # argv[0] with its directory; "" if it isn't found here
    own_port: int | None  # the value of PORT
    env: tuple[str, ...]  # names of other variables
    ready: tuple[Check, ...]  # what can be asked from outside
    alive: tuple[Check, ...]


def dns_name(name: str) -> str:
    """The name in a-z, 0-9 and - alone, at most 63, beginning with a letter (RFC 1035, 2.3.1)."""
    plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    return re.sub(r"^(?![a-z])", "s-", plain)[:63].rstrip("-")


def reach(check: Check, spec: Spec) -> str:
    """HOST:PORT that a check connects to, "" if the port isn't known."""
    port = check.port or spec.port
    return joined_host(check.host or "127.0.0.1", port) if port else ""


def probe_words(unit: Unit, checks: Sequence[Check]) -> tuple[str, str, str]:
    """A command that succeeds if all checks hold; /dev/tcp is bash's: bash(1), REDIRECTION."""
    parts = []
    for one in checks:
        host, _, port = reach(one, unit.spec).rpartition(":")
        url = shlex.quote(f"{one.kind}://{host}:{port}{one.text}")
        curl = f"curl -fsSo /dev/null {'-k ' * unit.spec.insecure}{url}"
        tcp = f": </dev/tcp/{host.strip('[]')}/{port}"
        command = f"({one.text}" + "\n" * ("#" in one.text) + ")"  # behind a comment
        parts.append({"exec": command, "tcp": tcp}.get(one.kind, curl))
    shell = "/bin/bash" if any(one.kind == "tcp" for one in checks) else "/bin/sh"
    return shell, "-c", " && ".join(parts)


def probes_inside(target: str, unit: Unit) -> list[tuple[Check, ...]]:
    """Those that a target asks by a command in the service's container."""
    if target == "compose":
        return [one for one in [unit.alive or unit.ready] if one]
    both = (unit.ready, unit.alive if unit.spec.restart != "no" else ())
    many = [one for one in both if one and (len(one) > 1 or one[0].kind == "exec")]
    return many if target == "kubernetes" else []


def unit_of(target: str, name: str, spec: Spec, notes: list[str]) -> Unit:
    """The unit of a service; what the target has no word for is added to the notes."""
    lost_then = " health" * ((target, spec.restart) == ("kubernetes", "no"))
    lost_then += " max_restarts" * ((target, spec.restart) == ("compose", "always"))
    usual = {**Spec._field_defaults, "cooldown_s": COOLDOWN_S * bool(spec.cooldown_s)}
    for field in f"{LOST_EVERYWHERE} {LOST[target]}{lost_then}".split():
        if getattr(spec, field) != usual[field]:
            option = FIELD_KEYS[field].replace("_", "-")
            then = f" with --restart {spec.restart}" * (field in lost_then)
            lost = f"has nothing like --{option}{then}"
            lost = "doesn't check environment rules" if field == "rules" else lost
            notes.append(f"{name}: {target} {lost}")
    if (target, spec.restart) in RESTART_NOTES:
        notes.append(f"{name}: {RESTART_NOTES[target, spec.restart]}")
    known = {text: parse_check(text) for text in (*spec.readiness, *spec.health)}
    local, is_nomad = ("", "localhost", *LOOPBACK), target == "nomad"
    asked = {
        text: one
        for text, one in known.items()
        if one.kind != "log" and (reach(one, spec) if one.kind != "exec" else not is_nomad)
        # a check's port would be a label of one: github.com/hashicorp/nomad/issues/18974
        if not is_nomad or (spec.port and one.port in (None, spec.port) and one.host in local)
        if target not in ("kubernetes", "nomad") or not re.search(IS_HELD, one.text)
    }
    unasked = known.keys() - asked.keys() if target != "procfile" else ()
    notes += [f"{name}: {target} can't look for {quoted(one)}" for one in sorted(unasked)]
    first = spec.words[0]
    if target in ("compose", "kubernetes"):
        notes.append(f"{name}: name an image that has {first} and {spec.cwd}")
        if re.search(r"127\.0\.0\.1|localhost|::1\b", " ".join(spec.words)):
            notes.append(f"{name}: has to listen on 0.0.0.0: 127.0.0.1 is the container's own")
    program = os.path.join(spec.cwd, first) if os.path.dirname(first) else shutil.which(first) or ""
    program = "" if re.search(IS_HELD, first) else program  # only arguments have references
    own_port = spec.port if spec.port_declared and "PORT" not in spec.env_given else None
    env = dict.fromkeys((*spec.env_given, *spec.env_taken))
    env.pop("PORT" * bool(own_port), None)  # the caller's is weaker
    if spec.port_declared and not spec.port:
        notes.append(f"{name}: {target} can't choose a port: give it one instead of auto")
    ready = tuple(asked[text] for text in spec.readiness if text in asked)
    alive = tuple(asked[text] for text in spec.health if text in asked)
    unit = Unit(name, dns_name(name), spec, {}, False, program, own_port, (*env,), ready, alive)
    inside = probes_inside(target, unit)
    tools = {os.path.basename(probe_words(unit, checks)[0]) for checks in inside}
    tools |= {"curl" for checks in inside for one in checks if one.kind in ("http", "https")}
    told = f"{name}: its image needs {', '.join(sorted(tools))} for the healthcheck"
    notes += [told] if tools else []
    return unit


def quoted(text: str) -> str:
    """The text in double quotes, by escapes that all have: YAML 1.2.2, 5.7; HCL native syntax,
    Template Literals; systemd.syntax(7), C-style escapes.
    """

    def escape(found: re.Match[str]) -> str:
        return f"\\{found[0]}" if found[0] in '"\\' else f"\\u{ord(found[0]):04x}"

    return f'"{re.sub(UNPRINTABLE, escape, text)}"'


def flow(texts: Iterable[str]) -> str:
    """A list in YAML's flow style, in which $ is $$: Compose (docs.docker.com, Interpolation) and
    Kubernetes (kubernetes.io, Define Dependent Environment Variables) have variables there.
    """
    items = [quoted(text.replace("$", "$$")) for text in texts]
    return f"[{', '.join(items)}]" if items else ""


def systemd_line(program: str, *words: str) -> str:
    """A command line. % begins a specifier, systemd.unit(5); behind the program $ begins a
    variable, systemd.service(5), COMMAND LINES.
    """
    texts = (program, *(word.replace("$", "$$") for word in words))
    plain = r"[A-Za-z0-9_@%+=:,./$-]+"
    line = " ".join(text if re.fullmatch(plain, text) else quoted(text) for text in texts)
    return line.replace("%", "%%")


def systemd_path(path: str) -> str:
    """A path where systemd takes the rest of the line; UsageError if it can't be one."""
    if re.search(r"[\0-\x1f]|[\s\\]$", path):
        raise UsageError(f"systemd can't be told of the path {path!r}", "rename it")
    return path.replace("%", "%%")


def systemd_values(unit: Unit, _: Mapping[str, Unit]) -> dict[str, object]:
    """What SYSTEMD needs."""
    spec, (shell, flag, probe) = unit.spec, probe_words(unit, unit.ready)
    files = (*spec.env_files, *[os.path.join(spec.cwd, f"{unit.name}.env")][: len(unit.env)])
    # in Environment= an EnvironmentFile= would be stronger: systemd.exec(5)
    own = [f"PORT={unit.own_port}"] if unit.own_port and spec.env_files else []
    before = ["/usr/bin/env", *own] if own or not unit.program else []
    words = (*before, unit.program or spec.words[0], *spec.words[1:])
    return {
        "own_port": None if own else unit.own_port,
        "type": "oneshot" if unit.is_awaited else "forking" if spec.type == "forking" else "exec",
        "pid_file": systemd_path(spec.pid_file or ""),
        "cwd": systemd_path(spec.cwd),
        "files": list(map(systemd_path, files)),
        "command": systemd_line(*words),
        "wait": systemd_line(shell, flag, f"until {probe}; do sleep 0.5; done"),
        "good": re.sub(r"^0\b|,", " ", spec.success_codes).strip(),
        "final": spec.no_restart_codes.replace(",", " "),
    }


def procfile_values(unit: Unit, _: Mapping[str, Unit]) -> dict[str, object]:
    """A command for a shell: devcenter.heroku.com/articles/procfile. What would end the line is
    written in octal, for printf's %b.
    """
    port = f"PORT={unit.own_port} " * bool(unit.own_port)
    line = f"cd {shlex.quote(unit.spec.cwd)} && {port}exec {shlex.join(unit.spec.words)}"
    line = re.sub(IS_HELD, HOLDS["procfile"], line)
    if line.splitlines() != [line]:
        octal = "".join(f"\\0{byte:03o}" for byte in line.encode("utf-8", "surrogateescape"))
        line = f"eval \"$(printf %b '{octal}')\""
    return {"line": line}


def compose_values(unit: Unit, units: Mapping[str, Unit]) -> dict[str, object]:
    """What COMPOSE needs."""
    spec, checks = unit.spec, unit.alive or unit.ready
    has_check = {one for one in unit.needs if units[one].alive or units[one].ready}
    how = {"exited": "completed_successfully", "ready": "healthy"}
    # on-failure:0 is without end: github.com/moby/moby, restartmanager
    restart = "no" if spec.restart == "on-failure" and not spec.max_restarts else spec.restart
    return {
        "variable": re.sub("[^A-Z0-9]", "_", unit.name.upper()),
        "words": flow(spec.words),
        "cwd": flow([spec.cwd])[1:-1],
        "env_files": flow(spec.env_files),
        "environment": flow([*[f"PORT={unit.own_port}"][: bool(unit.own_port)], *unit.env]),
        "conditions": [
            "started" if want == "ready" and one not in has_check else how.get(want, "started")
            for one, want in unit.needs.items()
        ],
        "test": checks and flow(["CMD", *probe_words(unit, checks)]),
        "restart": quoted(restart + f":{spec.max_restarts}" * (restart == "on-failure")),
    }


def kubernetes_probe(unit: Unit, checks: Sequence[Check]) -> str:
    """A probe, in whole seconds: kubernetes.io, Configure Liveness, Readiness, Startup Probes."""
    if not checks:
        return ""
    spec, (kind, path, host, port) = unit.spec, checks[0]
    far = f", host: {quoted(host)}" * (host not in ("", "localhost", *LOOPBACK))
    where = f"port: {port or spec.port}{far}"
    known = f"httpGet: {{{where}, path: {quoted(path)}, scheme: {kind.upper()}}}"
    if kind == "exec" or len(checks) > 1:
        known = f"exec: {{command: {flow(probe_words(unit, checks))}}}"
    elif kind == "tcp":
        known = f"tcpSocket: {{{where}}}"
    period, limit = -int(-spec.health_interval_s // 1), -int(-spec.health_timeout_s // 1)
    retries = max(spec.health_retries, 1)
    return f"{known}, periodSeconds: {period}, timeoutSeconds: {limit}, failureThreshold: {retries}"


def kubernetes_values(unit: Unit, units: Mapping[str, Unit]) -> dict[str, object]:
    """What POD_SPEC needs."""
    spec, needs = unit.spec, [units[one] for one in unit.needs]
    is_kept = spec.restart == "always"
    until = "until nc -z {} {}; do sleep 1; done"
    return {
        "needs": [one.dns for one in needs],
        "waits": [quoted(until.format(one.dns, one.spec.port)) for one in needs],
        "words": flow(spec.words),
        "cwd": quoted(spec.cwd),
        "environment": unit.own_port or unit.env,
        "api": "apps/v1" if is_kept else "v1",
        "kind": "Deployment" if is_kept else "Pod",
        "is_kept": is_kept,
        "is_alone": not is_kept,
        "ready": kubernetes_probe(unit, unit.ready),
        "alive": kubernetes_probe(unit, unit.alive) if spec.restart != "no" else "",
        "restart": {"no": "Never", "on-failure": "OnFailure"}.get(spec.restart, "Always"),
    }


def nomad_values(unit: Unit, _: Mapping[str, Unit]) -> dict[str, object]:
    """What NOMAD needs; ${ and %{ begin a template in HCL, doubled they don't."""

    def hcl(text: str) -> str:
        return re.sub(r"([$%])(?={)", r"\1\1", quoted(text))

    spec = unit.spec

    def block(one: Check) -> str:
        values = {**spec._asdict(), **one._asdict(), "path": hcl(one.text)}
        values.update(is_http=one.kind != "tcp", type="tcp" if one.kind == "tcp" else "http")
        values.update(is_insecure=spec.insecure and one.kind == "https")
        values.update(is_alive=one in unit.alive and spec.restart != "no")
        return filled(NOMAD_CHECK, {**values, "retries": max(spec.health_retries, 1)})

    words = (spec.cwd, unit.program or spec.words[0], *spec.words[1:])
    return {
        "checks": list(map(block, dict.fromkeys(unit.ready + unit.alive))),
        "command": ", ".join(map(hcl, words)),
        "env_lines": "".join(f'{key}={{{{index . \\"{key}\\"}}}}\\n' for key in unit.env),
    }


FILES = {  # their names, what is above the services, each service, what is below
    "systemd": ("{1}.service", "", SYSTEMD, systemd_values, ""),
    "procfile": ("Procfile", "", "<dns>: <line>\n", procfile_values, ""),
    "compose": ("compose.yaml", 'name: "{0}"\nservices:\n', COMPOSE, compose_values, ""),
    "kubernetes": ("kubernetes.yaml", "", KUBERNETES, kubernetes_values, ""),
    "nomad": ("{0}.nomad.hcl", 'job "{0}" {{\n  type = "service"\n', NOMAD, nomad_values, "}\n"),
}


def documents(target: str, units: Sequence[Unit], project: str) -> dict[str, str]:
    """The text of each file for a target."""
    known, texts = {unit.name: unit for unit in units}, dict[str, str]()
    path, head, template, values_of, foot = FILES[target]
    for unit in units:
        spec = unit.spec
        needs = list(unit.needs)
        values: dict[str, object] = {**spec._asdict(), **unit._asdict(), "project": project}
        values.update(needs=needs, stop=STOP_TIMEOUT_S)
        values.update(once=spec.restart == "no", restarts=spec.restart != "no")
        values.update(attempts=str(spec.max_restarts * (spec.restart != "no")))
        values.update(burst=spec.max_restarts + 1, retries=max(spec.health_retries, 1))
        values.update(values_of(unit, known))
        values["pod"] = filled(POD_SPEC, values) if target == "kubernetes" else ""
        file = path.format(project, unit.name)
        texts[file] = texts.get(file, head.format(project)) + filled(template, values)
    return {file: text + foot for file, text in texts.items()}


def exported(
    target: str, services: Sequence[Described], project: str, known: Iterable[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The files that tell a target of the services, and notes: what they lack."""
    notes, units = list(known), list[Unit]()
    types = ("simple", "forking") if target == "systemd" else ("simple",)
    ports = {name: spec.port for name, spec, _ in services if spec.type in types}
    awaited = [one for _, _, needs in services for one, how in needs.items() if how == "exited"]
    for name, spec, needs in services:
        if name not in ports:
            notes.append(f"{name} is left out: {target} has nothing like --type {spec.type}")
            continue
        unit = unit_of(target, name, spec, notes)
        told = {}
        for one, how in needs.items():
            is_open = target == "kubernetes" and how != "exited" and ports.get(one)
            if one in ports and (target in ("systemd", "compose") or is_open):
                told[one] = how
            else:
                notes.append(f"{name}: {target} isn't told that it needs {one}")
        unread = () if target in ("systemd", "compose") else spec.env_files
        values = [f"of {', '.join(unit.env)}"] * bool(unit.env) + [f"in {one}" for one in unread]
        where = VALUES_IN[target].format(name=name, cwd=spec.cwd, dns=unit.dns, project=project)
        notes += [f"{name}: put the values {' and '.join(values)} into {where}"] if values else []
        units.append(unit._replace(needs=told, is_awaited=name in awaited))
    if len({unit.dns for unit in units}) < len(units):
        raise UsageError("two names differ in signs only", "export these services one by one")
    notes = [re.sub(IS_HELD, r"${\1}", note) for note in notes]
    notes = ["".join(c if c.isprintable() else "?" for c in note) for note in notes]
    files = documents(target, units, project)
    for file, text in files.items():
        mine = (f"{file[:-8]}:", f"{file[:-8]} ") if target == "systemd" else ""
        own = [one for one in notes if one.startswith(mine) or " is left out: " in one]
        head = "".join(f"# {one}\n" for one in own)
        files[file] = head + re.sub(IS_HELD, HOLDS.get(target, r"${\1}"), text)
    return files, notes


def renew(path: str, root: str, make: Callable[[str], str]) -> bool:
    """Write what `make` makes of a file's text; whether that is another. Refused if it isn't ours.

    A link may lead to another file below `root`, not out of it. The mode stays as it was.
    """
    shown, real = shown_path(path), os.path.realpath(path)
    if not real.startswith(os.path.join(os.path.realpath(root), "")):
        raise Refused(f"{shown} is a symbolic link to {real}, outside of {root}: left as it is")
    is_new = not os.path.lexists(real)
    if not is_new and not os.path.isfile(real):
        raise Refused(f"{shown} is no regular file: left as it is")
    try:
        with open(os.devnull if is_new else real, encoding="utf-8", newline="") as file:
            old = file.read()
        text = make(old)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, JSONDecodeError
        raise Refused(f"{shown} isn't what was expected, left as it is: {error}") from error
    if text == old:
        return False
    try:
        os.makedirs(os.path.dirname(real), exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Refused(f"{shown}: a file is in the way of a directory: left as it is") from error
    if is_new:
        open(real, "x").close()  # with the mode that is usual here
    mode = os.stat(real).st_mode
    if not mode & 0o200:
        raise Refused(f"{shown} is read-only: left as it is")
    try:
        with state_errors(path):
            write_file(real, text.encode("utf-8", "surrogateescape"), durable=False)
    except BaseException:  # an empty program would succeed at everything
        if is_new:
            os.unlink(real)
        raise
    os.chmod(real, mode)
    return True


def write_all(root: str, makes: Mapping[str, Callable[[str], str]], advice: str) -> Result:
    """What became of each file; what is in the way keeps none of the others from being written."""
    done, problems = {}, []
    for path, make in makes.items():
        try:
            done[path] = "written" if renew(os.path.join(root, path), root, make) else "unchanged"
        except Refused as error:
            problems.append(error.message)
    lines = [f"[OK] {shown_path(os.path.join(root, k))} {what}" for k, what in done.items()]
    refused = Refused("; ".join(problems), advice) if problems else None
    return Result({"done": done}, lines, error=refused)


def held(value: object, is_shell: bool, names: dict[str, bool]) -> object:
    """A value whose ${NAME} stay references; to `names` go these, and whether a default is lost."""
    if isinstance(value, list):
        return [held(one, is_shell, names) for one in value]

    def reference(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name in (None, "workspaceFolder"):
            return found[0]
        names[name] = names.get(name, False) or (default is not None and not is_shell)
        usual = f":-{default}" if default is not None else ""
        return f"$${{{name}{usual}}}" if is_shell else HELD.format(name)

    return re.sub(REFERENCE, reference, value) if isinstance(value, str) else value


def held_check(text: object, names: dict[str, bool]) -> object:
    """A check whose ${NAME} stay references, unless it is none without their values: a port."""
    inner = dict(names)
    new = held(text, str(text).startswith("exec:"), inner)
    with contextlib.suppress(UsageError):
        if not re.search(IS_HELD, parse_check(str(new)).host):  # which is in lower case
            names.update(inner)
            return new
    return text


def with_references(config: Config) -> tuple[Config, dict[str, list[str]], dict[str, list[str]]]:
    """The Config whose commands and checks keep their ${NAME}; by service: names, and notes."""
    services, names, notes = dict[str, object](), dict[str, list[str]](), dict[str, list[str]]()
    for name, one in as_object(config.document["services"]).items():
        keys, found = as_object(one), dict[str, bool]()
        new = {**keys, "command": held(keys["command"], keys.get("shell") is True, found)}
        new["env"] = {k: v and "" for k, v in as_object(keys.get("env")).items()}  # names are told
        for key in ("ready", "health"):
            if key in keys:
                new[key] = [held_check(text, found) for text in as_list(keys[key])]
        what = ("not its value", "not its value, nor its default")
        told = [f"{name}: its command or checks have ${{{k}}}: {what[v]}" for k, v in found.items()]
        for key, value in new.items():
            left = re.findall(REFERENCE, json.dumps(value)) if key not in ("env", "command") else ()
            inside = sorted({each[0] for each in left if each[0] not in ("", "workspaceFolder")})
            told += [f"{name}: {key} holds the value of ${{{each}}}, in clear" for each in inside]
        services[name], names[name], notes[name] = new, list(found), told
    return config_of({**config.document, "services": services}, config.path), names, notes


def described(store: Store) -> tuple[dict[str, tuple[Described, list[str]]], dict[str, str]]:
    """Each service with what is to be said of it: the configuration's, then those started by hand.
    Of a variable that a command names it has the name. And which of them aren't meant, and why.
    """
    here: dict[str, tuple[Described, list[str]]] = {}
    left = dict[str, str]()
    path = find_config(None, store.home)
    if os.path.lexists(path):
        config, names, notes = with_references(read_config(path, expands=False))
        for one in config.services.values():
            taken = tuple(dict.fromkeys((*one.spec.env_taken, *names[one.name])))
            spec = one.spec._replace(env_taken=taken)
            here[one.name.lower()] = (one.name, spec, one.depends_on), notes[one.name]
            left.update({one.name: "it is disabled"} if one.disabled else {})
    for key, record in sorted(store.records().items()):
        about = f"{record.name}: look for secrets: a ${{…}} in its command is what `up` made of it"
        one_by_hand = record.name, record.spec, dict[str, str]()
        if key not in here and record.config and config_now(store, record.config) == path:
            left[record.name] = f"{shown_path(path)} doesn't have it"  # no more
        here.setdefault(key, (one_by_hand, [about] * bool(record.config)))
    return here, left


@command(
    "export",
    Option("target", "TARGET", one_of(*TARGETS), help=", ".join(TARGETS)),
    Option("names*", "NAME", help="these services alone"),
    Option("-o --output", "DIR", help="write files there instead of printing them"),
    Option("--force", help="overwrite files that differ"),
)
def export(store: Store, args: argparse.Namespace) -> Result:
    """The services for another engine: systemd, procfile, compose, kubernetes, nomad."""
    known, unmeant = described(store)
    for name in args.names:
        if name.lower() not in known:
            check_name(name)
            advice = services_here(name, [one[0][0] for one in known.values()])
            raise NotFound(f"no service {name!r} in {store.home}", advice)
    left = {} if args.names else unmeant
    asked = dict.fromkeys(map(str.lower, args.names)) or known
    wanted = [known[key] for key in asked if known[key][0][0] not in left]
    if not wanted and left:
        what = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise NotFound(f"{what}; there is no other", "name what is meant")
    if not wanted:
        raise NotFound(f"no services in {store.home}", "start one; a stopped one counts, too")
    project = dns_name(os.path.basename(root_of(store.home)))
    services, told = zip(*wanted)
    gone = [f"{name} is left out: {why}" for name, why in left.items()]
    about = [*gone, *itertools.chain(*told)]
    files, notes = exported(args.target, services, project, about)
    data: dict[str, object] = {"target": args.target, "files": files}
    lines = [f"[WARN] {note}" for note in notes]
    if not args.output:
        texts = [f"# {file}\n{text}" if len(files) > 1 else text for file, text in files.items()]
        return Result(data, lines, stream=iter(["\n".join(texts)]))

    def new_text(file: str, old: str) -> str:
        if old not in ("", files[file]) and not args.force:
            raise Refused(f"{os.path.join(args.output, file)} is there and differs")
        return files[file]

    makes = {file: functools.partial(new_text, file) for file in files}
    result = write_all(full_path(args.output), makes, "overwrite it with --force")
    return result._replace(data={**data, **result.data}, lines=[*lines, *result.lines])


STEERING = """\
# Background services: use simple_process_manager.py

Never run what doesn't return (a server, a watcher, a worker) directly, with `&` or `nohup`.
Never end processes by name (`pkill`, `killall`, `taskkill /IM`); never edit `.spm/`. Instead:

| to | behind `{spm}` |
| --- | --- |
| run tests with a service | `run api "COMMAND" -- TESTS`: starts, waits, tests, always stops |
| keep it while you work | `start api "COMMAND"`, `wait-healthy api`; at the end `stop api` |
| have what an `spm.json` says | `config validate`, `up --wait`; at the end `down` |
| see what runs | `list`, `status api`, `logs api` |
| know why it failed | `explain api` first: cause, advice, last lines |
| know who holds a port | `port 8000`; `--port auto` takes a free one: `PORT`, `{port}` |
| call an MCP server | `start clock --type stdio "COMMAND"`, then `tools`, `call` |
| be done with this project | `cleanup` stops all of it (`--session`: only what is yours) |

```sh
{spm} run api "uvicorn main:app --host 0.0.0.0 --port 8000" -- pytest tests/integration/
```

- Its exit code is that of the tests. More services: `--with db="redis-server --port 6379"`.
- Step by step (where one of them fails, `stop api` isn't reached: run it yourself then):

```sh
{spm} start api "uvicorn main:app --host 0.0.0.0 --port 8000" && {spm} wait-healthy 8000 30 && \
pytest tests/integration/ && {spm} stop api
```

- It needs Python 3.9 and psutil: use `.venv/bin/python`, or `uv run {file} …`.
- Quote the command. It has to stay in the foreground: no `&`, no `--daemonize`, no `nohup`.
- Put options behind it: `--cwd DIR`, `--env K=V`, `--env-file FILE`, `--shell`, `--ready http:/x`.
- `start` returns at once; `wait-healthy PORT|NAME [SECONDS]` when it answers, or has died.
- To end it with your session: `start … --lease session`; after an idle hour: `--idle-timeout 1h`.
- A daemon that goes into the background: `--type forking`. It needs a window: `--terminal auto`.

```sh
{spm} list
{spm} logs api -n 50
{spm} explain api
{spm} restart api
```

- `events NAME`: what happened; `stats NAME`: what it uses; `alerts`: which limits are exceeded.
- `touch NAME`: you still need it. Inside a service: `notify ready`, `notify alive`.
- `export systemd`: for another engine. `init`: this text, renewed. `vendor DIR`: copies this tool.

MCP and other stdio servers: start once, call often. `connect clock` is an MCP client's command.

```sh
{spm} start clock --type stdio "python -m mcp_server_time"
{spm} tools clock
{spm} call clock get_current_time timezone=UTC
```

Lines begin with `[OK]`, `[INFO]`, `[WARN]` or `[ERROR]`; behind `→` stands what to do next.
`--json` prints one JSON document. Exit codes: 0 done; 1 it died or failed; 2 wrong arguments;
3 not known or not running; 4 the command can't be started; 5 the port is another's; 6 a variable
or a file is missing; 7 it failed just now: mend the cause, or `--force`; 8 not this project's
process, or another spec (`--replace`); 9 the state directory; 124 not in time; 130 interrupted.
"""
AGENTS = {  # where the text goes, and what stands above it in a new file
    "kiro": (".kiro/steering/process-manager-tool.md", "---\ninclusion: always\n---\n\n"),
    "claude": ("CLAUDE.md", ""),
    "cursor": (
        ".cursor/rules/process-manager-tool.mdc",
        "---\ndescription: background services\nalwaysApply: true\n---\n\n",
    ),
    "agents-md": ("AGENTS.md", ""),
}
BEGIN = "<!-- simple_process_manager: begin"
BEGINS = f"{BEGIN} (`init` renews what is between these marks) -->"
ENDS = "<!-- simple_process_manager: end -->"
END_SESSION = "cleanup --session"


def with_section(text: str, above: str, old: str) -> str:
    """A file with the text between its marks: where it was, else at the end."""
    end = "\r\n" if "\r\n" in old else "\n"
    section = f"{BEGINS}\n{text}{ENDS}".replace("\n", end)
    before, begin, rest = old.partition(BEGIN)
    _, ended, after = rest.partition(ENDS)
    if (old.count(BEGIN), old.count(ENDS)) != (len(ended) > 0, len(ended) > 0):
        raise ValueError("the marks of init aren't one pair")
    if begin:
        return before + section + after
    return (old + end * (1 + (old[-1] != "\n")) if old else above) + section + end


def merged(old: object, new: object) -> object:
    """A JSON value with a hook added, unless it is there."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{k: merged(old[k], v) if k in old else v for k, v in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        return old if any(END_SESSION in json.dumps(one) for one in old) else old + new
    if isinstance(new, (dict, list)):
        raise ValueError(f"{json.dumps(old)[:40]} stands where {json.dumps(new)[:40]}… would")
    return old


def with_hook(hook: object, old: str) -> str:
    """A JSON file with a hook added, as it was indented."""
    known = parse_json(old) if old.strip() else {}
    new, indent = merged(known, hook), re.search(r'^([ \t]+)"', old, re.M)
    text = json.dumps(new, indent=indent[1] if indent else 2, ensure_ascii=False)
    text.encode()  # UnicodeEncodeError: "\ud800" was in it
    return old if new == known else f"{text}\n"


def hooks_of(agent: str, call: str) -> dict[str, object]:
    """What ends the services with an agent's session, by file.

    code.claude.com/docs/en/hooks, SessionEnd; kiro.dev/docs/cli/v3/hooks, SessionEnd; Kiro's IDE
    0.x has none, so there it is a button; cursor.com/docs/agent/hooks, sessionEnd.
    """
    run = f"{call} {END_SESSION}"
    about = {"name": "end-services", "description": "End the services of this session"}
    there = {"type": "command", "command": f'cd "$CLAUDE_PROJECT_DIR" && {run}', "timeout": 60}
    action = {"trigger": "SessionEnd", "action": {"type": "command", "command": run}, "timeout": 60}
    button = {"when": {"type": "userTriggered"}, "then": {"type": "runCommand", "command": run}}
    hooks: dict[str, object] = {
        ".claude/settings.json": {"hooks": {"SessionEnd": [{"hooks": [there]}]}},
        ".cursor/hooks.json": {"version": 1, "hooks": {"sessionEnd": [{"command": run}]}},
        ".kiro/hooks/end-services.json": {"version": "v1", "hooks": [{**about, **action}]},
        ".kiro/hooks/end-services.kiro.hook": {"enabled": True, **about, "version": "1", **button},
    }
    return {path: hook for path, hook in hooks.items() if path.startswith(f".{agent}/")}


def guesses(root: str) -> Iterator[tuple[str, dict[str, object], str]]:
    """Services that a project seems to have: name, keys of the configuration, where it is seen."""

    def read(name: str) -> str:
        path = os.path.join(root, name)
        with contextlib.suppress(OSError), open(path if os.path.isfile(path) else "", "rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
        return ""

    # No pattern here may look at the same blanks twice: the files are anybody's.
    for name, text in re.findall(r"(?m)^([\w-]+):[ \t]*(\S.*)$", read("Procfile")):
        keys: dict[str, object] = {"command": text.rstrip().replace("${", "$${")}
        keys.update({"shell": True} if shell_sign(text.rstrip()) else {})
        keys.update({"port": "auto"} if "PORT" in text else {})
        keys.update({"env_file": ".env"} if os.path.isfile(os.path.join(root, ".env")) else {})
        yield name, keys, "Procfile"
    with contextlib.suppress(ValueError):
        scripts = as_object(as_object(parse_json(read("package.json") or "{}")).get("scripts"))
        for name in [one for one in ("dev", "start") if isinstance(scripts.get(one), str)][:1]:
            port = recognise_port(str(scripts[name]).split())
            keys = {"command": f"npm run {name}"}
            keys.update({"port": port} if port else {})
            yield "web", keys, f"package.json, scripts.{name}"
    asked = (read("pyproject.toml") + read("requirements.txt")).lower()
    if "django" in asked and read("manage.py"):
        yield "django", {"command": "python manage.py runserver 8000", "port": 8000}, "manage.py"
    for file in ("main.py", "app.py", "app/main.py", "src/main.py"):
        assigned = r"(?m)^(\w+)[ \t]*(?::[^\n=]*)?=[ \t]*(?:\w+\.)?FastAPI\("
        module = file[:-3].replace("/", ".")
        for name in re.findall(assigned, read(file))[:1]:
            yield "api", {"command": f"uvicorn {module}:{name} --port 8000"}, file
    for file in ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"):
        block, mapped = r"^  ([\w.-]+):[ \t\r]*$(?:(?!^  \S).)*?", r"\W?(?:[\d.]+:)?(\d+):\d+"
        published = rf"(?ms){block}^[ \t]+(?:- |ports:[ \t]*\[[ \t]*){mapped}"
        for name, port in re.findall(published, read(file)):
            ready = f"exec:nc -z 127.0.0.1 {port}"
            keys = {"command": f"docker compose up {name}", "ready": [ready]}
            yield name, keys, f"{file}, its ports"


def guessed_config(root: str) -> str:
    """A first configuration, each guess marked."""
    known: dict[str, list[str]] = {}
    for name, keys, source in guesses(root):
        others = [name, source.partition("scripts.")[2] or name]
        others += [f"{name}-{n}" for n in range(2, 99)]
        free = next((one for one in others if one.lower() not in known), "")
        if is_name(free):
            line = f"    {json.dumps(free)}: {json.dumps(keys, ensure_ascii=False)}"
            known[free.lower()] = [f"    // a guess, from {source}", line]
    services = ",\n".join("\n".join(lines) for lines in known.values())
    services = services or '    // "api": {"command": "uvicorn main:app --port 8000"}'
    about = "// Guessed by init --config: look at each service, then try `up --dry-run`."
    return f'{about}\n{{\n  "version": 1,\n  "services": {{\n{services}\n  }}\n}}\n'


@command(
    "init",
    Option("--agent", "WHO", one_of(*AGENTS, "all"), help=f"{', '.join(AGENTS)} or all"),
    Option("--hooks", help="what ends the services with the agent's session, where it can"),
    Option("--config", help="a starting spm.json, guessed from what is here"),
)
def init(store: Store, args: argparse.Namespace) -> Result:
    """Write what teaches a coding agent to use this: --agent, --hooks; and a first --config."""
    root = root_of(store.home)
    used = [one for one in AGENTS if os.path.lexists(f"{root}/{AGENTS[one][0].split('/')[0]}")]
    found = [] if args.config and not args.hooks else used or ["agents-md"]
    agents = list(AGENTS) if args.agent == "all" else [args.agent] if args.agent else found
    inner = SELF.removeprefix(os.path.join(root, ""))
    call = "spm" if os.path.basename(sys.argv[0]) == "spm" else f"python {join_command([inner])}"
    text = STEERING.replace("{spm}", call).replace("{file}", join_command([inner]))
    makes: dict[str, Callable[[str], str]] = {}
    for path, above in map(AGENTS.__getitem__, agents):
        makes[path] = functools.partial(with_section, text, above)
    for agent in agents if args.hooks else ():
        for path, hook in hooks_of(agent, call).items():
            makes[path] = functools.partial(with_hook, hook)
    guessed = guessed_config(root) if args.config else ""
    if args.config:
        makes["spm.json"] = lambda old: old or guessed
    result = write_all(root, makes, "write there by hand, or mend it")
    lines, path = list(result.lines), shown_path(os.path.join(root, "spm.json"))
    came = as_object(result.data["done"]).get("spm.json")
    if came == "unchanged":
        lines[-1] = f"[INFO] {path} is there already, left as it is"  # it is the last to be made
    elif came and "// a guess, from " not in guessed:
        told = f"[WARN] nothing was recognised: {path} has only an example"
        lines.append(f"{told}; write the services there as it shows, then: config validate")
    if args.hooks and "agents-md" in agents:
        lines.append("[INFO] AGENTS.md has no hooks: start what must end with --lease session")
    return result._replace(lines=lines)


def vendored_text(head: str, program: str) -> str:
    """This program as `vendor` writes it: Python compiles a string when it is told to."""
    found = re.search(r"(?ms)^def cached_code\(.*?\n\n\n", program)
    code = found[0] if found else ""
    about = f"{VENDORED}simple_process_manager {__version__}, unchanged, in one string below.\n"
    about += "# Python compiles a script at every call; the string once: ~/.cache keeps its code.\n"
    return f"{head}{about}import types\n\n\n{code}try:\n{WHOLE}{program}{ENDS_COPY}"


@command(
    "vendor",
    Option("target", "DIR|FILE.py", help="where the copy goes"),
    Option("--force", help="overwrite what is there and isn't this version"),
)
def vendor(store: Store, args: argparse.Namespace) -> Result:
    """Copy this program into a repository, in the form that starts quickly."""
    head, _, program = parts_of_this_file()
    text, is_dir = vendored_text(head, program), os.path.isdir(args.target)
    path = os.path.join(args.target, "simple_process_manager.py") if is_dir else args.target
    root = os.path.dirname(os.path.abspath(path))
    if not (path.endswith(".py") and os.path.isdir(root)):
        told = f"{args.target} is neither a directory nor a FILE.py in one"
        raise UsageError(told, "make the directory, or name another one")

    def make(old: str) -> str:
        there = old.lstrip("\ufeff").replace("\r\n", "\n")  # as git may have checked it out
        if there in ("", head + program) or args.force:
            return text
        if there == text:
            return old
        told = f"{shown_path(path)} is another version, edited, or no copy of this program"
        raise Refused(f"{told}: left as it is", "write to another FILE.py, or overwrite: --force")

    is_new = renew(path, root, make)
    if is_new:
        os.chmod(path, os.stat(path).st_mode | os.stat(SELF).st_mode & 0o111)
    own = "\n" + program  # the string that stands in the copy
    cached_code(path, own, text.partition(WHOLE)[0].count("\n"))  # its first call finds it
    told = f"{shown_path(path)} {'written' if is_new else 'unchanged'} (version {__version__})"
    data = {"path": os.path.abspath(path), "version": __version__, "written": is_new}
    return Result(data, [f"[OK] {told}"])


# == Command line ==================================================================================
# The parser of the command that was called, the rendering, errors to exit codes. Printing happens
# here and nowhere else: results on stdout, the rest on stderr.

PROGRAM = "spm" if os.path.basename(sys.argv[0]) == "spm" else os.path.basename(SELF)
NO_PSUTIL = (
    "psutil is missing: run `{0} -m pip install psutil` (on a managed system: in a virtual "
    "environment, python3 -m venv .venv), or `uv run {1}`, which fetches it"
)
EXIT_CODES = """exit codes:
  0 ok   1 failed   2 usage   3 not found or not running   4 could not be started
  5 port is somebody else's   6 configuration   7 cooldown   8 refused   9 state directory
  124 timeout   130 interrupted"""
GLOBAL_OPTIONS = (
    Option("--home", "DIR", help="state directory (default: SPM_HOME, or the nearest .spm)"),
    Option("--json", help="print one JSON document"),
)
A_DURATION = "D is a duration: 500ms, 30s, 2m, 1h, or seconds"
EXAMPLES = {  # at the foot of the help page of each command: what stands behind its name
    "start": 'api "uvicorn main:app --port 8000" --env DEBUG=1 --wait',
    "stop": "api db",
    "restart": "api",
    "cleanup": "--purge",
    "list": "--watch 1s",
    "status": "api",
    "stats": "api --since 10m",
    "alerts": "api",
    "logs": "api -n 50 -f",
    "touch": "api",
    "notify": 'ready --message "cache is warm"',
    "explain": "api",
    "events": "api -f",
    "wait-healthy": "api 8000 http://localhost:8001/health 30s",
    "run": 'api "uvicorn main:app --port 8000" --with db=redis-server -- pytest',
    "port": "8000 --free",
    "call": "clock get_current_time timezone=UTC",
    "tools": "clock",
    "connect": "clock",
    "config schema": "> spm.schema.json",
    "config validate": "next.json",
    "config rules": "api",
    "config history": "--json",
    "config show": "3",
    "config diff": "2 3",
    "config impact": "next.json",
    "config rollback": "2 --dry-run",
    "config export": "all.json",
    "config import": "next.json --yes",
    "up": "--wait 1m --rollback-on-failure",
    "down": "api",
    "export": "systemd api -o units",
    "init": "--agent claude --hooks",
    "vendor": "../other-repository",
}
LIKE_DURATION = r"(?i)\d[\d.]* ?(?:ms|[smhd]|(?:m?sec|min|hr|hour|day)\w*)"
OPTIONAL_VALUES = {"--watch": 2.0, "--wait": WAIT_S}  # seconds, where none are given
PLAIN_BARS = dict(zip(map(ord, BARS), "_.-:=+*#"))
FAMILIES = {name.partition(" ")[0] for name in COMMANDS if " " in name}  # config schema
ALL = "cleanup, which ends them all"
MEANT_WORDS = {
    "list": "ps ls",
    "list --watch": "top",
    "stop": "kill end",
    f"stop NAME, or {ALL}": "rm remove delete",
    ALL: "killall stopall stop-all",
    "up": "start-all",
    "logs": "tail",
    "wait-healthy": "wait health check ready",
    "status": "show inspect",
    "restart": "reload",
    "config import": "import",
    "--help": "help",
    "--version": "version",
}
MEANT = {word: meant for meant, words in MEANT_WORDS.items() for word in words.split()}
PLAIN_START = "start alone, which returns at once"
MEANT_OPTIONS = {  # without an option: a word too many
    "logs --tail": "--lines",
    "logs": "logs NAME -n 50",
    "stop --all": ALL,
    "cleanup --all": "cleanup alone, which ends them all",
    "cleanup": "stop NAME, which ends one",
    "restart": "restart NAME, one after the other",
    "restart --wait": "restart NAME, then wait-healthy NAME",
    "restart --timeout": "restart NAME, then wait-healthy NAME 10",
    "restart --all": "restart NAME, one after the other",
    "down --dry-run": "stop NAME --dry-run",
    "wait-healthy --timeout": "wait-healthy NAME 10",
    "start --timeout": "--wait",
    "start --name": "start NAME, without an option",
    "start --daemon": PLAIN_START,
    "start --detach": PLAIN_START,
    "start --background": PLAIN_START,
}
LEADING = ("--home", "--json", "--version", "--help", "-h")  # what may stand before the command
# C0 and C1, and what turns the direction of writing: Unicode's bidirectional controls
CONTROLS = r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
COLOURS = {"[OK]": "32", "[WARN]": "33", "[ERROR]": "31"}


class HelpWanted(Exception):
    """--help or --version was given; the message is the answer, `data` the same in JSON."""

    def __init__(self, answer: str, **data: object) -> None:
        super().__init__(answer)
        self.data = data or {"help": answer}


def parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The command and its arguments; only the parser of that command is built."""
    cut = argv.index("--") if "--" in argv else len(argv)
    head, tail = list(argv[:cut]), None if cut == len(argv) else list(argv[cut + 1 :])
    at = 0
    while at < len(head) and head[at].partition("=")[0] in LEADING:
        at += 2 if head[at] == "--home" else 1
    leading, name = head[:at], "".join(head[at : at + 1])
    if name in FAMILIES:
        at, name = at + 1, " ".join(head[at : at + 2])
    if name not in COMMANDS:
        raise no_command(leading, name, head[at + 1 :])
    rest = with_value(COMMANDS[name].options, head[at + 1 :])
    args = parser_of(name, rest).parse_intermixed_args([*leading, *rest])
    args.tail = tail
    words = getattr(args, "command", [])
    if len(words) > 1 and rest[-len(words) :] != words:
        raise unquoted(name, args.name, words, rest)
    if cut < len(argv) and name not in ("start", "run"):
        raise UsageError(f"{name} takes no command behind --", f"see: {PROGRAM} {name} --help")
    return COMMANDS[name], args


def unquoted(name: str, service: str, words: Sequence[str], rest: Sequence[str]) -> UsageError:
    """Options behind bare words could be ours or the command's: nobody should have to guess."""
    stray, words = words[1:], rest[rest.index(words[0], rest.index(service) + 1) :]
    # but of NAME=value only the name: a message may be logged
    form = rf"(?s)^((?:--env=)?{VARIABLE}=).*"
    line, more = (join_command([re.sub(form, r"\1…", w) for w in x]) for x in (words, stray))
    if len(words[0].split()) > 1:
        advice = f'one string is all of it: {name} {service} "COMMAND" with options around it'
        return UsageError(f"{more} stands behind the quoted command", advice)
    # behind the -- of `run` stand its tests
    bare = " -- TESTS" if name == "run" else f", or put it behind --: {name} {service} -- {line}"
    advice = f"quote the command: {name} {service} {join_command([line])}{bare}"
    advice += f"; {name}'s own options go before or behind the quoted command"
    told = f"options behind an unquoted command: are they the command's or {name}'s?"
    return UsageError(told, advice)


def with_value(options: Iterable[Option], words: Sequence[str]) -> list[str]:
    """`--wait 5s` as --wait=5s, --wait alone as --wait=30s: argparse takes any next word for D."""
    values = {one.words: OPTIONAL_VALUES[one.words] for one in options if one.metavar == "[D]"}
    joined: list[str] = []
    for word in words:
        is_value = re.fullmatch(DURATION, word) or re.fullmatch(LIKE_DURATION, word)
        if joined and joined[-1] in values and is_value:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return [f"{word}={values[word]:g}" if word in values else word for word in joined]


def no_command(leading: Sequence[str], name: str, rest: Sequence[str]) -> Exception:
    """What to say when no command of ours was called."""
    if "--version" in leading:
        return HelpWanted(f"{PROGRAM} {__version__}", version=__version__)
    family = name.partition(" ")[0]
    known = [one for one in COMMANDS if family not in FAMILIES or one.startswith(f"{family} ")]
    listing = "\n".join(f"  {key:17}{COMMANDS[key].help}" for key in known)
    if not name and (not leading or set(leading) & {"-h", "--help"}):
        usage = f"usage: {PROGRAM} [--home DIR] [--json] COMMAND …\n       {PROGRAM} COMMAND --help"
        doc = (__doc__ or "").partition("\n")[0]
        return HelpWanted(f"{usage}\n\n{doc}\n\n{listing}\n\n{EXIT_CODES}")
    if family in FAMILIES and not {"-h", "--help"}.isdisjoint((*leading, *name.split())):
        return HelpWanted(f"usage: {PROGRAM} {family} WORD …\n\n{listing}")
    if family in FAMILIES and name.partition(" ")[2][:1] in ("", "-"):
        return UsageError(f"{family} what?", ", ".join(known))
    if name.startswith("-"):
        option = name.partition("=")[0]  # its value may be a secret
        meant = next((word for word in rest if word in COMMANDS), "COMMAND")
        how = f"options stand behind the command: {meant} {option} …"
        return UsageError(f"no command {option!r}", how)
    near = f"did you mean {MEANT[name]}? " if name in MEANT else nearest(name, known)
    more = "All commands: --help" if near else f"the commands are: {', '.join(known)}"
    return UsageError(f"no command {name!r}" if name else "the command is missing", near + more)


def service_names(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """The services of this home and its configuration, for the completion."""
    names = list[str]()
    with contextlib.suppress(OSError, ValueError, SpmError):  # who only presses TAB mends nothing
        store = Store(find_home(getattr(parsed_args, "home", None)))
        names += [record.name for record in store.read().values()]
        path = find_config(getattr(parsed_args, "config", None), store.home)
        names += read_config(path, expands=False).services
    return names


def complete() -> None:
    """Answer a shell that completes a line (pypi.org/project/argcomplete), and end."""
    parser = argparse.ArgumentParser(PROGRAM)
    add_options(parser, GLOBAL_OPTIONS)
    # A subparser's default would overwrite the --home that stands before the command.
    everywhere = [one._replace(default=argparse.SUPPRESS) for one in GLOBAL_OPTIONS]
    groups = {"": parser.add_subparsers()}
    for name, one in COMMANDS.items():
        family, _, word = name.rpartition(" ")
        if family not in groups:
            groups[family] = groups[""].add_parser(family).add_subparsers()
        add_options(groups[family].add_parser(word), (*one.options, *everywhere))
    __import__("argcomplete").autocomplete(parser)


def naming(option: str, parse: Callable[[str], object]) -> Callable[[str], object]:
    """The parser of an option's value, whose errors begin with the option."""

    def parse_named(text: str) -> object:
        try:
            return parse(text)
        except UsageError as error:
            error.message = f"{option}: {error.message}"
            raise

    return parse_named if option.startswith("-") else parse


def add_options(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Declare options and arguments to a parser."""
    add: Callable[..., object] = parser.add_argument
    for words, metavar, kind, default, text in options:
        kind = naming(words.split()[-1], kind)
        how = {"metavar": metavar, "type": kind, "default": default}
        how.update({"action": "append"} if isinstance(default, list) else {})
        how.update({"nargs": words[-1]} if words[-1] in "+*?" else {})
        how = how if metavar else {"action": "store_true"}
        action = add(*words.rstrip("+*?").split(), help=text, **how)
        if metavar.startswith("NAME"):
            vars(action)["completer"] = service_names


def meant_option(name: str, words: Sequence[str], is_too_many: bool) -> str:
    """`did you mean --wait? Otherwise `, where an unknown option is near one of the command's."""
    options = (*COMMANDS[name].options, *GLOBAL_OPTIONS)
    known = [word for one in options for word in one.words.split() if word[0] == "-"]
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    unknown = next((word for word in given if word not in (*known, "--help")), "")
    meant = MEANT_OPTIONS.get(f"{name} {unknown}".rstrip()) if unknown or is_too_many else ""
    near = f"did you mean {meant}? " if meant else nearest(unknown, known, 0.82)
    return near and f"{near}Otherwise "


def parser_of(name: str, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of one command; its errors and its help are raised, not printed."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            advice = f"see: {PROGRAM} {name} --help"
            if name in ("start", "run") and message.startswith("unrecognized arguments"):
                advice = f'if they belong to the command, quote it: {name} NAME "COMMAND --option"'
                bare = ", or put it behind --: start NAME -- COMMAND --option"
                advice += bare if name == "start" else " -- TESTS"
            if message.endswith("required: NAME"):  # `run` gives it one, others look for it
                names = f'write: run NAME "COMMAND" -- TESTS; {advice}'
                advice = names if name == "run" else f"the names are in: list; {advice}"
            if message.startswith(("unrecognized", "the following")):
                advice = meant_option(name, words, message.startswith("unrec")) + advice
            # an unknown option may have been meant to carry a secret, with blanks in it
            for word in sorted((word for word in words if "=" in word), key=len, reverse=True):
                message = message.replace(word, f"{word.partition('=')[0]}=…")
            raise UsageError(f"{name}: {message}", advice)

        def print_help(self, file: object = None) -> None:
            takes = {one.metavar for one in COMMANDS[name].options}
            units = f"{A_DURATION}\n\n" if takes & {"D", "[D]"} else ""
            foot = f"{units}example:\n  {PROGRAM} {name} {EXAMPLES[name]}"
            raise HelpWanted(f"{self.format_help().rstrip()}\n\n{foot}")

    # A width of our own: argparse would import shutil and the compression libraries to find one.
    width = functools.partial(argparse.HelpFormatter, width=98)
    parser = Parser(f"{PROGRAM} {name}", formatter_class=width, allow_abbrev=False)
    vars(parser)["color"] = False  # Python 3.14 has colours, which neutral() writes out
    parser.description = COMMANDS[name].help
    add_options(parser, (*COMMANDS[name].options, *GLOBAL_OPTIONS))
    return parser


def document_of(data: Mapping[str, object]) -> str:
    """The one JSON document that a command prints."""
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError:  # what a service answered may hold NaN: null, as JSON.stringify() has it
        return json.dumps(json.loads(json.dumps(data), parse_constant=lambda _: None))


def render(result: Result, as_json: bool, notes: Sequence[str]) -> SpmError | None:
    """Print a result: one JSON document, or a table and lines. What failed comes last, and is
    returned: a stream may fail, too.
    """
    error = result.error
    if as_json:
        document: dict[str, object] = {"ok": error is None, **result.data}
        document.update({"error": error_data(error)} if error else {})
        warnings = [*as_list(result.data.get("warnings", [])), *notes]
        warnings += [line[7:] for line in result.lines if line.startswith("[WARN] ")]
        document.update({"warnings": warnings} if warnings else {})
        write(sys.stdout, document_of(document) + "\n")
        return error
    for line in (*(f"[WARN] {note}" for note in notes), *table_lines(result.table), *result.lines):
        stream = sys.stderr if line.startswith(("[WARN]", "[ERROR]")) else sys.stdout
        write(stream, coloured(neutral(line), stream) + "\n")
    try:
        for chunk in result.stream or ():
            if not (chunk or sys.stdout is None or has_reader(sys.stdout.fileno())):
                raise BrokenPipeError  # `logs -f | head -1` would last until there is more
            lines = chunk.replace("\r\n", "\n").split("\n")
            write(sys.stdout, chunk if result.is_raw else "\n".join(map(neutral, lines)))
    except SpmError as problem:
        error = problem
    say(*error_lines(error) if error else ())
    return error


def neutral(line: str) -> str:
    """One line that moves no cursor and rings no bell: control characters are written out."""
    return re.sub(CONTROLS, lambda found: repr(found[0])[1:-1], line)


def fitted(line: str, columns: int) -> str:
    """As much of the line as a terminal of that width has room for; 0: all of it."""
    line = neutral(line).replace("\t", " ") if columns else neutral(line)
    if not columns or line.isascii():
        return line[: columns or None]
    from unicodedata import combining, east_asian_width

    widths = (2 if east_asian_width(char) in "WF" else not combining(char) for char in line)
    return "".join(c for c, end in zip(line, itertools.accumulate(widths)) if end <= columns)


def write(stream: TextIO | None, text: str) -> None:
    """Write at once; what the stream can't encode is replaced."""
    if stream is None:  # the caller closed it
        return
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN_BARS).encode(encoding, "replace").decode(encoding)
    stream.write(text)
    stream.flush()


def say(*lines: str) -> None:
    """Write lines on stderr, now, above what progress shows."""
    if not lines:
        return
    show_progress()
    with contextlib.suppress(OSError):  # nobody listens: what is to be done is done all the same
        write(sys.stderr, "".join(coloured(neutral(line), sys.stderr) + "\n" for line in lines))


def coloured(line: str, stream: TextIO | None) -> str:
    """The line, its tag in colour on a terminal (https://no-color.org: unless NO_COLOR is set)."""
    tag = line.partition(" ")[0]
    if tag not in COLOURS or os.environ.get("NO_COLOR") or not (stream and stream.isatty()):
        return line
    return f"\033[{COLOURS[tag]}m{tag}\033[0m{line[len(tag) :]}"


DRAWN: list[str] = []  # the lines of progress that are shown


def show_progress(*texts: str) -> None:
    """Lines on stderr, written over the last ones; "" clears them. Nothing without a terminal."""
    if sys.stderr and sys.stderr.isatty() and (DRAWN or any(texts)):
        columns, rows = 0, 0
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(sys.stderr.fileno())
        up = f"\033[{len(DRAWN) - 1}A" * (len(DRAWN) > 1)
        DRAWN[:] = [fitted(text, (columns or 80) - 1) for text in texts if text]
        del DRAWN[max((rows or 24) - 1, 1) :]
        write(sys.stderr, f"\r{up}\033[J" + "\n".join(DRAWN))


def table_lines(table: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows in columns; on a terminal cut to its width."""
    columns = 0
    if table and sys.stdout and sys.stdout.isatty():
        with contextlib.suppress(OSError):
            columns = os.get_terminal_size(sys.stdout.fileno()).columns  # 0: it doesn't know
            table = with_short_names(table, columns) if columns else table
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    return [fitted(line, columns) for line in lines]


def with_short_names(table: Sequence[tuple[str, ...]], columns: int) -> Sequence[tuple[str, ...]]:
    """The rows; long names without their middle, if the last column then has some room."""
    widths = [max(map(len, column)) + 2 for column in zip(*table)]
    room = columns - sum(widths[1:-1]) - min(12, widths[-1])
    if room < 12 or table[0][0] != "name":
        return table
    cut = {name: f"{name[: room - 8]}…{name[-5:]}" for name, *_ in table if len(name) > room}
    return [(cut.get(name, name), *others) for name, *others in table]


def repeat(command: Command, store: Store, args: argparse.Namespace, every_s: float) -> Result:
    """What a command says again and again until q: in place on a terminal, else line by line."""
    in_place = bool(sys.stdout and sys.stdout.isatty())
    home, rest, end = ("\033[H", "\033[J", "\033[K\n") if in_place else ("", "", "\n")
    write(sys.stdout, "\033[?1049h" * in_place)  # a screen of its own: xterm's ctlseqs
    try:
        while True:
            result = command.run(store, args)
            lines = [*table_lines(result.table), *result.lines]
            lines += error_lines(result.error)[:1] if result.error else []
            columns, rows = os.get_terminal_size(sys.stdout.fileno()) if in_place else (0, 0)
            lines = [fitted(line, columns) for line in lines[: max(rows - 1, 0) or None]]
            write(sys.stdout, home + "".join(line + end for line in lines) + rest)
            if key_within(every_s) in ("q", "Q"):
                return Result({})
    finally:
        write(sys.stdout, "\033[?1049l" * in_place)


def asks_for_json(argv: Sequence[str]) -> bool:
    """Whether one JSON document is to be all that a command writes on stdout."""
    return "--json" in argv[: argv.index("--") if "--" in argv else None]


def run(argv: Sequence[str]) -> int:
    """One command from its words to its exit code."""
    from importlib.machinery import PathFinder

    notes, every_s = list[str](), None
    try:
        hold_interrupts(False) if IS_LEAN else None
        command, args = parse(argv)
        is_copy = command is COMMANDS["vendor"]  # what is copied can be used elsewhere
        # not imported: 0.2 ms instead of 15
        if not is_copy and PathFinder.find_spec("psutil") is None:
            raise UsageError(NO_PSUTIL.format(interpreter(), PROGRAM))
        args.say = say
        store = Store(find_home(args.home))
        notes = store.notes
        if not args.home and command is not COMMANDS["notify"]:
            notes += filter(None, [inherited_home(store.home)])
        if os.path.lexists(store.home) and not is_copy:
            store.prepare()
        args.progress = show_progress
        every_s = getattr(args, "watch", None)
        endless = "--watch" if every_s else "-f" * getattr(args, "follow", False)
        if endless and args.json:
            text = f"--json is one document, {endless} has no end"
            raise UsageError(text, "leave one of them out")
        if endless or command is COMMANDS["connect"]:
            go_on_lean(store)
        every_s = None if every_s is True else every_s  # of `up`, which has its own way
        result = repeat(command, store, args, every_s) if every_s else command.run(store, args)
    except HelpWanted as answer:
        result = Result(answer.data, str(answer).split("\n"))
    except SpmError as error:
        result = Result({}, error=error)
    except OSError as error:
        if every_s and isinstance(error, BrokenPipeError):
            raise  # who read what is repeated has left
        text = f"{error.filename or os.curdir}: {error.strerror or error}"
        known = errno.errorcode.get(error.errno, "") if error.errno in NO_ROOM else ""
        advice = STATE_ADVICE.get(known, "see that it can be used")
        result = Result({}, error=StateError(text, advice, retryable=may_pass(error)))
    except KeyboardInterrupt as asked:
        advice = "what was started, or is being stopped, goes on without this command: see list"
        result = Result({}, error=Interrupted.by(asked, "interrupted", advice))
    show_progress()  # an interrupted command leaves it
    failed = render(result, asks_for_json(argv), notes)
    return failed.exit_code if failed else 0


def main() -> NoReturn:
    """The program: a command, or (with `supervise`) the supervisor of a service."""
    if sys.stdin is None:  # closed: what is opened first would be taken for it
        sys.stdin = open(os.devnull)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # the same, in the order of their numbers
        if stream is None:
            os.open(os.devnull, os.O_WRONLY)
    if sys.stdout and not hasattr(sys.stdout.buffer, "raw"):  # -u: what isn't taken would be lost
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = open(sys.stdout.fileno(), "w", -1, encoding, errors, closefd=False)  # noqa: SIM115
    code = 0
    hear_children()
    try:
        if "_ARGCOMPLETE" in os.environ:
            complete()
        elif sys.argv[1:2] == ["supervise"]:
            obey()
        else:
            # else nothing is lost by what they do by themselves
            on_ending_signals(leave) if asks_for_json(sys.argv[1:]) else None
            BOOTED.extend(filter(None, [boot_early(sys.argv[1:])]))
            code = run(sys.argv[1:])
    except KeyboardInterrupt as asked:
        code = 128 + getattr(asked, "number", signal.SIGINT)
    except BrokenPipeError:
        code = 141  # as a shell reports SIGPIPE: who read us went away
    except OSError as error:
        code = Failed.exit_code
        if sys.argv[1:2] == ["supervise"]:  # it writes nothing: who launched it reads why it died
            raise
        with contextlib.suppress(OSError):
            told = f"[ERROR] the output can't be written: {error.strerror}\n"
            write(sys.stderr, told + "  → what was asked for is done all the same: see list\n")
    for booted in BOOTED:
        dismiss(booted.pid)
    # Nothing of ours waits for the interpreter's own end, which takes some milliseconds.
    os._exit(code)


if __name__ == "__main__":
    main()
