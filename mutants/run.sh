#!/usr/bin/env bash
# Mutation testing of the pure rooms: run.sh SCRATCH JOBS [FILE...]; without files, those of the list below. Builds once; mutants
# that do not compile are found in the first builds and left out (SCRATCH/dropped.tsv). Results are kept in SCRATCH/progress.tsv:
# a run that was cut short goes on, and a file's mutants are tried once. AGAIN=1 tries those again that no test caught (after
# tests were added). ONLY=text runs the mutants whose line in mutants.tsv contains it.
set -euo pipefail
scratch=$(realpath -m "$1") jobs=$2
shift 2
cd "$(dirname "$0")/.."
root=$PWD
files=("$@")
if [ ${#files[@]} = 0 ]; then
  files=(supervisor/{machine,steps,state,judge,family}.rs health/{assess,signs}.rs
    recovery/{verdict,verdict/lines,policy,mitigation,mitigation/catalogue,causes}.rs
    workload/load/{arrivals,dataset,http1,mix,outcome,prompt,result,schedule,spec,stats,steady,stream,tally}.rs
    config.rs config/{file,health,load,profile,settings}.rs
    workload/profiler/{listing,analyse,composition,merge,read,summary}.rs workload/profiler/analyse/{intervals,names,nesting}.rs
    health/{lines,log_rules,log_starts,system}.rs supervisor/keeper/wire.rs)
fi
cargo build --quiet --locked --manifest-path mutants/Cargo.toml
tool=$(realpath "${CARGO_TARGET_DIR:-mutants/target}/debug/varcas-guard-mutants")
tests=(machine load_schedule load_mixes load_stream load_result load_sums load_compose load_edges diagnose_messages diagnose_cases failures
  trace_profile health_log_cases)
build() {
  (cd "$scratch" && CARGO_TARGET_DIR=target CARGO_PROFILE_TEST_OPT_LEVEL=1 CARGO_PROFILE_TEST_DEBUG=0 RUSTFLAGS=-Awarnings cargo test --locked --no-run \
    --message-format json --lib "${tests[@]/#/--test=}") >"$scratch/build.json" 2>"$scratch/build.err"
}
mkdir -p "$scratch"
for _ in 1 2 3 4 5 6 7 8; do
  "$tool" make "$root" "$scratch" "${files[@]}"
  if build; then break; fi
  python3 mutants/drop.py "$scratch"
done
mapfile -t binaries < <(python3 - "$scratch" <<'P'
import json, sys
for line in open(sys.argv[1] + "/build.json"):
    row = json.loads(line)
    if row.get("reason") == "compiler-artifact" and row.get("executable") and row["profile"]["test"]:
        print(row["executable"])
P
)
# A mutant may well ask for all the memory there is.
ulimit -v 8000000
export PROPTEST_CASES=${PROPTEST_CASES:-16}
"$tool" run "$scratch" "$jobs" "${binaries[@]}"
