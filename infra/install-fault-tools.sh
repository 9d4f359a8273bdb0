#!/usr/bin/env bash
# Installs strace, with which tests/faults.rs lets a disk fail, and pebble, the authority that tests/stories/acme.rs gets
# certificates from, where they are missing and this runs as root. Says what it cannot install; the tests that need it are
# then skipped (on CI those that need strace fail).
set -euo pipefail
missing=()
for tool in strace pebble; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    for tool in "${missing[@]}"; do
        # One that this Debian does not have must not keep the others away.
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$tool" >/dev/null ||
            echo "not installed: $tool" >&2
    done
else
    echo "not installed, for want of root and apt: ${missing[*]}" >&2
fi
