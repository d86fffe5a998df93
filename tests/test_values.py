"""What is pure: records and their JSON, durations, command lines, ports, decisions.

And the state file that is made of records: whatever happens to it, no service is forgotten.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import THOROUGH
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

import simple_process_manager as spm


def examples(count: int) -> settings:
    """Settings of a property: how many examples; a slow machine is no reason to fail."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=slow)


few, many = examples(40), examples(80)
posix = pytest.mark.skipif(sys.platform == "win32", reason="the rules of a POSIX shell")

# -- values to draw from

# A file name that isn't UTF-8 comes as surrogates (PEP 383); no argument can hold NUL.
characters = st.characters(exclude_characters="\0")
escaped = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])
texts = st.text(st.one_of(characters, escaped), max_size=20)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10))
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=8,
)
numbers = st.one_of(st.integers(0, 10**14), st.floats(0, 1e14))
listed = st.lists(texts, max_size=3).map(tuple)


def later_keys(known: Sequence[str]) -> st.SearchStrategy[dict[str, object]]:
    """Keys that only a later version knows, with values that equal themselves (NaN doesn't)."""
    keys = st.text(max_size=10).filter(lambda key: key not in known)
    values = json_values.filter(lambda value: "NaN" not in json.dumps(value))
    return st.dictionaries(keys, values, max_size=2)


specs = st.builds(
    spm.Spec,
    argv=st.builds(lambda first, rest: (first, *rest), texts.filter(bool), listed),
    cwd=texts,
    shell=st.booleans(),
    port=st.none() | st.integers(1, 65535),
    port_declared=st.booleans(),
    env_given=listed,
    env_taken=listed,
    env_files=listed,
    log_bytes=st.integers(1000, 2**60),
    type=st.sampled_from(spm.TYPES),
    pid_file=st.none() | texts,
    match=st.none() | texts.filter(spm.is_pattern),
    terminal=st.none() | texts,
    no_pause=st.booleans(),
    extra=later_keys(spm.Spec._fields),
)
identities = st.builds(spm.Identity, pid=st.integers(2, 2**31 - 1), token=texts)
places = st.builds(spm.Place, host=texts, boot=texts, namespace=texts)
exits = st.builds(
    spm.Exit,
    at=numbers,
    code=st.none() | st.integers(-(2**31), 2**32),
    signal=st.none() | texts,
    errno=st.none() | st.integers(1, 2**15 - 1),
    lived_s=st.none() | numbers,
    because=texts,
)
records = st.builds(
    spm.Record,
    name=st.from_regex(spm.NAME, fullmatch=True),
    spec=specs,
    instance=st.sampled_from(["a", "4f.b-2_", "é.1.2"]),
    place=places,
    wanted=st.sampled_from(["running", "stopped"]),
    phase=st.sampled_from([*spm.LIVE_PHASES, *spm.ENDED_PHASES, "external"]),
    started_at=numbers,
    last_active=numbers,
    main=st.none() | identities,
    supervisor=st.none() | identities,
    exit=st.none() | exits,
    reason=texts,
    launcher=st.none() | identities,
    extra=later_keys(spm.Record._fields),
)
MAIN = spm.Identity(812, "4711@boot")
SPEC = spm.Spec(("sleep", "9"), "/")
RECORD = spm.new_record("api", SPEC, "an-instance")
FULL = RECORD._replace(
    main=MAIN, supervisor=spm.Identity(811, "4710@boot"), exit=spm.Exit(1.5, None, "SIGTERM")
)


def through_json(value: object) -> object:
    """What a reader sees of what was written."""
    return json.loads(json.dumps(value))


# -- records and their JSON


@many
@given(record=records)
def test_a_record_comes_back_from_its_json(record: spm.Record) -> None:
    assert spm.Record.from_json(through_json(record.to_json())) == record


@many
@given(spec=specs)
def test_a_spec_comes_back_from_its_json(spec: spm.Spec) -> None:
    assert spm.Spec.from_json(through_json(spec.to_json())) == spec


@few
@given(st.lists(st.uuids().map(str), unique=True, max_size=12))
def test_stops_are_asked_a_few_ahead_of_their_answers_and_waited_for_last(names: list[str]) -> None:
    order = spm.stop_order(names)
    steps = [(name, order[:at].count(name)) for at, name in enumerate(order)]
    for step in range(3):  # asked, heard, waited for
        assert [name for name, nth in steps if nth == step] == names
    asked, heard = 0, 0
    for _, nth in steps:
        asked, heard = asked + (nth == 0), heard + (nth == 1)
        assert heard <= asked <= heard + 5, "more would seem to hang"
        assert nth < 2 or heard == len(names)


@few
@given(identity=identities, place=places, ended=exits)
def test_identity_place_and_exit_come_back_from_their_json(
    identity: spm.Identity, place: spm.Place, ended: spm.Exit
) -> None:
    assert spm.read_identity(through_json(identity._asdict()), "main") == identity
    assert spm.KINDS["Place"](through_json(place._asdict()), "place") == place
    assert spm.read_exit(through_json(ended._asdict()), "exit") == ended


