//! `tunjail runtime`: for engines that take no hooks but take a runtime, as Docker does.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Error, Result, bail};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::cli::Runtime;
use crate::config::Config;
use crate::engine::own_program;
use crate::engine::runtime::bundle::{self, Hooks};
use crate::engine::runtime::line::{self, Action, Log};
use crate::engine::runtime::log;
use crate::engine::runtime::underneath::{self, Family};
use crate::hold::late;
use crate::model::names::ContainerId;
use crate::store::Store;

pub fn run(config: Option<&Path>, args: &Runtime) -> Result<ExitCode> {
    let said = line::read(&args.args);
    let refused = |family: Family, error: Error| {
        tell(&said.log, family, &error);
        Err(error)
    };
    let runtime = match &said.action {
        Action::Unclear { why } => return refused(Family::Runc, anyhow::anyhow!("nothing was started: {why}")),
        Action::Create(bundle) | Action::Run(bundle) | Action::Restore(bundle) => {
            add_hooks(config, args, bundle).context("the container was not started")
        }
        Action::Start { id } => wait_for_its_address(config, id)
            .context("the container was not started")
            .and_then(|()| manage(config, args, said.root.as_deref())),
        Action::Delete { .. } | Action::Other => manage(config, args, said.root.as_deref()),
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return refused(args.runtime.as_deref().map_or(Family::Runc, Family::of), error),
    };
    let Err(error) = become_it(&runtime, &args.args);
    refused(Family::of(&runtime), error.context(format!("running the OCI runtime {}", runtime.display())))
}

/// The command line that the engine's configuration holds (`runtimeArgs`) was not understood.
pub fn misspoken(args: &[OsString], error: &clap::Error) -> ExitCode {
    let said = error.to_string();
    let first = said.lines().next().unwrap_or_default();
    let error = anyhow::anyhow!(
        "{}; correct the arguments where the engine is told of this runtime (Docker: runtimeArgs)",
        first.strip_prefix("error: ").unwrap_or(first)
    );
    tell(&line::log_behind(args), Family::Runc, &error);
    super::complain(&error);
    ExitCode::FAILURE
}

/// Where a container is made: everything has to be right, or it is not made.
fn add_hooks(config: Option<&Path>, args: &Runtime, bundle: &line::Bundle) -> Result<PathBuf> {
    let loaded = Config::load(config)?;
    let runtime = underneath(args, loaded.runtime.as_ref())?;
    let config = config.map(std::path::absolute).transpose().context("finding the configuration's absolute path")?;
    let program = own_program()?;
    let hooks = Hooks { program: &program, config: config.as_deref(), jail: args.jail.as_ref() };
    bundle::add_hooks(&bundle.config, &hooks)?;
    Ok(runtime)
}

/// A container whose address comes late does not run before it is confirmed. One that tunjail does not know is none of
/// its business, whatever became of the configuration.
fn wait_for_its_address(config: Option<&Path>, id: &OsStr) -> Result<()> {
    let Some(id) = id.to_str().and_then(|id| id.parse::<ContainerId>().ok()) else { return Ok(()) };
    if Store::open().late_of(&id)?.is_none() {
        return Ok(());
    }
    late::settle(&Config::load(config)?, &id)
}

/// Where a container is there already: it has to stay manageable, whatever became of the configuration. When that does
/// not say which runtime, or says one that is gone, it is the one that made the container, by the state that it keeps.
///
/// Nothing is said of it, except on a terminal: engines read a runtime's stdout and stderr as one, and its log as JSON.
/// The next container is refused with the reason.
fn manage(config: Option<&Path>, args: &Runtime, root: Option<&Path>) -> Result<PathBuf> {
    if args.runtime.is_some() {
        return underneath(args, None);
    }
    let (configured, broken) = match Config::load(config) {
        Ok(config) => (config.runtime, None),
        Err(error) => (Config::runtime_alone(config), Some(error)),
    };
    let made_by = underneath::made_by(root, &args.args);
    let runtime = match (configured.map(|runtime| underneath(args, Some(&runtime))), made_by) {
        (Some(Ok(runtime)), _) => runtime,
        (Some(Err(error)), None) => return Err(error),
        (Some(Err(_)) | None, made_by) => underneath::found(made_by)?,
    };
    if let Some(error) = broken.filter(|_| io::stderr().is_terminal()) {
        super::complain(&Error::new(error).context(format!("no container can be made; using {}", runtime.display())));
    }
    Ok(runtime)
}

fn underneath(args: &Runtime, configured: Option<&crate::config::Runtime>) -> Result<PathBuf> {
    match (&args.runtime, configured) {
        (Some(path), _) => underneath::named(path, "--runtime"),
        (None, Some(configured)) => underneath::named(&configured.path, &configured.place),
        (None, None) => underneath::found(None),
    }
}

/// The real runtime takes this process' place: its pid, its descriptors, its environment, its signal mask, its exit code.
fn become_it(runtime: &Path, args: &[OsString]) -> Result<Infallible> {
    let words = std::iter::once(runtime.as_os_str()).chain(args.iter().map(OsString::as_os_str));
    let words = words.map(|word| CString::new(word.as_bytes())).collect::<Result<Vec<CString>, _>>();
    let words = words.context("an argument holds a zero byte")?;
    let Some(program) = words.first() else { bail!("no program") };
    // Rust's startup ignores SIGPIPE, and what is ignored stays so in the next program.
    // SAFETY: the default action is no handler, so nothing of this program can be called.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.context("SIGPIPE")?;
    Ok(nix::unistd::execv(program, &words)?)
}

/// Into the runtime's log, where an engine looks first; stderr is told in any case.
fn tell(to: &Log, family: Family, error: &Error) {
    if let Err(failed) = log::tell(to, family, &super::one_line(error)) {
        let log = to.file.as_deref().unwrap_or(Path::new("")).display();
        super::complain(&Error::new(failed).context(format!("the log {log} cannot be written")));
    }
}
