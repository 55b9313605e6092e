#!/usr/bin/env bash
# Lint, types and every test, as fast as two cores allow: Chromium beside the packages, mypy beside the tests.
# Arguments go to pytest; the last --numprocesses counts.
set -euo pipefail
cd "$(dirname "$0")/../.."

unset PYTHONDONTWRITEBYTECODE  # or each of a hundred processes compiles the project anew
said=$(mktemp)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -f "$said"' EXIT

bash infra/setup/browser.sh & browser=$!
bash infra/setup/setup.sh
wait "$browser"

echo "[test] ruff; mypy and pytest beside each other"
make --no-print-directory style
.venv/bin/mypy >"$said" 2>&1 & types=$!
tests=0
.venv/bin/python -m pytest --numprocesses 2 "$@" || tests=$?
good=0
wait "$types" || good=$?
echo "[test] mypy"
cat "$said"
exit $((tests ? tests : good))