def test_a_boot_that_is_known_by_its_minute_may_seem_to_move_by_one() -> None:
    here = spm.Place("host", "28333333", "")
    assert here.is_same(here._replace(boot="28333334"))
    assert not here.is_same(here._replace(boot="28333335"))
    assert not here.is_same(here._replace(boot="1" * 5000))  # int() refuses so many digits
    assert not here.is_same(here._replace(host="other"))
    linux = spm.Place("host", "17ceacbe", "pid:[1]")
    assert linux.is_same(linux) and not linux.is_same(linux._replace(boot="17ceacbf"))


def test_what_a_later_version_wrote_is_carried_along() -> None:
    document = {**RECORD.to_json(), "colour": "red"}
    document["spec"] = {**SPEC.to_json(), "shape": {"sides": [4]}}
    record = spm.Record.from_json(through_json(document))
    assert record.extra == {"colour": "red"}
    assert record.spec.extra == {"shape": {"sides": [4]}}
    changed = record._replace(phase="running").to_json()
    assert through_json(changed) == through_json({**document, "phase": "running"})


def test_a_key_that_an_earlier_version_did_not_write_gets_its_default() -> None:
    # Otherwise the first field that is added makes every state.json in the world a damaged one.
    document = RECORD.to_json()
    for key in spm.Record._field_defaults:
        document.pop(key, None)
    document["spec"] = {"argv": ["sleep", "9"], "cwd": "/"}
    assert spm.Record.from_json(through_json(document)) == RECORD


@pytest.mark.parametrize(
    ("path", "forged"),
    [
        ("record.name: ", {"name": 7}),
        ("record.phase: ", {"phase": "asleep"}),
        ("record.started_at: ", {"started_at": math.nan}),
        ("record.last_active: ", {"last_active": math.inf}),
        ("record.main.pid: ", {"main": {"pid": "812", "token": "x"}}),
        ("record.main.pid: ", {"main": {"pid": 1, "token": "x"}}),
        ("record.main.pid: ", {"main": {"pid": 0, "token": "x"}}),
        ("record.main.pid: ", {"main": {"pid": -5, "token": "x"}}),
        ("record.main.pid: ", {"main": {"pid": True, "token": "x"}}),
        ("record.exit.at: ", {"exit": {"at": -1}}),
        ("record.spec: ", {"spec": []}),
        ("record.spec.argv: ", {"spec": {**SPEC.to_json(), "argv": []}}),
        ("record.spec.argv: ", {"spec": {**SPEC.to_json(), "argv": "sleep"}}),
        ("record.spec.argv[1]: ", {"spec": {**SPEC.to_json(), "argv": ["sleep", 9]}}),
        ("record.spec.argv[0]: ", {"spec": {**SPEC.to_json(), "argv": ["a\0b"]}}),
        ("record.spec.port: ", {"spec": {**SPEC.to_json(), "port": 65536}}),
        ("record.spec.shell: ", {"spec": {**SPEC.to_json(), "shell": 1}}),
        ("record.spec.log_bytes: ", {"spec": {**SPEC.to_json(), "log_bytes": -1}}),
    ],
)
def test_a_forged_field_is_refused_with_its_path(path: str, forged: dict[str, object]) -> None:
    with pytest.raises(spm.RecordError) as caught:
        spm.Record.from_json(through_json({**FULL.to_json(), **forged}))
    assert str(caught.value).startswith(path), str(caught.value)


@many
@given(document=json_values)
def test_any_json_document_gives_the_one_error(document: object) -> None:
    with pytest.raises(spm.RecordError, match=r"^record(\.[a-z_]+)*: "):
        spm.Record.from_json(document)  # a whole record doesn't come about by chance


def paths_in(value: object, path: str) -> list[str]:
    """The paths of everything in a document, written as RecordError writes them."""
    below: list[tuple[str, object]] = []
    if isinstance(value, dict):
        below = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list):
        below = [(f"{path}[{at}]", item) for at, item in enumerate(value)]
    return [path, *(found for where, item in below for found in paths_in(item, where))]


def altered(value: object, path: str, target: str, instead: list[object]) -> object:
    """A document with one value replaced by the one of `instead`, or left out if that is empty."""
    if path == target:
        return instead[0]
    if isinstance(value, dict):
        below = {key: (f"{path}.{key}", item) for key, item in value.items()}
        kept = {key: pair for key, pair in below.items() if instead or pair[0] != target}
        return {key: altered(item, where, target, instead) for key, (where, item) in kept.items()}
    if isinstance(value, list):
        places = [(f"{path}[{at}]", item) for at, item in enumerate(value)]
        left = [pair for pair in places if instead or pair[0] != target]
        return [altered(item, where, target, instead) for where, item in left]
    return value


@many
@given(data=st.data(), record=st.one_of(st.just(FULL), records))
def test_a_damaged_record_is_read_or_refused_with_the_path_of_the_damage(
    data: st.DataObject, record: spm.Record
) -> None:
    document = through_json(record._replace(extra={}).to_json())
    target = data.draw(st.sampled_from(paths_in(document, "record")[1:]), "what is damaged")
    instead = data.draw(st.one_of(st.just([]), json_values.map(lambda value: [value])), "by what")
    damaged = altered(document, "record", target, instead)
    try:
        read = spm.Record.from_json(damaged)
    except spm.RecordError as error:
        path = str(error).partition(": ")[0]
        assert path.startswith(target) or target.startswith(path), f"{error} ({target})"
    else:
        json.dumps(read.to_json())


