//! How deep the warm pool is to be, and what it says of itself: data that the configuration and the metrics share with the pool.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{ground::reference::Reference, store::TemplateRecord};

/// The most engines that are prepared for a template unless it is said otherwise. Each costs some 16 MiB.
const MAX_PREPARED: u32 = 2;

/// How many sessions of one template are kept warm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Always.
    pub min: u32,
    /// After as many creates came at once. A smaller number than `min` means `min`.
    pub max: u32,
}

impl Depth {
    /// No pool.
    pub const NONE: Self = Self { min: 0, max: 0 };

    /// `min` always, and up to 16 under demand: a burst of creates of one agent program. None at all for 0.
    pub fn at_least(min: u32) -> Self {
        Self { min, max: if min == 0 { 0 } else { min.max(16) } }
    }

    /// How many to keep after `peak` creates came at once.
    pub(crate) fn wanted(self, peak: usize) -> usize {
        let (min, max) = (self.min as usize, self.max.max(self.min) as usize);
        peak.clamp(min, max)
    }
}

/// How deep the pool is. The default keeps nothing warm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmConfig {
    /// For every template that is not named below.
    pub depth: Depth,
    /// By a name of the first team's templates, or any template's id, without the tag that it means anyway.
    pub templates: BTreeMap<Reference, Depth>,
    /// Engines that are kept prepared for each template that is not named below. Absent: as many as its sessions that are always
    /// kept warm, at most two.
    pub prepared: Option<u32>,
    /// By the same.
    pub prepared_templates: BTreeMap<Reference, u32>,
}

impl WarmConfig {
    pub(crate) fn depth_of(&self, template: &TemplateRecord) -> Depth {
        named(&self.templates, template).unwrap_or(self.depth)
    }

    pub(crate) fn prepared_of(&self, template: &TemplateRecord) -> u32 {
        let unsaid = || self.depth_of(template).min.min(MAX_PREPARED);
        named(&self.prepared_templates, template).or(self.prepared).unwrap_or_else(unsaid)
    }
}

/// The entry for this build of a template, under any of its names.
fn named<T: Copy>(said: &BTreeMap<Reference, T>, template: &TemplateRecord) -> Option<T> {
    // Who configures the host means the first team's names, and others by id.
    let names = template.names.iter().filter(|_| template.owner.is_first()).map(|name| name.clone().short());
    names.chain(shelf_of(template)).find_map(|name| said.get(&name).copied())
}

/// How the shelf of this build is called: as its template by id, with the tag unless that is `default`. What no tag stands for has
/// none: nobody can ask for it.
pub(crate) fn shelf_of(template: &TemplateRecord) -> Option<Reference> {
    let tags = || template.names.iter().filter_map(|name| name.tag.as_ref());
    let tag = tags().find(|tag| tag.is_default()).or_else(|| tags().next())?;
    Some(Reference { name: (&template.id).into(), tag: Some(tag.clone()) }.short())
}

/// The pool in numbers. Counters begin with the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// By template id, with the tag unless that is `default`; only those that are pooled.
    pub templates: BTreeMap<String, ShelfStatus>,
    /// Creates that claimed a warm session.
    pub hits: u64,
    /// Creates that found no warm session ready and claimed a prepared engine.
    pub prepared_hits: u64,
    /// Creates of pooled templates that found neither.
    pub misses: u64,
    /// Creates that claimed what then failed, and were restored instead.
    pub failed_claims: u64,
    /// Warm sessions and prepared engines that became ready. The counts below are of both, too.
    pub refills: u64,
    /// Those that did not become ready.
    pub failed_refills: u64,
    /// Those that ended because active work needed their capacity.
    pub evictions: u64,
    /// Those that ended because demand went down, their template changed, or a warm session needed a prepared engine's capacity.
    pub retired: u64,
    /// Those that died while they waited.
    pub lost: u64,
    /// Whether none is made now because too little of the disk is free: [`crate::host::disk::REFILL_FACTOR`] times the floor it
    /// must be.
    pub short_of_disk: bool,
}

/// One template's part of the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ShelfStatus {
    /// How many warm sessions there should be.
    pub wanted: usize,
    /// How many of them can be claimed.
    pub ready: usize,
    /// How many prepared engines can be claimed.
    pub prepared: usize,
    /// How many of either are being made.
    pub making: usize,
}
