"""`export`: the same services for another engine, checked by that engine's own means.

With SPM_GOLDEN=write the files in tests/golden/ are written anew.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Spm, eventually
from hypothesis import given, settings
from hypothesis import strategies as st

import simple_process_manager as spm_module
from simple_process_manager import Spec, exported

GOLDEN = Path(__file__).resolve().parent / "golden"
SLEEP = ("/bin/sleep", "60")
WANTED: list[tuple[str, Spec, dict[str, str]]] = [
    ("db", Spec(SLEEP, "/srv/my data", port=6379, ready=("tcp",), restart="always"), {}),
    ("Load.data", Spec(("/bin/sh", "-c", 'echo "$HOME" 100% ${X}\n'), "/srv"), {"db": "ready"}),
    (
        "api",
        Spec(
            ("/bin/sh", "-c", "exec uvicorn main:app --host 127.0.0.1 --port $PORT"),
            "/srv/app",
            shell=True,
            port=8000,
            port_declared=True,
            env_given=("API_KEY",),
            env_taken=("TOKEN",),
            env_files=("/srv/app/.env",),
            ready=("http:/health", "log:started"),
            health=("exec:test -e up", "https://example.org:8443/x"),
            health_interval_s=2.5,
            restart="on-failure",
            max_restarts=3,
            backoff_max_s=5.0,
            log_bytes=10**6,
            start_seconds=2.0,
            success_codes="0,SIGTERM",
            no_restart_codes="3,4",
            lease="2h",
            alerts=("memory_mb>500",),
        ),
        {"db": "ready", "Load.data": "exited"},
    ),
    (
        "worker",
        Spec(("no-such-program-here", "-v"), "/srv", health=("http:/ok",)),
        {"api": "started"},
    ),
    ("daemon", Spec(SLEEP, "/srv", type="forking", pid_file="/run/daemon.pid"), {}),
    ("clock", Spec(("python", "-m", "mcp_server_time"), "/srv", type="stdio"), {"db": "started"}),
]
WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))


def files_of(target: str) -> dict[str, str]:
    """The golden files of a target."""
    return {path.name: path.read_text("utf-8") for path in (GOLDEN / target).iterdir()}


def program_for(words: list[str]) -> list[tuple[str, Spec, dict[str, str]]]:
    """A service of these words."""
    return [("api", Spec(("/usr/bin/printf", r"%s\0", *words), "/"), {})]


def optional(name: str) -> Any:
    """A module of the extra `test`; the test is skipped without it."""
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


@pytest.mark.parametrize("target", spm_module.TARGETS)
def test_the_services_look_in_each_target_as_they_did(target: str) -> None:
    files, notes = exported(target, WANTED, "shop")
    if os.environ.get("SPM_GOLDEN") == "write":
        shutil.rmtree(GOLDEN / target, ignore_errors=True)
        (GOLDEN / target).mkdir(parents=True)
        for name, text in files.items():
            (GOLDEN / target / name).write_text(text, "utf-8")
    assert files == files_of(target)
    text = "".join(files.values())
    assert all(f"# {note}\n" in text for note in notes), "what is lost stands in the files"
    lacks = ["--lease", "--alert", "--backoff-max", "--log-size", "--start-seconds"]
    for lost in (*lacks, '"log:started"', "clock is left out"):
        assert any(lost in note for note in notes) or (target, lost[0]) == ("procfile", '"'), lost


# -- systemd


def test_systemd_takes_the_unit_files(base: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("there is no systemd-analyze here")
    for name, text in files_of("systemd").items():
        (base / name).write_text(text, "utf-8")
    words = [
        analyze,
        "verify",
        "--man=no",
        "--recursive-errors=yes",
        *map(str, base.glob("*.service")),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    ours = [
        line for line in done.stderr.splitlines() if any(n in line for n in files_of("systemd"))
    ]
    assert not ours, done.stderr
    (base / "api.service").write_text("[Service]\nExecStart=/bin/true\nRestrat=no\nType=odd\n")
    done = subprocess.run([*words[:4], str(base / "api.service")], capture_output=True, text=True)
    assert "Restrat" in done.stderr, "the check sees a wrong line"


def systemd_words(line: str) -> list[str]:
    """The words of ExecStart= by systemd.syntax(7) and systemd.service(5), COMMAND LINES."""
    escapes = {"\\": "\\", '"': '"', "n": "\n", "t": "\t"}
    words, at = [], 0
    token = re.compile(r' *(?:"((?:[^"\\]|\\.)*)"|([^\s"\'\\;]\S*))(?= |$)', re.S)
    while at < len(line):
        match = token.match(line, at)
        assert match, line[at:]
        at = match.end()
        word = match[2] or re.sub(
            r"\\(?:u([0-9a-f]{4})|(.))",
            lambda one: chr(int(one[1], 16)) if one[1] else escapes[one[2]],
            match[1] or "",
        )
        assert not re.search(r"(?<!%)(?:%%)*%(?!%)", word), "a specifier"
        words.append(word.replace("%%", "%"))
    assert not any(re.search(r"(?<!\$)(?:\$\$)*\$(?!\$)", word) for word in words[1:]), "a variable"
    return [words[0], *(word.replace("$$", "$") for word in words[1:])]


@settings(max_examples=200, deadline=None, database=None)
@given(WORDS)
def test_systemd_reads_the_words_that_were_meant(words: list[str]) -> None:
    text = exported("systemd", program_for(words), "shop")[0]["api.service"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    line = next(line for line in text.split("\n") if line.startswith("ExecStart="))
    assert systemd_words(line[len("ExecStart=") :]) == ["/usr/bin/printf", r"%s\0", *words]


def test_a_directory_cant_bring_lines_of_its_own_into_a_unit() -> None:
    with pytest.raises(spm_module.UsageError):
        exported("systemd", [("api", Spec(SLEEP, "/srv\nUser=root"), {})], "shop")


# -- Procfile


@settings(max_examples=60, deadline=None, database=None)
@given(WORDS)
def test_a_procfile_runs_the_words_that_were_meant(words: list[str]) -> None:
    environ = optional("honcho.environ")
    text = exported("procfile", program_for(words), "shop")[0]["Procfile"]
    command = environ.parse_procfile(text).processes["api"]
    shown = subprocess.run(["/bin/sh", "-c", command], stdout=subprocess.PIPE, check=True).stdout
    assert shown == b"".join(word.encode() + b"\0" for word in words or [""])


def test_honcho_runs_the_procfile(spm: Spm, port: int) -> None:
    optional("honcho.environ")
    command = f"{sys.executable} -c 'import os; print(os.environ[\"TOKEN\"] * 2, os.getcwd())'"
    spm(
        "start", "web", "--port", port, f"{sys.executable} -m http.server --bind 127.0.0.1 {{port}}"
    )
    spm("start", "my.job", "--env", "TOKEN=s3cr3t", command)
    spm("stop", "web", "my.job")
    told = spm("export", "procfile", "-o", "out").stderr
    assert "my.job: put the values of TOKEN into .env" in told and "s3cr3t" not in told
    (spm.cwd / "out" / ".env").write_text("TOKEN=x1\n")
    words = [sys.executable, "-m", "honcho", "start", "web"]
    honcho = subprocess.Popen(words, cwd=spm.cwd / "out", stdout=subprocess.PIPE, env=spm.env)
    try:
        spm("wait-healthy", port, "20")
    finally:
        honcho.send_signal(signal.SIGTERM)
        honcho.communicate(timeout=20)
    words = [
        *words[:-2],
        "run",
        "sh",
        "-c",
        (spm.cwd / "out" / "Procfile").read_text().split("my-job: ")[1].split("\n")[0],
    ]
    shown = subprocess.run(
        words, cwd=spm.cwd / "out", stdout=subprocess.PIPE, text=True, env=spm.env
    )
    assert shown.stdout == f"x1x1 {spm.cwd}\n"


# -- Compose, Kubernetes, Nomad


@settings(max_examples=100, deadline=None, database=None)
@given(WORDS)
def test_yaml_has_the_words_that_were_meant(words: list[str]) -> None:
    yaml, wanted = optional("yaml"), program_for(words)
    meant = ["/usr/bin/printf", r"%s\0", *words]
    doubled = [word.replace("$", "$$") for word in meant]
    compose = yaml.safe_load(exported("compose", wanted, "shop")[0]["compose.yaml"])
    assert compose["services"]["api"]["entrypoint"] == doubled
    pod = yaml.safe_load(exported("kubernetes", wanted, "shop")[0]["kubernetes.yaml"])
    assert pod["spec"]["containers"][0]["command"] == doubled


@pytest.mark.parametrize("name", ["on", "null", "1e3", "0x1", "Y", "a_b.c", "1"])
def test_a_name_stays_a_name_in_yaml(name: str) -> None:
    yaml = optional("yaml")
    wanted: list[tuple[str, Spec, dict[str, str]]] = [(name, Spec(SLEEP, "/", port=80), {})]
    compose = yaml.safe_load(exported("compose", wanted, "shop")[0]["compose.yaml"])
    assert list(compose["services"]) == [name]
    text = exported("kubernetes", wanted, "shop")[0]["kubernetes.yaml"]
    names = {one["metadata"]["name"] for one in yaml.safe_load_all(text)}
    assert all(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", one) for one in names) and len(names) == 1


def test_the_compose_document_fits_the_published_schema() -> None:
    yaml, validator = optional("yaml"), optional("jsonschema")
    optional("check_jsonschema")
    place = Path(importlib.import_module("check_jsonschema").__file__ or "").parent
    schema = json.loads((place / "builtin_schemas/vendor/compose-spec.json").read_text("utf-8"))
    document = yaml.safe_load(files_of("compose")["compose.yaml"])
    check = validator.Draft202012Validator(schema)  # not all versions know its URL
    check.validate(document)
    document["services"]["api"]["restrat"] = "no"
    with pytest.raises(validator.ValidationError):
        check.validate(document)


def test_the_kubernetes_objects_fit_the_published_schemas() -> None:
    yaml, validate = optional("yaml"), optional("kubernetes_validate")
    objects = list(yaml.safe_load_all(files_of("kubernetes")["kubernetes.yaml"]))
    assert [one["kind"] for one in objects] == [
        "Deployment",
        "Service",
        "Pod",
        "Pod",
        "Service",
        "Pod",
    ]
    for one in objects:
        validate.validate(one, validate.latest_version(), strict=True)
    objects[2]["spec"]["restrat"] = "no"
    with pytest.raises(validate.ValidationError):
        validate.validate(objects[2], validate.latest_version(), strict=True)


def hcl_text(written: str) -> str:
    """The text of a string as python-hcl2 gives it back: still between quotes."""
    text = json.loads(written.replace("$${", "${").replace("%%{", "%{"))
    assert isinstance(text, str)
    return text


def test_the_nomad_job_is_hcl() -> None:
    groups = optional("hcl2").loads(files_of("nomad")["shop.nomad.hcl"])["job"][0]['"shop"'][
        "group"
    ]
    tasks = {name: task for group in groups for task in [group] for name in group}
    assert list(tasks) == ['"db"', '"load-data"', '"api"', '"worker"']
    config = groups[1]['"load-data"']["task"][0]['"load-data"']["config"][0]
    args = [hcl_text(one) for one in config["args"]]
    assert args[2:] == ["/srv", *WANTED[1][1].argv]
    shown = subprocess.run([hcl_text(config["command"]), *args[:2], "/", "/bin/pwd"], stdout=-1)
    assert shown.stdout == b"/\n", "in its directory, by the same words"


def test_a_number_as_the_port_of_a_nomad_check_was_never_found() -> None:
    checks = ("tcp:8000", "tcp:9000", "http://127.0.0.1:8000/x", "http://127.0.0.1:9000/y")
    wanted = [("api", Spec(SLEEP, "/srv", port=8000, ready=checks), dict[str, str]())]
    files, notes = exported("nomad", wanted, "shop")
    text = files["shop.nomad.hcl"]
    assert re.findall(r" port = .*", text) == [' port = "main"'], "checks look at the service's"
    assert text.count("check {") == 2 and '"/y"' not in text
    for other in (checks[1], checks[3]):
        assert f'api: nomad can\'t look for "{other}"' in notes


@settings(max_examples=25, deadline=None, database=None)
@given(WORDS)
def test_hcl_has_the_words_that_were_meant(words: list[str]) -> None:
    text = exported("nomad", program_for(words), "shop")[0]["shop.nomad.hcl"]
    line = next(line for line in text.split("\n") if " args = " in line)
    args = optional("hcl2").loads(line.strip() + "\n")["args"]
    assert [hcl_text(one) for one in args][2:] == ["/", "/usr/bin/printf", r"%s\0", *words]


# -- the command


def test_export_tells_names_and_never_values(spm: Spm, port: int) -> None:
    (spm.cwd / ".env").write_text("FROM_FILE=hunter2\n")
    options = (
        "--env",
        "API_KEY=hunter2",
        "--env-file",
        ".env",
        "--port",
        port,
        "--restart",
        "always",
    )
    spm("start", "api", *options, "--health", "tcp", f"{sys.executable} -m http.server {{port}}")
    spm("start", "job", "sleep 60")
    for target in spm_module.TARGETS:
        done = spm("export", target)
        assert "hunter2" not in done.stdout + done.stderr and "API_KEY" in done.stdout
        assert "[WARN] api: put the values of API_KEY" in done.stderr
    shown = spm.json("export", "systemd", "api", "-o", "units")
    assert shown["done"] == {"api.service": "written"} and list(shown["files"]) == ["api.service"]
    assert any("API_KEY" in note for note in shown["warnings"])
    path = spm.cwd / "units" / "api.service"
    assert f"=/usr/bin/env PORT={port} " in path.read_text() == shown["files"]["api.service"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert (
        "[OK] units/api.service unchanged" in spm("export", "systemd", "api", "-o", "units").stdout
    )
    path.write_text("mine\n")
    refused = spm("export", "systemd", "-o", "units", code=8)
    assert "api.service is there and differs" in refused.stderr and path.read_text() == "mine\n"
    spm("export", "systemd", "--output", "units", "--force")
    assert path.read_text() == shown["files"]["api.service"]
    spm("export", "compose", "ap", code=3)
    spm("cleanup")
    spm("export", "compose", code=3)


@pytest.mark.parametrize("target", spm_module.TARGETS)
def test_a_port_that_is_chosen_at_the_start_became_none(target: str) -> None:
    auto = Spec(("serve", "{port}"), "/srv", port_declared=True, port_asked="auto")
    files, notes = exported(target, [("api", auto, {})], "shop")
    assert not re.search(r"None|PORT|env:", "".join(files.values()))
    assert f"api: {target} can't choose a port: give it one instead of auto" in notes


@pytest.mark.parametrize("target", spm_module.TARGETS)
def test_of_two_ports_in_the_environment_the_one_that_holds_here_is_told(target: str) -> None:
    both = Spec(SLEEP, "/srv", port=8000, port_declared=True, env_given=("PORT",))
    given = "".join(exported(target, [("api", both, {})], "shop")[0].values())
    assert not re.search(r"PORT\W+8000|PORT, value", given), "what was given is stronger"
    taken = both._replace(env_given=(), env_taken=("PORT",))
    own = "".join(exported(target, [("api", taken, {})], "shop")[0].values())
    assert re.findall(r'\bPORT\b(?:\W+(?:value: ")?8000)?', own)[0].endswith("8000")
    assert len(re.findall(r"\bPORT\b", own)) == 1


def test_under_systemd_the_port_of_an_env_file_was_stronger_than_the_declared_one() -> None:
    with_file = Spec(SLEEP, "/srv", port=8000, port_declared=True, env_files=("/srv/.env",))
    unit = exported("systemd", [("api", with_file, {})], "shop")[0]["api.service"]
    assert f"ExecStart=/usr/bin/env PORT=8000 {SLEEP[0]} " in unit and "Environment=" not in unit
    without = exported("systemd", [("api", with_file._replace(env_files=()), {})], "shop")[0]
    assert "Environment=PORT=8000\n" in without["api.service"]


def test_a_reference_stays_one_and_its_value_stays_here(spm: Spm) -> None:
    spm.env.update(TOK="hunter2", P="8123", PLACE=str(spm.cwd))
    command = ["/usr/bin/printf", "%s|", "--token=${TOK}", "it's ${env:TOK:-no}", "$${TOK}"]
    url = "http://127.0.0.1:8125/x?${TOK}"
    checks = {"ready": url, "health": ["exec:test ${TOK}", "tcp:${P}"]}
    services = {
        "a": {"command": command, **checks, "cwd": "${PLACE}"},
        "b": {"command": "printf '%s' \"${TOK:-no}\" | cat", "shell": True},
        "c": {"command": "/usr/bin/printf %s ${TOK}", "env": {"E": "${SPM_UNSET}", "F": None}},
    }
    (spm.cwd / "spm.json").write_text(json.dumps({"services": services}))
    own = {
        "systemd": '"--token=${TOK}"',
        "compose": '"--token=${TOK}"',
        "kubernetes": '"--token=$(TOK)"',
        "nomad": '"--token=$${TOK}"',
        "procfile": """'--token='"$TOK"''""",
    }
    for target, word in own.items():
        done = spm("export", target)
        assert "hunter2" not in done.stdout + done.stderr and word in done.stdout, target
        told = "a: its command or checks have ${TOK}: not its value, nor its default\n"
        assert f"[WARN] {told}" in done.stderr and f"# {told}" in done.stdout
        assert "[WARN] c: its command or checks have ${TOK}: not its value\n" in done.stderr
        lost = f'[WARN] a: {target} can\'t look for "{url}"' in done.stderr
        assert lost is (target in ("kubernetes", "nomad")), "they would ask for it literally"
        assert "[WARN] a: cwd holds the value of ${PLACE}, in clear" in done.stderr
        assert "# a: cwd holds the value of ${PLACE}, in clear\n" in done.stdout
        assert "[WARN] a: health holds the value of ${P}, in clear" in done.stderr
        assert "\ue000" not in done.stdout + done.stderr
    lines = dict(re.findall("(?m)^([abc]): (.*)$", spm("export", "procfile").stdout))
    means = {
        "a": "--token=hunter2 $x|it's hunter2 $x|${TOK}|",
        "b": "hunter2 $x",
        "c": "hunter2 $x",
    }
    spm.env["TOK"] = "hunter2 $x"
    for name, text in means.items():
        words = ["/bin/sh", "-c", lines[name]]
        assert subprocess.run(words, env=spm.env, capture_output=True, text=True).stdout == text


@pytest.mark.parametrize("target", ["systemd", "nomad"])
def test_a_reference_in_the_program_became_a_directory_of_that_name(spm: Spm, target: str) -> None:
    spm.env["VENV"] = "/opt/v"
    services = {"api": {"command": "${VENV}/bin/python app.py"}}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": services}))
    text = spm("export", target).stdout
    assert f"{spm.cwd}/$" not in text
    expected = {"systemd": '/usr/bin/env "${VENV}/bin/python" app.py\n'}
    assert expected.get(target, '"$${VENV}/bin/python", "app.py"') in text


def test_what_is_disabled_was_exported_to_be_started(spm: Spm) -> None:
    services = {"web": {"command": "sleep 1", "disabled": True}, "api": {"command": "sleep 2"}}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": services}))
    spm("start", "web")
    spm("stop", "web")
    done = spm("export", "compose")
    assert "[WARN] web is left out: it is disabled" in done.stderr
    assert "# web is left out: it is disabled" in done.stdout
    assert "sleep" in done.stdout and "web:" not in done.stdout
    named = spm("export", "compose", "Web")
    assert "web:" in named.stdout and "disabled" not in named.stderr
    del services["api"]
    (spm.cwd / "spm.json").write_text(json.dumps({"services": services}))
    assert "web: it is disabled; there is no other" in spm("export", "compose", code=3).stderr


def test_what_the_file_no_longer_has_was_exported_beside_what_took_its_place(spm: Spm) -> None:
    file = spm.cwd / "spm.json"
    file.write_text(json.dumps({"services": {"worker": {"command": "sleep 300.1"}}}))
    spm("up")
    spm("start", "mine", "sleep 300.2")
    file.write_text(json.dumps({"services": {"jobs": {"command": "sleep 300.1"}}}))
    spm("up")
    done = spm("export", "procfile")
    told = [line for line in done.stdout.splitlines() if line[0] != "#"]
    assert [line.partition(":")[0] for line in told] == ["jobs", "mine"]
    assert "[WARN] worker is left out: spm.json doesn't have it" in done.stderr, done.stderr
    assert "worker:" in spm("export", "procfile", "worker").stdout
    spm("cleanup")


def test_no_restart_after_a_failure_became_restarts_without_end_in_compose() -> None:
    for restart, count, told in (
        ("on-failure", 0, "no"),
        ("on-failure", 2, "on-failure:2"),
        ("always", 2, "always"),
    ):
        spec = Spec(SLEEP, "/srv", restart=restart, max_restarts=count)
        files, notes = exported("compose", [("api", spec, {})], "shop")
        assert f'    restart: "{told}"\n' in files["compose.yaml"]
        lost = "api: compose has nothing like --max-restarts with --restart always"
        assert (lost in notes) == (restart == "always"), notes


def test_a_note_stays_one_comment() -> None:
    evil = Spec(
        ("./x\nkind: Evil\n#", "1"), "/srv/a\x85kind: Evil", rules={"A": {"required": True}}
    )
    for target in ("compose", "kubernetes", "nomad", "procfile"):
        files, notes = exported(target, [("a", evil, {})], "shop")
        text = "".join(files.values())
        assert not re.search("(?m)^kind: Evil", "\n".join(text.splitlines()))
        assert f"a: {target} doesn't check environment rules" in notes


def umask() -> int:
    """What new files of this process don't get."""
    now = os.umask(0o077)
    os.umask(now)
    return now


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
def test_an_exported_probe_command_asks_what_the_service_is_asked(port: int) -> None:
    checks = ("http:/", "tcp", "exec:true # really")
    spec = Spec(SLEEP, "/", port=port, ready=checks)
    unit = spm_module.unit_of("systemd", "web", spec, [])
    words = spm_module.probe_words(unit, unit.ready)
    assert subprocess.run(words, stderr=subprocess.DEVNULL).returncode != 0
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0)
    finally:
        server.terminate()
        server.wait(10)


def test_an_env_file_stood_among_the_names_of_variables(spm: Spm) -> None:
    (spm.cwd / ".env").write_text("A=1\n")
    keys = {"command": "sleep 300", "env": {"DB": "1", "TOKEN": "2"}, "env_file": ".env"}
    bare = {"command": "sleep 300", "env_file": ".env"}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": {"a": keys, "b": bare}}))
    told, path = spm("export", "procfile").stderr, os.path.realpath(spm.cwd / ".env")
    assert f"a: put the values of DB, TOKEN and in {path} into .env beside" in told
    assert f"b: put the values in {path} into .env beside" in told
