#!/usr/bin/env bash
# The report's test opens it in a real browser. Installs Chromium where that needs no questions, else says what to do.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "[setup] Installing Chromium for the test that opens the report in a browser"
    export DEBIAN_FRONTEND=noninteractive
    if apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; then
        exit 0
    fi
fi
echo "[setup] No Chromium here: the browser test will fail. Install it (Debian: sudo apt-get install chromium fonts-dejavu-core)." >&2
