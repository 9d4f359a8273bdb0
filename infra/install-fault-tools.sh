#!/usr/bin/env bash
# Installs strace, with which tests/faults.rs lets a disk fail, where it is missing and this runs as root. Says what it
# cannot install; the tests that need it are then skipped (on CI they fail).
set -euo pipefail
command -v strace >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends strace >/dev/null
else
    echo "not installed, for want of root and apt: strace" >&2
fi
