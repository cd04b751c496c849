//! Standing in for an OCI runtime: what was said ([`mod@line`]), the hooks put into the bundle ([`bundle`]), the runtime
//! that does the work ([`underneath`]), and errors where the engine looks for a runtime's own ([`log`]).
//!
//! One rule governs it: a container is made with tunjail's hooks in its bundle, or not at all. Everything else is handed
//! on as it came.

pub mod bundle;
pub mod line;
pub mod log;
pub mod underneath;
