"""stats, alerts, --watch: what a service uses, and who is told when that is too much."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import GENERIC, Spm, eventually, nasty
from hypothesis import example, given, settings
from hypothesis import strategies as st

import simple_process_manager as spm_module

BURN = "import time\nwhile True: sum(range(50000)); time.sleep(0.002)"
EAT = "import time\nhoard = bytearray(60_000_000)\ntime.sleep(%s)\nhoard.clear()\ntime.sleep(100)"
EVERY = ("--sample-interval", "0.1")


def start_python(spm: Spm, name: str, code: str, *options: object) -> None:
    spm("start", name, *EVERY, *options, "--", sys.executable, "-S", "-c", code)


def samples(spm: Spm, name: str) -> list[dict[str, float]]:
    """The samples that have figures."""
    path = spm.home / "services" / name / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "processes" in line]


def has_samples(spm: Spm, name: str, count: int) -> bool:
    return len(samples(spm, name)) >= count


def events(spm: Spm, name: str, *kinds: str) -> list[dict[str, str]]:
    """The events of these kinds."""
    path = spm.home / "services" / name / "events.jsonl"
    return [e for e in map(json.loads, path.read_text("utf-8").splitlines()) if e["event"] in kinds]


# -- measuring


@pytest.mark.smoke
def test_a_sample_counts_the_whole_tree(spm: Spm, port: int) -> None:
    spm("start", "web", *EVERY, nasty("--port", port, "--child", "--setsid-child"))
    # each is a Python of its own: main with a thread that serves, and two that sleep
    whole = {"processes": 3, "threads": 4}
    last = eventually(
        lambda: [s for s in samples(spm, "web") if whole.items() <= s.items()], what="all three"
    )[-1]
    assert (GENERIC or last["files"] >= 9) and 1 < last["memory_mb"] < 200
    assert last["probe_ms"] is None and last["restarts"] == 0
    spm("stop", "web", "--force")
    assert spm.json("stats", "web")["metrics"]["processes"]["max"] == 3
    assert spm.json("stats", "web")["metrics"]["processes"]["now"] is None, "it runs no more"


@pytest.mark.skipif(GENERIC, reason="what processes share is told by /proc alone")
def test_memory_that_processes_share_counts_once(spm: Spm) -> None:
    fork = "import os, time\nhoard = bytearray(b'x' * 50_000_000)\n[os.fork() for _ in range(2)]"
    start_python(spm, "web", f"{fork}\ntime.sleep(100)")
    eventually(lambda: [s for s in samples(spm, "web") if s["processes"] == 4], what="the forks")
    count = len(samples(spm, "web"))
    eventually(lambda: has_samples(spm, "web", count + 2), what="a sample of all of them")
    assert 50 < samples(spm, "web")[-1]["memory_mb"] < 100
    spm("stop", "web")


def test_a_daemon_that_left_home_is_counted_too(spm: Spm) -> None:
    spm("start", "web", *EVERY, nasty("--daemon"))
    eventually(lambda: samples(spm, "web")[-1:] and samples(spm, "web")[-1]["processes"] == 2)
    spm("stop", "web", "--force")


def test_cpu_is_measured_between_two_samples_and_of_ended_children_too(spm: Spm) -> None:
    start_python(spm, "burn", "while True: pass")
    spm("start", "shell", *EVERY, "--shell", "while :; do /bin/true; done")
    spm("start", "idle", *EVERY, "sleep 100")
    ended = 0 if GENERIC else 8  # macOS doesn't tell what ended children used
    for name, least, most in (("burn", 10, 110), ("shell", ended, 250), ("idle", 0, 1)):
        eventually(partial(has_samples, spm, name, 9), what=name)
        course = sorted(s["cpu"] for s in samples(spm, name) if s["cpu"] is not None)
        assert least <= course[len(course) // 2] <= most, f"{name}: {course}"
    spm("stop", "burn", "shell", "idle")


def test_probes_are_timed(spm: Spm, port: int) -> None:
    check = f"exec:sleep 0.2; exit 0 # {port}"
    spm("start", "web", *EVERY, "--health", check, "--health-interval", "0.1", "sleep 100")
    eventually(lambda: [s for s in samples(spm, "web") if s["probe_ms"]], what="a probe's time")
    assert spm.json("stats", "web")["metrics"]["probe_ms"]["max"] >= 200
    spm("stop", "web")


def test_a_service_taken_back_is_measured_on(spm: Spm) -> None:
    spm("start", "web", *EVERY, nasty("--child"))
    eventually(lambda: [s for s in samples(spm, "web") if s["processes"] == 2], what="the child")
    spm.kill_supervisor("web")
    spm("start", "web", *EVERY, nasty("--child"))
    count = len(samples(spm, "web"))
    eventually(lambda: len(samples(spm, "web")) > count + 2, what="more samples")
    assert samples(spm, "web")[-1]["processes"] == 2
    spm("stop", "web")


def test_without_an_interval_nothing_is_measured(spm: Spm) -> None:
    spm("start", "web", "--sample-interval", 0, "echo hello")
    eventually(lambda: spm.service("web")["status"] == "exited", what="its end")
    assert spm.json("stats", "web")["metrics"] == {} and not samples(spm, "web")
    done = spm("start", "x", "--sample-interval", 0, "--alert", "cpu>1", "sleep 1", code=2)
    assert "--alert needs samples" in done.stderr
    spm("start", "x", "--sample-interval", "-1", "sleep 1", code=2)
    spm("start", "x", "--sample-interval", "soon", "sleep 1", code=2)


# -- stats


def test_stats_of_a_known_series(spm: Spm) -> None:
    spm("start", "web", "--sample-interval", 0, "sleep 100")
    path, now = spm.home / "services" / "web" / "metrics.jsonl", time.time()
    old = [{"at": now - 7000, "start": 0, "size": 1, "memory_mb": 9000.0}]
    course = [{"at": now - 100 + n, "start": 0, "size": n, "memory_mb": n} for n in range(1, 101)]
    broken = ["", "{", "[]", '{"at": "x"}', '{"at": 1e999, "cpu": 1}', '{"at": 5, "cpu": "much"}']
    broken += [f'{{"at": {now}, "cpu": -1, "probe_ms": null, "files": true}}']
    path.write_text(
        "".join([json.dumps(s) + "\n" for s in old + course] + [f"{b}\n" for b in broken])
    )
    metrics = spm.json("stats", "web")["metrics"]
    expected = {"now": 100, "min": 1, "median": 50, "p95": 95, "max": 100, "samples": 100}
    assert metrics == {"memory_mb": expected}
    assert spm.json("stats", "web", "--since", "2h")["metrics"]["memory_mb"]["max"] == 9000
    assert spm.json("stats", "web", "--since", "10s")["metrics"]["memory_mb"]["min"] >= 89
    head, row = spm("stats", "web").stdout.splitlines()
    assert head.split() == ["metric", "now", "min", "median", "p95", "max", "course"]
    assert row.split()[:6] == ["memory_mb", "100", "1", "50", "95", "100"]
    assert row.endswith("  ▁▂▂▂▂▃▃▃▄▄▄▄▅▅▅▆▆▆▇▇▇▇██")
    spm.env["PYTHONIOENCODING"] = "ascii"
    assert spm("stats", "web").stdout.endswith("  _....---::::===+++****##\n")
    spm("stop", "web")
    spm("stats", "nobody", code=3)


def test_old_samples_of_the_log_are_samples_still(base: Path) -> None:
    path = base / "metrics.jsonl"
    path.write_text('{"at": 1.0, "start": 5, "size": 3}\n')
    assert spm_module.last_sample(str(path)) == spm_module.Sample(1.0, 5, 3)
    with path.open("a") as file:
        file.write('{"at": 2.0, "start": 5, "size": 4, "cpu": 1.5, "processes": 1}\n')
    assert spm_module.last_sample(str(path)) == spm_module.Sample(2.0, 5, 4)
    with path.open("a") as file:
        file.write('{"at": 3.0, "sta')  # on a full disk: logs were read from a wrong place
    assert spm_module.last_sample(str(path)) == spm_module.Sample(2.0, 5, 4)
    assert len(spm_module.log_samples(str(path))) == 2
    assert spm_module.figures(str(path), 0.0) == {"cpu": [(2.0, 1.5)], "processes": [(2.0, 1.0)]}


VALUES = st.lists(st.floats(0, 1e9), min_size=1, max_size=60)


@given(VALUES)
@example([1.0, 2.0, 3.0, 4.0])
def test_each_figure_of_a_summary_was_measured_and_they_are_in_order(values: list[float]) -> None:
    told = spm_module.summary(values)
    assert set(told.values()) <= set(values)
    assert (told["min"], told["max"]) == (min(values), max(values))
    assert told["min"] <= told["median"] <= told["p95"] <= told["max"]
    assert sum(value <= told["median"] for value in values) * 2 >= len(values)
    assert sum(value <= told["p95"] for value in values) * 100 >= 95 * len(values)


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), min_size=1, max_size=60))
@example([(0.0, 0.0), (1.0, 5e-324)])
def test_a_sparkline_is_short_and_shows_the_peak(points: list[tuple[float, float]]) -> None:
    line = spm_module.sparkline(sorted(points))
    values = [value for _, value in points]
    assert 1 <= len(line) <= spm_module.SPARK_CELLS
    assert set(line) <= {*spm_module.BARS, " "}
    assert ("█" in line) == (max(values) > min(values))


def test_samples_are_thinned_and_bounded(base: Path) -> None:
    path, now = base / "metrics.jsonl", 1_800_000_000.0
    figures = {"start": 0, "size": 0, "cpu": 100.0, "memory_mb": 1000.0, "processes": 10}
    begin, count = now - 30 * 3600, 30 * 720
    for at in (begin + 5 * number for number in range(count)):
        line: dict[str, object] = {"at": at, **figures}
        spm_module.append_line(str(path), line, partial(spm_module.thinned, now=at))
        if at % 600 == 0:
            assert path.stat().st_size <= spm_module.JOURNAL_BYTES
    assert path.stat().st_size <= spm_module.JOURNAL_BYTES
    ats = [sample.at for sample in spm_module.log_samples(str(path))]
    assert ats == sorted(ats) and ats[-1] == now - 5
    assert ats[0] <= now - 86400 + 60, "a day is kept"
    assert len([at for at in ats if at >= now - 3600]) == 720, "of the last hour every sample"
    gaps = [after - before for before, after in zip(ats, ats[1:]) if before >= now - 86400]
    assert max(gaps) <= 120


@given(st.lists(st.integers(0, 200_000), max_size=50), st.integers(0, 300_000))
def test_thinning_keeps_the_young_and_forgets_nothing_of_the_day_for_more_than_two_minutes(
    ages: list[int], now: int
) -> None:
    now += 10**9
    ats = sorted(now - age for age in ages)
    lines = [b'{"at": %d, "cpu": 1}\n' % at for at in ats]
    kept = [json.loads(line)["at"] for line in spm_module.thinned(lines, float(now))]
    assert kept == sorted(kept) and set(kept) <= set(ats)
    assert [at for at in kept if at >= now - 3600] == [at for at in ats if at >= now - 3600]
    assert all(any(abs(at - one) < 60 for one in kept) for at in ats if at >= now - 86400)
    assert all(at >= now - 86400 for at in kept)


# -- rules


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("cpu>90", ("cpu", ">", 90.0, 0.0, "warning", "log", 300.0)),
        (" files < 5.5 ", ("files", "<", 5.5, 0.0, "warning", "log", 300.0)),
        (
            "memory_mb>500 for 30s: restart",
            ("memory_mb", ">", 500.0, 30.0, "warning", "restart", 300.0),
        ),
        ("probe_ms>9 critical", ("probe_ms", ">", 9.0, 0.0, "critical", "log", 300.0)),
        (
            "threads>9 for 2m info :stop every 1h",
            ("threads", ">", 9.0, 120.0, "info", "stop", 3600.0),
        ),
        ("cpu>1: exec a  b", ("cpu", ">", 1.0, 0.0, "warning", "exec a  b", 300.0)),
        (
            "cpu>1: exec a every 5s every 9",
            ("cpu", ">", 1.0, 0.0, "warning", "exec a every 5s", 9.0),
        ),
    ],
)
def test_a_rule_is_read(text: str, rule: tuple[object, ...]) -> None:
    assert spm_module.parse_rule(text) == (text.strip(), *rule)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 1),
        ("disk>90", 1),
        ("restarts>3", 1),
        ("cpu 90", 5),
        ("cpu=90", 4),
        ("cpu>", 5),
        ("cpu>-1", 5),
        ("cpu>90%", 7),
        ("cpu>1e3", 5),
        ("cpu>90 for", 8),
        ("cpu>90 for 0s", 8),
        ("cpu>90 for 30 seconds", 15),
        ("cpu>90 fatal", 8),
        ("cpu>90 info warning", 13),
        ("cpu>90: reboot", 7),
        ("cpu>90: exec", 7),
        ("cpu>90: stop now", 14),
        ("cpu>90: log every", 13),
        ("cpu>90 every 5m: stop", 16),
        ("cpu>90: exec a\nb", 7),
        ("cpu>90: exec a every day", 16),
    ],
)
def test_a_bad_rule_names_the_position(text: str, position: int) -> None:
    with pytest.raises(spm_module.UsageError, match=rf"at position {position}$"):
        spm_module.parse_rule(text)


@given(st.text(max_size=40) | st.text("cpu<>90 for1sinfo:stopexecevery", max_size=40))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    try:
        assert spm_module.parse_rule(text).limit >= 0
    except spm_module.UsageError as error:
        assert error.exit_code == 2


def test_a_bad_rule_starts_nothing(spm: Spm) -> None:
    done = spm("start", "web", "--alert", "cpu>90 fr 3s", "sleep 100", code=2)
    assert "position 8" in done.stderr and "METRIC>NUMBER" in done.stderr
    assert spm.json("list")["services"] == []


# -- decisions


STEPS = st.lists(
    st.tuples(st.floats(0.1, 20), st.sampled_from([0.0, 49.0, 50.0, 51.0, 99.0, None]))
)


@settings(max_examples=300)
@given(STEPS, st.sampled_from([0.0, 5.0, 30.0]), st.sampled_from([1.0, 60.0]), st.booleans())
def test_alerts_neither_flap_nor_miss(
    steps: list[tuple[float, float | None]], for_s: float, every_s: float, above: bool
) -> None:
    rule = spm_module.Rule("r", "cpu", ">" if above else "<", 50.0, for_s, "info", "log", every_s)
    alert, now = spm_module.Alert(), 1000.0
    acted: list[float] = []
    run: tuple[bool | None, float] = (None, 0.0)  # beyond or not, since when without a break
    heard: list[tuple[str, float]] = []
    for pause_s, value in steps:
        now += pause_s
        beyond = None if value is None else (value > 50 if above else value < 50)
        run = run if run[0] == beyond else (beyond, now)
        was = alert
        alert, news = spm_module.judge(alert, rule, value, now)
        lasted = beyond is not None and now - run[1] >= for_s
        # it misses nothing: what lasts long enough is what the alert says
        if lasted:
            assert bool(alert.text) == beyond
        else:  # and nothing shorter changes it
            assert bool(alert.text) == bool(was.text)
        if news:
            heard.append((news, now))
        if news == "alert":
            assert beyond and alert.text
            assert all(now - before >= every_s for before in acted), "the cooldown holds"
            acted.append(now)
        elif beyond and alert.text and not alert.told:
            assert now - acted[-1] < every_s, "it is silent only while it cools down"
    kinds = [kind for kind, _ in heard]
    assert kinds == (["alert", "alert_cleared"] * len(kinds))[: len(kinds)], "one after the other"
    assert all(after - before >= for_s for (_, before), (_, after) in zip(heard, heard[1:]))


# -- alerts of real services


def test_an_alert_fires_once_and_clears(spm: Spm) -> None:
    start_python(spm, "eat", EAT % 4, "--alert", "memory_mb>50 for 0.3s critical")
    text = eventually(lambda: spm.service("eat")["alerts"], what="the alert")[0]
    assert text.startswith("critical: memory_mb is ") and "(memory_mb>50 for 0.3s critical)" in text
    assert f"[WARN] eat: {text}" in spm("list").stderr
    assert spm.json("status", "eat")["alerts"] == [text] and text in spm("status", "eat").stdout
    assert f"[WARN] eat: {text}" in spm("alerts").stderr
    assert spm.json("alerts", "eat")["active"] == [{"service": "eat", "alert": text}]
    eventually(lambda: not spm.record("eat")["alerts"], what="its end")
    told = [event["event"] for event in events(spm, "eat", "alert", "alert_cleared")]
    assert told == ["alert", "alert_cleared"]
    assert "[WARN]" not in spm("list").stderr
    past = spm.json("alerts")["past"]
    assert [(one["service"], one["event"], one["why"]) for one in past] == [
        ("eat", "alert", text),
        ("eat", "alert_cleared", text),
    ]
    assert "alert_cleared" in spm("alerts", "eat").stdout
    spm("stop", "eat")
    spm("alerts", "nobody", code=3)


def test_an_exec_action_sees_the_alert_and_belongs_to_nobody(spm: Spm) -> None:
    seen = spm.cwd / "seen"
    script = f"env > {seen}.part; mv {seen}.part {seen}; sleep 0.5"
    alert = f"cpu>5 for 0.3s: exec {script}"
    start_python(spm, "burn", BURN, "--alert", alert, "--env", "TOKEN=secret")
    eventually(seen.exists, what="the command of the alert")
    status = spm.json("status", "burn")
    # a look of psutil's is long enough for a command to end between its stat and its cookie
    assert GENERIC or [one["why"] for one in status["tree"]] == ["main process"]
    env = dict(line.partition("=")[::2] for line in seen.read_text().splitlines())
    assert env["SPM_ALERT_NAME"] == alert and env["SPM_ALERT_METRIC"] == "cpu"
    assert float(env["SPM_ALERT_VALUE"]) > 5 and float(env["SPM_ALERT_LIMIT"]) == 5
    assert env["SPM_ALERT_SEVERITY"] == "warning" and env["SPM_ALERT_SERVICE"] == "burn"
    assert env["SPM_ALERT_HOME"] == str(spm.home) and env["TOKEN"] == "secret"
    assert env["SPM_INSTANCE"] != status["instance"] and "SPM_SERVICE" not in env
    seen.unlink()
    count = len(samples(spm, "burn"))
    eventually(lambda: len(samples(spm, "burn")) > count + 6, what="more samples")
    assert not seen.exists(), "it acts once"
    assert GENERIC or max(s["processes"] for s in samples(spm, "burn")) == 1, "it isn't counted"
    spm("stop", "burn")


def test_a_command_of_an_alert_that_fails_is_told(spm: Spm) -> None:
    start_python(spm, "burn", BURN, "--alert", "processes>0: exec nosuchprogram --token=abc123")
    eventually(lambda: "alert_failed" in spm("alerts", "burn").stdout, what="the event")
    (told,) = events(spm, "burn", "alert_failed")
    assert "exec 'nosuchprogram" in str(told["why"]) and "exit code 127" in str(told["why"])
    spm("stop", "burn")


def test_a_command_of_an_alert_that_hangs_holds_up_nothing(spm: Spm) -> None:
    policy = ("--restart", "always", "--backoff", "50ms")
    start_python(spm, "burn", BURN, "--alert", "processes>0: exec sleep 30", *policy)
    eventually(lambda: spm.service("burn")["alerts"], what="the alert")
    command = eventually(
        lambda: [
            one
            for one in map(Path, Path("/proc").glob("[0-9]*/cmdline"))
            if b"exec sleep 30" not in one.read_bytes()
            and one.read_bytes() == b"sleep\x0030\x00"
            and str(spm.home).encode() in (one.parent / "environ").read_bytes()
        ]
    )[0]
    count = len(samples(spm, "burn"))
    eventually(lambda: len(samples(spm, "burn")) > count + 2, what="more samples")
    os.kill(spm.service("burn")["pid"], signal.SIGKILL)
    eventually(lambda: spm.service("burn")["pid"] and spm.service("burn")["restarts"])
    tree = [one["why"] for one in spm.json("status", "burn")["tree"]]
    assert GENERIC or tree == ["main process"], "nor does it belong to what comes after a restart"
    began = time.monotonic()
    spm("stop", "burn")
    assert time.monotonic() - began < 5
    os.kill(int(command.parent.name), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit()")
def test_a_supervisor_that_can_start_no_thread_just_now_lives_on(spm: Spm) -> None:
    # it died of that: of what an alert executes, and of readiness and liveness after a restart
    checks = ("--ready", "exec:true", "--start-seconds", "1", "--sample-interval", "100ms")
    rule = "processes>0 for 1.3s: exec true"
    start = spm.popen("start", "api", "sleep 100", *checks, "--alert", rule)
    control = spm.home / "services" / "api" / "control.sock"
    eventually(control.is_socket, what="a supervisor that listens")
    guard = spm.supervisor("api")
    room = psutil.Process(guard).memory_info().vms + 4_000_000  # a thread's stack takes 8 MB
    resource.prlimit(guard, resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    assert "started" in start.communicate(timeout=30)[0]
    eventually(lambda: events(spm, "api", "alert_failed"), what="the complaint")
    assert "can't start new thread" in events(spm, "api", "alert_failed")[0]["why"]
    assert spm.service("api")["status"] == "running"
    resource.prlimit(guard, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    eventually(lambda: spm.service("api")["status"] == "ready", what="a look at its readiness")
    assert spm.supervisor("api") == guard
    spm("stop", "api")


def test_an_alert_may_end_the_service(spm: Spm) -> None:
    start_python(spm, "eat", EAT % 100, "--alert", "memory_mb>50 for 0.2s: stop")
    eventually(lambda: spm.service("eat")["status"] == "stopped", within=5, what="the stop")
    assert spm.service("eat")["why"].startswith("alert: warning: memory_mb is ")
    assert [one["event"] for one in events(spm, "eat", "alert")] == ["alert"]
    assert not spm.service("eat")["alerts"], "what has ended has no active alerts"


def test_other_alerts_are_another_spec_and_a_restart_begins_anew(spm: Spm) -> None:
    start_python(spm, "web", BURN, "--alert", "processes>0 info")
    eventually(lambda: spm.service("web")["alerts"], what="the alert")
    words = (*EVERY, "--alert", "processes>1", "--", sys.executable, "-S", "-c", BURN)
    assert "processes>0 info" in spm("start", "web", *words, code=8).stderr
    spm("start", "web", "--replace", *words)
    count = len(samples(spm, "web"))
    eventually(lambda: len(samples(spm, "web")) > count + 2, what="more samples")
    assert spm.record("web")["alerts"] == []
    spm("stop", "web")


def test_an_own_rule_takes_the_place_of_the_default() -> None:
    spec = spm_module.Spec(("x",), "/", alerts=("cpu>300", "files>9"))
    rules = [rule.text for rule in spm_module.Sampler(spec).alerts]
    assert rules[:4] == ["cpu>300", "files>9", "memory_mb>1074 for 30s", "probe_ms>5000 for 30s"]
    assert rules[4:] == ["call_errors>10"]


# -- --watch


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, spm: Spm, *words: str) -> None:
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.chdir(spm.cwd)
            os.execve(sys.executable, spm.argv(*words), spm.env)
        self.output = ""

    def shows(self, text: str, times: int = 1) -> bool:
        os.set_blocking(self.end, False)
        with contextlib.suppress(OSError):  # nothing yet, or it has left
            self.output += os.read(self.end, 65536).decode()
        return self.output.count(text) >= times

    def code(self) -> int:
        """Its exit code, once it has ended."""
        status: list[int] = []

        def has_ended() -> bool:
            self.shows("")
            pid, word = os.waitpid(self.pid, os.WNOHANG)
            status.append(word)
            return pid != 0

        eventually(has_ended, what="the end of the command")
        self.shows("")
        os.close(self.end)
        return os.waitstatus_to_exitcode(status[-1])


@pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", 130)])
@pytest.mark.parametrize("words", [("list",), ("status", "web")])
def test_watch_on_a_terminal_goes_on_until_q_or_ctrl_c(
    spm: Spm, words: tuple[str, ...], key: str, code: int
) -> None:
    spm("start", "web", "sleep 100")
    screen = Terminal(spm, words[0], "--watch", "0.1", *words[1:])
    eventually(lambda: screen.shows("running", 3), what="three pictures")
    os.write(screen.end, key.encode())
    assert screen.code() == code, screen.output
    assert "\033[H" in screen.output and screen.output.count("\033[?1049l") == 1
    assert screen.output.startswith("\033[?1049h")
    spm("stop", "web")


def test_watch_into_a_pipe_writes_plain_lines(spm: Spm) -> None:
    spm("start", "web", "sleep 100")
    watch = spm.popen("list", "--watch", "0.05")
    assert watch.stdout
    lines = [watch.stdout.readline() for _ in range(6)]
    assert [line.split()[0] for line in lines] == ["name", "web"] * 3
    assert "\033" not in "".join(lines)
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=10)
    assert watch.returncode == 130
    assert "leave one of them out" in spm("list", "--watch", "--json", code=2).stdout
    watch = spm.popen("list", "--watch", "0.05")
    assert watch.stdout and watch.stderr and watch.stdout.readline()
    watch.stdout.close()
    assert (watch.stderr.read(), watch.wait(10)) == ("", 141), "as `| head` leaves it"
    watch.stderr.close()
    spm("status", "nobody", "--watch", code=3)
    spm("stop", "web")


# -- what it costs


@pytest.mark.skipif(GENERIC, reason="psutil asks for each process of the system: 50 ms for 300")
def test_an_idle_service_costs_next_to_nothing(spm: Spm) -> None:
    """0.2 % of a processor at the default of one sample in 5 s is 10 ms a sample."""
    spm("start", "web", *EVERY, "sleep 100")
    pid = spm.supervisor("web")

    def cpu_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    eventually(lambda: len(samples(spm, "web")) > 5, what="some samples")
    count, before = len(samples(spm, "web")), cpu_s()
    eventually(lambda: len(samples(spm, "web")) >= count + 20, what="20 samples")
    cost_s = (cpu_s() - before) / (len(samples(spm, "web")) - count)
    assert cost_s < 0.010, f"{cost_s * 1000:.1f} ms a sample"
    spm("stop", "web")


def test_an_alert_can_restart_what_it_is_about(spm: Spm) -> None:
    eats = "import time; x = bytearray(80_000_000); time.sleep(100)"
    rule = "memory_mb>60 for 100ms critical: restart"
    options = ["--sample-interval", "100ms", "--alert", rule, "--backoff", "100ms"]
    spm("start", "api", *options, "--", sys.executable, "-c", eats)
    eventually(lambda: events(spm, "api", "restarted"), what="a restart")
    told = [one["event"] for one in events(spm, "api", "alert", "stopping", "restarted")]
    assert told[:3] == ["alert", "stopping", "restarted"], told
    spm("stop", "api")
