//! What `watch` remembers of a jail between two looks, and so what of it is news.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Audience, Event, RETRY, one_line};
use crate::hold::wall::Survey;
use crate::model::names::{IfName, JailName};
use crate::model::objects::Target;
use crate::model::plan::Change;
use crate::model::policy::Routes;

/// A jail to which others did so much within [`QUARREL_TIME`] is being undone by somebody.
const QUARREL: usize = 100;
const QUARREL_TIME: Duration = Duration::from_secs(10);

/// What is remembered of a jail between two looks.
#[derive(Default)]
pub(super) struct Memory {
    by: Option<[Option<IfName>; 2]>,
    is_led_by_others: bool,
    pub trouble: Option<Trouble>,
    /// When what others did to it was mended lately.
    mended: VecDeque<Instant>,
    pub said_unconfigured: bool,
}

pub(super) struct Trouble {
    why: String,
    /// When it was tried last, and what was there after it. As long as that is so, nothing but time can help.
    tried: Instant,
    left: Option<Survey>,
}

impl Memory {
    pub fn is_hopeless(&self, survey: &Survey) -> bool {
        self.trouble
            .as_ref()
            .is_some_and(|trouble| trouble.left.as_ref() == Some(survey) && trouble.tried.elapsed() < RETRY)
    }

    /// Two that put things back against each other would do nothing else.
    pub fn is_in_a_quarrel(&mut self) -> bool {
        while self.mended.front().is_some_and(|when| when.elapsed() > QUARREL_TIME) {
            self.mended.pop_front();
        }
        self.mended.len() >= QUARREL
    }

    /// Whether it is to be left as it is for a moment.
    pub fn is_to_wait(&mut self) -> bool {
        self.is_in_a_quarrel() && self.mended.back().is_some_and(|last| last.elapsed() < RETRY)
    }

    pub fn was_mended(&mut self, name: &JailName, steps: &[Change], audience: &mut dyn Audience) {
        if steps.iter().any(|step| !follows_an_interface(step)) {
            self.mended.push_back(Instant::now());
        }
        if !self.is_in_a_quarrel() {
            return self.rests(name, audience);
        }
        let why = "another program undoes again and again what is put back; from now on it is put back every 3 s";
        self.told(name, why.to_owned(), None, audience);
    }

    pub fn rests(&mut self, name: &JailName, audience: &mut dyn Audience) {
        if self.trouble.take().is_some() {
            audience.hear(&Event::Recovered { jail: Some(name) });
        }
    }

    pub fn fails(&mut self, name: &JailName, error: &anyhow::Error, left: Option<Survey>, audience: &mut dyn Audience) {
        self.told(name, one_line(error), left, audience);
    }

    fn told(&mut self, name: &JailName, why: String, left: Option<Survey>, audience: &mut dyn Audience) {
        if self.trouble.as_ref().is_none_or(|trouble| trouble.why != why) {
            audience.hear(&Event::Failed { jail: Some(name), why: &why });
        }
        self.trouble = Some(Trouble { why, tried: Instant::now(), left });
    }

    pub fn leaves(&mut self, name: &JailName, survey: &Survey, audience: &mut dyn Audience) {
        self.is_led_by_others = survey.desired.ways_out == Routes::Foreign;
        if self.is_led_by_others {
            return;
        }
        let by = survey.ways_out();
        let is_news = self.by.as_ref().is_none_or(|before| before.each_ref().map(Option::as_ref) != by);
        if is_news {
            audience.hear(&Event::Leaves { jail: name, by });
            self.by = Some(by.map(Option::<&IfName>::cloned));
        }
    }

    pub fn describe(&self, name: &JailName) -> Option<String> {
        if self.trouble.is_some() {
            return Some(format!("{name}: not as it should be"));
        }
        if self.is_led_by_others {
            return Some(format!("{name} by routes of others"));
        }
        Some(match self.by.as_ref()? {
            [None, None] => format!("{name}: closed"),
            [Some(v4), Some(v6)] if v4 == v6 => format!("{name} by {v4}"),
            [v4, v6] => {
                let shown = |by: &Option<IfName>| by.as_ref().map_or("nothing".to_owned(), ToString::to_string);
                format!("{name} by {} (IPv4), {} (IPv6)", shown(v4), shown(v6))
            }
        })
    }
}

/// Such routes come and go with their interface, as often as that does.
fn follows_an_interface(step: &Change) -> bool {
    match step {
        Change::AddRoute { route, .. } | Change::DeleteRoute { route, .. } => {
            matches!(route.target, Target::Dev { .. })
        }
        _ => false,
    }
}
