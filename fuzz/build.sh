#!/usr/bin/env bash
# Builds the fuzz targets with libFuzzer's coverage but without a sanitizer, on stable Rust and without cargo-fuzz, for long
# campaigns: build.sh OUT_DIR. Debug assertions and overflow checks stay on (fuzz/Cargo.toml). With AddressSanitizer:
# `cargo +nightly fuzz run scan`.
set -euo pipefail
out=$(realpath -m "${1:?OUT_DIR}")
cd "$(dirname "$0")"
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1" RUSTC_WRAPPER="$PWD/instrument.sh"
target=x86_64-unknown-linux-gnu
cargo build --release --locked --target "$target" --bins
mkdir -p "$out"
for name in $(cd fuzz_targets && ls *.rs); do
  strip -o "$out/${name%.rs}" "${CARGO_TARGET_DIR:-target}/$target/release/${name%.rs}"
done
cp -r corpus dict found.tar.xz "$out/"
cp campaign.sh "$out/campaign.sh"
