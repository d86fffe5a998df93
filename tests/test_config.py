"""spm.json: one table for flags, keys and schema; every problem at once; no value in a message."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import GENERIC, ROOT, Spm, nasty
from hypothesis import example, given, settings
from hypothesis import strategies as st

import simple_process_manager as spm_module

jsonschema = pytest.importorskip("jsonschema")
SERVER = [sys.executable, str(ROOT / "tests" / "rpc_server.py")]
SCHEMA: dict[str, Any] = json.loads(json.dumps(spm_module.document_schema()))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
quick = settings(max_examples=100, deadline=None, database=None)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def problems_of(document: object, path: str = "/nowhere/spm.json") -> dict[str, str]:
    """What is wrong with a document, by path."""
    try:
        spm_module.config_of(document, path)
    except spm_module.ConfigError as error:
        found = error.facts["problems"]
        assert isinstance(found, list)
        return {one["path"]: one["message"] for one in found}
    return {}


def service(**keys: object) -> dict[str, object]:
    return {"services": {"a": {"command": "sleep 1", **keys}}}


# -- one table


POOL: list[Any] = [
    *(True, False, None, 0, 1, 3, 1.5, 8000, 70000, -1, "", "x", "-1", "8000", "30s", "5x", "10MB"),
    *("auto", "next", "always", "on-failure", "stdio", "modern", "forever", "session", "2h"),
    *(
        "tcp",
        "http:/x",
        "cpu>90",
        "0,SIGTERM",
        "200-399",
        "A=1",
        "NAME",
        "xterm",
        "^a",
        "(",
        "${P}",
    ),
    *([], ["tcp"], ["cpu>90"], ["NAME"], [1], {}, {"A": "b"}, {"A": 1}, {"A": None}, {"A": []}),
    *({"a b": "c"}, {"enabled": True, "timeout": 5}, {"enabled": "x"}, {"b": "ready"}, {"b": "x"}),
    *({"A": {"required": True, "min_length": 3, "pattern": "^x"}}, {"A": {"min_length": -1}}),
]


@pytest.mark.parametrize("key", [*spm_module.KEYS, *spm_module.SHAPES])
def test_flag_key_and_schema_are_one(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P", "9000")
    both, neither = [], []
    validator = VALIDATOR.evolve(schema=SCHEMA["$defs"]["service"]["properties"][key])
    for value in POOL:
        document = service(**{key: value})
        document["services"]["b"] = {"command": "x"}  # type: ignore[index]
        ours = not any(path.startswith(f"services.a.{key}") for path in problems_of(document))
        schemas = validator.is_valid(value)
        assert schemas or not ours, f"the schema forbids {value!r}, but it can be read"
        both += [value] * (ours and schemas)
        neither += [value] * (not ours and not schemas)
    assert both and neither, f"nothing was accepted, or nothing refused: {both} {neither}"
    option = spm_module.KEYS.get(key)
    if option:
        assert SCHEMA["$defs"]["service"]["properties"][key]["description"]
        assert option in spm_module.COMMANDS["start"].options


def test_every_option_of_start_is_a_key_or_said_not_to_be() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert VALIDATOR.is_valid({"services": {"a": {"command": "x", "port": "${P}"}}, "version": 1})
    bad_name = {"a b": {"command": "x"}}
    wrongs: list[object] = [{"servces": {}}, {"services": {"a": {}}}, {"services": bad_name}]
    for wrong in wrongs:
        assert not VALIDATOR.is_valid(wrong)
    options = {spm_module.key_of(one) for one in spm_module.COMMANDS["start"].options}
    assert options == {*spm_module.KEYS, *spm_module.NO_KEYS}
    keys = set(SCHEMA["$defs"]["service"]["properties"])
    assert keys == {*spm_module.KEYS, *spm_module.SHAPES}


def test_a_service_of_the_file_is_what_start_would_make_of_the_same_options() -> None:
    words = (
        "--port 8000 --ready tcp --ready http:/x --env K=v --env CALLER --restart always --shell"
    )
    words += " --cwd /tmp --log-size 1MB --idle-timeout 5m --health-interval 2 --lease 2h"
    words += " --max-restarts 9 --success-log up --alert cpu>90 --require-env HOME --cooldown 0"
    args = spm_module.parse(["start", "a", *words.split(), "sleep 1 && true"])[1]
    keys: dict[str, object] = {
        "port": 8000,
        "ready": ["tcp", "http:/x"],
        "env": {"K": "v", "CALLER": None},
    }
    keys.update(restart="always", shell=True, cwd="/tmp", log_size="1MB", idle_timeout="5m")
    keys.update(health_interval=2, lease="2h", max_restarts=9, success_log="up", alert="cpu>90")
    keys.update(require_env="HOME", cooldown="0", command="sleep 1 && true")
    wanted = spm_module.config_of(service(**keys), "/tmp/spm.json").services["a"]
    assert (wanted.spec, wanted.given_env) == spm_module.spec_of("a", args)


# -- reading


@quick
@given(st.text(st.sampled_from('"\\/*\n\r a{}:,')))
@example('{"a": "//", /* \n */ "b": "/*"} // "x')
def test_comments_are_blanked_and_everything_stays_in_its_place(text: str) -> None:
    blank = spm_module.blanked(text)
    assert len(blank) == len(text)
    assert [one for one in blank if one in "\r\n"] == [one for one in text if one in "\r\n"]
    assert all(was == now or now == " " for was, now in zip(text, blank))


@quick
@given(json_values)
@example({"services": {"a": {"command": "\ud800"}}})
@example({"services": {"a": {"command": ["x"], "health_interval": 10**400}}})
@example({"defaults": {"env_file": "${A"}, "services": {"a": {"command": "${}"}}})
def test_any_json_is_a_configuration_or_the_one_error(value: object) -> None:
    problems_of(value)
    problems_of({"services": value, "defaults": value})
    problems_of({"services": {"a": value}, "mcpServers": {"b": value}, "alerts": value})
    for key in ("command", "env", "keep_alive", "depends_on", "environment", "port", "ready"):
        problems_of(service(**{key: value}))


def test_a_file_that_is_nested_without_end_is_a_problem_like_any_other(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(600):
        deep = [deep]
    told = problems_of({"mcpServers": {"b": {"command": "x", "headers": deep}}, "services": deep})
    assert "nested too deeply" in told.values()
    (tmp_path / "spm.json").write_text("[" * 100_000)
    with pytest.raises(spm_module.ConfigError):
        spm_module.read_config(str(tmp_path / "spm.json"))
    (tmp_path / "spm.json").write_bytes(b"\xff{}")
    with pytest.raises(spm_module.ConfigError, match="decode"):
        spm_module.read_config(str(tmp_path / "spm.json"))
    (tmp_path / "spm.json").write_text(
        '{"services": {"a": {"command": "x"}, "a": {"command": "y"}}}'
    )
    with pytest.raises(spm_module.ConfigError, match="'a' is there twice"):
        spm_module.read_config(str(tmp_path / "spm.json"))


def test_a_configuration_as_of_another_tool_is_told_how_it_is_written_here(spm: Spm) -> None:
    # "an object was expected", cmd was taken for cwd, and a start was advised inside the file
    for text, told in (
        ('{"services": {"a": "sleep 1"}}', 'an object was expected: write {"command": "…"}'),
        ('{"services": []}', 'an object was expected: write {"NAME": {"command": "…"}}'),
        ('{"services": {"a": {"cmd": "x"}}}', "services.a.cmd: unknown key; did you mean command?"),
        ('{"services": {"a": {"command": "x &"}}}', "none is used unasked: leave the & out\n"),
    ):
        (spm.cwd / "spm.json").write_text(text)
        assert told in spm("config", "validate", code=6).stderr, text


def test_every_problem_is_told_at_once_and_nothing_is_started(spm: Spm) -> None:
    text = """// a comment
    {"servces": {}, "alerts": ["cpu"], "defaults": {"env": {"D": "${SPM_NOT_SET}"}}, "services": {
      "api": {"command": "a && b", "prot": 1, "port": 70000, "depends_on": ["dbb"]},
      "db": {"command": "sleep 1", "env": {"T": "${SPM_NOT_SET}"}, "pid_file": "x"},
      "one": {"command": "x", "depends_on": {"two": "ready"}}, "Two": {"command": "x"},
      "two": {"command": "x", "depends_on": ["one"], "ready": ["tcp", "nope"]}}}"""
    (spm.cwd / "spm.json").write_text(text)
    error = spm.json("config", "validate", code=6)["error"]
    told = {one["path"]: one["message"] for one in error["problems"]}
    assert {one["file"] for one in error["problems"]} == {str(spm.cwd.resolve() / "spm.json")}
    assert "did you mean services?" in told["servces"]
    assert "did you mean port?" in told["services.api.prot"]
    assert "not a port" in told["services.api.port"]
    assert "needs a shell for &&" in told["services.api.command"]
    assert "did you mean db?" in told["services.api.depends_on"]
    assert "${SPM_NOT_SET} is not set" in told["services.db.env.T"]
    assert [path for path in told if path.endswith("env.D")] == ["defaults.env.D"], "once, there"
    assert "pid_file goes with type forking" in told["services.db"]
    assert "'nope' is not a check" in told["services.two.ready"]
    assert "Two has that name already" in told["services.two"]
    assert "position" in told["alerts"]
    shown = spm("config", "validate", code=6).stderr
    assert all(path in shown for path in told)
    (spm.cwd / "spm.json").write_text(text.replace('"api"', '"api",'))
    error = spm.json("config", "validate", code=6)["error"]
    assert error["problems"][0]["path"] == "line 3, column 12"


def test_cycles_and_dependencies_are_named() -> None:
    chain = {"a": ["b"], "b": {"c": "exited"}, "c": ["a"]}
    document = {n: {"command": "x", "depends_on": needs} for n, needs in chain.items()}
    (told,) = problems_of({"services": document}).values()
    assert told in [
        f"each waits for the next: {one}"
        for one in ("a → b → c → a", "b → c → a → b", "c → a → b → c")
    ]
    document["c"] = {"command": "x", "ready": "tcp"}
    document["d"] = {"command": "x", "depends_on": ["c", "a"]}
    services = spm_module.config_of({"services": document}, "/x/spm.json").services
    assert services["d"].depends_on == {"c": "ready", "a": "started"}
    assert services["b"].depends_on == {"c": "exited"}


def test_of_two_cycles_one_was_told() -> None:
    chain = {"a": ["b"], "b": ["a"], "c": ["d", "a"], "d": ["c"], "e": ["e"], "f": ["e"]}
    document = {n: {"command": "x", "depends_on": needs} for n, needs in chain.items()}
    told = problems_of({"services": document}).values()
    cycles = [text.partition(": ")[2].split(" → ") for text in told]
    assert sorted(map(sorted, map(set, cycles))) == [["a", "b"], ["c", "d"], ["e"]]


def test_a_bad_name_is_told_what_a_good_one_has() -> None:
    services = {"a b": {"command": "x"}, "c": {"command": "x", "env": {"A B": "1"}}}
    told = problems_of({"services": services})
    assert told["services.a b"].endswith(
        "letters, digits, '.', '_' and '-', the first a letter or digit"
    )
    assert told["services.c.env.A B"].endswith(
        "letters, digits, '_' and '.', the first a letter or '_'"
    )


def test_a_cycle_through_a_variable_is_a_problem_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # it was a traceback: what depends on what was looked at as it was written
    monkeypatch.setenv("NEEDED", "b")
    document = {"a": {"command": "x", "depends_on": ["${NEEDED}"]}}
    document["b"] = {"command": "x", "depends_on": ["a"]}
    (told,) = problems_of({"services": document}).values()
    assert told in [f"each waits for the next: {one}" for one in ("a → b → a", "b → a → b")]


def test_a_variable_may_have_a_dot_in_its_name_and_a_problem() -> None:
    for env in ({"my.var": "${UNSET_ANYWHERE}"}, {"my.var": "${UNSET_ANYWHERE}", "my": "x"}):
        assert "services.a.env.my.var" in problems_of(service(env=env))


def test_keys_that_are_there_twice_are_told_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "spm.json"
    keys = [f"k{number}" for number in range(30)]
    path.write_text("{" + ", ".join(f'"{key}": 1' for key in [*keys, *keys[:9]]) + "}")
    with pytest.raises(spm_module.ConfigError) as raised:
        spm_module.read_config(str(path))
    problems = raised.value.facts["problems"]
    assert isinstance(problems, list)
    told = [one["message"] for one in problems if "twice" in one["message"]]
    assert told == [f"the key 'k{n}' is there twice in one object" for n in range(9)]


def test_null_and_what_is_no_file_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "spm.json"
    path.write_text("null")
    with pytest.raises(spm_module.ConfigError, match="an object was expected"):
        spm_module.read_config(str(path))
    path.unlink()
    os.mkfifo(path)
    for place in (path, tmp_path):
        with pytest.raises(spm_module.ConfigError, match="not a regular file"):
            spm_module.read_config(str(place))


def test_numbers_of_variables_keep_their_digits() -> None:
    text = '{"PI": 3.14159265, "TINY": 1e-7, "ONE": 1.0, "N": 5}'
    config = spm_module.config_of(service(env=json.loads(text)), "/x/spm.json")
    given_env = {"PI": "3.14159265", "TINY": "0.0000001", "ONE": "1.0", "N": "5"}
    assert config.services["a"].given_env == given_env
    for text in ("NaN", "-Infinity", "1e999"):
        told = problems_of(service(env={"A": json.loads(text)}))
        assert told == {"services.a.env.A": "a finite number was expected"}


def test_a_server_whose_command_has_its_arguments_is_told_where_they_go(tmp_path: Path) -> None:
    (tmp_path / "my tool").write_text("#!/bin/sh\n")
    (tmp_path / "my tool").chmod(0o755)
    commands = ("sleep 1", "sleep", str(tmp_path / "my tool"), "")
    document = {"mcpServers": {f"s{n}": {"command": one} for n, one in enumerate(commands)}}
    told = problems_of(document)
    assert told.pop("mcpServers.s0.command") == "'sleep' only: put the arguments into args"
    assert [*told] == ["mcpServers.s3.command"]


def test_a_server_that_asks_the_editor_is_skipped(tmp_path: Path) -> None:
    asking = {"command": "uvx", "env": {"T": "${input:tok}"}}
    servers = {"a": asking, "b": {"command": "uvx", "args": ["${env:HOME}", "${B:-x}"]}}
    (tmp_path / "mcp.json").write_text(json.dumps({"servers": servers}))
    config = spm_module.config_of({"include": ["mcp.json"]}, str(tmp_path / "spm.json"))
    assert list(config.services) == ["b"]
    assert "servers.a has ${input:…}" in config.notes[0]


def test_references_are_replaced_and_their_values_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "s3cret && x")
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / ".env").write_text("FROM_FILE=8123\n")
    keys: dict[str, object] = {
        "command": ["run", "${EMPTY:-a}${EMPTY}", "$${TOKEN}", "${env:HOME}"]
    }
    keys.update(env={"T": "${TOKEN}", "N": 5}, env_file=".env", port="${FROM_FILE}")
    config = spm_module.config_of(service(**keys), str(tmp_path / "spm.json"))
    wanted = config.services["a"]
    assert wanted.spec.argv == ("run", "a", "${TOKEN}", os.environ["HOME"])
    assert wanted.given_env == {"T": "s3cret && x", "N": "5"}
    assert wanted.spec.port == 8123
    assert "s3cret" not in json.dumps(config.document), "what is kept has references, not values"
    again = spm_module.config_of(json.loads(json.dumps(config.document)), config.path)
    assert again.services["a"].spec == wanted.spec
    assert again.document == config.document
    for key in (
        "port",
        "ready",
        "success_log",
        "command",
        "type",
        "cwd",
        "alert",
        "health_timeout",
    ):
        told = problems_of(service(**{key: "(${TOKEN}"}))
        assert "s3cret" not in str(told), told


def test_a_variable_that_is_called_a_secret_is_named_and_not_shown(spm: Spm) -> None:
    keys = {"command": "sleep ${API_TOKEN}", "env": {"DB_PASSWORD": "${PROD_PASSWORD}"}}
    spm.env["API_TOKEN"] = "60"
    service_ = {"services": {"a": {**keys, "environment": {"API_KEY": {"required": True}}}}}
    (spm.cwd / "spm.json").write_text(json.dumps(service_))
    error = "[ERROR] spm.json: services.a"
    unset = f"{error}.env.DB_PASSWORD: ${{PROD_PASSWORD}} is not set here, and it has no :-default"
    assert spm("up", code=6).stderr.startswith(unset)
    spm.env["PROD_PASSWORD"] = "hunter2"
    told = spm("up", code=6)
    assert f"{error}.environment.API_KEY: API_KEY is not set\n" in told.stderr
    warning = "spm.json: services.a.command: the value of ${API_TOKEN} will stand in state.json"
    assert f"[WARN] {warning}" in told.stderr and told.stderr.count("[WARN]") == 1
    spm.env["API_KEY"] = "x"
    assert spm.json("config", "validate")["warnings"][0].startswith(warning)
    (spm.cwd / "spm.json").write_text('{"services": {"a": {"command": "x && y ${API_TOKEN}"}}}')
    told = spm("config", "validate", code=6)
    assert "services.a.command: the command needs a shell for &&" in told.stderr
    assert "60" not in told.stderr + told.stdout


def test_agents_files_and_procfiles_are_read_where_they_are(spm: Spm) -> None:
    (spm.cwd / ".kiro/settings").mkdir(parents=True)
    server = {"command": "uvx", "args": ["time"], "env": {"A": "b"}, "autoApprove": ["x"]}
    servers = {"time": server, "far": {"url": "https://x"}, "off": {**server, "disabled": True}}
    (spm.cwd / ".kiro/settings/mcp.json").write_text(json.dumps({"mcpServers": servers}))
    (spm.cwd / "code.json").write_text(
        json.dumps({"servers": {"two": {**server, "type": "stdio"}}})
    )
    (spm.cwd / "Procfile").write_text(
        "# c\nweb: python -m http.server $PORT\nworker: sleep ${N:-1}\n"
    )
    keep = {"keep_alive": {"enabled": False, "timeout": 3600, "check_interval": 60}}
    document = {
        "include": [".kiro/settings/mcp.json", ".mcp.json"],
        "mcpServers": {"own": {**server, **keep}},
    }
    (spm.cwd / "spm.json").write_text(json.dumps(document))
    more = ["--mcp-config", "code.json", "--procfile", "Procfile"]
    data = spm.json("config", "validate", *more)
    assert data["services"] == ["own", "time", "off", "two", "web", "worker"]
    assert "far is a remote server" in data["notes"][0]
    assert ".mcp.json" in data["notes"][1]
    path = str(spm.cwd / "spm.json")
    config = spm_module.read_config(path, [str(spm.cwd / "code.json")], str(spm.cwd / "Procfile"))
    own, web = config.services["own"].spec, config.services["web"].spec
    assert (own.argv, own.type, own.keep_alive) == (("uvx", "time"), "stdio", False)
    assert own.idle_timeout_s == 3600
    assert (web.shell, web.port_asked) == (True, "auto")
    assert config.services["worker"].spec.argv[-1] == "sleep ${N:-1}"
    assert config.services["off"].disabled


def test_two_hundred_services_take_less_than_half_a_second(tmp_path: Path) -> None:
    services: dict[str, Any] = {}
    for n in range(200):
        keys = {"command": f"python -m http.server {8000 + n}", "env": {"A": "${HOME}"}}
        services[f"s{n}"] = {**keys, "depends_on": list(services)[-1:], "ready": "http"}
    (tmp_path / "spm.json").write_text(json.dumps({"services": services}))
    began = time.process_time()
    config = spm_module.read_config(str(tmp_path / "spm.json"))
    records = [spm_module.new_record(n, one.spec, "i") for n, one in config.services.items()]
    ours = [one._replace(config=config.path) for one in records]
    known = {one.name: spm_module.Known(one, "running", True, True, {}) for one in ours}
    plan = spm_module.plan_of(config, known)
    assert [step.action for step in plan] == ["restart"] * 200, "their env is another"
    assert time.process_time() - began < 0.5


# -- commands


def test_the_words_of_config_are_commands(spm: Spm) -> None:
    schema = json.loads(spm("config", "schema").stdout)
    assert schema == SCHEMA == spm.json("config", "schema")["schema"]
    assert "config rules" in spm("config", "--help").stdout
    assert "did you mean config schema?" in spm("config", "shcema", code=2).stderr
    assert "did you mean config validate?" not in spm("confg", code=2).stderr
    told = spm("config", "validate", code=6).stderr
    assert f"there is no spm.json in {spm.cwd}" in told and "--config FILE" in told
    for words in (("config",), ("config", "--json")):
        done = spm(*words, code=2)
        assert "config what?" in done.stderr + done.stdout
    told = spm("--config", "bad.json", "up", code=2).stderr
    assert "options stand behind the command: up --config …" in told


def test_what_is_configured_starts_by_its_name_and_by_a_call(spm: Spm) -> None:
    sub = spm.cwd / "sub"
    sub.mkdir()
    keys = {"command": nasty(), "environment": {"NEEDED": {"required": True, "min_length": 3}}}
    echo = {"command": SERVER[0], "args": SERVER[1:], "env": {"TOKEN": "s3cret"}}
    document = {"services": {"api": keys}, "mcpServers": {"echo": echo}}
    (spm.cwd / "spm.json").write_text(json.dumps(document))
    for look in ("status", "wait-healthy"):
        told = spm(look, "API", code=3).stderr
        assert "the configuration has it: start API, or all of them: up" in told
    assert (
        'services here: none; start one: start web "COMMAND"' in spm("stop", "web", code=3).stderr
    )
    assert "NEEDED is not set" in spm("start", "api", code=6, cwd=sub).stderr
    rules = spm.json("config", "rules", "api")["rules"]
    assert [(one["variable"], one["met"]) for one in rules] == [("NEEDED", False)]
    spm.env["NEEDED"] = "ab"
    assert "shorter than 3 characters" in spm("start", "api", code=6).stderr
    spm.env["NEEDED"] = "abc"
    assert "[OK] api started" in spm("start", "API", cwd=sub).stdout
    assert spm.record("api")["config"] == str(spm.cwd.resolve() / "spm.json")
    assert "yes" in spm("config", "rules").stdout
    assert "hi" in spm("call", "echo", "echo", "message=hi", cwd=sub).stdout
    assert "s3cret" not in json.dumps(spm.state())
    assert spm.json("status", "echo")["environment"] == {"TOKEN": "configuration"}
    assert "no service 'nope'" in spm("call", "nope", "x", code=3).stderr
    spm("cleanup")


def test_a_variable_out_of_an_env_file_was_said_to_be_of_the_configuration(spm: Spm) -> None:
    (spm.cwd / "api.env").write_text("API_KEY=abc\n")
    api = {"command": nasty("--say", "up"), "env_file": "api.env"}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": {"api": api}}))
    spm("start", "api")
    assert spm.json("explain", "api")["environment"] == {"API_KEY": "env_file api.env"}
    assert "its process shows" in spm("notify", "api", "stopped").stdout
    spm("stop", "api")


@pytest.mark.skipif(GENERIC, reason="the start happens in this process, which has namespaces")
def test_what_stop_refuses_to_name_was_started_and_never_ended(spm: Spm) -> None:
    names = ("con", "api.")
    assert problems_of({"services": {name: {"command": "x"} for name in names}}).keys() == {
        f"services.{name}" for name in names
    }
    (spm.cwd / "spm.json").write_text('{"include": ["agent.json"]}')
    (spm.cwd / "agent.json").write_text('{"mcpServers": {"nul": {"command": "x"}}}')
    assert "mcpServers.nul is no service name: skipped" in spm("config", "validate").stdout
    store = spm_module.Store(str(spm.home))
    spec = spm_module.Spec(("sleep", "300"), str(spm.cwd))
    spm_module.bring(store, spm_module.Asked("api.", spec, {}))  # as an earlier version did
    assert "api. stopped" in spm("cleanup").stdout


def test_what_is_exported_with_its_references_means_the_same() -> None:
    # {port} of a ${PORT} was refused; what waits for a check, or a log, with one waited for less
    services = {
        "db": {
            "command": "sleep {port}",
            "port": "${SPM_P:-8123}",
            "ready": ["http://localhost:${SPM_P:-8123}/"],
            "success_log": "on ${SPM_P:-8123}",
        },
        "tool": {"command": "x", "type": "stdio", "ready": "log:${SPM_P:-on}"},
        "job": {"command": "y", "restart": "${SPM_R:-always}", "depends_on": ["db", "tool"]},
    }
    document = {"services": services}
    bare = spm_module.spelled_out(spm_module.config_of(document, "/p/spm.json", expands=False))
    again, meant = (spm_module.config_of(one, "/p/spm.json") for one in (bare, document))
    assert meant.services["job"].depends_on == {"db": "ready", "tool": "ready"}
    for name, one in meant.services.items():
        other = again.services[name]
        assert (other.spec, other.depends_on) == (one.spec, one.depends_on)


def test_a_reference_in_a_default_left_half_of_itself_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPM_A", "1")
    monkeypatch.setenv("SPM_B", "2")
    for text in ("${SPM_A:-${SPM_B}}", "${SPM_A:-${SPM_B:-2}}"):  # they became 1}
        told = problems_of(service(env={"X": text}))["services.a.env.X"]
        assert "whose default has no other one in it" in told
    assert not problems_of(service(env={"X": "${SPM_A:-$x{}${SPM_B:-}$${"}))


def test_a_timeout_of_its_own_is_stronger_than_a_default() -> None:
    own: dict[str, Any] = {"keep_alive": {"timeout": "5m"}}

    def idle_s(defaults: dict[str, Any], keys: dict[str, Any]) -> float | None:
        servers = {"m": {"command": "x", "type": "stdio", **keys}}
        config = spm_module.config_of({"defaults": defaults, "services": servers}, "/p/spm.json")
        return config.services["m"].spec.idle_timeout_s

    assert idle_s({"idle_timeout": "1h"}, own) == 300
    assert idle_s(own, {"idle_timeout": "1h"}) == 3600
    assert idle_s({}, {**own, "idle_timeout": "1h"}) == 3600


def test_a_rule_for_all_may_have_a_reference() -> None:
    document = {**service(), "alerts": ["cpu>${SPM_LIMIT:-90}"]}
    assert spm_module.config_of(document, "/p/spm.json").services["a"].spec.alerts == ("cpu>90",)
    wrong = {**service(), "alerts": ["cpu>${SPM_LIMIT:-x}"]}
    assert problems_of(wrong) == {"services.a.alert": spm_module.HIDDEN}


def test_a_value_that_is_no_service_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPM_A", "s3cret")
    told = problems_of(service(depends_on="${SPM_A}"))
    assert told == {"services.a.depends_on": spm_module.HIDDEN}


def test_rules_are_told_though_the_values_of_another_service_are_damaged(spm: Spm) -> None:
    spm("start", "a", "--env", "K=v", nasty())
    spm("start", "b", "--env", "K=v", "--require-env", "K", nasty())
    (spm.home / "services" / "a" / "env.json").write_text("{")
    assert spm.json("config", "rules")["rules"][0]["met"]
    spm("cleanup")


def test_a_fifo_among_the_env_files_kept_a_validation_waiting(spm: Spm) -> None:
    os.mkfifo(spm.cwd / "fifo")
    (spm.cwd / "spm.json").write_text(json.dumps(service(env_file="fifo", env={"SPM_NO": None})))
    told = spm("config", "validate", code=6).stderr
    assert "a.env_file: " in told and "fifo: not a regular file" in told and "SPM_NO" in told


def test_what_does_not_go_together_is_told_in_keys_that_there_are() -> None:
    told = problems_of(service(keep_alive=False))["services.a"]
    assert told.startswith("keep_alive: false goes with type stdio only")


def test_a_disabled_service_without_its_env_file_forbade_all_the_others() -> None:
    for command in ("sleep 1", "sleep ${SPM_NAP}", "sleep ${SPM_NAP:-1}"):
        document = service(command=command, env_file="no.env", disabled=True)
        assert problems_of(document) == {}, command
        assert "services.a.env_file" in problems_of(service(command="x ${P}", env_file="no.env"))


def test_a_local_server_of_copilot_was_skipped_as_a_remote_one(tmp_path: Path) -> None:
    server = {"type": "local", "command": "uvx", "args": ["time"], "tools": ["*"]}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"time": server}}))
    config = spm_module.read_config(str(tmp_path / "spm.json"), [str(tmp_path / "mcp.json")])
    assert config.services["time"].spec.argv == ("uvx", "time") and not config.notes
    assert problems_of({"mcpServers": {"time": server}}) == {}


@pytest.mark.parametrize("nothing", [0, 0.0, "0", "0s", "0.0ms", " 0m "])
def test_zero_seconds_were_no_duration_where_0_was_one(nothing: object) -> None:
    document = {**service(sample_interval=nothing, cooldown=nothing), "alerts": ["cpu>90"]}
    spec = spm_module.config_of(document, "/p/spm.json").services["a"].spec
    assert (spec.sample_s, spec.call_cooldown_s, spec.alerts) == (0, 0, ())
    sampled = {**service(sample_interval="0.5s"), "alerts": ["cpu>90"]}
    assert spm_module.config_of(sampled, "/p/spm.json").services["a"].spec.alerts == ("cpu>90",)


def test_an_agents_file_without_servers_was_passed_over_in_silence(tmp_path: Path) -> None:
    for number, text in enumerate(("{}", "[1]", '{"mcpServers": ["time"]}', '{"mcp": {}}')):
        (tmp_path / f"{number}.json").write_text(text)
        config = spm_module.read_config("/nowhere/spm.json", [str(tmp_path / f"{number}.json")])
        assert config.notes == (f"[INFO] {tmp_path}/{number}.json has no mcpServers",)
    (tmp_path / "none.json").write_text('{"mcpServers": {}}')
    assert not spm_module.read_config("/nowhere/spm.json", [str(tmp_path / "none.json")]).notes
