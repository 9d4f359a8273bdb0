#!/usr/bin/env bash
# Installs the clients of other people that tests/clients.rs drives, into target/clients: npm and Python packages at
# fixed versions, and Node and Chromium from Debian where they are missing and this runs as root. Says what it cannot
# install; the tests that need it are then skipped (on CI they fail).
set -euo pipefail
cd "$(dirname "$0")/.."
into=target/clients
mkdir -p "$into"

missing=()
command -v npm >/dev/null || missing+=(nodejs npm)
command -v chromium >/dev/null || missing+=(chromium)
command -v curl >/dev/null || missing+=(curl)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "not installed, for want of root and apt: ${missing[*]}" >&2
    fi
fi

# Installed once for each state of the lists.
if command -v npm >/dev/null && ! cmp -s tests/clients/web/package-lock.json "$into/installed-lock.json"; then
    cp tests/clients/web/package.json tests/clients/web/package-lock.json "$into/"
    (cd "$into" && npm ci --no-audit --no-fund --loglevel=error)
    cp "$into/package-lock.json" "$into/installed-lock.json"
fi
if python3 -c 'import ensurepip' 2>/dev/null && ! cmp -s tests/clients/python/requirements.txt "$into/installed-requirements.txt"; then
    python3 -m venv "$into/venv"
    "$into/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/clients/python/requirements.txt
    cp tests/clients/python/requirements.txt "$into/installed-requirements.txt"
fi
