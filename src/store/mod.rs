//! /run/tunjail: what tunjail did, so that it can be taken back. One lock, versioned records, atomic writes.
//!
//! ```text
//! lock                           held by whoever changes something
//! jails/JAIL/wall.json           the jail's wall: its table, who raised it, what was loaded
//! jails/JAIL/members/NETNS.json  a member: its containers, interfaces, lock
//! jails/JAIL/claims/MAC-ADDRESS  -> NETNS: whose element in the wall that is
//! jails/JAIL/forwards/tcp-PORT   -> NETNS: whose port of the exit that is: see [`forwards`]
//! late/NETNS.json                a container whose address comes late, until it was started: see [`late`]
//! endpoints/TUNNEL.json          routes to a tunnel's other ends that were added to the host's own table
//! containers/ID                  -> ../jails/JAIL/members/NETNS.json or ../late/NETNS.json
//! ```
//!
//! A member is named by its network namespace's inode, which is unique among the living: two containers of one pod are
//! one member, a restarted container is another. The links make every lookup a constant number of steps, however many
//! members there are. /run is a tmpfs: after a reboot neither the kernel nor this directory holds anything.

mod endpoint;
mod files;
mod forwards;
mod late;
mod lock;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::endpoint::EndpointRecord;
use self::files::{at, count_some, link, make_dir, names_in, read, remove, remove_dir_if_empty, tidy_dir, write};
pub use self::late::{LateRecord, Verdict};
use self::lock::PATIENCE;
use crate::kernel::process::Process;
use crate::model::admit::Confirmed;
use crate::model::facts::{Fingerprint, NetnsId, Tables};
use crate::model::names::{ContainerId, IfName, JailName};
use crate::model::objects::{Element, Part};
use crate::model::policy::Forward;

const ROOT: &str = "/run/tunjail";
/// Raised when a record's meaning changes.
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}; tunjail keeps its records below {ROOT}, where root must be able to write")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is damaged ({source}); stop the jailed containers, remove {ROOT}, run `tunjail up` and `tunjail down`"
    )]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error(
        "{path} was written by another version of tunjail ({found}, this one writes {VERSION}); stop its containers and run that version's `tunjail down`"
    )]
    Version { path: PathBuf, found: u32 },
    #[error("another tunjail holds {path} for more than {} s; look for a hanging one with `fuser {path}`", PATIENCE.as_secs())]
    Busy { path: PathBuf },
}

/// Who raised a wall, and so who takes it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RaisedBy {
    /// `tunjail up`: stays until `tunjail down`.
    Admin,
    /// A hook: goes with the last member.
    Hook,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallRecord {
    pub jail: JailName,
    pub table: u32,
    pub bridge: Option<IfName>,
    pub raised_by: RaisedBy,
    /// Those that connections of the jail may have taken their names from.
    pub exits: Vec<IfName>,
    /// Digest of the ruleset's text as it was rendered.
    pub ruleset: Fingerprint,
    /// Fingerprints of the tables right after they were loaded.
    pub loaded: Tables,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// A hook is at work on it, or died at it: its lock is closed.
    Entering,
    /// Confirmed and verified; its lock is open for its addresses.
    Held,
}

/// A container of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: ContainerId,
    pub process: Process,
    /// Ports of the exit that its annotation asks for, or that were given to it since.
    #[serde(default)]
    pub forwards: Vec<Forward>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    pub jail: JailName,
    pub netns: NetnsId,
    pub state: MemberState,
    pub containers: Vec<ContainerRecord>,
    pub interfaces: Vec<Confirmed>,
    /// The lock's fingerprint.
    pub lock: Option<Fingerprint>,
    /// Ports of the exit that the configuration asks for.
    #[serde(default)]
    pub configured: Vec<Forward>,
}

/// The records. Reading needs no lock: every write is atomic.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// The records, while nobody else changes them.
#[derive(Debug)]
pub struct LockedStore {
    store: Store,
    lock: File,
}

impl std::ops::Deref for LockedStore {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Store {
    pub fn open() -> Self {
        Self { root: PathBuf::from(ROOT) }
    }

    /// Whether anything is on record.
    pub fn is_there(&self) -> bool {
        self.root.exists()
    }

    fn jail_dir(&self, jail: &JailName) -> PathBuf {
        self.jails_dir().join(jail.as_str())
    }

