//! DNS servers that write down who asked them for what.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::run::{Cmd, Job, wait_until};
use crate::world::{DIR, Netns};

/// Where a server's answers come from.
pub enum Answers<'a> {
    /// The same address for every name.
    Always(&'a str),
    /// Another server's, asked from wherever this one runs.
    From(&'a str),
}

/// A dnsmasq. Stops when dropped.
pub struct Resolver {
    log: PathBuf,
    job: Job,
}

impl Resolver {
    /// In a namespace, or on the host, at these addresses.
    pub fn start(place: Option<&Netns>, name: &str, addresses: &[&str], answers: Answers) -> Self {
        let log = Path::new(DIR).join(format!("{name}.log"));
        let source = match answers {
            Answers::Always(address) => format!("--address=/#/{address}"),
            Answers::From(server) => format!("--server={server}"),
        };
        let line = format!(
            "--no-daemon --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --user=root --pid-file= \
             --cache-size=0 --listen-address={} {source} --log-queries --log-facility={}",
            addresses.join(","),
            log.display()
        );
        let cmd = Cmd::new("dnsmasq", &line.split(' ').collect::<Vec<_>>());
        let job = match place {
            Some(netns) => cmd.within(netns).spawn(),
            None => cmd.spawn(),
        };
        let mut resolver = Self { log, job };
        // It writes this once its sockets are there.
        wait_until("a resolver", Duration::from_secs(5), || {
            assert!(!resolver.job.ended(), "dnsmasq ended: {}", resolver.log());
            resolver.log().contains("started")
        });
        resolver
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Who asked for a name, each time.
    pub fn askers(&self, name: &str) -> Vec<String> {
        self.asked().into_iter().filter(|(asked, _)| asked == name).map(|(_, asker)| asker).collect()
    }

    /// Every question: the name, and who asked.
    pub fn asked(&self) -> Vec<(String, String)> {
        let log = self.log();
        let questions = log.lines().filter_map(|line| line.split_once("query[")?.1.split_once("] "));
        questions
            .filter_map(|(_, rest)| rest.split_once(" from "))
            .map(|(name, asker)| (name.into(), asker.into()))
            .collect()
    }

    pub fn end(&mut self) {
        self.job.end();
    }
}
