//! Kinds of exits: how each tells that it came or went.
//!
//! An exit is an interface; most need no wiring beyond its being there. What a kind needs beyond that is one file here.

pub mod openvpn;
pub mod wireguard;
