//! Promise P8: unsure means closed. Whatever cannot be held, read or done is refused in one line that says what and how
//! to mend it; the container does not start, and the host is as it was.

mod configs;
mod engines;
mod host;
mod networks;
mod rootless;
mod states;