@many
@given(words=st.lists(texts, min_size=1, max_size=4))
@example(words=[""])
def test_what_start_writes_down_can_be_read_again(words: list[str]) -> None:
    """A record that from_json refuses would make the whole state.json a damaged one."""
    try:
        spec, _ = spm.spec_of("api", spm.parse(["start", "api", "--", *words])[1])
    except spm.UsageError:
        return
    assert spm.Spec.from_json(through_json(spec.to_json())) == spec


@few
@given(document=json_values)
@example(document={"error": [1]})
@example(document={"error": {"kind": []}})
@example(document={"error": {"self": 1}})
def test_an_answer_that_is_nonsense_is_a_value_error(document: object) -> None:
    try:
        answer = spm.accepted(json.dumps(document).encode())
    except (ValueError, spm.SpmError):
        return
    assert answer == document


# -- durations, sizes, ports, names


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("2m", 120), ("1h", 3600), ("7", 7), ("0.5", 0.5), ("1.5m", 90)],
)
def test_a_duration_is_read_in_each_unit(text: str, seconds: float) -> None:
    assert spm.parse_duration(text) == pytest.approx(seconds)
    assert spm.parse_duration(f" {text} ") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "s", "ms", "0", "0s", "0.0ms", "-1", "-5s", "+5", "inf", "Infinity", "nan"),
        *("1e3", "1e999", "9" * 400, "9" * 5000 + "h", "1_0", "0x10", "1s1s", "5 parsecs"),
        *("\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}s", "\N{FULLWIDTH DIGIT THREE}"),
    ],
)
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(spm.UsageError):
        spm.parse_duration(text)


duration_like = st.from_regex(
    r"[-+0-9.eE_ \N{ARABIC-INDIC DIGIT THREE}]{0,12}(ms|s|m|h|d|inf|nan|)", fullmatch=True
)


@many
@given(text=st.one_of(st.text(), duration_like))
def test_any_text_is_a_positive_finite_duration_or_refused(text: str) -> None:
    try:
        seconds = spm.parse_duration(text)
    except spm.UsageError:
        return
    assert isinstance(seconds, float)
    assert 0 < seconds < math.inf


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[("1000", 1000), ("500kB", 500_000), ("500KB", 500_000), ("10MB", 10**7)],
        *[("1GiB", 2**30), ("64KiB", 65536)],
    ],
)
def test_a_size_is_read_in_each_unit(text: str, size: int) -> None:
    assert spm.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1MB",
        "999",
        "1.5MB",
        "inf",
        "nan",
        "9" * 5000,
        "\N{ARABIC-INDIC DIGIT THREE}MB",
        "10XB",
        "9999999999GB",
    ],
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(spm.UsageError):
        spm.parse_size(text)


@pytest.mark.parametrize("text", ["1", "80", "8000", "65535"])
def test_a_port_is_a_number_from_1_to_65535(text: str) -> None:
    assert spm.parse_port(text) == int(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "70000",
        "-1",
        "+80",
        " 80",
        "8e3",
        "0x50",
        "\N{FULLWIDTH DIGIT NINE}",
        "\N{SUPERSCRIPT TWO}",
        "9" * 5000,
    ],
)
def test_what_is_not_a_port_is_refused(text: str) -> None:
    with pytest.raises(spm.UsageError):
        spm.parse_port(text)


@pytest.mark.parametrize("text", ["a", "API", "0", "web-1", "my_app.v2", "x" * 64])
def test_a_name_has_letters_digits_dots_dashes_and_underscores(text: str) -> None:
    assert spm.check_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "-x",
        "_x",
        "a/b",
        "../a",
        "a b",
        "a\n",
        "\na",
        "a\0",
        "é",
        "\N{FULLWIDTH LATIN SMALL LETTER A}",
        "x" * 65,
    ],
)
def test_what_is_not_a_name_is_refused(text: str) -> None:
    with pytest.raises(spm.UsageError):
        spm.check_name(text)


@many
@given(text=st.one_of(st.text(), st.from_regex(r"[0-9A-Za-z.+-]{0,8}(kB|MiB|)", fullmatch=True)))
def test_any_text_is_a_size_a_port_a_count_a_name_or_refused(text: str) -> None:
    checks: list[Callable[[str], bool]] = [
        lambda text: 1000 <= spm.parse_size(text) <= 2**60,
        lambda text: 1 <= spm.parse_port(text) <= 65535,
        lambda text: spm.parse_count(text) >= 0,
        lambda text: spm.check_name(text) == text and len(text) <= 64,
    ]
    for at, check in enumerate(checks):
        try:
            assert check(text), f"check {at}: {text!r} was read as something else"
        except spm.UsageError as error:
            assert error.advice, f"check {at}: what to write instead of {text!r} isn't said"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.00 s"), (0.42, "0.42 s"), (12, "12 s"), (60, "1 m 0 s"), (184, "3 m 4 s")),
        *((3600, "1 h 0 m"), (7500, "2 h 5 m"), (86400, "1 d 0 h"), (273600, "3 d 4 h")),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert spm.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (43_100_000, "43.1 MB"),
        (120_000_000, "120 MB"),
        (10**9, "1.0 GB"),
    ],
)
def test_a_size_is_shown_with_three_digits_and_its_unit(size: int, text: str) -> None:
    assert spm.format_bytes(size) == text


