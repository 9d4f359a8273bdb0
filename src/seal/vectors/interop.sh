#!/usr/bin/env bash
# Opens blobs that our crate sealed with Google Tink's own Python library, and the other way round, anew.
# Needs python3 with venv; leaves the committed vectors as they are.
set -euo pipefail
cd "$(dirname "$0")/../../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tink==1.16.1
cp src/seal/vectors/*.py "$work"
cargo run --quiet --locked -p waxwing-seal --example seal_fixed -- "$work/ours"
"$work/venv/bin/python" "$work/make_vectors.py" check "$work/ours"   # Tink opens ours
"$work/venv/bin/python" "$work/make_vectors.py" make                 # new vectors by Tink ...
WAXWING_TINK_VECTORS="$work/tink.json" cargo test --quiet --locked -p waxwing-seal known_answers # ... that we open
