"""What a reader relies on: the order of the rooms, where things are, and that the pages are true.

These tests read the program as text; each names the culprit and its line.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import shlex
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simple_process_manager as spm

ROOT = Path(__file__).resolve().parent.parent
SOURCE = (ROOT / "simple_process_manager.py").read_text(encoding="utf-8")
BANNERS = {
    number: match[1]
    for number, line in enumerate(SOURCE.splitlines(), 1)
    for match in [re.fullmatch(r"# == (.+?) =+", line)]
    if match
}
ROOMS = list(BANNERS.values())
ALL_ROOMS = [
    "Errors",
    "Values",
    "Platform",
    "Processes",
    "Store",
    "Probes",
    "Policies",
    "Supervisor",
    "Relay",
    "Config",
    "Commands",
    "Command line",
]
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


# -- where things are


def room_of(line: int) -> str:
    """The room that a line is in; "" above the first banner."""
    above = [banner for banner in BANNERS if banner <= line]
    return BANNERS[above[-1]] if above else ""


def place_of(room: str) -> int:
    """The place of a room in the reading order; what stands above the first one comes first."""
    return ROOMS.index(room) if room else -1


def bound_names(body: list[ast.stmt]) -> dict[str, ast.AST]:
    """The names that statements bind in their own scope, each with the first node that does."""
    names: dict[str, ast.AST] = {}
    queue: list[ast.AST] = list(body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, (*Function, ast.ClassDef)):
            names.setdefault(node.name, node)
            continue  # what is inside is bound there
        if isinstance(node, (*Comprehension, ast.Lambda)):
            continue
        if isinstance(node, ast.alias):
            names.setdefault((node.asname or node.name).partition(".")[0], node)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.setdefault(node.id, node)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.setdefault(node.name, node)
        queue.extend(ast.iter_child_nodes(node))
    return names


class ModuleLoads(ast.NodeVisitor):
    """Every load of a name of the module, told from local names by Python's rules of scope.

    Annotations count like code: PEP 563 keeps them from running, but they are read all the same,
    and who reads a room should know every word in it from that room or from one above.
    """

    def __init__(self) -> None:
        self.scopes: list[tuple[bool, set[str]]] = []  # whether it is a class, its names
        self.found: list[tuple[str, int]] = []

    def visit(self, node: ast.AST) -> None:
        """Descend, with a scope of its own for what has one in Python."""
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load) and not self._is_local(node.id):
                self.found.append((node.id, node.lineno))
        elif isinstance(node, (*Function, ast.Lambda)):
            self._visit_function(node)
        elif isinstance(node, ast.ClassDef):
            for part in (*node.decorator_list, *node.bases, *node.keywords):
                self.visit(part)
            self._visit_scope(True, set(bound_names(node.body)), node.body)
        elif isinstance(node, Comprehension):
            targets = [part for one in node.generators for part in ast.walk(one.target)]
            names = {part.id for part in targets if isinstance(part, ast.Name)}
            self._visit_scope(False, names, list(ast.iter_child_nodes(node)))
        else:
            self.generic_visit(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self.visit(node.args)  # defaults and annotations belong to the scope outside
        names = {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)}
        if isinstance(node, ast.Lambda):
            self._visit_scope(False, names, [node.body])
            return
        for part in (*node.decorator_list, *filter(None, [node.returns])):
            self.visit(part)
        self._visit_scope(False, names | set(bound_names(node.body)), node.body)

    def _visit_scope(
        self,
        is_class: bool,
        names: set[str],
        parts: list[ast.stmt] | list[ast.AST] | list[ast.expr],
    ) -> None:
        self.scopes.append((is_class, names))
        for part in parts:
            self.visit(part)
        self.scopes.pop()

    def _is_local(self, name: str) -> bool:
        """Names of a class are seen by its own statements only, not by its methods."""
        innermost = len(self.scopes) - 1
        return any(
            name in names
            for at, (is_class, names) in enumerate(self.scopes)
            if not is_class or at == innermost
        )


@functools.cache
def tree() -> ast.Module:
    """The program, parsed by the worker that needs it: a quarter of a second."""
    return ast.parse(SOURCE)


def module_loads() -> list[tuple[str, int]]:
    """Each use of a name of the module, with its line."""
    loads = ModuleLoads()
    loads.visit(tree())
    return loads.found


def defined_in() -> dict[str, str]:
    """The room of each name of the module."""
    return {name: room_of(getattr(node, "lineno", 0)) for name, node in module_names().items()}


def module_names() -> dict[str, ast.AST]:
    """The names of the module with their first definitions; an alias has a line since 3.10."""
    names: dict[str, ast.AST] = {}
    for statement in tree().body:
        for name, node in bound_names([statement]).items():
            names.setdefault(name, node if hasattr(node, "lineno") else statement)
    return names


def docstrings() -> set[int]:
    """The identities of the nodes that are docstrings: prose, not code."""
    bodies = [
        node.body
        for node in ast.walk(tree())
        if isinstance(node, (ast.Module, ast.ClassDef, *Function))
    ]
    first = [body[0].value for body in bodies if body and isinstance(body[0], ast.Expr)]
    return {id(node) for node in first}


def dotted(node: ast.AST) -> str:
    """`sys.platform` for that attribute or name, "" for what isn't one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


