//! Whose port of an exit is whose. A link for each port finds the member in one step. The member's record comes first, so
//! that there is something to sweep, and says what is meant to lead to it; without the link nothing does.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{link, make_dir, read, remove};
use super::{LockedStore, MemberRecord, Store, StoreError};
use crate::model::forward;
use crate::model::names::JailName;
use crate::model::objects::Element;
use crate::model::policy::{Forward, Port};

impl MemberRecord {
    /// The ports of the exit that are to lead to it. What a container asked for stands before what the configuration says.
    pub fn forwards(&self) -> Vec<Forward> {
        let asked = self.containers.iter().flat_map(|container| &container.forwards);
        forward::merged(asked.chain(&self.configured).copied())
    }

    /// The elements of the wall that would lead them to it.
    pub fn forward_elements(&self) -> Vec<Element> {
        forward::elements(&self.jail, &self.interfaces, &self.forwards())
    }
}

impl Store {
    pub(super) fn forwards_dir(&self, jail: &JailName) -> PathBuf {
        self.jail_dir(jail).join("forwards")
    }

    fn forward_path(&self, jail: &JailName, port: Port) -> PathBuf {
        self.forwards_dir(jail).join(format!("{}-{}", port.protocol.as_str(), port.number))
    }

    /// The elements that lead ports to this member now, as far as tunjail knows.
    pub fn led_to(&self, member: &MemberRecord) -> Vec<Element> {
        let mine = PathBuf::from(member.netns.ino.to_string());
        let is_mine = |forward: &Forward| {
            fs::read_link(self.forward_path(&member.jail, forward.port)).is_ok_and(|owner| owner == mine)
        };
        let forwards: Vec<Forward> = member.forwards().into_iter().filter(is_mine).collect();
        forward::elements(&member.jail, &member.interfaces, &forwards)
    }

    /// The member of `jail` that has this port of the exit, alive or not.
    pub fn holder(&self, jail: &JailName, port: Port) -> Result<Option<MemberRecord>, StoreError> {
        let Ok(netns) = fs::read_link(self.forward_path(jail, port)) else { return Ok(None) };
        let member: Option<MemberRecord> = read(&self.members_dir(jail).join(netns).with_extension("json"))?;
        Ok(member.filter(|member| member.forwards().iter().any(|forward| forward.port == port)))
    }
}

impl LockedStore {
    /// Makes the links of a member's ports. Nobody else may have one of them.
    pub fn link_forwards(&self, member: &MemberRecord) -> Result<(), StoreError> {
        let forwards = member.forwards();
        if forwards.is_empty() {
            return Ok(());
        }
        make_dir(&self.forwards_dir(&member.jail))?;
        let target = member.netns.ino.to_string();
        forwards.iter().try_for_each(|forward| link(&target, &self.forward_path(&member.jail, forward.port)))
    }

    /// Removes the links of `forwards` that still lead to `member`.
    pub fn release_forwards(&self, member: &MemberRecord, forwards: &[Forward]) -> Result<(), StoreError> {
        let target = member.netns.ino.to_string();
        for forward in forwards {
            let path = self.forward_path(&member.jail, forward.port);
            if fs::read_link(&path).is_ok_and(|there| there == Path::new(&target)) {
                remove(&path)?;
            }
        }
        Ok(())
    }
}
