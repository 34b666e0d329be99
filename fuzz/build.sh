#!/usr/bin/env bash
# Builds the fuzz targets with libFuzzer's coverage but without a sanitizer, on stable Rust and without cargo-fuzz, for long
# campaigns: build.sh OUT_DIR. Debug assertions and overflow checks stay on (fuzz/Cargo.toml). With AddressSanitizer:
# `cargo +nightly fuzz run scan`.
set -euo pipefail
out=$(realpath -m "${1:?OUT_DIR}")
cd "$(dirname "$0")"
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares"
target=x86_64-unknown-linux-gnu
cargo build --release --locked --target "$target" --bins
mkdir -p "$out"
for name in scan repair flip; do
  strip -o "$out/$name" "target/$target/release/$name"
done
