"""`vendor`: the copy that starts quickly is the same program; its cache isn't trusted blindly."""

from __future__ import annotations

import _imp
import marshal
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import GENERIC, ROOT, SCRIPT, VENDORED, Completed, Spm, eventually

SOURCE = ROOT / "simple_process_manager.py"
pytestmark = pytest.mark.skipif(GENERIC or VENDORED, reason="it makes its own copy")


@pytest.fixture
def copy(spm: Spm) -> Path:
    """A copy as `vendor` makes it, in the directory that commands run in."""
    told = spm("vendor", ".").stdout
    assert told == "[OK] simple_process_manager.py written (version 1.0.0)\n"
    return spm.cwd / SOURCE.name


@pytest.fixture
def small(spm: Spm, copy: Path) -> Path:
    """A program of one line in place of the copied one: it is compiled in no time; no cache."""
    for code in kept(spm):
        code.unlink()
    above, begins, rest = copy.read_text("utf-8").partition("PROGRAM_TEXT = r'''\n")
    _, ends, runs = rest.rpartition("\n'''\n")
    copy.write_text(f"{above}{begins}print('no services in it'){ends}{runs}", "utf-8")
    return copy


def run(spm: Spm, copy: Path, *words: str, code: int = 0, **env: str) -> Completed:
    """A command of the copy, run to its end; it must have ended with `code`."""
    argv = [sys.executable, str(copy), *words]
    env = {**spm.env, **env}
    done = subprocess.run(argv, cwd=spm.cwd, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def kept(spm: Spm) -> list[Path]:
    """What the copy keeps in the user's cache."""
    return sorted(spm.base.glob(".cache/simple_process_manager/*"))


def sealed(text: str) -> bytes:
    """A file of the cache whose code is another."""
    data = marshal.dumps(compile(text, "forged", "exec"))
    return _imp.source_hash(1, data) + data


@pytest.mark.smoke
def test_a_vendored_copy_does_the_main_job_and_leaves_the_project_clean(
    spm: Spm, copy: Path, port: int
) -> None:
    subprocess.run(["git", "init", "-q", str(spm.cwd)], check=True)
    server = f"{sys.executable} -u -m http.server {port} --bind 127.0.0.1"
    assert "web started" in run(spm, copy, "start", "web", server).stdout
    assert "web answers" in run(spm, copy, "wait-healthy", str(port), "30").stdout
    assert str(port) in run(spm, copy, "list").stdout
    assert "web stopped" in run(spm, copy, "stop", "web").stdout
    compiled = next(spm.home.glob("cache/*/simple_process_manager.pyc"))
    assert compiled.stat().st_size > 10000
    git = ["git", "-C", str(spm.cwd), "status", "--porcelain", "-uall"]
    assert subprocess.check_output(git, text=True) == "?? simple_process_manager.py\n"
    assert len(kept(spm)) == 2, "the program and what supervisors start from"
    assert kept(spm)[0].parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="its wait goes on in another way there")
def test_a_newer_copy_goes_over_the_old_one_while_services_run(spm: Spm, copy: Path) -> None:
    run(spm, copy, "start", "web", "sleep 60")
    before = spm.record("web")
    newer = spm.base / "newer.py"
    text = SOURCE.read_text("utf-8")
    newer.write_text(text.replace('__version__ = "1.0.0"', '__version__ = "1.0.1"'), "utf-8")
    argv = [sys.executable, str(newer), "vendor", str(copy)]
    told = subprocess.run(argv, cwd=spm.cwd, env=spm.env, capture_output=True, text=True)
    assert told.returncode == 8 and "another version" in told.stderr, told
    subprocess.run([*argv, "--force"], cwd=spm.cwd, env=spm.env, check=True, capture_output=True)
    assert run(spm, copy, "--version").stdout.split()[-1] == "1.0.1"
    assert "web  running" in re.sub(" {2,}", "  ", run(spm, copy, "list").stdout)
    run(spm, copy, "start", "web")
    same = spm.record("web")
    assert (same["main"], same["supervisor"]) == (before["main"], before["supervisor"])
    run(spm, copy, "restart", "web")
    assert spm.record("web")["supervisor"] != before["supervisor"]
    run(spm, copy, "cleanup", "--purge")