    fn jails_dir(&self) -> PathBuf {
        self.root.join("jails")
    }

    fn wall_path(&self, jail: &JailName) -> PathBuf {
        self.jail_dir(jail).join("wall.json")
    }

    fn members_dir(&self, jail: &JailName) -> PathBuf {
        self.jail_dir(jail).join("members")
    }

    fn member_path(&self, jail: &JailName, netns: NetnsId) -> PathBuf {
        self.members_dir(jail).join(format!("{}.json", netns.ino))
    }

    fn container_path(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    fn claim_path(&self, jail: &JailName, claim: &str) -> PathBuf {
        self.jail_dir(jail).join("claims").join(claim)
    }

    pub fn wall(&self, jail: &JailName) -> Result<Option<WallRecord>, StoreError> {
        read(&self.wall_path(jail))
    }

    pub fn member(&self, jail: &JailName, netns: NetnsId) -> Result<Option<MemberRecord>, StoreError> {
        // An inode number is given again after its namespace died, so the record may be a dead one's: see hold::enter.
        Ok(read::<MemberRecord>(&self.member_path(jail, netns))?.filter(|member| member.netns == netns))
    }

    /// The member that the container `id` belongs to.
    pub fn member_of(&self, id: &ContainerId) -> Result<Option<MemberRecord>, StoreError> {
        let path = self.container_path(id);
        if !fs::read_link(&path).is_ok_and(|target| target.starts_with("../jails")) {
            return Ok(None);
        }
        let member: Option<MemberRecord> = read(&path)?;
        Ok(member.filter(|member| member.containers.iter().any(|container| container.id == *id)))
    }

    /// The containers whose ids begin with `text`; one alone when it is its whole id.
    pub fn containers_like(&self, text: &str) -> Result<Vec<ContainerId>, StoreError> {
        let ids = names_in(&self.root.join("containers"))?.into_iter().filter(|id| id.starts_with(text));
        let mut ids: Vec<ContainerId> = ids.filter_map(|id| id.parse().ok()).collect();
        if ids.iter().any(|id| id.as_str() == text) {
            ids.retain(|id| id.as_str() == text);
        }
        ids.sort();
        Ok(ids)
    }

    /// Every jail that has a record, in order.
    pub fn jails(&self) -> Result<Vec<JailName>, StoreError> {
        let mut jails: Vec<JailName> =
            names_in(&self.jails_dir())?.into_iter().filter_map(|name| name.parse().ok()).collect();
        jails.sort();
        Ok(jails)
    }

    pub fn members(&self, jail: &JailName) -> Result<Vec<MemberRecord>, StoreError> {
        self.each_member(jail)?.collect()
    }

    /// The members one by one, for those who may not need them all.
    pub fn each_member(
        &self,
        jail: &JailName,
    ) -> Result<impl Iterator<Item = Result<MemberRecord, StoreError>>, StoreError> {
        let directory = self.members_dir(jail);
        let mut names = names_in(&directory)?;
        names.retain(|name| name.ends_with(".json"));
        names.sort();
        Ok(names.into_iter().filter_map(move |name| read::<MemberRecord>(&directory.join(name)).transpose()))
    }

    pub fn has_members(&self, jail: &JailName) -> Result<bool, StoreError> {
        Ok(names_in(&self.members_dir(jail))?.iter().any(|name| name.ends_with(".json")))
    }
}

/// With this many members or fewer, all are looked at whenever something changes.
const FEW: usize = 8;
/// With more, this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

impl LockedStore {
    fn swept_path(&self) -> PathBuf {
        self.root.join("swept")
    }

    /// Whether it is time to look for members that died without a poststop; if so, the next time is counted from now.
    pub fn sweep_is_due(&self) -> Result<bool, StoreError> {
        let mut members = 0;
        for jail in self.jails()? {
            members += count_some(&self.members_dir(&jail), FEW + 1)?;
        }
        if members + count_some(&self.late_dir(), FEW + 1)? <= FEW {
            return Ok(true);
        }
        let path = self.swept_path();
        let last = fs::metadata(&path).and_then(|file| file.modified());
        if last.is_ok_and(|last| last.elapsed().is_ok_and(|age| age < SWEEP_INTERVAL)) {
            return Ok(false);
        }
        fs::write(&path, "").map_err(at(&path))?;
        Ok(true)
    }

