//! Certificates for OpenVPN: a CA, a server, a client; ECDSA, good for a day, made once per lab.

use std::path::{Path, PathBuf};

use crate::run::Cmd;
use crate::world::Lab;

/// The directory with ca.crt, server.crt, server.key, client.crt and client.key.
pub fn make(lab: &Lab) -> PathBuf {
    let dir = lab.dir("pki");
    if dir.join("client.crt").exists() {
        return dir;
    }
    openssl(&dir, "req -x509 -new -newkey ec:ec.param -nodes -keyout ca.key -out ca.crt -days 1 -subj /CN=lab", true);
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        std::fs::write(
            dir.join(format!("{name}.ext")),
            format!("extendedKeyUsage={usage}\nkeyUsage=digitalSignature\n"),
        )
        .expect("certificate extensions");
        openssl(
            &dir,
            &format!("req -new -newkey ec:ec.param -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"),
            false,
        );
        let sign = format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 1 -extfile {name}.ext"
        );
        openssl(&dir, &sign, false);
    }
    dir
}

fn openssl(dir: &Path, args: &str, first: bool) {
    if first {
        Cmd::new("openssl", &["ecparam", "-name", "prime256v1", "-out", "ec.param"]).cwd(dir).ok();
    }
    Cmd::new("openssl", &args.split(' ').collect::<Vec<_>>()).cwd(dir).ok();
}
