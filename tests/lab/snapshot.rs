//! Everything that tunjail could leave behind, as text, to be compared byte for byte.

use std::fs;
use std::path::Path;

use crate::run::Cmd;
use crate::vpn::TUN;
use crate::world::Lab;

/// The host's kernel state and tunjail's files.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot(Vec<(&'static str, String)>);

impl Lab {
    pub fn snapshot(&self) -> Snapshot {
        let ip = |args: &[&str]| Cmd::new("ip", args).ok();
        Snapshot(vec![
            ("ip rule", ip(&["-4", "rule", "show"])),
            ("ip -6 rule", ip(&["-6", "rule", "show"])),
            ("ip route, all tables", ip(&["-4", "-N", "route", "show", "table", "all"])),
            ("ip -6 route, all tables", without_the_tunnels_own(&ip(&["-6", "-N", "route", "show", "table", "all"]))),
            // Stateless: the engines' own rules carry counters, which move.
            ("nft ruleset", self.tools().cmd("nft", &["-s", "list", "ruleset"]).ok()),
            ("/run/tunjail", listing(Path::new("/run/tunjail"))),
            ("tunjail's processes", processes()),
            ("rt_tables.d", listing(Path::new("/etc/iproute2/rt_tables.d"))),
        ])
    }
}

impl Snapshot {
    /// # Panics
    /// When the two differ, with the lines that do.
    #[track_caller]
    pub fn assert_same(&self, later: &Self, what: &str) {
        let changes: Vec<String> = self
            .0
            .iter()
            .zip(&later.0)
            .filter(|(old, new)| old != new)
            .map(|(old, new)| diff(old.0, &old.1, &new.1))
            .collect();
        assert!(changes.is_empty(), "{what} changed the host:\n{}", changes.join("\n"));
    }

    /// One part of it, for tests that look closer.
    pub fn part(&self, name: &str) -> &str {
        self.0.iter().find(|(part, _)| *part == name).map(|(_, text)| text.as_str()).expect("a part of the snapshot")
    }
}

fn diff(name: &str, old: &str, new: &str) -> String {
    let mut lines = vec![format!("{name}:")];
    lines.extend(old.lines().filter(|line| !new.lines().any(|other| other == *line)).map(|line| format!("- {line}")));
    lines.extend(new.lines().filter(|line| !old.lines().any(|other| other == *line)).map(|line| format!("+ {line}")));
    if lines.len() == 1 {
        lines.push(format!("the same lines in another order or number\n--- before\n{old}\n--- after\n{new}"));
    }
    lines.join("\n")
}

/// Each new tun device draws a new link-local address.
fn without_the_tunnels_own(routes: &str) -> String {
    let drawn = |line: &&str| !(line.contains(" fe80::") && line.contains(&format!(" dev {TUN} table 255 ")));
    routes.lines().filter(drawn).map(|line| format!("{line}\n")).collect()
}

/// The command lines of tunjail's own processes, one a line: helpers that outlive a command.
fn processes() -> String {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    // One that ends meanwhile reads as nothing.
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    let is_own = |line: &String| {
        let program = line.split(' ').next().unwrap_or_default();
        program.rsplit('/').next().is_some_and(|name| name.starts_with("tunjail"))
    };
    let mut own: Vec<String> = lines.filter(is_own).collect();
    own.sort();
    own.join("\n")
}

/// Every path below `dir` with its kind and contents; "absent" when it is not there.
fn listing(dir: &Path) -> String {
    let Ok(entries) = fs::read_dir(dir) else { return "absent\n".into() };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    paths.sort();
    let mut text = String::new();
    for path in paths {
        if path.is_dir() {
            text += &format!("{}/\n{}", path.display(), listing(&path));
        } else {
            text += &format!("{}\n{}\n", path.display(), String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()));
        }
    }
    text
}
