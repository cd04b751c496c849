//! tunjail keeps a container behind one host interface: its packets leave by that interface or not at all.
//!
//! # The way through this crate
//!
//! A container runtime calls `tunjail hook create-runtime` and writes the container's state on stdin. From there the
//! data goes one way:
//!
//! ```text
//! config + OCI state -> which jail -> facts -> desired -> plan -> apply -> re-read -> verify -> record
//! ```
//!
//! Begin with `commands/hook.rs`, which is thin. [`config`] and [`oci`] make checked values of what they are given;
//! whatever they accept is safe to put into a kernel object. [`hold::enter`] then walks the way above for one
//! container, and [`hold::wall`] for one jail. Both ask [`model`] for every decision: it is pure, so that what will be
//! done can be printed, tested and compared. Both leave the doing to [`kernel`] and the remembering to [`store`].
//!
//! `up`, `exit`, `check` and `--dry-run` walk the same way and stop at different places; [`hold::watch`] walks it again
//! whenever the kernel tells of a change.
//!
//! Before all this an engine has to call tunjail: [`engine::install`] writes that into the engine's own files and takes it
//! out again, and [`engine::wiring`] says, for `check`, whether it would.
//!
//! # The words
//!
//! A *jail* is a policy, an *exit* the interface it leaves by, a *member* a container that it holds. The *wall* is the
//! jail's host-side state: ip rules into its own routing table (the route wall) and its own nftables table (the filter
//! wall), each enough alone. The *guard* makes a member's bridge port speak as itself. The *lock* is the nftables table
//! inside the member's namespace: only what was confirmed may emit.
//!
//! # The rule
//!
//! Arrows go down only: commands → hold → kernel, store, engine, exit → model. On the way of a container's start every
//! error ends in a closed lock and a non-zero exit; there is no "log and continue" there.

pub mod cli;
pub mod commands;
pub mod config;
pub mod engine;
pub mod exit;
pub mod hold;
pub mod journal;
pub mod kernel;
pub mod model;
pub mod oci;
pub mod rt_tables;
pub mod store;
