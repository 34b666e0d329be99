#!/usr/bin/env bash
# rustc for the fuzz targets (build.sh): coverage for our code and for the parsers it stands on, not for search engines and the
# like, whose thousands of branches say nothing about ours and make every input several times slower.
set -euo pipefail
# What runs while building (macros, build scripts) is compiled without a target.
if [[ " $* " == *" --target "* ]]; then
  case " $* " in
    *" --crate-name varcas_guard "* | *" --crate-name serde"* | *" --crate-name toml"* | *" --crate-name winnow"* | \
      *" --crate-name httparse "* | *fuzz_targets/*)
      set -- "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
      ;;
  esac
fi
exec "$@"