@many
@given(number=st.one_of(st.floats(0, allow_infinity=False), st.integers(0, 10**300)))
def test_any_finite_number_can_be_shown(number: float) -> None:
    assert re.fullmatch(r"\d+(\.\d\d)? s|\d+ [dhm] \d+ [hms]", spm.format_duration(number))
    assert re.fullmatch(r"\d+(\.\d)? ([kMG]?B)", spm.format_bytes(number))


@many
@given(seconds=st.floats(0, spm.LONGEST_S), size=st.integers(0, 10**15))
def test_what_is_shown_of_real_numbers_is_short(seconds: float, size: int) -> None:
    assert len(spm.format_duration(seconds)) <= len("3650 d 23 h")
    assert len(spm.format_bytes(size)) <= len("1000000 GB")


# -- command lines


@posix
@many
@given(words=st.lists(texts, max_size=5))
def test_a_joined_command_splits_into_its_words_again(words: list[str]) -> None:
    assert spm.split_command(spm.join_command(words)) == words


@posix
def test_a_command_continued_on_the_next_line_has_no_word_for_that() -> None:
    # POSIX, Shell Command Language 2.2.1: a backslash and a newline are removed.
    assert spm.split_command("uvicorn a:b \\\n  --port 80") == ["uvicorn", "a:b", "--port", "80"]


@posix
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('say "it\'s" \\\n "that\'s it"', ["say", "it's", "that's it"]),
        ("say \"a\\\nb\" 'a\\\nb'", ["say", "ab", "a\\\nb"]),
        ('say "a\\\\\nb"', ["say", "a\\\nb"]),
    ],
)
def test_an_apostrophe_in_a_quotation_made_a_word_of_the_end_of_a_line(
    text: str, words: list[str]
) -> None:
    assert spm.split_command(text) == words
    assert spm.shell_sign(text) is None


SIGNS = ["&&", "||", "|", ";", ">", "<", "&", "$VAR", "${X}", "$(date)", "`date`"]


@posix
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("form", ["a {} b", "a{}b", "'a'{}\"b\"", "a 'it' {} \"'b\"", "a\\\\{}b"])
def test_a_command_that_needs_a_shell_is_recognised(sign: str, form: str) -> None:
    found = spm.shell_sign(form.format(sign))
    assert found, f"nothing was found in {form.format(sign)}"
    assert sign.startswith(found) or found.startswith(sign)


@posix
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("form", ["a '{}' b", "'a {} b'", "a'{}'b", '"a" \'{}\' "b"', "a '\"{}\"'"])
def test_between_single_quotes_nothing_needs_a_shell(sign: str, form: str) -> None:
    assert spm.shell_sign(form.format(sign)) is None


@posix
@pytest.mark.parametrize("sign", SIGNS)
def test_behind_a_backslash_nothing_needs_a_shell(sign: str) -> None:
    escaped_sign = "".join(f"\\{character}" for character in sign)
    assert spm.shell_sign(f"a {escaped_sign} b") is None


@posix
@pytest.mark.parametrize("sign", SIGNS)
def test_between_double_quotes_only_an_expansion_needs_a_shell(sign: str) -> None:
    is_expansion = sign[0] in "$`"
    assert bool(spm.shell_sign(f'a "x {sign} y" b')) == is_expansion
    assert spm.shell_sign(f'a "x \\{sign[0]}y"') is None


@posix
@pytest.mark.parametrize(
    "text", ["PORT=3000 cmd", " PORT=3000 cmd", "A='x y' cmd", 'A="x" B=2 cmd']
)
def test_a_leading_assignment_needs_a_shell_and_is_named(text: str) -> None:
    assert spm.shell_sign(text) in ("PORT=", "A=")


@posix
@pytest.mark.parametrize(
    "text",
    [
        "uvicorn main:app --host 0.0.0.0 --port 8000",
        "redis-server --port 6379",
        "npm run dev -- --port 3000",
        "gunicorn -w 4 -b 0.0.0.0:8000 'app:create_app()'",
        "env PORT=3000 node server.js",
        "php -S localhost:8000 -t public/",
        'python -c "print(1)"',
        'python -c "print(\\"a; b\\")"',
        "java -Dserver.port=8080 -jar app.jar",
        "./run.sh --filter=a,b 100% a@b price\\$5",
        "",
    ],
)
def test_a_plain_command_needs_no_shell(text: str) -> None:
    assert spm.shell_sign(text) is None


@posix
@many
@given(words=st.lists(texts, max_size=5))
def test_words_that_were_quoted_need_no_shell(words: list[str]) -> None:
    assert spm.shell_sign(spm.join_command(["cmd", *words])) is None


@posix
@many
@given(text=st.one_of(st.text(), st.text(" ab=$'\"\\`&|;<>{}()\n", max_size=12)))
@example(text="a $'b'")
@example(text="|\\\n|")
def test_a_sign_that_is_found_stands_in_the_text(text: str) -> None:
    sign = spm.shell_sign(text)
    joined = text.replace("\\\n", "")  # a line that goes on, as the shell reads it
    assert sign is None or (sign and sign in joined + text), f"{sign!r} isn't in {text!r}"


ARGUMENTS = ["start", "stop", "logs", "wait-healthy", "api", "--", "-", "-1", "-n", "--home"]
ARGUMENTS += ["--json", "--env", "A=1", "--port", "80", "--help", "-h", "--version", "--nonsense"]


