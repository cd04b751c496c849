//! Every engine × every way in that it has: promises P1, P2, P3, P7 and P9, on the real thing.
//!
//! [`table`] is the one table. Its rows are the tests, and it prints itself into docs/engines.md ([`doc`]). What a row
//! does with its engine is in [`wired`]; what a cell is held to, in [`cell`].

mod cell;
mod doc;
mod table;
pub mod wired;

pub use self::cell::{at_rest, comes_to_be, control_of_the_loss};
use crate::guest::Release;
use crate::vpn::Vpn;
use crate::world::Lab;

/// What runs the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// runc or crun, called by hand.
    Oci(&'static str),
    /// Podman with this runtime, and `--userns=auto` or not.
    Podman {
        runtime: &'static str,
        userns: bool,
    },
    Docker,
}

/// How the hook gets to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// hooks.d, for containers with the annotation.
    HooksAnnotation,
    /// hooks.d, for every container: its address decides.
    HooksAlways,
    /// `--device tunjail.io/jail=vpn`.
    Cdi,
    /// `tunjail runtime --jail vpn` in the runtime's place.
    WrapperJail,
    /// `tunjail runtime`, and the container's annotation.
    WrapperAnnotation,
    /// `tunjail runtime`: the container's address decides.
    WrapperSubnet,
    /// The hooks stand in the bundle's config.json.
    Config,
}

impl Way {
    pub const ALL: [Self; 7] = [
        Self::HooksAnnotation,
        Self::HooksAlways,
        Self::Cdi,
        Self::WrapperJail,
        Self::WrapperAnnotation,
        Self::WrapperSubnet,
        Self::Config,
    ];

    /// Whether `start` waits until a late address is confirmed.
    fn waits(self) -> bool {
        matches!(self, Self::WrapperJail | Self::WrapperAnnotation | Self::WrapperSubnet)
    }

    fn name(self) -> &'static str {
        match self {
            Self::HooksAnnotation => "hooks-annotation",
            Self::HooksAlways => "hooks-always",
            Self::Cdi => "cdi",
            Self::WrapperJail => "wrapper-jail",
            Self::WrapperAnnotation => "wrapper-annotation",
            Self::WrapperSubnet => "wrapper-subnet",
            Self::Config => "config",
        }
    }
}

/// What is to be expected of an engine and a way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// The address is there when the hook runs: a member is held before its first instruction.
    Works,
    /// The address comes after the hook: a member is locked until it is confirmed. Where no wrapper waits at `start`, it
    /// may have no CAP_NET_ADMIN.
    Late,
    CannotBecause(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its test's name.
    pub name: &'static str,
    pub engine: Engine,
    pub release: Release,
    /// In the order of [`Way::ALL`].
    pub cells: [Cell; 7],
}

fn run(row: &Row) {
    let lab = Lab::new();
    lab.configure(crate::product::STRICT_JAIL);
    let engine = wired::start(&lab, row.engine, row.release);
    let server = Vpn::start_server(&lab);
    let mut client = server.client(Some(&lab.exit_script()));
    println!("matrix: {}: {}", row.name, engine.version());
    let controls = cell::controls(&lab, &mut client, &*engine);
    for (way, cell) in Way::ALL.into_iter().zip(row.cells) {
        let case = format!("{}-{}", row.name, way.name());
        println!("matrix: {case}: {cell:?}");
        match cell {
            Cell::Works | Cell::Late => {
                cell::Case { lab: &lab, engine: &*engine, way, late: cell == Cell::Late, name: &case, controls }
                    .holds(&mut client);
            }
            Cell::CannotBecause(_) => cell::cannot(&lab, &*engine, way),
        }
    }
}
