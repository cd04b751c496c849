//! Routes to tunnels' other ends that tunjail added to the host's own table, so that they can be taken out again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files::{make_dir, names_in, read, remove, write};
use super::{LockedStore, Store, StoreError};
use crate::model::endpoint::Endpoint;
use crate::model::names::IfName;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    pub tunnel: IfName,
    pub endpoints: Vec<Endpoint>,
}

impl Store {
    pub(super) fn endpoints_dir(&self) -> PathBuf {
        self.root.join("endpoints")
    }

    fn endpoint_path(&self, tunnel: &IfName) -> PathBuf {
        self.endpoints_dir().join(format!("{tunnel}.json"))
    }

    /// Of one tunnel.
    pub fn endpoints_of(&self, tunnel: &IfName) -> Result<Option<EndpointRecord>, StoreError> {
        read(&self.endpoint_path(tunnel))
    }

    /// Of every tunnel.
    pub fn endpoints(&self) -> Result<Vec<EndpointRecord>, StoreError> {
        let mut names = names_in(&self.endpoints_dir())?;
        names.retain(|name| name.ends_with(".json"));
        names.sort();
        names.into_iter().filter_map(|name| read(&self.endpoints_dir().join(name)).transpose()).collect()
    }
}

impl LockedStore {
    pub fn put_endpoints(&self, record: &EndpointRecord) -> Result<(), StoreError> {
        make_dir(&self.endpoints_dir())?;
        write(&self.endpoint_path(&record.tunnel), record)
    }

    pub fn remove_endpoints(&self, tunnel: &IfName) -> Result<(), StoreError> {
        remove(&self.endpoint_path(tunnel))
    }
}
