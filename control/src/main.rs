//! The binary `postern`: hands its arguments to the library.

fn main() -> std::process::ExitCode {
    postern_control::cli::main()
}
