//! The table as Markdown, in docs/engines.md. `UPDATE_DOCS=1 cargo nextest run the_document_shows_the_table` writes it.

use std::fs;
use std::path::Path;

use super::table::TABLE;
use super::{Cell, Engine, Row, Way};
use crate::containerd::wiring::TABLE as PODS_TABLE;
use crate::guest::{Guest, Release};
use crate::world::Lab;

const FILE: &str = "docs/engines.md";
const BEGIN: &str = "<!-- The table of tests/lab/matrix/table.rs: UPDATE_DOCS=1 writes it. -->\n";
const END: &str = "<!-- end -->\n";

const PODS: &str = "\
containerd through its CRI, as a kubelet calls it ([more](engines-containerd.md)):

| engine | Debian | handler, annotation | handler, subnet | `base_runtime_spec` | CDI device | annotation alone |
|---|---|---|---|---|---|---|
";

const HEAD: &str = "\
| engine | Debian | hooks.d, annotation | hooks.d, always | CDI device | wrapper, `--jail` | wrapper, annotation | wrapper, subnet | config.json |
|---|---|---|---|---|---|---|---|---|
";

/// What the program of a release calls its own version.
type Version<'a> = &'a dyn Fn(Release, &str) -> String;

fn markdown(version: Version) -> String {
    let mut reasons: Vec<&str> = Vec::new();
    let mut text = HEAD.to_string();
    for row in TABLE {
        text += &format!("| {} | {} |", label(row, version), row.release.name());
        for (way, cell) in Way::ALL.into_iter().zip(row.cells) {
            text += &spelled(cell, way.waits(), &mut reasons);
        }
        text.push('\n');
    }
    text += &format!("\n{PODS}");
    for (release, cells) in PODS_TABLE {
        text += &format!("| containerd {} | {} |", version(release, "containerd"), release.name());
        text.extend(cells.into_iter().map(|cell| spelled(cell, false, &mut reasons)));
        text.push('\n');
    }
    text.push('\n');
    for (number, reason) in reasons.iter().enumerate() {
        text += &format!("{}. {reason}.\n", number + 1);
    }
    text
}

fn spelled(cell: Cell, waits: bool, reasons: &mut Vec<&str>) -> String {
    match cell {
        Cell::Works => " works |".into(),
        Cell::Late if waits => " late, waits |".into(),
        Cell::Late => " late |".into(),
        Cell::CannotBecause(reason) => {
            let known = reasons.iter().position(|other| *other == reason).unwrap_or_else(|| {
                reasons.push(reason);
                reasons.len() - 1
            });
            format!(" no ({}) |", known + 1)
        }
    }
}

fn label(row: &Row, version: Version) -> String {
    let version = |program| version(row.release, program);
    match row.engine {
        Engine::Oci(name) => format!("{name} {}", version(name)),
        Engine::Podman { runtime, userns: false } => format!("Podman {}, {runtime}", version("podman")),
        Engine::Podman { runtime, userns: true } => format!("Podman {}, {runtime}, `--userns=auto`", version("podman")),
        Engine::Docker => format!("Docker {}", version("dockerd")),
    }
}

/// Major and minor version, as the program of the release says them.
fn found(guests: &[Guest], release: Release, program: &str) -> String {
    let guest = guests.iter().find(|guest| guest.release() == release).expect("a release of the table");
    let said = guest.cmd(program, &["--version"]).ok();
    let mut words = said.split_whitespace().filter(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    let version = words.next().unwrap_or_else(|| panic!("no version in {said:?}"));
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// sid's versions move, and a new one there is no fault of the document's: they are not compared.
fn comparable(text: &str) -> String {
    let moving = format!(" | {} | ", Release::Sid.name());
    let still = |line: &str| match line.split_once(&moving) {
        Some((label, cells)) => {
            let label: String = label.chars().filter(|letter| !letter.is_ascii_digit()).collect();
            label + &moving + cells
        }
        None => line.to_string(),
    };
    text.lines().map(still).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_document_shows_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let document = fs::read_to_string(&path).expect(FILE);
    let (head, rest) = document.split_once(BEGIN).expect("the mark before the table");
    let (written, tail) = rest.split_once(END).expect("the mark behind the table");
    let lab = Lab::new();
    let guests = [Release::Bookworm, Release::Trixie, Release::Sid].map(|release| Guest::new(&lab, release));
    let table = markdown(&|release, program| found(&guests, release, program));
    println!("{table}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{head}{BEGIN}\n{table}\n{END}{tail}")).expect(FILE);
        return;
    }
    assert_eq!(
        comparable(written.trim()),
        comparable(table.trim()),
        "{FILE} is older than the table: run this test with UPDATE_DOCS=1"
    );
}
