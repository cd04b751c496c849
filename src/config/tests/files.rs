//! Which files are read, in which order, and which are not trusted.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

const VPN: &str = "[jail.vpn]\nsubnets = [\"172.18.0.0/16\"]\nexit = \"tun0\"\n";
const OFFICE: &str = "[jail.office]\nsubnets = [\"172.19.0.0/16\"]\nexit = \"tun0\"\n";

/// A directory with a main file and `jails.d`.
struct Files(TempDir);

impl Files {
    fn new(main: impl AsRef<[u8]>) -> Self {
        let files = Self(TempDir::new().unwrap());
        fs::create_dir(files.path("jails.d")).unwrap();
        files.mode("jails.d", 0o755).with("tunjail.toml", main)
    }

    fn with(self, name: &str, contents: impl AsRef<[u8]>) -> Self {
        fs::write(self.path(name), contents).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o644)).unwrap();
        self
    }

    fn mode(self, name: &str, mode: u32) -> Self {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(Some(&self.path("tunjail.toml")))
    }

    /// The message, with the directory's name taken out.
    #[track_caller]
    fn refused(&self) -> String {
        let message = self.load().expect_err("must be refused").to_string();
        message.replace(&format!("{}/", self.0.path().display()), "")
    }
}

#[test]
fn jails_d_adds_jails_in_the_order_of_names() {
    // Neither the order in which the files are made nor its reverse is that of their names.
    let mut files = Files::new(VPN).with("jails.d/.#30-d.toml", "not toml").with("jails.d/30-d.toml~", "not toml");
    for number in [3, 5, 1, 4, 2] {
        let text = format!("[jail.j{}]\nsubnets = [\"10.{number}.0.0/16\"]\nexit = \"tun0\"\n", 9 - number);
        files = files.with(&format!("jails.d/{number}.toml"), text);
    }
    let config = files.load().unwrap();
    let names: Vec<&str> = config.jails.iter().map(|jail| jail.name.as_str()).collect();
    assert_eq!(names, ["vpn", "j8", "j7", "j6", "j5", "j4"]);
    let sources =
        ["tunjail.toml", "jails.d/1.toml", "jails.d/2.toml", "jails.d/3.toml", "jails.d/4.toml", "jails.d/5.toml"];
    assert_eq!(config.sources, sources.map(|name| files.path(name)));
}

#[test]
fn jails_d_may_be_absent() {
    let files = Files::new(VPN);
    fs::remove_dir(files.path("jails.d")).unwrap();
    assert_eq!(files.load().unwrap().jails.len(), 1);
    symlink("nowhere", files.path("jails.d")).unwrap();
    assert_eq!(
        files.refused(),
        "jails.d: cannot be opened: No such file or directory (os error 2); it was listed but leads nowhere: remove it, \
         or mend the link"
    );
}

#[test]
fn files_are_checked_against_each_other() {
    assert_eq!(
        Files::new(VPN).with("jails.d/a.toml", format!("\n{VPN}")).refused(),
        "jails.d/a.toml:2: jail.vpn: is defined already (tunjail.toml:1); rename or remove one of them"
    );
    assert_eq!(
        Files::new(VPN).with("jails.d/a.toml", OFFICE.replace("172.19.0.0/16", "172.18.7.0/24")).refused(),
        "jails.d/a.toml:2: jail.office: subnet 172.18.7.0/24 overlaps 172.18.0.0/16 of jail.vpn (tunjail.toml:2); give \
         each address to one jail"
    );
    assert!(
        Files::new(VPN).with("jails.d/a.toml", "x = 1").refused().starts_with("jails.d/a.toml:1: unknown key \"x\"")
    );
}

#[test]
fn a_missing_file_is_named_with_the_mend() {
    let files = Files::new("");
    fs::remove_file(files.path("tunjail.toml")).unwrap();
    assert_eq!(
        files.refused(),
        "tunjail.toml: no such file; create it with a line such as: jail.vpn = { subnets = [\"172.18.0.0/16\"], exit = \
         \"tun0\" }"
    );
}

#[test]
fn an_unreadable_file_is_named_with_the_mend() {
    // Root reads every file, so a loop of links stands for what cannot be opened.
    let files = Files::new(VPN);
    fs::remove_file(files.path("tunjail.toml")).unwrap();
    symlink("tunjail.toml", files.path("tunjail.toml")).unwrap();
    assert_eq!(
        files.refused(),
        "tunjail.toml: cannot be opened: Too many levels of symbolic links (os error 40); check the path"
    );
    let fault = FileFault::Open(std::io::Error::from_raw_os_error(nix::libc::EACCES));
    assert_eq!(
        ConfigError::File { path: "t.toml".into(), fault }.to_string(),
        "t.toml: cannot be opened: Permission denied (os error 13); run tunjail as root, or make the file readable for \
         the user that runs it"
    );
}

