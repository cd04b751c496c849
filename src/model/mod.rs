//! The pure half: what a jail means, what the kernel should hold for it, and how to get there.
//!
//! Nothing in here reads a file, a socket, a clock or the environment. That is what makes every decision of tunjail
//! printable (`--dry-run`), snapshot-tested, and the same for `hook`, `up`, `exit`, `watch` and `check`.
//!
//! - [`names`], [`policy`]: the words, checked once at the edge
//! - [`objects`]: rules, routes and set elements, as the plan and the kernel both spell them
//! - [`facts`]: what was observed
//! - [`desired`], [`ruleset`]: what the kernel should hold for a jail and its members
//! - [`endpoint`]: the way to a tunnel's other end, where the tunnel covers it
//! - [`forward`]: which ports of the exit lead to a member
//! - [`admit`], [`conflict`]: whether a container, or a subnet, can be held at all
//! - [`plan`]: how to get from the one to the other
//! - [`verify`]: whether the kernel now holds it

pub mod admit;
pub mod conflict;
pub mod desired;
pub mod endpoint;
pub mod facts;
pub mod forward;
pub mod names;
pub mod objects;
pub mod plan;
pub mod policy;
pub mod ruleset;
pub mod verify;

#[cfg(test)]
mod tests;