    pub fn put_wall(&self, wall: &WallRecord) -> Result<(), StoreError> {
        make_dir(&self.jails_dir())?;
        make_dir(&self.jail_dir(&wall.jail))?;
        write(&self.wall_path(&wall.jail), wall)
    }

    pub fn remove_wall(&self, jail: &JailName) -> Result<(), StoreError> {
        remove(&self.wall_path(jail))
    }

    /// Writes the member, its containers' links and its claims. A claim of another member goes over to this one: of
    /// two that say they have one address, the living one is right.
    pub fn put_member(&self, member: &MemberRecord, membership: &[Element]) -> Result<(), StoreError> {
        let directories =
            [self.members_dir(&member.jail), self.jail_dir(&member.jail).join("claims"), self.root.join("containers")];
        // The first member makes them; for every other one they are there.
        if !directories.iter().all(|directory| directory.is_dir()) {
            directories.iter().try_for_each(|directory| make_dir(directory))?;
        }
        self.update_member(member)?;
        self.link_forwards(member)?;
        let target = link_target(member);
        for container in &member.containers {
            link(&target, &self.container_path(&container.id))?;
        }
        for element in membership {
            link(&member.netns.ino.to_string(), &self.claim_path(&member.jail, &claim(element)))?;
        }
        Ok(())
    }

    /// Writes the member alone: its links and claims are there already.
    pub fn update_member(&self, member: &MemberRecord) -> Result<(), StoreError> {
        write(&self.member_path(&member.jail, member.netns), member)
    }

    /// The elements among `membership` that are this member's and no later one's.
    pub fn still_claimed(&self, member: &MemberRecord, membership: &[Element]) -> Vec<Element> {
        let mine = PathBuf::from(member.netns.ino.to_string());
        membership
            .iter()
            .filter(|element| {
                fs::read_link(self.claim_path(&member.jail, &claim(element))).is_ok_and(|owner| owner == mine)
            })
            .cloned()
            .collect()
    }

    /// Removes the member with its links and those claims that are still its own.
    pub fn remove_member(&self, member: &MemberRecord, membership: &[Element]) -> Result<(), StoreError> {
        self.release(member, &member.containers, membership)?;
        self.release_forwards(member, &member.forwards())?;
        remove(&self.member_path(&member.jail, member.netns))
    }

    /// Removes the links of `containers` and the claims to `membership`, those that still lead to `member`.
    pub fn release(
        &self,
        member: &MemberRecord,
        containers: &[ContainerRecord],
        membership: &[Element],
    ) -> Result<(), StoreError> {
        for element in self.still_claimed(member, membership) {
            remove(&self.claim_path(&member.jail, &claim(&element)))?;
        }
        let target = link_target(member);
        for container in containers {
            let path = self.container_path(&container.id);
            if fs::read_link(&path).is_ok_and(|there| there == Path::new(&target)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the directories that hold nothing any more; after the last wall, all of them.
    pub fn tidy(self) -> Result<(), StoreError> {
        let Ok(jails) = self.jails() else { return Ok(()) };
        for jail in &jails {
            let parts = [self.members_dir(jail), self.jail_dir(jail).join("claims"), self.forwards_dir(jail)];
            for directory in parts.iter().chain([&self.jail_dir(jail)]) {
                tidy_dir(directory)?;
            }
        }
        let parts = [self.jails_dir(), self.late_dir(), self.endpoints_dir(), self.root.join("containers")];
        for part in &parts {
            tidy_dir(part)?;
        }
        if !parts.iter().any(|part| part.exists()) {
            remove(&self.swept_path())?;
            remove(&self.root.join("lock"))?;
            remove_dir_if_empty(&self.root)?;
        }
        drop(self.lock);
        Ok(())
    }
}

/// What a container's link leads to.
fn link_target(member: &MemberRecord) -> String {
    format!("../jails/{}/members/{}.json", member.jail, member.netns.ino)
}

/// The name of a claim: MAC and address, as a file name.
fn claim(element: &Element) -> String {
    let parts: Vec<String> = element
        .key
        .iter()
        .filter_map(|part| match part {
            Part::Mac(mac) => Some(mac.to_string()),
            Part::Address(address) => Some(address.to_string()),
            _ => None,
        })
        .collect();
    parts.join("-")
}
