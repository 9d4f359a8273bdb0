#!/usr/bin/env bash
# The demo with its blobs in a bucket: demo-s3.sh WAXWING [FILE]. Starts a SeaweedFS on free ports, and stops it at the end.
set -euo pipefail
waxwing=$(realpath "$1")
file=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
infra/install-seaweedfs.sh
directory=$(mktemp -d)
infra/seaweedfs.sh target/seaweedfs/bin/weed "$directory" &
script=$!
# The server ends before the directory it writes to goes. That it was killed is no failure of the demo.
trap 'kill "$(cat "$directory/pid")" $script 2>/dev/null || true; wait $script 2>/dev/null || true; rm -rf "$directory"' EXIT
# It takes a few seconds to start; the bucket is made as a directory of its files.
for _ in $(seq 100); do
    if [ -s "$directory/filer" ] && curl -sf -o "$directory/made" -X POST "$(cat "$directory/filer")/buckets/waxwing/"; then break; fi
    sleep 0.3
done
cat >"$directory/node.toml" <<TOML
[messaging]
registration = "open"

[blobs.s3]
endpoint = "$(cat "$directory/endpoint")"
bucket = "waxwing"
TOML
# Its gateway answers a little after its files do.
for _ in $(seq 100); do
    if AWS_ACCESS_KEY_ID=waxwing AWS_SECRET_ACCESS_KEY=waxwing-secret \
        "$waxwing" demo ${file:+"$file"} --config "$directory/node.toml" 2>"$directory/said"; then exit 0; fi
    grep -q "did not start" "$directory/said" || break
    sleep 0.5
done
cat "$directory/said" >&2
exit 1