@many
@given(argv=st.lists(st.one_of(st.sampled_from(ARGUMENTS), texts), max_size=7))
@example(argv=["-", "-", "-", "start"])
def test_any_arguments_are_a_call_a_question_or_a_usage_error(argv: list[str]) -> None:
    try:
        command, _ = spm.parse(argv)
    except (spm.UsageError, spm.HelpWanted):
        return
    assert command in spm.COMMANDS.values()


def test_a_usage_error_shows_no_value_of_a_variable() -> None:
    with pytest.raises(spm.UsageError) as caught:
        spm.parse(["start", "api", "npm", "run", "--env", "TOKEN=s3cr3t", "dev"])
    assert "s3cr3t" not in str(caught.value.to_json())


# -- ports in commands


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("uvicorn main:app --host 0.0.0.0 --port 8000", 8000),
        ("uvicorn main:app --port=8000", 8000),
        ("uvicorn main:app --host ::1 --port 8000", 8000),
        ("redis-server --port 6379", 6379),
        ("flask run -p 5000", 5000),
        ("gunicorn -b 0.0.0.0:8000 app:app", 8000),
        ("gunicorn --bind 127.0.0.1:9000 app:app", 9000),
        ("gunicorn --bind=127.0.0.1:9000 app:app", 9000),
        ("gunicorn -b :8000 app:app", 8000),
        ("hypercorn --bind [::]:8000 app:app", 8000),
        ("php -S localhost:8000 -t public", 8000),
        ("php -S 127.0.0.1:8000", 8000),
        ("serve --listen tcp://0.0.0.0:3000", 3000),
        ("node proxy.js http://localhost:3000", 3000),
        ("node proxy.js http://localhost:3000/path", 3000),
        ("env PORT=3000 npm run dev", 3000),
        ("python -m http.server 8000", 8000),
        ("python manage.py runserver 0.0.0.0:8000", 8000),
        ("python -m http.server", None),
        ("uvicorn main:app", None),
        ("uvicorn main:app --host ::1", None),
        ("docker run -p 80:80 nginx", None),
        ("docker run -p 8080:80 --port 1 nginx", None),
        ("/usr/bin/docker run -p 127.0.0.1:8080:80 nginx", None),
        ("x -p 8080:80", None),
        ("ssh -p 22 host", None),
        ("ssh.exe -p 22 host", None),
        ("celery -A app worker --broker redis://localhost:6379/0", None),
        ("worker --database=postgres://u:p@db:5432/x", None),
        ("sleep 8000", None),
        ("node server.js 3000", None),
        ("server --port 0", None),
        ("server --port 70000", None),
        ("server --port=65536", None),
        ("server --port eighty", None),
        ("server --port", None),
        ("server -p", None),
        ("", None),
    ],
)
def test_the_port_of_a_command_is_recognised(command: str, port: int | None) -> None:
    assert spm.recognise_port(command.split()) == port


FORMS = ["--port {}", "-p {}", "PORT={}", "0.0.0.0:{}", "localhost:{}", ":{}", "http://h:{}/x"]


@many
@given(
    declared=st.integers(1, 65535),
    others=st.lists(st.tuples(st.sampled_from(FORMS[1:]), st.integers(1, 65535)), max_size=3),
    form=st.sampled_from(["--port {}", "--port={}"]),
    at=st.integers(0, 3),
)
def test_the_option_port_is_trusted_before_all_else(
    declared: int, others: list[tuple[str, int]], form: str, at: int
) -> None:
    words = [text.format(port) for text, port in others]
    words.insert(at, form.format(declared))
    assert spm.recognise_port(["server", *" ".join(words).split()]) == declared


formed = st.builds(str.format, st.sampled_from(FORMS), st.integers(-1, 70000))
port_words = st.one_of(texts, formed.flatmap(lambda text: st.sampled_from(text.split())))


@many
@given(words=st.lists(port_words, max_size=6))
def test_any_words_have_a_port_from_1_to_65535_or_none(words: list[str]) -> None:
    port = spm.recognise_port(words)
    assert port is None or (type(port) is int and 1 <= port <= 65535)


# -- dotenv files


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=1", {"A": "1"}),
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1\r\nB='2'\r\nC=\r\n", {"A": "1", "B": "2", "C": ""}),
        ("  A = 1  ", {"A": "1"}),
        ("export A=1\nexport\tB=2", {"A": "1", "B": "2"}),
        ("export=1", {"export": "1"}),
        ("# a comment\n\n   \n  # A=0\nA=1", {"A": "1"}),
        ("A=1 # one", {"A": "1"}),
        ("A=# nothing", {"A": ""}),
        ("A=a#b", {"A": "a#b"}),
        ("A=", {"A": ""}),
        ("A=\"\"\nB=''", {"A": "", "B": ""}),
        ("A=two words", {"A": "two words"}),
        ("A='two # words' # said", {"A": "two # words"}),
        ('A="two # words" # said', {"A": "two # words"}),
        ('A="1\\n2\\t3\\\\4\\"5"', {"A": '1\n2\t3\\4"5'}),
        ("A='1\\n2'", {"A": "1\\n2"}),
        ("A=1\\n2", {"A": "1\\n2"}),
        ("A=b=c", {"A": "b=c"}),
        ("A=it's", {"A": "it's"}),
        ("A=$HOME", {"A": "$HOME"}),
        ("A=1\nB=${A}z", {"A": "1", "B": "${A}z"}),
        ("A=1\nA=2", {"A": "2"}),
        ("", {}),
    ],
)
def test_a_dotenv_text_is_read(text: str, values: dict[str, str]) -> None:
    assert spm.parse_env_text(text, ".env") == values


