//! The command line: one file a verb.

/// Runs the verb that the command line names.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
