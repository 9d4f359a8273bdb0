#!/usr/bin/env bash
# Runs a SeaweedFS for tests and demos: seaweedfs.sh WEED DIRECTORY. Each test runs in a process of its own and none knows which is
# the last, so the server ends by itself when nobody has touched DIRECTORY/used for two minutes.
#
# DIRECTORY/endpoint has its address, DIRECTORY/filer that of its files, which asks for no key, and DIRECTORY/pid its process.
# Started again in the same directory it has the same addresses, data and keys (DIRECTORY/s3.json). Access key `waxwing`, secret key `waxwing-secret`.
set -euo pipefail
weed=$1 directory=$2
mkdir -p "$directory/data"
[ -s "$directory/s3.json" ] || cat > "$directory/s3.json" <<'JSON'
{"identities": [
  {"name": "tests", "credentials": [{"accessKey": "waxwing", "secretKey": "waxwing-secret"}],
   "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
  {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}], "actions": ["Read", "List"]}
]}
JSON
# Free ports, all held at once so that they differ.
[ -s "$directory/ports" ] || python3 - >"$directory/ports" <<'PY'
import socket
sockets = [socket.socket() for _ in range(9)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
read -r -a ports <"$directory/ports"
"$weed" server -dir="$directory/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false \
    -master.port="${ports[0]}" -master.port.grpc="${ports[1]}" -master.volumeSizeLimitMB=512 \
    -volume.port="${ports[2]}" -volume.port.grpc="${ports[3]}" -volume.max=100 -volume.fileSizeLimitMB=256 \
    -filer -filer.port="${ports[4]}" -filer.port.grpc="${ports[5]}" \
    -s3 -s3.config="$directory/s3.json" -s3.port="${ports[6]}" -s3.port.grpc="${ports[7]}" \
    -s3.port.iceberg=0 -s3.port.lance=0 -s3.iam=false >"$directory/log" 2>&1 &
server=$!
trap 'kill -9 $server 2>/dev/null || true' EXIT
# The gateway answers before it can store: it is ready once it has stored something.
touch "$directory/used"
echo $server >"$directory/pid"
echo "http://127.0.0.1:${ports[4]}" >"$directory/filer"
echo "http://127.0.0.1:${ports[6]}" >"$directory/endpoint.new"
mv "$directory/endpoint.new" "$directory/endpoint"
while kill -0 $server 2>/dev/null; do
    sleep 5
    [ -n "$(find "$directory/used" -mmin -2 2>/dev/null)" ] || exit 0
done