# -- the rooms


def test_the_rooms_stand_in_the_order_of_the_design() -> None:
    known = [room for room in ALL_ROOMS if room in ROOMS]
    assert known == ROOMS, f"the banners are {ROOMS}"


def test_each_room_uses_only_itself_and_the_rooms_above_it() -> None:
    homes = defined_in()
    culprits = [
        f"line {line}: {room_of(line)} uses {name} of {homes[name]}"
        for name, line in module_loads()
        if name in homes and place_of(homes[name]) > place_of(room_of(line))
    ]
    assert not culprits, "\n".join(culprits)


def test_the_guard_of_the_rooms_sees_the_uses_it_is_there_for() -> None:
    homes, loads = defined_in(), module_loads()
    assert homes["SpmError"] == "Errors", "a class"
    assert homes["stat_of"] == "Platform", "a function defined in both branches of an if"
    assert homes["STOP_TIMEOUT_S"] == "Supervisor", "a constant"
    uses = {(name, room_of(line)) for name, line in loads}
    assert ("main", "Command line") in uses, "a call"
    assert ("Supervisor", "Supervisor") in uses, "an attribute of a class, an annotation"
    assert ("status", "Platform") not in uses, "a local variable isn't the command"


def test_commands_and_supervisor_meet_in_files_and_never_call_each_other() -> None:
    homes = defined_in()
    acts = {
        name
        for name, node in module_names().items()
        if homes[name] == "Supervisor" and isinstance(node, (*Function, ast.ClassDef))
    }
    culprits = [
        f"line {line}: Commands uses {name}"
        for name, line in module_loads()
        if name in acts and room_of(line) == "Commands"
    ]
    assert not culprits, "\n".join(culprits)


def test_only_the_platform_room_knows_the_names_of_operating_systems() -> None:
    questions = ("sys.platform", "os.name", "platform.system", "platform.platform", "os.uname")
    systems = re.compile(r"win32|darwin|linux|cygwin")
    prose = docstrings()
    culprits = []
    for node in ast.walk(tree()):
        line = getattr(node, "lineno", 0)
        text = node.value if isinstance(node, ast.Constant) and id(node) not in prose else ""
        is_named = isinstance(text, str) and systems.search(text)
        if (is_named or dotted(node) in questions) and room_of(line) != "Platform":
            culprits.append(f"line {line} ({room_of(line)}): {dotted(node) or text!r}")
    assert not culprits, "\n".join(culprits)


def test_only_the_command_line_prints_and_exits() -> None:
    acts = ("print", "exit", "quit", "SystemExit", "sys.exit", "os._exit", "os.abort")
    culprits = [
        f"line {node.lineno} ({room_of(node.lineno)}): {dotted(node)}"
        for node in ast.walk(tree())
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)
        if dotted(node) in (*acts, "sys.stdout", "sys.stderr")
        if room_of(node.lineno) != "Command line"
    ]
    assert not culprits, "\n".join(culprits)


def test_no_function_is_longer_than_60_lines() -> None:
    sizes = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, node.name, node.lineno)
        for node in ast.walk(tree())
        if isinstance(node, Function)
    ]
    long = [f"line {line}: {name} has {size} lines" for size, name, line in sizes if size > 60]
    assert not long, "\n".join(long)


# -- the file as a whole


