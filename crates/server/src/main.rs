//! The `selfsame` program.

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    match selfsame_server::cli::main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // For a person: causes in one line, no backtrace.
            eprintln!("selfsame: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
