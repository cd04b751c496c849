//! `tunjail attend`: the helper that a hook leaves behind for a container without an address.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::cli::Attend;
use crate::hold::attend;
use crate::journal;
use crate::kernel::process::Process;

pub fn run(config: Option<&Path>, args: &Attend) -> Result<ExitCode> {
    let process = Process { pid: args.pid, start_time: args.start_time };
    let result = attend::attend(config, &args.id, process);
    if let Err(error) = &result {
        // Nobody reads this process' stderr.
        journal::error(&format!("container {} stays locked: {}", args.id, super::one_line(error)));
    }
    result.map(|()| ExitCode::SUCCESS)
}
