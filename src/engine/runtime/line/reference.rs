//! How runc 1.x and crun read a command line, as simply as can be: Go's flag package behind urfave/cli v1, and glibc's argp
//! in order. Nothing but what decides which container is made of which bundle.

/// A container that would be made or started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub command: String,
    pub config: String,
    pub id: String,
}

const COMMANDS: [&str; 4] = ["create", "run", "restore", "start"];

struct Flags {
    values: &'static [&'static str],
    switches: &'static [&'static str],
}

const RUNC_GLOBAL: Flags = Flags {
    values: &["root", "log", "log-format", "criu", "rootless"],
    switches: &["debug", "systemd-cgroup", "help", "h", "version", "v"],
};

fn runc_flags(command: &str) -> Flags {
    match command {
        "start" => Flags { values: &[], switches: &["help", "h"] },
        "create" => Flags {
            values: &["bundle", "b", "console-socket", "pid-file", "preserve-fds"],
            switches: &["no-pivot", "no-new-keyring", "help", "h"],
        },
        "restore" => Flags {
            values: &["bundle", "b", "console-socket", "pid-file", "image-path"],
            switches: &["no-pivot", "detach", "d", "shell-job", "no-subreaper", "help", "h"],
        },
        _ => Flags {
            values: &["bundle", "b", "console-socket", "pid-file", "preserve-fds"],
            switches: &["no-pivot", "no-new-keyring", "detach", "d", "keep", "no-subreaper", "help", "h"],
        },
    }
}

type Set<'a> = Vec<(&'a str, &'a str)>;

fn last<'a>(set: &Set<'a>, name: &str) -> Option<&'a str> {
    set.iter().rev().find(|(flag, _)| *flag == name).map(|(_, value)| *value)
}

/// Go's flag.FlagSet.Parse: the flags, and the words behind them.
fn go<'a>(args: &[&'a str], flags: &Flags) -> Option<(Set<'a>, Vec<&'a str>)> {
    let (mut set, mut at) = (Vec::new(), 0);
    while let Some(arg) = args.get(at) {
        if !arg.starts_with('-') || *arg == "-" {
            break;
        }
        at += 1;
        if *arg == "--" {
            break;
        }
        let body = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'))?;
        let (name, value) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
        if name.is_empty() || name.starts_with('-') {
            return None;
        }
        if flags.switches.contains(&name) {
            let value = value.unwrap_or("true");
            if !["true", "false", "1", "0"].contains(&value) {
                return None;
            }
            set.push((name, value));
        } else if flags.values.contains(&name) {
            let value = match value {
                Some(value) => value,
                None => {
                    at += 1;
                    args.get(at - 1)?
                }
            };
            set.push((name, value));
        } else {
            return None;
        }
    }
    Some((set, args[at..].to_vec()))
}

/// urfave/cli v1: flags behind the id are moved in front of it. A `--` moves in front of every word that is no flag, so
/// that a flag which runc does not know becomes an id.
fn reordered<'a>(args: &[&'a str], flags: &Flags) -> Vec<&'a str> {
    let (mut front, mut behind, mut may_be_value) = (Vec::new(), Vec::new(), false);
    for (at, arg) in args.iter().enumerate() {
        let body = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or_default();
        let name = body.split('=').next().unwrap_or_default();
        let known = flags.values.contains(&name) || flags.switches.contains(&name);
        if may_be_value && !known {
            may_be_value = false;
            front.push(*arg);
        } else if *arg == "--" {
            front.push(*arg);
            behind.extend(&args[at + 1..]);
            break;
        } else if known {
            front.push(*arg);
            may_be_value = !arg.contains('=');
        } else {
            behind.push(*arg);
        }
    }
    [front, behind].concat()
}

fn ends(set: &Set<'_>) -> bool {
    ["help", "h", "version", "v"].iter().any(|name| matches!(last(set, name), Some("true" | "1")))
}