def test_only_a_line_end_ends_a_line_of_a_dotenv_text() -> None:
    for character in "\x0b\x0c\x1c\x85\u2028\u2029":
        values = spm.parse_env_text(f'A="x{character}y"\nB=2', ".env")
        assert values == {"A": f"x{character}y", "B": "2"}


def test_a_dotenv_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"\xef\xbb\xbfA=1\r\n")  # as Windows' own editor writes it
    assert spm.environment_of(SPEC._replace(env_files=(str(path),)), {}) == {"A": "1"}


BAD_LINES = ["{}", "{} = 1", "1A={}", "={}", "A-B={}", 'A="{}', "A='{}", "A='{}' x", 'A="{}"x']
BAD_LINES += ["A={}\0", "export {}", 'A="\\{}\\"']


@many
@given(
    good=st.lists(st.sampled_from(["A=1", "# no", "", "B='2'"]), max_size=4),
    bad=st.sampled_from(BAD_LINES),
    more=st.text("abcXYZ019-+/", max_size=12),
)
def test_a_bad_line_is_named_by_its_number_and_never_shown(
    good: list[str], bad: str, more: str
) -> None:
    secret = f"s3cr3t-{more}"
    with pytest.raises(spm.ConfigError) as caught:
        spm.parse_env_text("\n".join([*good, bad.format(secret), "C=3"]), "a/.env")
    assert f"a/.env, line {len(good) + 1}:" in caught.value.message
    assert "s3cr3t" not in str(caught.value.to_json())


def test_every_problem_of_the_environment_is_told_at_once_and_no_value(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("bad", "binary", "missing")]
    Path(paths[0]).write_text("A=1\ns3cr3t one\n", encoding="utf-8")
    Path(paths[1]).write_bytes(b"A=s3cr3t\xff\n")
    spec = SPEC._replace(env_taken=("SPM_TEST_NEVER_SET",), env_files=tuple(paths))
    with pytest.raises(spm.ConfigError) as caught:
        spm.environment_of(spec, {"B": "s3cr3t"})
    told = str(caught.value.to_json())
    assert "s3cr3t" not in told
    missing = [one for one in (*spec.env_taken, *paths) if one not in caught.value.message]
    assert not missing, f"{missing} isn't in {caught.value.message}"


@many
@given(text=st.one_of(st.text(), st.text("A=\"'\\# \n", max_size=20)))
def test_any_dotenv_text_is_read_or_refused(text: str) -> None:
    try:
        values = spm.parse_env_text(text, ".env")
    except spm.ConfigError:
        return
    assert all(re.fullmatch(spm.VARIABLE, key) for key in values)
    assert "\0" not in "".join(values.values())


# -- decisions

STATUS_WORDS = (
    "starting running ready unhealthy backoff stopping stopped exited failed lost external"
)
PHASES = (*spm.LIVE_PHASES, *spm.ENDED_PHASES, "external")
MAIN_FACTS = ("alive", "gone", "stranger", "stopped")


def test_a_status_is_true_to_the_facts_in_every_case() -> None:
    flags = (False, True)
    known = itertools.product(flags, flags, flags, flags, MAIN_FACTS)
    all_facts = [spm.Facts(*facts) for facts in known]
    for phase, main, facts in itertools.product(PHASES, (MAIN, None), all_facts):
        here, supervised, seen = facts.here, facts.supervised, facts.main
        record = RECORD._replace(phase=phase, main=main, reason="a reason")
        verdict = spm.status_of(record, facts)
        case = f"{phase}, main {main}, {facts}: {verdict}"
        assert verdict.status in STATUS_WORDS.split(), case
        if phase in spm.ENDED_PHASES:
            assert verdict == (phase, "a reason"), f"what has ended stays as it is: {case}"
        elif here and main and phase == "external":
            assert verdict == (phase, "a reason"), f"nobody can know more: {case}"
        elif here and supervised and phase in ("starting", "stopping", "backoff"):
            assert verdict.status == phase, f"its main process may be gone already: {case}"
        elif not here or (main and seen in ("gone", "stranger")):
            assert not verdict.is_live, f"nothing of it lives here: {case}"
            assert verdict.why, f"that needs saying: {case}"
        if main is None or seen == "gone":
            assert verdict.status != "running", f"there is no process that could run: {case}"
        if verdict.status == "lost":
            assert verdict.why, f"the record says lost, and why: {case}"
        if verdict.is_live and main and not supervised:
            assert verdict.why, f"its supervisor is gone, and nobody says so: {case}"


