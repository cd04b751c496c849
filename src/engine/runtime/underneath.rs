//! Which runtime does the work: the one of `--runtime`, the configuration's, or one that is found.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};

/// Where a runtime may be, best known first.
const PLACES: [(Family, &str); 8] = [
    (Family::Runc, "/usr/bin/runc"),
    (Family::Runc, "/usr/sbin/runc"),
    (Family::Runc, "/usr/local/bin/runc"),
    (Family::Runc, "/usr/local/sbin/runc"),
    (Family::Crun, "/usr/bin/crun"),
    (Family::Crun, "/usr/sbin/crun"),
    (Family::Crun, "/usr/local/bin/crun"),
    (Family::Crun, "/usr/local/sbin/crun"),
];

/// Where the two keep states unless `--root` says otherwise.
const ROOTS: [&str; 2] = ["/run/runc", "/run/crun"];

/// Whose ways a runtime has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Runc,
    Crun,
}

impl Family {
    /// By the program's name; what is not crun behaves as runc does.
    pub fn of(runtime: &Path) -> Self {
        let crun = runtime.file_name().is_some_and(|name| name.to_string_lossy().contains("crun"));
        if crun { Self::Crun } else { Self::Runc }
    }
}

/// The runtime at `path`, which `origin` names.
///
/// # Errors
/// When it cannot stand underneath, naming the origin and the mend.
pub fn named(path: &Path, origin: &str) -> Result<PathBuf> {
    if let Some(fault) = fault(path) {
        bail!("{origin}: the OCI runtime {} {fault}", path.display());
    }
    Ok(path.to_owned())
}

/// The first that is there; one of the given family if there is one.
///
/// # Errors
/// When there is none.
pub fn found(family: Option<Family>) -> Result<PathBuf> {
    first_of(PLACES.map(|(family, path)| (family, PathBuf::from(path))), family)
}

fn first_of(places: [(Family, PathBuf); 8], family: Option<Family>) -> Result<PathBuf> {
    let mut here: Vec<_> = places.into_iter().filter(|(_, path)| fault(path).is_none()).collect();
    // Stable: the order of the places within a family stays.
    here.sort_by_key(|(own, _)| family.is_some_and(|wanted| wanted != *own));
    if here.is_empty() {
        bail!(
            "no OCI runtime was found (runc and crun in /usr/bin, /usr/sbin, /usr/local/bin, /usr/local/sbin); install \
             one, or name it: [runtime] with path = \"/path/of/runc\" in the configuration, or --runtime /path/of/runc"
        );
    }
    Ok(here.swap_remove(0).1)
}

/// The family that made the container that a command line is about, by the state that it keeps.
pub fn made_by(root: Option<&Path>, args: &[OsString]) -> Option<Family> {
    let roots = root.map_or_else(|| ROOTS.map(PathBuf::from).to_vec(), |root| vec![root.to_owned()]);
    let is_name = |word: &&Path| {
        let mut parts = word.components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    let ids = args.iter().map(Path::new).filter(is_name);
    ids.flat_map(|id| roots.iter().map(move |root| root.join(id))).find_map(|state| {
        let kept = |name: &str| state.join(name).is_file();
        if kept("state.json") { Some(Family::Runc) } else { kept("status").then_some(Family::Crun) }
    })
}

/// Why a program cannot stand underneath.
fn fault(path: &Path) -> Option<String> {
    if !path.is_absolute() {
        return Some("is not named by an absolute path; write for example /usr/bin/runc".to_owned());
    }
    let data = match fs::metadata(path) {
        Ok(data) => data,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Some("does not exist; install it, or name another".to_owned());
        }
        Err(error) => return Some(format!("cannot be used: {error}; check the path")),
    };
    if !data.is_file() || data.permissions().mode() & 0o111 == 0 {
        return Some("is not an executable file; name the program itself".to_owned());
    }
    calls_tunjail(path, &data).then(|| {
        "is tunjail runtime itself, which would call itself for ever; name the real \
        one, such as /usr/bin/runc"
            .to_owned()
    })
}

