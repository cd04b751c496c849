//! stdin -> validated container.
//!
//! The OCI runtime-spec ("State") is what a runtime writes to a hook. oci-spec's type takes `{}` for a state, so the
//! members that a stage needs are demanded here.

use std::io::Read;

use oci_spec::runtime::State;
use serde_json::Value;

use crate::model::forward::{self, ListError};
use crate::model::names::{ContainerId, JailName, NameError, shorten};
use crate::model::policy::Forward;

/// The annotation that names a container's jail.
pub const ANNOTATION: &str = "io.tunjail.jail";
/// The annotation that asks for ports of the exit.
pub const FORWARD: &str = "io.tunjail.forward";

/// More than any engine writes; a state that is larger is no state.
const MAX_STATE: u64 = 1 << 20;

/// What is wrong with the state. Each text says what was expected.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("stdin could not be read: {0}")]
    Unreadable(std::io::Error),
    #[error("stdin is empty: a hook is called by an OCI runtime, which writes the container's state there")]
    Empty,
    #[error("the state on stdin is larger than {MAX_STATE} bytes, so it is not an OCI state")]
    TooLarge,
    #[error("the state on stdin is not valid JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("the state on stdin is not an OCI state: {0}")]
    NotState(String),
    #[error("the state on stdin has no \"{0}\"")]
    Missing(&'static str),
    #[error("the state's pid {0} is not a process id; createRuntime needs the container's process")]
    BadPid(i64),
    #[error("the state's status is \"{0}\", but createRuntime runs while a container is \"creating\" or \"created\"")]
    WrongStatus(String),
    #[error(transparent)]
    BadId(NameError),
    #[error("annotation {ANNOTATION}: {0}")]
    BadAnnotation(NameError),
    #[error("annotation {FORWARD}: {0}")]
    BadForward(ListError),
}

/// The container that a runtime asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: ContainerId,
    /// The jail that the annotation names.
    pub jail: Option<JailName>,
}

/// A container that has a process: what createRuntime is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    pub container: Container,
    pub pid: i32,
    /// The ports of the exit that the annotation asks for.
    pub forwards: Vec<Forward>,
}

/// The state that createRuntime gets. runc says "creating", crun "created"; both have a pid.
pub fn created(stdin: impl Read) -> Result<Created, StateError> {
    let state = read(stdin)?;
    let container = container(&state)?;
    let status = state.status().to_string();
    if !matches!(status.as_str(), "creating" | "created") {
        return Err(StateError::WrongStatus(status));
    }
    match state.pid() {
        None => Err(StateError::Missing("pid")),
        Some(pid) if *pid <= 0 => Err(StateError::BadPid((*pid).into())),
        Some(pid) => Ok(Created { container, pid: *pid, forwards: forwards(&state)? }),
    }
}

/// The state that poststop gets. runc leaves the pid out, crun says 0.
pub fn stopped(stdin: impl Read) -> Result<Container, StateError> {
    container(&read(stdin)?)
}

fn container(state: &State) -> Result<Container, StateError> {
    let id = state.id().parse().map_err(StateError::BadId)?;
    let jail = annotation(state, ANNOTATION).map(|name| name.parse().map_err(StateError::BadAnnotation)).transpose()?;
    Ok(Container { id, jail })
}

fn forwards(state: &State) -> Result<Vec<Forward>, StateError> {
    let asked = annotation(state, FORWARD).map(|text| forward::list(text).map_err(StateError::BadForward));
    Ok(asked.transpose()?.unwrap_or_default())
}

fn annotation<'a>(state: &'a State, name: &str) -> Option<&'a String> {
    state.annotations().as_ref().and_then(|annotations| annotations.get(name))
}

fn read(stdin: impl Read) -> Result<State, StateError> {
    let mut text = Vec::new();
    stdin.take(MAX_STATE + 1).read_to_end(&mut text).map_err(StateError::Unreadable)?;
    if text.len() as u64 > MAX_STATE {
        return Err(StateError::TooLarge);
    }
    if text.trim_ascii().is_empty() {
        return Err(StateError::Empty);
    }
    let value: Value = serde_json::from_slice(&text).map_err(StateError::NotJson)?;
    let object = value.as_object().ok_or_else(|| StateError::NotState("it is not a JSON object".to_owned()))?;
    for required in ["id", "status"] {
        if !object.contains_key(required) {
            return Err(StateError::Missing(required));
        }
    }
    serde_json::from_value(value).map_err(|error| StateError::NotState(shorten_error(&error)))
}

