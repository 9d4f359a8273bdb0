#!/usr/bin/env bash
# Runs a PostgreSQL server in DIR, made there if it is not, until it is told to stop (SIGINT) or its parent is gone. It
# listens on a Unix socket in DIR alone: postgres:///postgres?host=DIR&user=postgres. PORT opens a TCP port on loopback too.
#
#   infra/postgres.sh DIR [PORT] [-c SETTING=VALUE …]
set -euo pipefail
dir=$(realpath -m "$1")
port=${2:-}
shift $(($# < 2 ? $# : 2))

newest=$(compgen -G "/usr/lib/postgresql/*/bin" | sort -V | tail -n 1 || true)
bin=${newest:-$(dirname "$(command -v initdb)")}

# It refuses to run as root; then it runs as the user that its package made.
as=(setpriv)
if [ "$(id -u)" -eq 0 ]; then
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
    mkdir -p "$dir"
    chown postgres: "$dir"
fi
mkdir -p "$dir"
if [ ! -e "$dir/data/PG_VERSION" ]; then
    (cd "$dir" && "${as[@]}" "$bin/initdb" --pgdata="$dir/data" --username=postgres --auth=trust --encoding=UTF8 \
        --no-locale --wal-segsize=4 --no-sync >"$dir/initdb.log" 2>&1) || {
        cat "$dir/initdb.log" >&2
        exit 1
    }
fi
cd "$dir"
exec "${as[@]}" --pdeathsig INT "$bin/postgres" -D "$dir/data" -k "$dir" \
    -c listen_addresses="${port:+127.0.0.1}" -c port="${port:-5432}" -c shared_buffers=64MB -c max_wal_size=256MB "$@" \
    >>"$dir/log" 2>&1