#[test]
fn what_is_no_file_is_refused() {
    let files = Files::new(VPN);
    let error = Config::load(Some(&files.path("jails.d"))).unwrap_err().to_string();
    assert!(error.ends_with("/jails.d: is a directory; name a file"), "{error}");
    fs::create_dir(files.path("jails.d/a.toml")).unwrap();
    assert_eq!(files.refused(), "jails.d/a.toml: is a directory; name a file");

    let files = Files::new(VPN);
    nix::unistd::mkfifo(&files.path("jails.d/a.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(files.refused(), "jails.d/a.toml: is not a regular file; name one");

    let files = Files::new(VPN);
    fs::remove_dir(files.path("jails.d")).unwrap();
    let files = files.with("jails.d", "");
    assert_eq!(files.refused(), "jails.d: is not a directory; remove it, or move it away");
}

#[test]
fn a_huge_file_is_refused() {
    let mut text = VPN.as_bytes().to_vec();
    text.resize(1024 * 1024, b'\n');
    assert_eq!(Files::new(&text).load().unwrap().jails.len(), 1);
    text.push(b'\n');
    let message = "is larger than 1024 KiB; split it into files in jails.d next to it";
    assert_eq!(Files::new(&text).refused(), format!("tunjail.toml: {message}"));
    assert_eq!(Files::new(VPN).with("jails.d/a.toml", &text).refused(), format!("jails.d/a.toml: {message}"));
}

#[test]
fn what_is_not_utf8_is_refused_with_its_line() {
    assert_eq!(Files::new(b"# one\n# \xff\n").refused(), "tunjail.toml:2: is not UTF-8; save the file as UTF-8");
}

#[test]
fn what_everyone_may_write_is_refused() {
    assert_eq!(
        Files::new(VPN).mode("tunjail.toml", 0o646).refused(),
        "tunjail.toml: may be written by everyone; run: chmod o-w tunjail.toml"
    );
    assert_eq!(
        Files::new(VPN).with("jails.d/a.toml", OFFICE).mode("jails.d/a.toml", 0o666).refused(),
        "jails.d/a.toml: may be written by everyone; run: chmod o-w jails.d/a.toml"
    );
    assert_eq!(
        Files::new(VPN).mode("jails.d", 0o1777).refused(),
        "jails.d: may be written by everyone; run: chmod o-w jails.d"
    );
}

#[test]
fn a_hostile_path_does_not_break_the_line() {
    let error = Config::load(Some(Path::new("/nowhere/a\nb"))).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/a\\nb: no such file; "), "{error}");
    let error = Config::load(Some(Path::new("/nowhere/a\0b"))).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/a\\u{0}b: cannot be opened: "), "{error}");
}

#[test]
fn the_runtime_is_named_in_the_main_file_only() {
    let runtime = "\n[runtime]\npath = \"/usr/bin/crun\"\n";
    let files = Files::new(format!("{VPN}{runtime}"));
    let config = files.load().unwrap();
    let named = config.runtime.unwrap();
    let place = format!("{}:6", files.path("tunjail.toml").display());
    assert_eq!((named.path.as_path(), named.place), (Path::new("/usr/bin/crun"), place));
    assert_eq!(Files::new(VPN).load().unwrap().runtime, None);
    assert_eq!(
        Files::new(VPN).with("jails.d/a.toml", runtime).refused(),
        "jails.d/a.toml:3: runtime belongs into the main file; move it to tunjail.toml"
    );
}

#[test]
fn the_runtime_is_known_even_where_the_rest_is_wrong() {
    let alone = |files: &Files| Config::runtime_alone(Some(&files.path("tunjail.toml"))).map(|runtime| runtime.path);
    let runtime = "[runtime]\npath = \"/usr/bin/crun\"\n[jail.vpn]\nsubnets = 7\n";
    let files = Files::new(runtime);
    assert!(files.load().is_err());
    assert_eq!(alone(&files), Some("/usr/bin/crun".into()));
    assert_eq!(alone(&Files::new(format!("{runtime}[\n"))), None, "no TOML");
    assert_eq!(alone(&Files::new(runtime).mode("tunjail.toml", 0o666)), None, "not to be trusted");
    assert_eq!(alone(&Files::new("[runtime]\npath = \"crun\"\n")), None);
    assert_eq!(alone(&Files::new(VPN)), None);
}