pub fn runc(args: &[&str]) -> Option<Made> {
    let (set, rest) = go(args, &RUNC_GLOBAL)?;
    let (command, rest) = rest.split_first()?;
    if ends(&set) || !COMMANDS.contains(command) {
        return None;
    }
    let flags = runc_flags(command);
    let (set, ids) = go(&reordered(rest, &flags), &flags)?;
    let bundle = match (last(&set, "bundle"), last(&set, "b")) {
        (Some(_), Some(_)) => return None,
        (bundle, b) => bundle.or(b).filter(|bundle| !bundle.is_empty()).unwrap_or("."),
    };
    let [id] = ids[..] else { return None };
    (!ends(&set)).then(|| made(command, format!("{bundle}/config.json"), id))
}

fn made(command: &str, config: String, id: &str) -> Made {
    let config = if command == "start" { String::new() } else { config };
    Made { command: command.to_owned(), config, id: id.to_owned() }
}

const CRUN_GLOBAL: Flags = Flags {
    values: &["cgroup-manager", "log", "log-format", "log-level", "root", "rootless"],
    switches: &["debug", "systemd-cgroup", "version", "help", "usage"],
};

fn crun_flags(command: &str) -> (Flags, &'static [(char, &'static str)]) {
    match command {
        "start" => (Flags { values: &[], switches: &["help", "usage"] }, &[]),
        "restore" => (
            Flags {
                values: &["bundle", "image-path", "console-socket", "pid-file"],
                switches: &["detach", "shell-job", "help", "usage"],
            },
            &[('b', "bundle"), ('d', "detach")],
        ),
        _ => (
            Flags {
                values: &["bundle", "config", "console-socket", "preserve-fds", "pid-file"],
                switches: &["detach", "keep", "no-subreaper", "no-new-keyring", "no-pivot", "help", "usage"],
            },
            &[('b', "bundle"), ('f', "config"), ('d', "detach")],
        ),
    }
}

/// argp in order: the flags up to the first other word, and what stands from there on. None when it ends or fails.
fn argp<'a>(args: &[&'a str], flags: &Flags, shorts: &[(char, &'static str)]) -> Option<(Set<'a>, Vec<&'a str>)>
where
    'static: 'a,
{
    let (mut set, mut at) = (Vec::new(), 0);
    while let Some(arg) = args.get(at) {
        if !arg.starts_with('-') || *arg == "-" {
            break;
        }
        at += 1;
        if *arg == "--" {
            break;
        }
        if let Some(body) = arg.strip_prefix("--") {
            let (said, value) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
            let all = || flags.values.iter().chain(flags.switches).copied();
            let mut short_for = all().filter(|name| name.starts_with(said));
            let name = match (all().find(|name| *name == said), short_for.next(), short_for.next()) {
                (Some(name), ..) | (None, Some(name), None) => name,
                _ => return None,
            };
            match (flags.values.contains(&name), value) {
                (true, Some(value)) => set.push((name, value)),
                (true, None) => {
                    set.push((name, args.get(at)?));
                    at += 1;
                }
                (false, None) if !["help", "usage", "version"].contains(&name) => set.push((name, "")),
                _ => return None,
            }
            continue;
        }
        for (place, letter) in arg.char_indices().skip(1) {
            let (_, name) = shorts.iter().find(|(short, _)| *short == letter)?;
            if !flags.values.contains(name) {
                set.push((*name, ""));
                continue;
            }
            match &arg[place + 1..] {
                "" => {
                    set.push((*name, args.get(at)?));
                    at += 1;
                }
                value => set.push((*name, value)),
            }
            break;
        }
    }
    Some((set, args[at..].to_vec()))
}

pub fn crun(args: &[&str]) -> Option<Made> {
    let (_, rest) = argp(args, &CRUN_GLOBAL, &[])?;
    let (command, rest) = rest.split_first()?;
    if !COMMANDS.contains(command) {
        return None;
    }
    let (flags, shorts) = crun_flags(command);
    let (set, ids) = argp(rest, &flags, shorts)?;
    let bundle = last(&set, "bundle").unwrap_or(".");
    if bundle.is_empty() && *command != "start" {
        // realpath(3) of nothing fails.
        return None;
    }
    let config = match last(&set, "config") {
        Some(config) if config != "config.json" => config.to_owned(),
        _ => format!("{bundle}/config.json"),
    };
    match ids[..] {
        [id] => Some(made(command, config, id)),
        [id, _] if *command == "restore" => Some(made(command, config, id)),
        _ => None,
    }
}