@many
@given(old=specs, new=specs, kept=st.sets(st.sampled_from(sorted(spm.SPEC))))
def test_specs_that_differ_say_in_which_fields(
    old: spm.Spec, new: spm.Spec, kept: set[str]
) -> None:
    new = new._replace(**{key: getattr(old, key) for key in kept})
    differing = [key for key in spm.SPEC if getattr(old, key) != getattr(new, key)]
    told = spm.spec_differences(old, new)
    assert len(told) == len(differing), f"{differing} differ, told is {told}"
    for key, text in zip(differing, told):
        assert text.startswith(f"{spm.SPEC_WORDS.get(key, key)}: "), f"{key} differs: {text}"


def test_a_variable_whose_name_looks_like_nothing_is_a_difference() -> None:
    assert spm.spec_differences(SPEC, SPEC._replace(env_given=("none",)))
    assert spm.spec_differences(SPEC, SPEC._replace(env_taken=("none",)))


def test_a_service_is_not_ended_for_who_means_another_process() -> None:
    record, members = RECORD._replace(main=MAIN), [spm.Member(MAIN, "main process")]
    for meant in (None, MAIN._replace(pid=813), MAIN._replace(token="4712@boot")):
        error = spm.refusal(record, meant, members, [])
        assert error, f"ended, though {meant} was meant"
        assert error.exit_code == 8
        assert error.advice
    assert spm.refusal(record, MAIN, members, [1, 4]) is None


def test_a_service_is_not_ended_by_what_runs_inside_it() -> None:
    child = spm.Member(spm.Identity(900, "4800@boot"), "child of 812")
    record, members = RECORD._replace(main=MAIN), [spm.Member(MAIN, "main process"), child]
    for spare in ([812], [900], [5, 900, 812]):
        error = spm.refusal(record, MAIN, members, spare)
        assert error, f"ended, though {spare} is the caller"
        assert "nothing was signalled" in error.message
    assert spm.refusal(record, MAIN, members, [5, 6]) is None


sizes = st.integers(0, 2**60)
elapsed = st.floats(0, 1e9)


@many
@given(sizes, st.integers(-(2**60), 2**60), elapsed, sizes)
def test_the_log_is_looked_at_neither_too_often_nor_too_rarely(
    size: int, grown: int, elapsed_s: float, most: int
) -> None:
    shortest, longest = spm.LOG_CHECK_S
    assert shortest <= spm.log_check_s(size, grown, elapsed_s, most) <= longest


@many
@given(sizes, st.integers(0, 2**60), st.integers(0, 2**60), elapsed, sizes)
def test_the_faster_a_log_grows_the_sooner_it_is_looked_at(
    size: int, grown: int, more: int, elapsed_s: float, most: int
) -> None:
    slow_s = spm.log_check_s(size, grown, elapsed_s, most)
    fast_s = spm.log_check_s(size, grown + more, elapsed_s, most)
    assert fast_s <= slow_s


@many
@given(waited_s=st.floats(0, 1e9), longer_s=st.floats(0, 1e9))
def test_a_starting_port_is_probed_ever_more_rarely(waited_s: float, longer_s: float) -> None:
    first_s, later_s = spm.probe_pause_s(waited_s), spm.probe_pause_s(waited_s + longer_s)
    assert 0 < first_s <= later_s <= 1


def test_every_phase_can_be_reached_and_what_is_stopped_stays_so() -> None:
    reached = {"starting"}
    for _ in PHASES:
        reached |= {after for phase in reached for after in spm.NEXT_PHASES.get(phase, ())}
    assert reached == set(PHASES)
    assert set(spm.NEXT_PHASES) <= set(PHASES)
    assert "stopped" not in spm.NEXT_PHASES, "a new start is a new instance"
    back = [phase for phase in ("exited", "failed") if "running" in spm.NEXT_PHASES[phase]]
    assert not back, f"{back} comes back to life"


# -- the state file


def state_of(directory: str, *saved: spm.Record) -> spm.Store:
    """A state directory with these records, each in its journal too, as a start leaves them."""
    store = spm.Store(os.path.join(directory, "home"))
    store.prepare()
    for record in saved:
        store.save({record.name: record})
        with store.claim(record.name, 1.0):
            store.write_event("started", record.name, record)
    return store


def anew(store: spm.Store) -> spm.Store:
    """What the next command sees."""
    return spm.Store(store.home)


def test_every_truncation_of_the_state_loses_nothing_and_is_told(tmp_path: Path) -> None:
    store = state_of(str(tmp_path), RECORD)
    state = Path(store.state_path)
    whole = state.read_bytes()
    # Without /proc a look for bearers of the cookie takes a second.
    step = (1 if THOROUGH else 11) if os.path.exists("/proc/self/environ") else 97
    for size in range(0, len(whole) - 1, step):  # the last byte is the last newline
        state.write_bytes(whole[:size])
        reader = anew(store)
        assert reader.records() == {"api": RECORD}, f"cut after {size} of {len(whole)} bytes"
        assert reader.notes, f"cut after {size} of {len(whole)} bytes, and nobody is told"
    assert state.read_bytes() == whole


