#!/usr/bin/env bash
# Installs PostgreSQL (15 or newer) from the system's packages, for the tests that start servers of their own. Without it
# those tests are skipped (on CI they fail).
set -euo pipefail

installed() { compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || command -v initdb >/dev/null; }

installed && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "PostgreSQL is not installed: tests of its store are skipped" >&2
    exit 0
fi
# Only the programs: no cluster of the system's own.
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null