def test_removing_everything_leaves_the_project_as_it_was(spm: Spm) -> None:
    del spm.env["SPM_HOME"]
    (spm.cwd / "main.py").write_text("")
    spm("vendor", ".")
    copy = spm.cwd / SOURCE.name
    before = sorted(spm.base.rglob("*"))
    run(spm, copy, "start", "web", "sleep 60", "--env", "KEY=value")
    run(spm, copy, "cleanup", "--purge")
    shutil.rmtree(spm.cwd / ".spm")
    shutil.rmtree(spm.base / ".cache" / "simple_process_manager")
    left = [path for path in sorted(spm.base.rglob("*")) if path not in before]
    assert left in ([], [spm.base / ".cache"])


def test_a_wait_of_a_vendored_copy_stays_the_process_that_it_is(spm: Spm, copy: Path) -> None:
    # it keeps no syntax tree, so there is nothing to go on without
    spm("start", "web", "sleep 100", "--ready", "log:up")
    run(spm, copy, "wait-healthy", "web", "0.2", code=124)
    assert not [*spm.home.glob("cache/*/*-whole.pyc")]
    spm("stop", "web")


def test_the_copy_is_the_program_line_by_line(spm: Spm, copy: Path) -> None:
    lines, source = copy.read_text("utf-8").split("\n"), SOURCE.read_text("utf-8").split("\n")
    head = next(at for at, line in enumerate(source) if line.startswith('"""'))
    assert lines[:head] == source[:head]
    first = lines.index(source[head])
    assert lines[first : first + len(source) - head - 1] == source[head:-1]
    assert lines[first - 1].endswith(" = r'''")
    assert lines[first + len(source) - head - 1] == "'''"
    assert os.access(copy, os.X_OK) == os.access(SOURCE, os.X_OK)
    compile(copy.read_text("utf-8"), str(copy), "exec")