/// This binary, under whatever name; another copy of it; a script around it, as dockerd before 23 writes one for a
/// runtime with runtimeArgs.
fn calls_tunjail(path: &Path, data: &Metadata) -> bool {
    let own = |data: &Metadata| (data.dev(), data.ino());
    let same = fs::metadata("/proc/self/exe").is_ok_and(|exe| own(&exe) == own(data));
    let named = path.file_name().is_some_and(|name| name == "tunjail" || name == "tunjail-runtime");
    same || named || is_script_around_tunjail(path)
}

fn is_script_around_tunjail(path: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64 * 1024).read_to_end(&mut text));
    read.is_ok() && text.starts_with(b"#!") && text.windows(7).any(|window| window == b"tunjail")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn program(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn what_cannot_stand_underneath_is_refused_with_the_mend() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        symlink(std::env::current_exe().unwrap(), path("runc")).unwrap();
        fs::hard_link(path("runc"), path("runc2")).unwrap();
        program(directory.path(), "script", "#!/bin/sh\nexec /usr/local/bin/tunjail-runtime --jail vpn \"$@\"\n");
        program(directory.path(), "tunjail-runtime", "another copy");
        fs::write(path("plain"), "").unwrap();
        for (name, expected) in [
            ("runc", "would call itself"),
            ("runc2", "would call itself"),
            ("script", "would call itself"),
            ("tunjail-runtime", "would call itself"),
            ("plain", "not an executable file"),
            ("", "not an executable file"),
            ("missing", "does not exist"),
            ("plain/under", "cannot be used"),
        ] {
            let error = named(&path(name), "t.toml:3").unwrap_err().to_string();
            assert!(error.starts_with("t.toml:3: the OCI runtime /") && error.contains(expected), "{name}: {error}");
        }
        assert!(named(Path::new("runc"), "--runtime").unwrap_err().to_string().contains("absolute path"));
        let good = program(directory.path(), "crun", "#!/bin/sh\nexec /usr/bin/crun \"$@\"\n");
        assert_eq!(named(&good, "--runtime").unwrap(), good);
    }

    #[test]
    fn what_is_found_is_never_tunjail() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        symlink("/proc/self/exe", path("itself")).unwrap();
        let [runc, crun] = ["runc", "crun"].map(|name| program(directory.path(), name, "real"));
        let places = |runc: &Path, crun: &Path| {
            let runc =
                [path("itself"), path("missing"), runc.to_owned(), path("later")].map(|path| (Family::Runc, path));
            let crun =
                [path("itself"), crun.to_owned(), path("missing"), path("later")].map(|path| (Family::Crun, path));
            [runc, crun].concat().try_into().unwrap()
        };
        assert_eq!(first_of(places(&runc, &crun), None).unwrap(), runc);
        assert_eq!(first_of(places(&runc, &crun), Some(Family::Runc)).unwrap(), runc);
        assert_eq!(first_of(places(&runc, &crun), Some(Family::Crun)).unwrap(), crun);
        assert_eq!(first_of(places(&runc, &path("none")), Some(Family::Crun)).unwrap(), runc);
        let error = first_of(places(&path("none"), &path("none")), None).unwrap_err().to_string();
        assert!(error.contains("no OCI runtime was found") && error.contains("--runtime"), "{error}");
    }

    #[test]
    fn a_containers_state_tells_who_made_it() {
        let root = tempfile::tempdir().unwrap();
        for (id, file) in [("r1", "state.json"), ("c1", "status"), ("other", "notes")] {
            fs::create_dir(root.path().join(id)).unwrap();
            fs::write(root.path().join(id).join(file), "").unwrap();
        }
        let made_by = |line: &str| {
            let args: Vec<OsString> = line.split(' ').map(Into::into).collect();
            made_by(Some(root.path()), &args)
        };
        assert_eq!(made_by("kill r1 KILL"), Some(Family::Runc));
        assert_eq!(made_by("exec --process /p c1"), Some(Family::Crun));
        assert_eq!(made_by("delete --force other"), None);
        assert_eq!(made_by("state .. / ../c1"), None);
    }

    #[test]
    fn a_family_goes_by_the_name() {
        assert_eq!(Family::of(Path::new("/usr/bin/crun")), Family::Crun);
        assert_eq!(Family::of(Path::new("/usr/bin/crun-wasm")), Family::Crun);
        assert_eq!(Family::of(Path::new("/usr/sbin/runc")), Family::Runc);
        assert_eq!(Family::of(Path::new("/opt/youki")), Family::Runc);
    }
}
