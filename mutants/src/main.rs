//! Mutation testing without a build per mutant: every mutant of every given file is built into one copy of the crate, switched
//! by a number in the environment, so that a mutant costs the run of the tests that reach it and nothing else.
//!
//! `mutants make ROOT SCRATCH FILE...` copies the crate and builds the mutants in (FILE relative to `src`). Then the tests are
//! built in SCRATCH as usual, and `mutants run SCRATCH JOBS TEST_BINARY...` runs them; `results.tsv` in SCRATCH says of each
//! mutant whether it was caught. `mutants/run.sh` does all of it.
//!
//! The operators are those of cargo-mutants: a function returns at once with a plain value of its type, `==` and its like
//! become others, a negation goes, a guard of a match is always or never true, an arm of a match with a wildcard is never
//! taken. As there, nothing inside a macro is changed, nor constants.

mod make;
mod run;

use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["make", root, scratch, files @ ..] => make::make(Path::new(root), Path::new(scratch), files),
        ["run", scratch, jobs, binaries @ ..] => run::run(Path::new(scratch), jobs, binaries),
        _ => Err("mutants make ROOT SCRATCH FILE... | mutants run SCRATCH JOBS TEST_BINARY...".to_owned()),
    };
    if let Err(problem) = done {
        eprintln!("{problem}");
        std::process::exit(2);
    }
}
