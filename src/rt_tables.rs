//! Names of routing tables: /etc/iproute2/rt_tables.d, so that `ip route show table tunjail_vpn` works, and so that a
//! number, once chosen, stays the jail's until `tunjail down`.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::model::names::JailName;

const PARENT: &str = "/etc/iproute2";
const NAMES: &str = "/etc/iproute2/rt_tables.d";
/// Names the directories that tunjail made; iproute2 reads `*.conf` alone.
const MARK: &str = "/etc/iproute2/rt_tables.d/.made-by-tunjail";
/// iproute2 reads these; newer releases ship the first below /usr/share.
const OTHERS: [&str; 2] = ["/etc/iproute2/rt_tables", "/usr/share/iproute2/rt_tables"];

/// Where a number is looked for when the administrator chose none: below 2^16, so that every tool can write it, and
/// away from the round numbers that people choose by hand.
const FIRST: u32 = 7400;
const COUNT: u32 = 100;

fn file(jail: &JailName) -> PathBuf {
    Path::new(NAMES).join(format!("tunjail_{jail}.conf"))
}

/// What becomes the jail's file by being renamed. It has one name, so that one which a crash left can be found.
fn draft(jail: &JailName) -> PathBuf {
    Path::new(NAMES).join(format!(".tunjail_{jail}.draft"))
}

/// The number that the jail's file records.
pub fn recorded(jail: &JailName) -> Option<u32> {
    let name = format!("tunjail_{jail}");
    entries(&file(jail)).into_iter().find(|(_, known)| *known == name).map(|(number, _)| number)
}

/// A number that no file names and that `taken` does not hold. The same jail gets the same one on the same host.
pub fn choose(jail: &JailName, taken: impl Fn(u32) -> bool) -> Option<u32> {
    let named = named();
    let mut hasher = DefaultHasher::new();
    jail.as_str().hash(&mut hasher);
    let start = u32::try_from(hasher.finish() % u64::from(COUNT)).unwrap_or(0);
    (0..COUNT).map(|step| FIRST + (start + step) % COUNT).find(|number| !named.contains(number) && !taken(*number))
}

/// Names the jail's table, unless its number has a name already.
pub fn name(jail: &JailName, table: u32) -> io::Result<()> {
    if recorded(jail) == Some(table) {
        return Ok(());
    }
    if named().contains(&table) && recorded(jail).is_none() {
        return Ok(());
    }
    make_directories()?;
    remove(&draft(jail))?;
    // iproute2 reads this as any user.
    let mut there = OpenOptions::new().write(true).create_new(true).mode(0o644).open(draft(jail))?;
    writeln!(there, "# jail {jail}; made by tunjail, removed by `tunjail down`\n{table}\ttunjail_{jail}")?;
    fs::rename(draft(jail), file(jail))
}

/// Takes the jail's name away; one that is gone already is no error.
pub fn unname(jail: &JailName) -> io::Result<()> {
    remove(&draft(jail))?;
    remove(&file(jail))?;
    remove_directories()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        result => result,
    }
}

/// Newer iproute2 ships nothing below /etc. What is made here says so, so that it can go again.
fn make_directories() -> io::Result<()> {
    let made: Vec<&str> = [NAMES, PARENT].into_iter().filter(|path| !Path::new(path).exists()).collect();
    if made.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(NAMES)?;
    fs::write(MARK, made.join("\n"))
}

/// Removes the directories that were made here, once nothing but the mark is in them.
fn remove_directories() -> io::Result<()> {
    let Ok(made) = fs::read_to_string(MARK) else { return Ok(()) };
    if fs::read_dir(NAMES)?.flatten().any(|entry| entry.path() != Path::new(MARK)) {
        return Ok(());
    }
    remove(Path::new(MARK))?;
    for path in [NAMES, PARENT].into_iter().filter(|path| made.lines().any(|line| line == *path)) {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            result => result?,
        }
    }
    Ok(())
}

fn named() -> HashSet<u32> {
    let mut files: Vec<PathBuf> = OTHERS.iter().map(PathBuf::from).collect();
    if let Ok(directory) = fs::read_dir(NAMES) {
        files.extend(
            directory
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "conf")),
        );
    }
    files.iter().flat_map(|path| entries(path)).map(|(number, _)| number).collect()
}

/// Lines of a number (decimal or 0x) and a name; anything else is a comment or not ours to judge.
fn entries(path: &Path) -> Vec<(u32, String)> {
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let number = words.next()?;
            let number = match number.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            Some((number.ok()?, words.next()?.to_owned()))
        })
        .collect()
}
