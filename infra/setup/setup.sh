#!/usr/bin/env bash
# Makes .venv ready from requirements.lock. Needs Python 3.11-3.13 with pip, and nothing else; run again, it does nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."

UV_VERSION=0.13.9
TOOLS=.tools
UV=$TOOLS/bin/uv
STAMP=.venv/.animateflow-setup
export UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Where Python may not keep what it compiles, every process would compile torch anew: half of each start.
if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then export UV_COMPILE_BYTECODE=1; fi

say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
stop() { printf '[setup] %s\n' "$@" >&2; exit 2; }

# Runs a command and says every fifteen seconds that it is still at it.
patiently() {
    "$@" & local job=$!
    ( while sleep 15; do say "  still at it (the first time, about 3 GB are downloaded)"; done ) & local clock=$!
    trap 'kill $job $clock 2>/dev/null' INT TERM
    local code=0
    wait $job || code=$?
    kill $clock 2>/dev/null || true
    wait $clock 2>/dev/null || true
    trap - INT TERM
    return $code
}

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            "$name" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'  # not an activated .venv's
            return
        fi
    done
    stop "No Python 3.11, 3.12 or 3.13 was found." "On Debian: apt-get install python3 python3-pip make gcc"
}

wanted=$(cat requirements.lock pyproject.toml infra/setup/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && [ -x .venv/bin/animateflow ]; then
    say "The environment is ready (.venv matches requirements.lock)."
    exit 0
fi

PYTHON=$(find_python)
if [ "$("$UV" --version 2>/dev/null | cut -d' ' -f2)" != "$UV_VERSION" ]; then
    "$PYTHON" -m pip --version >/dev/null 2>&1 || stop "$PYTHON has no pip." "On Debian: apt-get install python3-pip"
    say "Bringing uv $UV_VERSION (installs the packages fast, into $TOOLS)"
    rm -rf "$TOOLS"
    # --target works without python3-venv and beside a Python that the system manages.
    "$PYTHON" -m pip install --quiet --target "$TOOLS" "uv==$UV_VERSION"
fi
if ! .venv/bin/python -c '' 2>/dev/null; then
    say "Making .venv with $("$PYTHON" --version)"
    "$UV" venv --quiet --clear --python "$PYTHON" .venv
fi
say "Installing $(grep -c '==' requirements.lock) pinned packages, checked against their hashes (6 GB on disk; half a minute to several)"
patiently "$UV" pip sync --quiet --require-hashes --python .venv/bin/python requirements.lock
say "Installing animateflow itself"
"$UV" pip install --quiet --no-deps --no-build-isolation --python .venv/bin/python --editable .
echo "$wanted" >"$STAMP"
say "Ready: .venv/bin/animateflow --help"
