//! Other Debian releases, whose engines and nft run in the lab as the machine's own do.
//!
//! A release is a root file system that `scripts/releases` made, and is seen through a mount namespace: the same
//! network, processes, control groups, `/run`, `/etc/tunjail` and `/usr/local/bin/tunjail` as the lab's, but the
//! release's programs and libraries. What is written there goes to the lab's tmpfs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::product::TUNJAIL;
use crate::run::{Cmd, Job, wait_until};
use crate::tools;
use crate::world::{Lab, OWN_DIRS};

/// Where programs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// The machine's own: nothing of it is made.
    Bookworm,
    Trixie,
    Sid,
}

impl Release {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }

    /// Its root file system as the machine has it; never written.
    ///
    /// # Panics
    /// When `scripts/releases` has not made it.
    pub fn root(self) -> PathBuf {
        if self == Self::Bookworm {
            return "/".into();
        }
        let cache =
            std::env::var_os("TUNJAIL_LAB_CACHE").map_or_else(|| "/var/cache/tunjail-lab".into(), PathBuf::from);
        let root = cache.join(self.name()).join("root");
        assert!(root.is_dir(), "{} is not there: run scripts/releases {}", root.display(), self.name());
        root
    }

    /// The program's path within the release.
    fn path_of(self, program: &str) -> PathBuf {
        if self == Self::Bookworm || program.contains('/') {
            return if program.contains('/') { program.into() } else { tools::path_of(program) };
        }
        let root = self.root();
        // Not followed: the link that update-alternatives makes is absolute, and means the release's own file.
        let found = tools::PATH.split(':').map(|dir| Path::new(dir).join(program)).find(|path| {
            let inside = root.join(path.strip_prefix("/").expect("PATH is absolute"));
            inside.symlink_metadata().is_ok()
        });
        found.unwrap_or_else(|| panic!("{} has no {program}: add its package to scripts/releases", self.name()))
    }
}

/// A release in a lab. Cheap to clone: all clones are one mount namespace.
#[derive(Debug, Clone)]
pub struct Guest {
    release: Release,
    /// None: the lab's own.
    mounts: Option<Rc<Mounts>>,
}

#[derive(Debug)]
struct Mounts {
    file: File,
    /// The same for other programs, as long as the one that made it sleeps.
    path: String,
    _maker: Job,
}

impl Guest {
    /// The machine's own release.
    pub fn own() -> Self {
        Self { release: Release::Bookworm, mounts: None }
    }

    pub fn new(lab: &Lab, release: Release) -> Self {
        if release == Release::Bookworm {
            return Self::own();
        }
        // What is mounted there later is seen in the guest as well.
        mount(None::<&str>, "/run", None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("/run to be shared");
        for dir in ["/etc/tunjail", "/etc/iproute2"] {
            fs::create_dir_all(dir).expect("a directory that the guest shares");
        }
        let dir = lab.dir(&format!("guests/{}", release.name()));
        for part in ["upper", "work"] {
            fs::create_dir_all(dir.join(part)).expect("an overlay directory");
        }
        let script = enter(&release.root(), &dir);
        let mut maker =
            Cmd::new("unshare", &["--mount", "--propagation", "unchanged", "/bin/sh", "-ec", &script]).spawn();
        wait_until("the guest's mounts", Duration::from_secs(10), || {
            assert!(!maker.ended(), "the guest's mounts: {}", maker.stderr());
            maker.stdout().contains("ready")
        });
        let path = format!("/proc/{}/ns/mnt", lab.pid_inside(&maker));
        let file = File::open(&path).expect("the guest's mounts");
        Self { release, mounts: Some(Rc::new(Mounts { file, path, _maker: maker })) }
    }

    pub fn release(&self) -> Release {
        self.release
    }

    /// The program's path within the release.
    pub fn path_of(&self, program: &str) -> PathBuf {
        self.release.path_of(program)
    }

    /// A command of the release.
    pub fn cmd(&self, program: &str, args: &[&str]) -> Cmd {
        let cmd = Cmd::new(self.release.path_of(program), args);
        match &self.mounts {
            Some(mounts) => cmd.mounted(self.release.name(), mounts.file.try_clone().expect("a file handle")),
            None => cmd,
        }
    }

    /// The same by a shell.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        self.cmd("/bin/sh", &["-ec", line]).ok()
    }

    /// A command line by which a program outside runs one of the release, given with its path.
    pub fn line(&self, command: &str) -> String {
        match &self.mounts {
            Some(mounts) => format!("{} --mount={} {command}", tools::path_of("nsenter").display(), mounts.path),
            None => command.into(),
        }
    }

    /// A file as the release's programs see it; its directories are made.
    pub fn write(&self, path: &str, contents: &str) {
        let own = self.mounts.is_some() || OWN_DIRS.iter().any(|dir| path.starts_with(&format!("/{dir}/")));
        assert!(own, "{path} is the machine's, not the lab's");
        let script = r#"mkdir -p "$(dirname "$1")"; cat >"$1""#;
        self.cmd("/bin/sh", &["-ec", script, "sh", path]).stdin(contents).ok();
    }
}

/// The steps into a release, for a shell that is in its own mount namespace.
fn enter(lower: &Path, dir: &Path) -> String {
    let (lower, dir) = (lower.display(), dir.display());
    // /run alone stays what the lab sees, namespaces that `ip netns` mounts later included. Before the old root is taken
    // off it is made private: taking off a shared mount takes off the lab's.
    let tunjail = fs::canonicalize(TUNJAIL).expect("tunjail in the lab");
    let tunjail = tunjail.display();
    format!(
        "mount -t overlay -o lowerdir={lower},upperdir={dir}/upper,workdir={dir}/work guest /mnt
        cd /mnt
        for tree in dev proc sys run; do mount --rbind /$tree $tree; done
        mkdir -p etc/tunjail etc/iproute2 usr/local/bin
        for shared in tunjail iproute2; do mount --bind /etc/$shared etc/$shared; done
        for name in tunjail tunjail-runtime; do
            touch usr/local/bin/$name
            mount --bind {tunjail} usr/local/bin/$name
        done
        cat /etc/resolv.conf >etc/resolv.conf
        mkdir -p .lab
        pivot_root . .lab
        mount --make-rprivate /.lab
        umount -l /.lab
        rmdir /.lab
        echo ready
        exec sleep 3600"
    )
}
