//! The runtime's face for those who watch it: everything as it is now, and what changes from then on.
//!
//! ```text
//!   let now = runtime.overview().await?;
//!   let mut changes = runtime.changes(Some(now.as_of));
//!   loop { match changes.next().await { Told::Change(change) => .., Told::Missed(_) => /* begin again */ } }
//! ```

use jiff::Timestamp;
use serde::Serialize;

use super::{Runtime, looks::Found};
use crate::{
    capacity::CapacityView,
    ground::team::{Scope, TeamId},
    restore::warm::PoolStatus,
    sandbox::owner::{Handle, View},
    store::{BuildState, StoreError},
    telemetry::changes::{ChangeId, ConditionState, Reader, SandboxSummary},
};

/// Everything that a scope may see, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// Changes after this may be told of what is shown here already. They tell nothing else of it.
    #[serde(rename = "asOf")]
    pub as_of: ChangeId,
    /// Sandboxes, the newest first.
    pub sandboxes: Vec<SandboxSummary>,
    /// Templates without snapshots, the newest first.
    pub templates: Vec<TemplateSummary>,
    /// Builds that have not ended.
    pub builds: Vec<BuildSummary>,
    /// What keeps the host from new work, each with whether it is so.
    pub conditions: Vec<ConditionState>,
    /// The host's capacity, for those who may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityView>,
    /// The warm pool, for those who may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolStatus>,
}

/// A template as those see it who watch.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateSummary {
    /// Its id.
    #[serde(rename = "templateID")]
    pub id: String,
    /// Whose it is.
    #[serde(rename = "teamID")]
    pub team: TeamId,
    /// Names, with `:tag` unless that is `default`.
    pub names: Vec<String>,
    /// How far its default build, else the newest, has come.
    pub state: BuildState,
    /// Last built.
    pub updated_at: Timestamp,
    /// Sandboxes that were started from it.
    pub spawn_count: u64,
}

/// A build as those see it who watch.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildSummary {
    /// Its id.
    #[serde(rename = "buildID")]
    pub id: String,
    /// The template that it becomes.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// How far it has come.
    pub state: BuildState,
    /// Requested.
    pub created_at: Timestamp,
}

impl Runtime {
    /// What changes for this scope, after a place in the stream, or from now on. Dropped, nobody watches.
    pub fn changes(&self, after: Option<ChangeId>) -> Reader {
        self.shared.changes.watch(self.scope.clone(), after)
    }

    /// Everything as it is now. A reader that begins where it ends misses nothing of what comes after.
    pub async fn overview(&self) -> Result<Overview, StoreError> {
        let as_of = self.shared.changes.place();
        let Found { capacity, pool, conditions } = self.looks.look(&self.shared, &self.pool);
        let mut sandboxes = self.summaries();
        sandboxes.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
        let templates = self.templates().await?.into_iter().map(|template| TemplateSummary {
            id: template.id,
            team: template.owner,
            names: template.aliases,
            state: template.state,
            updated_at: template.updated_at,
            spawn_count: template.spawn_count,
        });
        let is_under_way = |state| matches!(state, BuildState::Waiting | BuildState::Building);
        let builds = self.builds().await?.into_iter().filter(|build| is_under_way(build.state)).map(|build| BuildSummary {
            id: build.id,
            template_id: build.template_id,
            state: build.state,
            created_at: build.created_at,
        });
        let sees_host = self.sees_host();
        Ok(Overview {
            as_of,
            sandboxes,
            templates: templates.collect(),
            builds: builds.collect(),
            conditions,
            capacity: sees_host.then_some(capacity),
            pool: sees_host.then_some(pool),
        })
    }

    /// Whether what is of the host is for this scope.
    fn sees_host(&self) -> bool {
        match &self.scope {
            Scope::Host => true,
            Scope::Team(team) => team.is_first(),
        }
    }

    fn summaries(&self) -> Vec<SandboxSummary> {
        let summary = |handle: &Handle| {
            let View { sandbox, epoch, .. } = &*handle.view.borrow();
            SandboxSummary::of(sandbox.clone(), *epoch)
        };
        self.owners.handles().values().filter(|handle| self.scope.sees(&handle.team)).map(summary).collect()
    }
}
