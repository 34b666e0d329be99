//! A few lines: the result of the command line becomes the exit code.

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    varcas_guard::cli::main(&arguments)
}
