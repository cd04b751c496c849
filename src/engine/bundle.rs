//! An OCI bundle's config.json, with tunjail's hooks in it.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::model::names::JailName;

/// Seconds that a runtime waits for a hook before it kills it and refuses the container. More than the hook itself
/// waits for anything.
const TIMEOUT: u32 = 10;

/// Appends the hooks to BUNDLE/config.json, once, however often it is called. Appended, not prepended: dockerd before
/// 28 sets the network up in a hook of its own that has to come first.
pub fn add_hooks(bundle: &Path, tunjail: &Path, jail: Option<&JailName>) -> Result<()> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut config: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not valid JSON", path.display()))?;
    let mut changed = false;
    for (stage, name) in [("createRuntime", "create-runtime"), ("poststop", "poststop")] {
        changed |= append(&mut config, stage, hook(tunjail, name, jail)).with_context(|| path.display().to_string())?;
    }
    match changed {
        true => replace(&path, &config).with_context(|| format!("{} cannot be written", path.display())),
        false => Ok(()),
    }
}

fn hook(tunjail: &Path, name: &str, jail: Option<&JailName>) -> Value {
    let mut args = vec!["tunjail", "hook", name];
    args.extend(jail.iter().flat_map(|jail| ["--jail", jail.as_str()]));
    json!({ "path": tunjail, "args": args, "timeout": TIMEOUT })
}

fn append(config: &mut Value, stage: &str, hook: Value) -> Result<bool> {
    let Some(config) = config.as_object_mut() else { bail!("it is not a JSON object") };
    let hooks = config.entry("hooks").or_insert_with(|| json!({}));
    if hooks.is_null() {
        *hooks = json!({});
    }
    let Some(hooks) = hooks.as_object_mut() else { bail!("its \"hooks\" is not a JSON object") };
    let list = hooks.entry(stage).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { bail!("its \"hooks.{stage}\" is not a JSON list") };
    if list.contains(&hook) {
        return Ok(false);
    }
    list.push(hook);
    Ok(true)
}

fn replace(path: &Path, config: &Value) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut draft = tempfile::Builder::new().prefix(".tunjail").tempfile_in(directory)?;
    draft.write_all(&serde_json::to_vec(config)?)?;
    let mode = fs::metadata(path)?.permissions().mode();
    fs::set_permissions(draft.path(), fs::Permissions::from_mode(mode))?;
    draft.persist(path)?;
    Ok(())
}

/// What a runtime's command line says that concerns tunjail.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The bundle, when the command makes a container.
    pub bundle: Option<PathBuf>,
    /// Where the engine will look for the reason when the runtime fails.
    pub log: Option<PathBuf>,
}

/// Reads a runtime's command line. The flags with values are runc's and crun's global ones; what is not known here is
/// passed over, and passed on.
pub fn read_command_line(args: &[OsString]) -> CommandLine {
    let value = |name: &'static str| clap::Arg::new(name).long(name).num_args(1);
    let switch = |name: &'static str| clap::Arg::new(name).long(name).action(clap::ArgAction::SetTrue);
    let making = |name: &'static str| {
        clap::Command::new(name)
            .ignore_errors(true)
            .disable_help_flag(true)
            .arg(value("bundle").short('b'))
            .args(["console-socket", "pid-file", "preserve-fds"].map(value))
            .args(["no-pivot", "no-new-keyring", "keep", "no-subreaper"].map(switch))
            .arg(switch("detach").short('d'))
            .arg(clap::Arg::new("id"))
    };
    let line = clap::Command::new("runtime")
        .no_binary_name(true)
        .ignore_errors(true)
        .disable_help_flag(true)
        .allow_external_subcommands(true)
        .args(["root", "log", "log-format", "log-level", "criu", "cgroup-manager"].map(value))
        .arg(value("rootless"))
        .args(["debug", "systemd-cgroup"].map(switch))
        .subcommands(["create", "run", "restore"].map(making));
    let Ok(matches) = line.try_get_matches_from(args) else { return CommandLine::default() };
    let bundle = match matches.subcommand() {
        Some(("create" | "run" | "restore", command)) => {
            Some(command.get_one::<String>("bundle").map_or_else(|| PathBuf::from("."), PathBuf::from))
        }
        _ => None,
    };
    CommandLine { bundle, log: matches.get_one::<String>("log").map(PathBuf::from) }
}

/// Writes an error where the engine looks for a runtime's own, in the runtimes' format.
pub fn log_error(log: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(log)?;
    writeln!(file, "{}", json!({ "level": "error", "msg": format!("tunjail: {text}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(line: &str) -> Option<PathBuf> {
        read_command_line(&line.split(' ').map(Into::into).collect::<Vec<_>>()).bundle
    }

    #[test]
    fn the_bundle_is_found_as_engines_write_it() {
        for (line, expected) in [
            ("--root /run/r --log /l.json --log-format json create --bundle /b --pid-file /b/p c1", Some("/b")),
            ("--root /run/r --systemd-cgroup create -b /b c1", Some("/b")),
            ("--log=/l create --bundle=/b --no-pivot c1", Some("/b")),
            (
                "--cgroup-manager=cgroupfs --root=/r --log-format=json create --bundle /b --console-socket /s c1",
                Some("/b"),
            ),
            ("run c1", Some(".")),
            ("run -d -b /b c1", Some("/b")),
            ("--root /run/r start c1", None),
            ("--root /run/r delete --force c1", None),
            ("--version", None),
            ("features", None),
        ] {
            assert_eq!(bundle(line), expected.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn hooks_are_appended_once_and_others_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(
            &path,
            r#"{"ociVersion":"1.0.2","x":[1.5],"hooks":{"createRuntime":[{"path":"/other"}],"poststop":null}}"#,
        )
        .unwrap();
        let jail = "vpn".parse().unwrap();
        for _ in 0..2 {
            add_hooks(directory.path(), Path::new("/usr/bin/tunjail"), Some(&jail)).unwrap();
        }
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(config["x"], json!([1.5]));
        assert_eq!(config["hooks"]["createRuntime"].as_array().unwrap().len(), 2);
        assert_eq!(config["hooks"]["createRuntime"][0]["path"], "/other");
        assert_eq!(
            config["hooks"]["createRuntime"][1]["args"],
            json!(["tunjail", "hook", "create-runtime", "--jail", "vpn"])
        );
        assert_eq!(config["hooks"]["poststop"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_broken_bundle_is_left_as_it_is() {
        for text in ["", "{", "[]", r#"{"hooks":[]}"#, r#"{"hooks":{"createRuntime":{}}}"#] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("config.json");
            fs::write(&path, text).unwrap();
            let error = add_hooks(directory.path(), Path::new("/t"), None).unwrap_err();
            assert!(format!("{error:#}").contains("config.json"), "{error:#}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