def test_the_copy_names_its_licence(copy: Path) -> None:
    # LICENSE stays behind: "The above copyright notice … shall be included in all copies"
    notice = re.search(r"^Copyright .+$", (ROOT / "LICENSE").read_text("utf-8"), re.M)
    project = re.search(r'^license = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert notice and project
    head = copy.read_text("utf-8").splitlines()[:12]
    assert {f"# {notice[0]}", f"# SPDX-License-Identifier: {project[1]}"} <= {*head}


def test_an_error_in_the_copy_is_shown_at_its_line(spm: Spm, copy: Path) -> None:
    lines = copy.read_text("utf-8").split("\n")
    at = lines.index('if __name__ == "__main__":', len(lines) - 10)
    lines.insert(at, "raise RuntimeError('planted')")
    lines.insert(1, "# a licence that somebody put above")
    copy.write_text("\n".join(lines), "utf-8")
    for _ in range(2):  # compiled, then from the cache
        told = run(spm, copy, "list", code=1).stderr
        assert f'simple_process_manager.py", line {at + 2}, in <module>\n    raise Runtime' in told


def test_a_copy_makes_the_same_copy(spm: Spm, copy: Path) -> None:
    run(spm, copy, "vendor", "other.py")
    assert (spm.cwd / "other.py").read_bytes() == copy.read_bytes()
    assert "unchanged" in run(spm, copy, "vendor", ".").stdout


def test_a_byte_for_byte_copy_becomes_a_quick_one_in_its_place(spm: Spm) -> None:
    shutil.copy(SOURCE, spm.cwd)
    assert "py written (version" in run(spm, spm.cwd / SOURCE.name, "vendor", ".").stdout
    assert "r'''" in (spm.cwd / SOURCE.name).read_text("utf-8")


def test_what_is_no_copy_of_this_version_is_overwritten_only_by_force(spm: Spm, copy: Path) -> None:
    own = copy.read_text("utf-8").replace("never touches", "always touches", 1) + "# mine\n"
    for text in (own, "print('another program')\n"):
        copy.write_text(text, "utf-8")
        told = spm("vendor", ".", code=8).stderr
        assert "py is another version, edited, or no copy of this program: left" in told
        assert "→ write to another FILE.py, or overwrite: --force" in told
        assert copy.read_text("utf-8") == text
        assert "written" in spm("vendor", ".", "--force").stdout
        assert copy.read_text("utf-8") != text


@pytest.mark.parametrize("form", ["by vendor", "by cp"])
def test_a_copy_that_git_checked_out_with_other_line_ends_is_still_one(
    spm: Spm, copy: Path, form: str
) -> None:
    text = (copy if form == "by vendor" else SOURCE).read_bytes().replace(b"\n", b"\r\n")
    copy.write_bytes(text)
    assert "x started" in run(spm, copy, "start", "x", "sleep 100").stdout
    spm("stop", "x")
    written = "unchanged" if form == "by vendor" else "written"
    assert f"py {written} (version" in run(spm, copy, "vendor", ".").stdout
    assert (copy.read_bytes() == text) is (form == "by vendor")


@pytest.mark.skipif(sys.platform != "linux", reason="a tmpfs of its own")
def test_a_copy_that_finds_no_room_leaves_no_empty_program(spm: Spm) -> None:
    small = spm.base / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        told = spm("vendor", small, code=9).stderr
        assert f"{small}/simple_process_manager.py: No space left on device" in told
        assert "→ free some disk space" in told
        assert not [*small.iterdir()]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_copy_works_in_a_directory_whose_name_is_no_text(spm: Spm, copy: Path) -> None:
    there = spm.base / os.fsdecode(b"caf\xe9")
    there.mkdir()
    for _ in range(2):
        assert "no services" in run(spm, copy.rename(there / "pm.py"), "list").stdout
        copy = there / "pm.py"


def test_a_copy_calls_itself_by_its_own_name(spm: Spm, copy: Path) -> None:
    copy = copy.rename(spm.cwd / "pm.py")
    assert run(spm, copy, "--help").stdout.startswith("usage: pm.py ")
    run(spm, copy, "init", "--agent", "agents-md")
    text = (spm.cwd / "AGENTS.md").read_text("utf-8")
    assert "`uv run pm.py …`" in text
    assert "python simple_process" not in text


def test_a_target_that_cannot_be_is_refused(spm: Spm) -> None:
    for target in ("nowhere/x.py", "nowhere", "nowhere/", ""):
        assert (
            f"{target} is neither a directory nor a FILE.py" in spm("vendor", target, code=2).stderr
        )
    assert not [*spm.cwd.iterdir()]
    (spm.cwd / "link.py").symlink_to("/etc/hosts")
    assert "symbolic link to /etc/hosts" in spm("vendor", "link.py", "--force", code=8).stderr


def test_a_copy_passes_the_linter_of_the_repository_it_is_put_into(spm: Spm, copy: Path) -> None:
    argv = [sys.executable, "-m", "ruff", "check", "--isolated", str(copy)]  # .ci/run: mypy, too
    done = subprocess.run(argv, cwd=spm.cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cache_is_for_its_user_alone(spm: Spm, copy: Path) -> None:
    place = spm.base / "loose"
    argv = [sys.executable, str(copy), "--version"]
    subprocess.run(argv, env={**spm.env, "XDG_CACHE_HOME": str(place)}, check=True, umask=0)
    (own,) = place.glob("*")
    assert [path.stat().st_mode & 0o777 for path in (own, *own.iterdir())] == [0o700, 0o600]


def test_psutil_is_needed_where_the_copy_runs_and_not_to_make_it(spm: Spm) -> None:
    argv = [sys.executable, "-S", str(SCRIPT), "vendor", "."]
    subprocess.run(argv, cwd=spm.cwd, env=spm.env, check=True, stdout=subprocess.DEVNULL)
    argv = [sys.executable, "-S", str(spm.cwd / SOURCE.name), "list"]
    done = subprocess.run(argv, cwd=spm.cwd, env=spm.env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "psutil is missing" in done.stderr


def test_the_second_call_compiles_nothing(spm: Spm, small: Path) -> None:
    run(spm, small, "list")
    kept(spm)[0].write_bytes(sealed("print('from the cache')"))
    assert run(spm, small, "list").stdout == "from the cache\n"


def test_another_text_has_code_of_its_own_and_another_path_has_not(spm: Spm, small: Path) -> None:
    run(spm, small, "list")
    kept(spm)[0].write_bytes(sealed("print('from the cache', __file__)"))
    moved = small.rename(spm.cwd / "moved.py")
    assert run(spm, moved, "list").stdout == f"from the cache {moved}\n"
    moved.write_text(moved.read_text("utf-8").replace("no services in", "keine in"), "utf-8")
    assert "keine" in run(spm, moved, "list").stdout
    assert len(kept(spm)) == 2


def test_a_traceback_from_the_cache_names_the_copy_that_runs(spm: Spm, small: Path) -> None:
    small.write_text(small.read_text("utf-8").replace("print('no", "raise OSError('no"), "utf-8")
    run(spm, small, "list", code=1)
    moved = small.rename(spm.cwd / "moved.py")
    assert f'File "{moved}", line ' in run(spm, moved, "list", code=1).stderr


def test_the_first_start_in_a_state_directory_compiles_nothing(spm: Spm, copy: Path) -> None:
    run(spm, copy, "start", "one", "sleep 100")
    codes = {path: path.stat().st_mtime_ns for path in kept(spm)}
    assert len(codes) == 2, "the program, from `vendor`, and what supervisors start from"
    run(spm, copy, "stop", "one")
    for home in ("second", "third"):
        spm.env["SPM_HOME"] = str(spm.base / home)
        run(spm, copy, "start", "one", "sleep 100")
        run(spm, copy, "cleanup")
    assert {path: path.stat().st_mtime_ns for path in kept(spm)} == codes


def test_a_ctrl_c_before_the_copy_has_its_code_ended_in_a_traceback(spm: Spm, small: Path) -> None:
    run(spm, small, "list")
    (file,) = kept(spm)
    file.unlink()
    os.mkfifo(file)
    words, pipe = [sys.executable, str(small), "list"], subprocess.PIPE
    process = subprocess.Popen(words, cwd=spm.cwd, env=spm.env, stdout=pipe, stderr=pipe)
    writer = os.open(file, os.O_WRONLY)  # it has come to that
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=20)
    os.close(writer)
    assert (process.returncode, told) == (130, (b"", b""))


@pytest.mark.parametrize("damage", ["cut", "garbage", "directory"])
def test_a_damaged_cache_is_only_slower(spm: Spm, small: Path, damage: str) -> None:
    run(spm, small, "list")
    (file,) = kept(spm)
    whole = file.read_bytes()
    if damage == "directory":
        file.unlink()
        file.mkdir()
    else:
        parts = {"cut": whole[: len(whole) // 2], "garbage": b"\xff" * 1000}
        file.write_bytes(parts[damage])
    assert "no services" in run(spm, small, "list").stdout
    assert damage == "directory" or file.read_bytes() == whole
    assert kept(spm) == [file]  # no temporary file stays


@pytest.mark.parametrize("who", ["others", "everybody", "readable", "link"])
def test_a_cache_that_somebody_else_can_write_is_not_used(spm: Spm, small: Path, who: str) -> None:
    run(spm, small, "list")
    (file,) = kept(spm)
    file.write_bytes(sealed("print('from an attacker')"))
    if who == "others":
        if os.geteuid() != 0:
            pytest.skip("only root can give away")
        os.chown(file.parent, 65534, 65534)
    elif who in ("everybody", "readable"):
        file.parent.chmod(0o777 if who == "everybody" else 0o755)
    else:
        file.parent.rename(spm.base / "elsewhere")
        file.parent.symlink_to(spm.base / "elsewhere")
    before = file.read_bytes()
    assert "no services" in run(spm, small, "list").stdout
    assert kept(spm) == [file]
    assert file.read_bytes() == before


def test_nothing_is_made_in_a_home_that_is_not_the_users(spm: Spm, small: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give away")
    home = spm.base / "of another"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for place in (home, home / "not there"):
        assert "no services" in run(spm, small, "list", HOME=str(place)).stdout
    assert not [*home.iterdir()]


def test_what_lies_in_the_current_directory_is_no_cache(spm: Spm, small: Path) -> None:
    run(spm, small, "list")
    (file,) = kept(spm)
    file.write_bytes(sealed("print('from a hostile repository')"))
    file.parent.rename(spm.cwd / file.parent.name)
    for env in ({"HOME": "."}, {"HOME": "", "XDG_CACHE_HOME": "."}):
        assert "no services" in run(spm, small, "list", **env).stdout  # type: ignore[arg-type]


def test_without_a_cache_it_works_and_writes_nothing(spm: Spm, small: Path) -> None:
    before = sorted(spm.cwd.iterdir())
    cases: list[dict[str, Any]] = [{"HOME": "/proc/nowhere"}, {"XDG_CACHE_HOME": "relative"}]
    for env in cases:
        assert "no services" in run(spm, small, "list", **env).stdout
    assert sorted(spm.cwd.iterdir()) == before


def test_what_nobody_has_compiled_for_a_month_leaves_the_cache(spm: Spm, small: Path) -> None:
    run(spm, small, "list")
    (file,) = kept(spm)
    os.utime(file, (time.time() - 32 * 86400,) * 2)
    assert kept(spm) == [file]
    text = small.read_text("utf-8")
    small.write_text(text.replace("no services", "none"), "utf-8")
    run(spm, small, "list")
    assert len(kept(spm)) == 1
    assert kept(spm) != [file]
    other = file.with_name("of somebody else")
    other.touch()
    os.utime(other, (time.time() - 32 * 86400,) * 2)
    small.write_text(text, "utf-8")
    run(spm, small, "list")
    assert other.exists()


def test_the_cache_is_where_the_environment_says(spm: Spm, small: Path) -> None:
    run(spm, small, "list", XDG_CACHE_HOME=str(spm.base / "there"))
    assert len([*(spm.base / "there" / "simple_process_manager").iterdir()]) == 1
    assert not kept(spm)


def test_modules_of_the_project_shadow_nothing_that_a_copy_needs(spm: Spm, copy: Path) -> None:
    for module in ("_imp", "marshal", "os", "sys", "json", "re", "importlib"):
        (spm.cwd / f"{module}.py").write_text("raise SystemExit('the wrong module')\n")
    for _ in range(2):
        assert "no services" in run(spm, copy, "list").stdout


def test_six_first_calls_at_once_leave_one_sound_cache(spm: Spm, small: Path) -> None:
    argv = [sys.executable, str(small), "list"]
    calls = [subprocess.Popen(argv, cwd=spm.cwd, env=spm.env, stdout=-1) for _ in range(6)]
    for call in calls:
        assert b"no services" in call.communicate(timeout=60)[0]
    eventually(lambda: len(kept(spm)) == 1, what="only one file")
    seal, data = kept(spm)[0].read_bytes()[:8], kept(spm)[0].read_bytes()[8:]
    assert seal == _imp.source_hash(1, data)