/// serde's message quotes the offending value, which can be as long as the input.
fn shorten_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.len() <= 160 { text } else { shorten(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNC: &str = r#"{"ociVersion":"1.0.2-dev","id":"c1","status":"creating","pid":42,"bundle":"/b","annotations":{"io.tunjail.jail":"vpn"}}"#;
    const CRUN: &str =
        r#"{"ociVersion":"1.0","id":"c1","pid":42,"root":"/run/crun/c1/rootfs","bundle":"/","status":"created"}"#;

    #[test]
    fn both_runtimes_shapes_are_read() {
        let runc = created(RUNC.as_bytes()).unwrap();
        assert_eq!((runc.pid, runc.container.jail.unwrap().as_str()), (42, "vpn"));
        assert!(runc.forwards.is_empty());
        let crun = created(CRUN.as_bytes()).unwrap();
        assert_eq!((crun.pid, crun.container.jail), (42, None));
        for text in [
            r#"{"ociVersion":"1.0","id":"c1","status":"stopped","bundle":"/b"}"#,
            r#"{"ociVersion":"1.0","id":"c1","status":"stopped","pid":0,"bundle":"/b"}"#,
        ] {
            assert_eq!(stopped(text.as_bytes()).unwrap().id.as_str(), "c1");
        }
    }

    /// poststop has to work whatever the annotation says.
    #[test]
    fn forwarded_ports_are_read_where_they_matter() {
        let state = |status: &str, ports: &str| {
            format!(
                r#"{{"ociVersion":"1.0","id":"c1","status":"{status}","pid":42,"bundle":"/","annotations":{{"io.tunjail.forward":"{ports}"}}}}"#
            )
        };
        let asked = created(state("created", "tcp/51413 udp/51413, tcp/8443:443").as_bytes()).unwrap().forwards;
        assert_eq!(
            asked.iter().map(Forward::to_string).collect::<Vec<_>>(),
            ["tcp/51413", "udp/51413", "tcp/8443:443"]
        );
        assert!(created(state("created", "").as_bytes()).unwrap_err().to_string().contains("it is empty"));
        assert_eq!(stopped(state("stopped", "nonsense").as_bytes()).unwrap().id.as_str(), "c1");
    }

    #[test]
    fn bad_states_are_refused_in_one_line() {
        let long_id =
            format!(r#"{{"ociVersion":"1.0","id":"{}","status":"created","pid":1,"bundle":"/"}}"#, "a".repeat(300));
        let huge = format!(r#"{{"id":"{}"}}"#, "a".repeat(10 << 20));
        for (text, expected) in [
            ("", "stdin is empty"),
            ("  \n", "stdin is empty"),
            (&RUNC[..30], "not valid JSON"),
            ("[]", "not a JSON object"),
            ("{}", "no \"id\""),
            (r#"{"id":"a"}"#, "no \"status\""),
            (r#"{"ociVersion":"1.0","id":"a","status":"dancing","pid":1,"bundle":"/"}"#, "not an OCI state"),
            (r#"{"ociVersion":"1.0","id":"a","status":"running","pid":1,"bundle":"/"}"#, "status is \"running\""),
            (r#"{"ociVersion":"1.0","id":"a","status":"created","bundle":"/"}"#, "no \"pid\""),
            (r#"{"ociVersion":"1.0","id":"a","status":"created","pid":0,"bundle":"/"}"#, "not a process id"),
            (r#"{"ociVersion":"1.0","id":"a","status":"created","pid":-4,"bundle":"/"}"#, "not a process id"),
            (r#"{"ociVersion":"1.0","id":"a/b","status":"created","pid":1,"bundle":"/"}"#, "container id \"a/b\""),
            (
                r#"{"ociVersion":"1.0","id":"a","status":"created","pid":1,"bundle":"/","annotations":{"x":1}}"#,
                "not an OCI state",
            ),
            (
                r#"{"ociVersion":"1.0","id":"a","status":"created","pid":1,"bundle":"/","annotations":[]}"#,
                "not an OCI state",
            ),
            (
                r#"{"ociVersion":"1.0","id":"a","status":"created","pid":1,"bundle":"/","annotations":{"io.tunjail.jail":"No Such"}}"#,
                "annotation io.tunjail.jail",
            ),
            (
                r#"{"ociVersion":"1.0","id":"a","status":"created","pid":1,"bundle":"/","annotations":{"io.tunjail.forward":"51413"}}"#,
                "annotation io.tunjail.forward: \"51413\" is not a forwarded port; write tcp/N",
            ),
            (&long_id, "container id"),
            (&huge, "larger than"),
        ] {
            let error = created(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected:?} not in {error:?}");
            assert!(!error.contains('\n') && error.len() < 400, "{error:?}");
        }
    }
}
