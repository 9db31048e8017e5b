//! Templates and snapshots as lists and pages show them: with all that is on record of each, read at one moment.

use std::collections::HashMap;

use super::{
    Assignment, BuildRecord, FamilyRecord, Store, StoreError, TemplateRecord, bodies,
    database::{Row, Tx, Value, params, refused},
    templates::{self, Lookup, Use},
};
use crate::ground::{
    ids::{BuildId, TemplateId},
    reference::Sought,
    team::Scope,
};

/// The tags of a template.
const TAGS_OF_TEMPLATE: &str = "SELECT n.name, n.build_id, n.assigned_at
    FROM versions v JOIN names n ON n.build_id = v.build_id WHERE v.template_id = ?1 ORDER BY n.name";

/// The builds of a template.
const BUILDS_OF_TEMPLATE: &str = "SELECT body FROM builds WHERE json_extract(body, '$.template_id') = ?1 ORDER BY id";

/// A template or a snapshot, with all that is on record of it.
#[derive(Debug)]
pub(crate) struct WholeTemplate {
    pub(crate) family: FamilyRecord,
    pub(crate) versions: Vec<TemplateRecord>,
    pub(crate) assignments: Vec<Assignment>,
    pub(crate) builds: Vec<BuildRecord>,
}

impl Store {
    /// Every template and snapshot of a scope, also those of which no build has ended, by id.
    pub(crate) async fn whole_templates(&self, scope: Scope) -> Result<Vec<WholeTemplate>, StoreError> {
        self.read(move |tx| {
            let mut families: Vec<FamilyRecord> = bodies(tx, "templates", "SELECT body FROM templates ORDER BY id", params![])?;
            families.retain(|family| scope.sees(&family.owner));
            let versions = templates::versions(tx, "ORDER BY v.template_id, v.build_id", params![])?;
            let assignments = assignments(tx, "SELECT name, build_id, assigned_at FROM names ORDER BY name", params![])?;
            let builds = bodies(tx, "builds", "SELECT body FROM builds ORDER BY id", params![])?;
            Ok(together(families, versions, assignments, builds))
        })
        .await
    }

    /// What a reference leads to among what a scope owns, whatever its tag, and whether or not anything was built; with the version that
    /// it means, if that is there.
    pub(crate) async fn whole_template(
        &self,
        scope: Scope,
        sought: Sought,
    ) -> Result<Option<(WholeTemplate, Option<TemplateRecord>)>, StoreError> {
        self.read(move |tx| {
            let meant = templates::lookup(tx, (&scope, Use::Own), &sought).map(Lookup::found)?;
            let family = match &meant {
                Some(version) => templates::family(tx, &version.id)?,
                None => templates::family_of(tx, &scope, &sought)?,
            };
            let Some(family) = family else { return Ok(None) };
            let whole = WholeTemplate {
                versions: templates::versions(tx, templates::OF_TEMPLATE, params![family.id])?,
                assignments: assignments(tx, TAGS_OF_TEMPLATE, params![family.id])?,
                builds: bodies(tx, "builds", BUILDS_OF_TEMPLATE, params![family.id])?,
                family,
            };
            Ok(Some((whole, meant)))
        })
        .await
    }
}

fn assignments(c: Tx<'_>, query: &str, params: &[Value]) -> Result<Vec<Assignment>, StoreError> {
    let columns = |row: &Row| Ok((row.get(0)?, row.get(1)?, row.get::<String>(2)?));
    let rows = c.query(query, params, columns).map_err(refused("read names"))?;
    let assignment = |(name, build_id, at): (_, _, String)| Assignment { name, build_id, at: at.parse().unwrap_or_default() };
    Ok(rows.into_iter().map(assignment).collect())
}

/// Gives each template what is of it.
fn together(
    families: Vec<FamilyRecord>,
    versions: Vec<TemplateRecord>,
    assignments: Vec<Assignment>,
    builds: Vec<BuildRecord>,
) -> Vec<WholeTemplate> {
    let place: HashMap<TemplateId, usize> = families.iter().enumerate().map(|(at, family)| (family.id.clone(), at)).collect();
    let alone = |family| WholeTemplate { family, versions: Vec::new(), assignments: Vec::new(), builds: Vec::new() };
    let mut whole: Vec<WholeTemplate> = families.into_iter().map(alone).collect();
    let of_build: HashMap<BuildId, usize> =
        versions.iter().filter_map(|version| Some((version.build_id.clone(), *place.get(&version.id)?))).collect();
    for version in versions {
        if let Some(&at) = place.get(&version.id) {
            whole[at].versions.push(version);
        }
    }
    for assignment in assignments {
        if let Some(&at) = of_build.get(&assignment.build_id) {
            whole[at].assignments.push(assignment);
        }
    }
    for build in builds {
        if let Some(&at) = place.get(&build.template_id) {
            whole[at].builds.push(build);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::goes_through_no_table;

    #[tokio::test]
    async fn what_is_on_record_of_one_template_is_found_without_the_others() {
        goes_through_no_table([TAGS_OF_TEMPLATE.to_owned(), BUILDS_OF_TEMPLATE.to_owned()]).await;
    }
}
