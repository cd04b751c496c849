//! parse, run, exit code

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tunjail::cli::Cli;
use tunjail::commands;

fn main() -> ExitCode {
    let line = command_line();
    let cli = match Cli::try_parse_from(&line) {
        Ok(cli) => cli,
        Err(error) => return commands::misspoken(&line, &error),
    };
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => {
            commands::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Called as `tunjail-runtime`, everything after the name belongs to `tunjail runtime`.
fn command_line() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    if called.is_some_and(|name| name == "tunjail-runtime") {
        arguments.insert(1, "runtime".into());
    }
    arguments
}