@few
@given(data=st.data(), garbage=st.binary(min_size=1, max_size=8))
def test_garbage_in_the_state_loses_no_service(data: st.DataObject, garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = state_of(directory, RECORD)
        whole = Path(store.state_path).read_bytes()
        at = data.draw(st.integers(0, len(whole)), "where")
        Path(store.state_path).write_bytes(whole[:at] + garbage + whole[at:])
        # A digit between digits is no damage that can be seen; the service is known all the same.
        assert set(anew(store).records()) == {"api"}
        assert anew(store).records() == anew(store).records()


def test_what_follows_from_a_look_gives_way_to_who_wrote_since(tmp_path: Path) -> None:
    store = state_of(str(tmp_path), RECORD)
    stopped = RECORD._replace(phase="stopped", wanted="stopped")
    assert store.swap(RECORD, stopped) == stopped, "nobody wrote"
    assert store.swap(RECORD, RECORD._replace(phase="exited")) == stopped, "somebody did"
    assert anew(store).records() == {"api": stopped}


def test_a_state_file_that_was_deleted_is_rebuilt_and_told(tmp_path: Path) -> None:
    store = state_of(str(tmp_path), RECORD)
    assert not store.notes, "a new directory is nothing to tell of"
    os.unlink(store.state_path)
    reader = anew(store)
    assert reader.records() == {"api": RECORD}
    assert reader.notes, "state.json was missing, and nobody is told"


def test_two_damaged_states_are_both_kept(tmp_path: Path) -> None:
    store = state_of(str(tmp_path), RECORD)
    for text in (b"first", b"second"):
        Path(store.state_path).write_bytes(text)
        store.records()
    kept = [path.read_bytes() for path in Path(store.home).glob("state.json.corrupt-*")]
    assert sorted(kept) == [b"first", b"second"]


def test_a_copied_service_directory_does_not_spoil_the_rebuilt_state(tmp_path: Path) -> None:
    store = state_of(str(tmp_path), RECORD)
    shutil.copytree(store.path("api"), store.path("api.bak"))
    os.unlink(store.state_path)
    anew(store).records()
    reader = anew(store)
    assert reader.records()["api"] == RECORD
    assert not reader.notes, f"what was rebuilt is damaged again: {reader.notes}"


def test_an_event_behind_a_torn_line_is_not_lost(tmp_path: Path) -> None:
    # A full disk takes half a line; when there is room again the journal goes on.
    store = state_of(str(tmp_path), RECORD)
    journal = Path(store.path("api", "events.jsonl"))
    journal.write_bytes(journal.read_bytes()[:-9])
    after = RECORD._replace(phase="running", main=MAIN)
    store.write_event("started", "api", after)
    assert store.journal_record("api") == after


def test_a_forgotten_service_does_not_come_back_with_a_damaged_state(tmp_path: Path) -> None:
    store = state_of(str(tmp_path), RECORD, RECORD._replace(name="web"))
    spm.forget(store, [RECORD], purge=False)
    Path(store.state_path).write_bytes(b"{")
    assert set(anew(store).records()) == {"web"}


def test_a_journal_grows_no_longer_than_its_bound_and_keeps_the_last_record(tmp_path: Path) -> None:
    store = state_of(str(tmp_path), RECORD)
    journal = Path(store.path("api", "events.jsonl"))
    with journal.open("ab") as file:
        file.write(b'{"event": "noise"}\n' * (spm.JOURNAL_BYTES // 19 + 1))
    last = RECORD._replace(phase="running", main=MAIN)
    store.write_event("started", "api", last)
    assert journal.stat().st_size < spm.JOURNAL_BYTES
    assert store.journal_record("api") == last


class StateAndItsFaults(RuleBasedStateMachine):
    """Any sequence of saving, forgetting, damaging and reading, held against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="spm-")
        self.store = state_of(self.directory)
        self.known: dict[str, spm.Record] = {}

    @rule(
        name=st.sampled_from(["api", "API", "web", "a.b"]),
        phase=st.sampled_from(PHASES),
        extra=st.dictionaries(st.sampled_from(["x", "y"]), st.text(max_size=5), max_size=1),
    )
    def save(self, name: str, phase: str, extra: dict[str, object]) -> None:
        """A start or a change: journal, then state.json."""
        record = RECORD._replace(name=name, phase=phase, extra=extra)
        with self.store.claim(name, 1.0):
            self.store.write_event("changed", name, record)
        self.store.save({name: record})
        self.known[name.lower()] = record

    @rule(name=st.sampled_from(["api", "Web", "a.b"]), purge=st.booleans())
    def forget(self, name: str, purge: bool) -> None:
        """What cleanup does; it forgets what is known only."""
        if name.lower() in self.known:
            spm.forget(self.store, [self.known[name.lower()]], purge)
            del self.known[name.lower()]

    @rule(share=st.floats(0, 1))
    def truncate(self, share: float) -> None:
        """A power cut on a file system that promises nothing."""
        state = Path(self.store.state_path)
        if state.exists():
            whole = state.read_bytes()
            state.write_bytes(whole[: int(share * len(whole))])

    @rule()
    def delete(self) -> None:
        """Somebody tidied up."""
        Path(self.store.state_path).unlink(missing_ok=True)

    @rule()
    def read(self) -> None:
        """What the next command, and the one after it, see."""
        assert anew(self.store).records() == self.known
        for key, record in self.known.items():
            assert anew(self.store).record(key.upper()) == record

    def teardown(self) -> None:
        """Whatever happened last, nothing is lost."""
        try:
            self.read()
        finally:
            shutil.rmtree(self.directory)


StateAndItsFaults.TestCase.settings = settings(examples(25), stateful_step_count=15)
TestWhateverHappensToTheStateNoServiceIsLost = StateAndItsFaults.TestCase