@pytest.mark.smoke
def test_the_script_header_asks_for_what_pyproject_asks_for() -> None:
    # tomllib came with Python 3.11, so both are read by pattern.
    header = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", SOURCE, re.MULTILINE)
    assert header, "there is no PEP 723 header"
    script = re.sub(r"^# ?", "", header[1], flags=re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    asked = []
    for text in (script, project):
        python = re.search(r'^requires-python = "(.+)"$', text, re.MULTILINE)
        needed = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
        assert python and needed, f"requires-python or dependencies are missing in\n{text}"
        asked.append((python[1], re.findall(r'"(.+?)"', needed[1])))
    assert asked[0] == asked[1], "PEP 723 header and pyproject.toml differ"


def test_the_contents_in_the_docstring_are_the_rooms_of_the_file() -> None:
    contents = (spm.__doc__ or "").partition("The rooms of this file")[2]
    contents = contents.partition("The way of one service")[0]
    listed = re.findall(r"^ {4}(\S+(?: \S+)*) {2,}\S", contents, re.MULTILINE)
    assert listed == ROOMS


def test_the_exit_codes_in_the_docstring_are_those_of_the_errors() -> None:
    told = dict(re.findall(r"(\d+) (\w+)", (spm.__doc__ or "").partition("Exit codes:")[2]))
    errors = {str(cls.exit_code): cls.kind for cls in spm.SpmError.__subclasses__()}
    assert told == {"0": "ok", **errors, "130": "interrupted"}


def test_each_exit_code_has_one_class_and_one_kind() -> None:
    classes = spm.SpmError.__subclasses__()
    assert len({cls.exit_code for cls in classes}) == len(classes), "a code is used twice"
    assert len({cls.kind for cls in classes}) == len(classes), "a kind is used twice"
    assert set(spm.ERRORS.values()) == set(classes)


def test_the_exit_codes_in_the_help_are_those_of_the_errors() -> None:
    told = set(re.findall(r"(?<!\w)(\d+) [a-z]", spm.EXIT_CODES))
    assert told == {"0", *(str(cls.exit_code) for cls in spm.SpmError.__subclasses__())}


def test_the_file_is_python_3_9() -> None:
    ast.parse(SOURCE, feature_version=(3, 9))


def test_every_silenced_check_says_which_one() -> None:
    comments = [
        token
        for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline)
        if token.type == tokenize.COMMENT
    ]
    assert comments, "no comment was found: the test is broken"
    blanket = re.compile(r"#\s*type:\s*ignore(?!\[\w)|#\s*(?:ruff:\s*)?noqa(?!:\s*[A-Z]+\d)", re.I)
    culprits = [
        f"line {one.start[0]}: {one.string}" for one in comments if blanket.search(one.string)
    ]
    assert not culprits, "\n".join(culprits)


def test_the_tables_of_kinds_have_the_fields_of_their_records_in_order() -> None:
    assert tuple(spm.SPEC) == spm.Spec._fields[:-1]
    assert tuple(spm.RECORD) == spm.Record._fields[:-1]
    assert spm.Spec._fields[-1] == spm.Record._fields[-1] == "extra"


@settings(max_examples=50, deadline=None, database=None)
@given(values=st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1, max_size=3))
def test_a_record_holds_no_value_of_a_variable(values: list[str]) -> None:
    given_args = [f"--env=KEY_{at}=s3cr3t{value}" for at, value in enumerate(values)]
    argv = ["start", "api", *given_args, "--env", "TOKEN", "--env-file", ".env", "sleep 1"]
    spec, pairs = spm.spec_of("api", spm.parse(argv)[1])
    assert pairs == {f"KEY_{at}": f"s3cr3t{value}" for at, value in enumerate(values)}
    record = spm.new_record("api", spec, "instance")
    shown = f"{spec.to_json()} {record.to_json()} {record}"
    assert "s3cr3t" not in shown, f"the value of a variable is in the record: {shown}"
    assert spec.env_given == tuple(sorted(pairs)), "the names are kept"
    assert spec.env_taken == ("TOKEN",)


# -- the pages that people and agents read


def options_of(name: str) -> set[str]:
    """The options that the parser of a command was built from, and argparse's own."""
    options = (*spm.COMMANDS[name].options, *spm.GLOBAL_OPTIONS)
    words = [word for option in options for word in option.words.split()]
    return {word for word in words if word.startswith("-")} | {"-h", "--help"}


