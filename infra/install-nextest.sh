#!/usr/bin/env bash
# Installs the test runner when it is missing: one summary for all test binaries, each test in a process of its own.
set -euo pipefail
cargo nextest --version >/dev/null 2>&1 || cargo install cargo-nextest --locked --version 0.9.143
