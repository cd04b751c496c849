//! tunjail itself, called as an administrator calls it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::run::Out;
use crate::world::Lab;

/// Where `make install` puts the program, and where the files in hooks/ expect it.
pub const TUNJAIL: &str = "/usr/local/bin/tunjail";
/// Its second name.
pub const RUNTIME: &str = "/usr/local/bin/tunjail-runtime";
/// Where an administrator keeps the configuration; the lab's /etc is its own.
pub const CONFIG: &str = "/etc/tunjail/tunjail.toml";

/// The recipe's jail in one table: bridge `vpn`, exit tun0, one LAN allowed.
pub const JAIL: &str = r#"[jail.vpn]
subnets = ["172.18.0.0/16", "fd00:18::/64"]
exit = "tun0"
allow = ["192.168.178.0/24", "2001:db8:178::/64"]
"#;

/// The same without the LAN: nothing but the exit.
pub const STRICT_JAIL: &str = r#"[jail.vpn]
subnets = ["172.18.0.0/16", "fd00:18::/64"]
exit = "tun0"
"#;

/// The program under test and its second name, in the lab's own /usr/local.
pub fn install() {
    let _ = fs::create_dir_all("/usr/local/bin");
    for name in [TUNJAIL, RUNTIME] {
        let _ = fs::remove_file(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tunjail"), name).expect("tunjail in /usr/local/bin");
    }
}

/// The same as a copy, as `make install` puts it there: a program that asks for its own path is told where it really lies.
pub fn install_copy() {
    for name in [TUNJAIL, RUNTIME] {
        fs::remove_file(name).expect("the link removed");
    }
    fs::copy(env!("CARGO_BIN_EXE_tunjail"), TUNJAIL).expect("tunjail copied");
    std::os::unix::fs::symlink("tunjail", RUNTIME).expect("its second name");
}

/// Lines that tunjail itself wrote into somebody's error message.
pub fn own_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains("tunjail: ")).collect()
}

impl Lab {
    pub fn configure(&self, toml: &str) {
        fs::create_dir_all("/etc/tunjail").expect("/etc/tunjail");
        fs::write(CONFIG, toml).expect("the configuration");
        fs::set_permissions(CONFIG, fs::Permissions::from_mode(0o644)).expect("its mode");
    }

    /// `tunjail ARGS`, whatever comes of it.
    #[track_caller]
    pub fn tunjail(&self, args: &[&str]) -> Out {
        self.tools().cmd(TUNJAIL, args).out()
    }

    /// `tunjail ARGS`, which must succeed.
    #[track_caller]
    pub fn tunjail_ok(&self, args: &[&str]) -> String {
        self.tools().cmd(TUNJAIL, args).ok()
    }

    /// The script for OpenVPN's `up` and `down`.
    pub fn exit_script(&self) -> String {
        self.tools().line(&format!("{TUNJAIL} exit"))
    }
}