def code_in(page: str) -> list[str]:
    """The lines of code of a page in Markdown: fenced, indented, or between backticks."""
    fence = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    prose = fence.sub("", page)
    blocks = [block.replace("\\\n", " ") for block in fence.findall(page)]
    indented = re.findall(r"^ {4,}(\S.*)$", prose, re.MULTILINE)
    return [
        *(line for block in blocks for line in block.splitlines()),
        *indented,
        *re.findall(r"`([^`\n]+)`", prose),
    ]


def calls_in(line: str) -> Iterator[tuple[str, list[str]]]:
    """Each call of a command of ours in a line of code, with the options it is given."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;()")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # prose with an apostrophe
        words = line.split()
    call: list[str] = []
    for word in [*words, ";"]:
        if set(word) - set("&|;()"):
            call.append(word)
            continue
        programs = [at for at, one in enumerate(call) if is_program(one)]
        rest = call[programs[0] + 1 :] if programs else call
        rest = rest[: rest.index("--")] if "--" in rest else rest
        pairs = [" ".join(pair) for pair in zip(rest, rest[1:])]  # config schema
        command = next((one for one in (*pairs, *rest) if one in spm.COMMANDS), "")
        if command and (programs or rest[0] == command.partition(" ")[0]):
            options = [re.match(r"\[*(--?[A-Za-z][\w-]*)", one) for one in rest]
            yield command, [found[1] for found in options if found]
        call = []


def is_program(word: str) -> bool:
    """Whether a word of a command line is this program."""
    return word == "spm" or word.endswith("simple_process_manager.py")


PAGES = ("README.md", ".kiro/steering/process-manager-tool.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_stands_on_the_page(page: str) -> None:
    code = "\n".join(code_in((ROOT / page).read_text(encoding="utf-8")))
    # The steering document is short: of a family of commands it names one.
    names = spm.COMMANDS if page == "README.md" else {name.split()[0] for name in spm.COMMANDS}
    missing = [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", code)]
    assert not missing, f"{page} doesn't show {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_option_on_the_page_exists_in_the_parser(page: str) -> None:
    code = code_in((ROOT / page).read_text(encoding="utf-8"))
    calls = [(line, *call) for line in code for call in calls_in(line)]
    assert calls, f"{page} shows no call of a command"
    culprits = [
        f"{name} has no option {option}: {line}"
        for line, name, options in calls
        for option in options
        if option not in options_of(name)
    ]
    assert not culprits, "\n".join(culprits)


def test_the_guard_of_the_pages_reads_a_command_line_as_a_shell_does() -> None:
    line = '$ spm start web "uvicorn a:b --reload && x" --port 80 -- x --y && python x/'
    line += "simple_process_manager.py --home /h stop web [--force]; pytest --fast | cat"
    assert list(calls_in(line)) == [("start", ["--port"]), ("stop", ["--home", "--force"])]
    assert list(calls_in("logs NAME [-n N] [-f]")) == [("logs", ["-n", "-f"])]
    assert list(calls_in("uvicorn start --reload")) == []


@pytest.mark.parametrize("name", spm.COMMANDS)
def test_every_command_has_a_help_page_with_all_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spm.run([*name.split(), "--help"]) == 0
    page = capsys.readouterr().out
    missing = [one for one in options_of(name) if not re.search(rf"(?<![\w-]){one}(?![\w-])", page)]
    assert not missing, f"{', '.join(missing)} can't be found in\n{page}"
    places = [option.metavar for option in spm.COMMANDS[name].options if option.words[0] != "-"]
    missing = [place for place in places if place not in page]
    assert not missing, f"{', '.join(missing)} can't be found in\n{page}"


@pytest.mark.parametrize("name", spm.COMMANDS)
def test_every_help_page_explains_its_arguments_and_ends_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = [one.words for one in spm.COMMANDS[name].options if not one.help]
    assert not silent, f"{', '.join(silent)} of {name} isn't explained"
    assert spm.run([*name.split(), "--help"]) == 0
    page = capsys.readouterr().out.splitlines()
    assert ("D is a duration" in "\n".join(page)) == ("D" in re.findall(r"\w+", usage(page)))
    words = spm.split_command(page[-1].partition(" >")[0])
    assert page[-2] == "example:" and words[0] == spm.PROGRAM
    assert spm.parse(words[1:])[0] is spm.COMMANDS[name], page[-1]
    assert max(map(len, page)) < 100


def usage(page: list[str]) -> str:
    """The lines of a help page that show its form."""
    return "\n".join(page[: page.index("")])
