//! The carillon binary.

use std::process::ExitCode;

use clap::Parser;
use local::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last word of a program")]
            {
                eprintln!("carillon: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
