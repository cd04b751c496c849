//! Containers whose address comes late: engines that make the network only after createRuntime.
//!
//! One record for each such network namespace, from createRuntime until its container was started; one that could not
//! be admitted stays until its containers are dead, and says why.

use std::fs;

use serde::{Deserialize, Serialize};

use super::files::{at, link, make_dir, names_in, read, remove, write};
use super::{ContainerRecord, LockedStore, Store, StoreError};
use crate::kernel::process::{Executable, Process};
use crate::model::facts::{Fingerprint, NetnsId};
use crate::model::names::{ContainerId, JailName};

/// What is known of a container whose address comes late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    /// No address yet; the lock is closed. `why` once nobody waits any more.
    Waiting { why: Option<String> },
    /// It is a member; its lock is open for what was confirmed.
    Admitted,
    /// It cannot be held; the lock is closed.
    Refused { why: String },
    /// Its addresses are in no jail, and none was named: there is no lock.
    Nobodys,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateRecord {
    /// The jail that was named; without one, the address will decide.
    pub jail: Option<JailName>,
    pub netns: NetnsId,
    pub containers: Vec<ContainerRecord>,
    /// The helper that waits for the address.
    pub attendant: Option<Process>,
    /// What each container's process runs while it waits for the runtime's `start`.
    pub unstarted: Vec<(ContainerId, Executable)>,
    /// The closed lock's fingerprint.
    pub lock: Fingerprint,
    /// Bridge ports of a refused container, by index, and the jail whose guard shuts them.
    pub shut: Option<(JailName, Vec<u32>)>,
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl LateRecord {
    /// Whether the process of this container runs what the container is for. One that cannot be asked is taken for
    /// started.
    pub fn has_started(&self, container: &ContainerRecord) -> bool {
        let now = container.process.executable().ok();
        let unstarted = self.unstarted.iter().find(|(id, _)| *id == container.id).map(|(_, unstarted)| *unstarted);
        now.is_none() || now != unstarted
    }

    pub fn is_alive(&self) -> bool {
        self.containers.iter().any(|container| container.process.is_alive())
    }

    /// Whether this record may become a member of `jail`, or be shut by its guard: then its wall has to stand.
    pub fn needs_wall_of(&self, jail: &JailName) -> bool {
        let shut = self.shut.as_ref().is_some_and(|(shut, _)| shut == jail);
        match self.verdict {
            Verdict::Waiting { .. } | Verdict::Refused { .. } => {
                shut || self.jail.as_ref().is_none_or(|own| own == jail)
            }
            Verdict::Admitted | Verdict::Nobodys => shut,
        }
    }
}

impl Store {
    pub(super) fn late_dir(&self) -> std::path::PathBuf {
        self.root.join("late")
    }

    fn late_path(&self, netns: NetnsId) -> std::path::PathBuf {
        self.late_dir().join(format!("{}.json", netns.ino))
    }

    /// The late record of this namespace. One that a dead namespace with the same number left counts as well: the
    /// caller looks whether anybody of it lives.
    pub fn late(&self, netns: NetnsId) -> Result<Option<LateRecord>, StoreError> {
        Ok(read::<LateRecord>(&self.late_path(netns))?.filter(|late| late.netns == netns))
    }

    /// The late record that the container `id` is in, also when it is a member by now.
    pub fn late_of(&self, id: &ContainerId) -> Result<Option<LateRecord>, StoreError> {
        let Ok(target) = fs::read_link(self.container_path(id)) else { return Ok(None) };
        let Some(name) = target.file_name() else { return Ok(None) };
        let late: Option<LateRecord> = read(&self.late_dir().join(name))?;
        Ok(late.filter(|late| late.containers.iter().any(|container| container.id == *id)))
    }

    /// Every late record.
    pub fn lates(&self) -> Result<Vec<LateRecord>, StoreError> {
        let directory = self.late_dir();
        let mut names = names_in(&directory)?;
        names.retain(|name| name.ends_with(".json"));
        names.sort();
        names.iter().filter_map(|name| read(&directory.join(name)).transpose()).collect()
    }
}

impl LockedStore {
    /// Writes the record, and the links of its containers unless they are a member's.
    pub fn put_late(&self, late: &LateRecord) -> Result<(), StoreError> {
        for directory in [self.late_dir(), self.root.join("containers")] {
            make_dir(&directory)?;
        }
        write(&self.late_path(late.netns), late)?;
        if late.verdict == Verdict::Admitted {
            return Ok(());
        }
        let target = link_target(late);
        late.containers.iter().try_for_each(|container| link(&target, &self.container_path(&container.id)))
    }

    /// Removes the record, and those links that still lead to it.
    pub fn remove_late(&self, late: &LateRecord) -> Result<(), StoreError> {
        self.release_late(late, &late.containers)?;
        remove(&self.late_path(late.netns))
    }

    /// Removes the links of `containers` that lead to `late`.
    pub fn release_late(&self, late: &LateRecord, containers: &[ContainerRecord]) -> Result<(), StoreError> {
        let target = link_target(late);
        for container in containers {
            let path = self.container_path(&container.id);
            match fs::read_link(&path) {
                Ok(there) if there == std::path::Path::new(&target) => remove(&path)?,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(at(&path)(error)),
            }
        }
        Ok(())
    }
}

fn link_target(late: &LateRecord) -> String {
    format!("../late/{}.json", late.netns.ino)
}
