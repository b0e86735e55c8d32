//! The `nbd-mirror` binary: parses the command line and runs one verb of [`nbd_mirror::cli`].

fn main() -> std::process::ExitCode {
    nbd_mirror::cli::main()
}
