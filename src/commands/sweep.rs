//! `tunjail sweep`: remove what containers left that died without a poststop.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::Sweep;
use crate::hold::{Kernel, endpoint, leave};
use crate::model::plan;
use crate::store::Store;

pub fn run(args: &Sweep) -> Result<ExitCode> {
    super::demand_root()?;
    let mut host = Kernel::open()?;
    let store = Store::open();
    if args.dry_run {
        print!("{}", leave::plan_to_sweep(&mut host, &store)?);
        for tunnel in endpoint::orphans(&mut host, &store)? {
            print!("{}", plan::lines(&endpoint::plan_to_forget(&mut host, &store, &tunnel)?, ""));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !store.is_there() {
        return Ok(ExitCode::SUCCESS);
    }
    let store = store.lock()?;
    let dead = leave::sweep_all(&mut host, &store)?;
    endpoint::sweep(&mut host, &store)?;
    store.tidy()?;
    if dead > 0 {
        println!("removed {dead} record(s) of containers that died");
    }
    Ok(ExitCode::SUCCESS)
}
