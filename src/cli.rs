//! What was said on the command line. Parsing acts on nothing.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::engine::install::Target;
use crate::model::names::{ContainerId, IfName, JailName};
use crate::model::policy;

/// Keep containers behind one network interface, or nowhere.
#[derive(Debug, Parser)]
#[command(name = "tunjail", version, about, max_term_width = 100)]
pub struct Cli {
    /// The configuration file
    #[arg(long, global = true, env = "TUNJAIL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The OCI hook; a container runtime calls it with the container's state on stdin
    #[command(subcommand)]
    Hook(Hook),
    /// Raise walls, before any container needs them
    Up(Jails),
    /// Take walls down; one that still holds containers goes with the last of them
    Down(Jails),
    /// Remove what containers left that died without a poststop hook
    Sweep(Sweep),
    /// Tell that an exit came or went (from OpenVPN's up and down, or by hand)
    #[command(subcommand)]
    Exit(Exit),
    /// Keep the walls that stand as they should be: follow the exits, put back what others wipe (for systemd)
    Watch(Watch),
    /// Lead ports of the exit to a member while it runs, or show which ones lead where
    #[command(subcommand)]
    Forward(Forward),
    /// Show walls, exits, members and counters
    Status(Show),
    /// Check configuration, kernel, nft, exits and hooks before anything depends on them
    Check(Show),
    /// Wire tunjail into an engine, so that it calls tunjail for its containers
    Install(Install),
    /// Take out what `install` wired
    Uninstall(Uninstall),
    /// Stand in for an OCI runtime: append the hooks to the bundle's config.json, then run the real runtime
    #[command(disable_help_flag = true)]
    Runtime(Runtime),
    /// Wait for a container's address and have it judged; the hook starts this by itself
    #[command(hide = true)]
    Attend(Attend),
}

#[derive(Debug, Subcommand)]
pub enum Hook {
    /// Hold the container before its first instruction, or refuse it
    CreateRuntime(HookArgs),
    /// Let go of the container; always exits 0
    Poststop(HookArgs),
}

#[derive(Debug, Args)]
pub struct HookArgs {
    /// The jail; without it the annotation io.tunjail.jail, then the container's address decide (poststop knows it)
    #[arg(long, value_name = "NAME")]
    pub jail: Option<JailName>,
    /// Print what would be done, as ip and nft lines, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Jails {
    /// The jails; all of them when none is named
    #[arg(value_name = "JAIL")]
    pub jails: Vec<JailName>,
    /// Print what would be done, as ip and nft lines, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Sweep {
    /// Print what would be removed, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Attend {
    /// The container's id
    pub id: ContainerId,
    /// Its process
    pub pid: i32,
    /// When that process started, in clock ticks after boot
    pub start_time: u64,
}

#[derive(Debug, Subcommand)]
pub enum Exit {
    /// The exit is there: route its jails through it
    Up(ExitArgs),
    /// The exit goes, or went: bring the walls of its jails up to date
    Down(ExitArgs),
}

#[derive(Debug, Args)]
pub struct ExitArgs {
    /// The exit's interface; without it the environment's `dev`, as OpenVPN sets it
    #[arg(long, value_name = "INTERFACE")]
    pub dev: Option<IfName>,
    /// Print what would be done, as ip and nft lines, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// What OpenVPN appends to its scripts' command lines; not used
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub appended: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub enum Forward {
    /// Lead ports of the exit to a member, as long as it lives
    Add(ForwardAdd),
    /// Take ports of the exit from a member
    Remove(ForwardRemove),
    /// Show which ports of the exits lead to which member
    List(Show),
}

#[derive(Debug, Args)]
pub struct ForwardAdd {
    /// The container's id, or the beginning of it
    pub container: String,
    /// Ports of the exit: tcp/51413, or tcp/8443:443 where the member listens on another one
    #[arg(required = true, value_name = "PORT")]
    pub ports: Vec<policy::Forward>,
    /// Print what would be done, as nft lines, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ForwardRemove {
    /// The container's id, or the beginning of it
    pub container: String,
    /// Ports of the exit, such as tcp/51413
    #[arg(required = true, value_name = "PORT")]
    pub ports: Vec<policy::Port>,
    /// Print what would be done, as nft lines, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// Print what would be done now, as ip and nft lines, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Tell of it as JSON, a line each, on stdout
    #[arg(long, conflicts_with = "dry_run")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Show {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Install {
    #[command(subcommand)]
    pub into: Into,
    /// Print what would be changed, as a diff, and change nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum Into {
    /// Two files for Podman's hooks.d
    Podman(Hooks),
    /// Runtimes in Docker's daemon.json: tunjail-JAIL for each jail, and tunjail, which goes by annotation or address
    Docker(Docker),
    /// A CDI specification with a device tunjail.io/jail=JAIL for each jail; `tunjail up` keeps it in step
    Cdi,
    /// Two files for CRI-O's hooks.d; Podman reads the same ones
    Crio(Hooks),
    /// A runtime handler tunjail in containerd's config.toml, which goes by annotation or address
    Containerd,
}

#[derive(Debug, Args)]
pub struct Hooks {
    /// For containers with the annotation io.tunjail.jail; so it is without an option
    #[arg(long, conflicts_with = "always")]
    pub annotation: bool,
    /// For every container: annotation or address decide which jail, if any
    #[arg(long)]
    pub always: bool,
}

#[derive(Debug, Args)]
pub struct Docker {
    /// Make tunjail, the runtime that goes by annotation or address, Docker's default runtime
    #[arg(long)]
    pub default: bool,
    /// A runtime for this jail alone
    #[arg(long, value_name = "NAME")]
    pub jail: Option<JailName>,
}

#[derive(Debug, Args)]
pub struct Uninstall {
    #[arg(value_enum, value_name = "WHERE")]
    pub from: Target,
    /// Print what would be changed, as a diff, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Runtime {
    /// The jail of every container of this runtime
    #[arg(long, value_name = "NAME")]
    pub jail: Option<JailName>,
    /// The real runtime; runc or crun is found by itself
    #[arg(long, value_name = "PATH")]
    pub runtime: Option<PathBuf>,
    /// The runtime's own command line
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub args: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a runtime is given is handed on word for word, whatever it looks like to clap.
    #[test]
    fn a_runtimes_own_words_stay_as_they_are() {
        for (said, handed_on) in [
            ("", ""),
            ("--version", "--version"),
            ("--help", "--help"),
            ("-h", "-h"),
            ("--root /r create --bundle /b -- c1", "--root /r create --bundle /b -- c1"),
            ("--jail vpn --log=/l exec c1 -- sh -c --jail", "--log=/l exec c1 -- sh -c --jail"),
            ("--runtime /usr/bin/crun create --config /c --jail x", "create --config /c --jail x"),
            ("--runtime=/usr/bin/crun --jail=vpn run --runtime x", "run --runtime x"),
            ("exec -t c1 --config --help -V --", "exec -t c1 --config --help -V --"),
        ] {
            let line = ["tunjail", "runtime"].into_iter().chain(said.split_whitespace());
            let Command::Runtime(runtime) = Cli::try_parse_from(line).expect(said).command else { panic!("{said}") };
            assert_eq!(runtime.args, handed_on.split_whitespace().collect::<Vec<_>>(), "{said}");
        }
    }
}
