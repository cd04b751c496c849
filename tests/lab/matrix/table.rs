//! The table. A row is an engine of a release; its cells are the ways in, left to right as [`super::Way::ALL`] has them.

use super::Cell::{self, CannotBecause, Late, Works};
use super::Engine::{Docker, Oci, Podman};
use super::Row;
use crate::guest::Release::{Bookworm, Sid, Trixie};

const NO_DIR: Cell = CannotBecause("a runtime reads no hooks.d; the engine above it does");
const NO_NAMES: Cell = CannotBecause("a runtime resolves no CDI names; the engine above it does");
const DOCKER_DIR: Cell = CannotBecause("Docker reads no hooks.d");
const DOCKER_CDI: Cell = CannotBecause("Docker knows CDI since 25.0");
const DOCKER_NOTES: Cell = CannotBecause("`docker run --annotation` came with Docker 24.0");
const OWN_CONFIG: Cell = CannotBecause("the engine writes config.json anew at each start");

macro_rules! table {
    ($($name:ident: $engine:expr, $release:ident, $cells:expr;)*) => {
        /// Every row, in the order of the document.
        pub const TABLE: &[Row] = &[$(Row { name: stringify!($name), engine: $engine, release: $release, cells: $cells }),*];

        $(#[test]
        fn $name() {
            super::run(TABLE.iter().find(|row| row.name == stringify!($name)).expect("the test's own row"));
        })*
    };
}

const fn podman(runtime: &'static str) -> super::Engine {
    Podman { runtime, userns: false }
}

const fn podman_userns(runtime: &'static str) -> super::Engine {
    Podman { runtime, userns: true }
}

table! {
//                                                         hooks.d     hooks.d     CDI         wrapper,   wrapper,      wrapper,   config.json
//                                                         annotation  always      device      --jail     annotation    subnet     by hand
runc_bookworm:          Oci("runc"), Bookworm,            [NO_DIR,     NO_DIR,     NO_NAMES,   Works,     Works,        Works,     Works];
runc_sid:               Oci("runc"), Sid,                 [NO_DIR,     NO_DIR,     NO_NAMES,   Works,     Works,        Works,     Works];
crun_bookworm:          Oci("crun"), Bookworm,            [NO_DIR,     NO_DIR,     NO_NAMES,   Works,     Works,        Works,     Works];
crun_sid:               Oci("crun"), Sid,                 [NO_DIR,     NO_DIR,     NO_NAMES,   Works,     Works,        Works,     Works];
podman_crun_bookworm:   podman("crun"), Bookworm,         [Works,      Works,      Works,      Works,     Works,        Works,     OWN_CONFIG];
podman_runc_bookworm:   podman("runc"), Bookworm,         [Works,      Works,      Works,      Works,     Works,        Works,     OWN_CONFIG];
podman_trixie:          podman("crun"), Trixie,           [Works,      Works,      Works,      Works,     Works,        Works,     OWN_CONFIG];
podman_sid:             podman("crun"), Sid,              [Works,      Works,      Works,      Works,     Works,        Works,     OWN_CONFIG];
podman_userns_bookworm: podman_userns("runc"), Bookworm,  [Late,       Late,       Late,       Late,      Late,         Late,      OWN_CONFIG];
podman_userns_trixie:   podman_userns("crun"), Trixie,    [Late,       Late,       Late,       Late,      Late,         Late,      OWN_CONFIG];
podman_userns_sid:      podman_userns("crun"), Sid,       [Late,       Late,       Late,       Late,      Late,         Late,      OWN_CONFIG];
docker_bookworm:        Docker, Bookworm,                 [DOCKER_DIR, DOCKER_DIR, DOCKER_CDI, Works,     DOCKER_NOTES, Works,     OWN_CONFIG];
docker_trixie:          Docker, Trixie,                   [DOCKER_DIR, DOCKER_DIR, Works,      Works,     Works,        Works,     OWN_CONFIG];
docker_sid:             Docker, Sid,                      [DOCKER_DIR, DOCKER_DIR, Late,       Late,      Late,         Late,      OWN_CONFIG];
}
