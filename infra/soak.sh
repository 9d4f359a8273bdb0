#!/usr/bin/env bash
# Fuzzes every parser that meets the network, without end: all targets in turn, with another seed each time. An input that
# is not survived is shown and ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
export WAXWING_FUZZ_EXECUTIONS=${WAXWING_FUZZ_EXECUTIONS:-1000000}
seed=${WAXWING_FUZZ_SEED:-$(date +%s)}
executions=0
while true; do
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    WAXWING_FUZZ_SEED=$seed cargo test --quiet --locked -p waxwing-protocol -p waxwing-seal -p waxwing-origin -p waxwing-edge \
        fuzz -- --nocapture 2>&1 | tee "$log" | grep --line-buffered -E 'executions$|survive|as bytes|panicked' || true
    if grep -qE 'test result: FAILED|^error' "$log"; then
        echo "seed $seed found something; again: WAXWING_FUZZ_SEED=$seed make soak" >&2
        exit 1
    fi
    executions=$((executions + $(awk '/ executions$/ { sum += $(NF - 1) } END { printf "%d", sum }' "$log")))
    echo "seed $seed survived; $executions executions so far"
    seed=$((seed + 1))
done
