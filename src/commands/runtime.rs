//! `tunjail runtime`: for engines that take no hooks but take a runtime, as Docker does.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::cli::Runtime;
use crate::engine::{self, bundle};

/// Where the real runtime may be, best known first.
const RUNTIMES: [&str; 8] = [
    "/usr/bin/runc",
    "/usr/sbin/runc",
    "/usr/local/bin/runc",
    "/usr/local/sbin/runc",
    "/usr/bin/crun",
    "/usr/sbin/crun",
    "/usr/local/bin/crun",
    "/usr/local/sbin/crun",
];

pub fn run(args: Runtime) -> Result<ExitCode> {
    let runtime = match args.runtime {
        Some(path) => path,
        None => RUNTIMES.iter().map(PathBuf::from).find(|path| path.is_file()).with_context(|| {
            format!("no OCI runtime was found ({}); name one with --runtime PATH", RUNTIMES.join(", "))
        })?,
    };
    let line = bundle::read_command_line(&args.args);
    if let Some(directory) = &line.bundle {
        let added = engine::own_path().and_then(|path| bundle::add_hooks(directory, &path, args.jail.as_ref()));
        if let Err(error) = added.context("the container was not started") {
            if let Some(log) = &line.log {
                bundle::log_error(log, &super::one_line(&error)).with_context(|| log.display().to_string())?;
            }
            return Err(error);
        }
    }
    // The real runtime takes this process' place: its pid, its descriptors, its exit code.
    let error = Command::new(&runtime).args(&args.args).exec();
    Err(error).with_context(|| format!("running the OCI runtime {}", runtime.display()))
}
