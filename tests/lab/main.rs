//! The lab: a small internet in network namespaces that each test makes for itself, with real engines and a real
//! OpenVPN, on which tunjail is held to its promises.
//!
//! # The map
//!
//! ```text
//!            vpn 203.0.113.10                 OpenVPN server, masquerades what comes out of the tunnel
//!             |
//!            inet 198.51.100.80 (echo, HTTP), .53 (DNS)      the internet: everything here is out of reach for a
//!             |                                              jail but through the tunnel
//!            router 198.51.100.1 / 192.168.178.1             counts, exactly, every frame from the host's uplink
//!             |         |
//!   lan 192.168.178.50  host 192.168.178.2                   the machine under test: the test's own namespaces
//!                         |
//!                       bridge `vpn` 172.18.0.1/16           what an engine makes, with members on it
//! ```
//!
//! Where a test wants a second exit, [`uplink`] adds another provider beside the router: `isp`, at the other end of the
//! host's eth1.
//!
//! IPv6 runs beside it: 2001:db8:178::/64 is the LAN, 2001:db8:51::/64 the internet, 2001:db8:113::10 the VPN server,
//! fd00:18::/64 the bridge.
//!
//! # The rules of the house
//!
//! - [`world::Lab::new`] gives the calling thread network, mount and pid namespaces of its own before anything else
//!   happens; nothing that a test does is seen outside, and when the test ends, however it ends, the kernel ends every
//!   process in them.
//! - A leak is a number read from a counter on the router, never a sample. Every leak test first shows that the same
//!   probe *is* counted with the jail off: see [`leaks`].
//! - Nothing is skipped: no root or a missing tool is a failure that says what to install.
//! - No fixed sleeps: tests wait for what they need, with a limit ([`run::wait_until`]).
//! - After `Lab::new` the test thread cannot start threads (its children belong to another pid namespace: clone(2),
//!   EINVAL), so outputs go to files and background work is done by processes.

mod bridge;
mod engine;
mod guest;
mod leaks;
mod pki;
mod product;
mod resolver;
mod rootfs;
mod run;
mod scene;
mod snapshot;
mod tools;
mod uplink;
mod vpn;
mod world;
mod yard;

mod chaos;
mod closed;
mod containerd;
mod dns;
mod engines;
mod exits;
mod forward;
mod host;
mod hostile;
mod infra;
mod install;
mod late;
mod matrix;
mod openvpn;
mod recipe;
mod refusals;
mod runtime;
mod teardown;
mod traffic;
mod wireguard;
mod works;
