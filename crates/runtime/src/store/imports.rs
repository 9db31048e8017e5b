//! Templates and snapshots that come from another host: they take nothing from anybody who is here.

use super::{
    Store, StoreError, TemplateRecord,
    database::{Tx, params, refused},
    templates::{self, family, id_of_name, put_template},
};
use crate::ground::ids::BuildId;

/// Where something that comes would be on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing is there.
    Free,
    /// It is there.
    Same(Box<TemplateRecord>),
    /// Something else is.
    Taken(String),
}

/// The version of a team's name.
const OF_NAME: &str = "SELECT build_id FROM names WHERE name = ?1 AND team = ?2";

/// A version by its id.
const OF_BUILD: &str = "WHERE v.build_id = ?1";

impl Store {
    /// Where a record would come.
    pub(crate) async fn place_of(&self, record: TemplateRecord) -> Result<Place, StoreError> {
        self.read(move |tx| place(tx, &record)).await
    }

    /// Records a template or a snapshot with its names, if its place is free. Otherwise nothing changes.
    pub(crate) async fn import_template(&self, record: TemplateRecord) -> Result<Place, StoreError> {
        self.run(move |tx| match place(tx, &record)? {
            Place::Free => {
                put_template(tx, &record)?;
                Ok(Place::Free)
            }
            other => Ok(other),
        })
        .await
    }
}

fn version(tx: Tx<'_>, build_id: &BuildId) -> Result<Option<TemplateRecord>, StoreError> {
    Ok(templates::versions(tx, OF_BUILD, params![build_id])?.into_iter().next())
}

fn place(tx: Tx<'_>, record: &TemplateRecord) -> Result<Place, StoreError> {
    let is_it = |found: &TemplateRecord| found.artifact == record.artifact && found.owner == record.owner;
    if let Some(found) = version(tx, &record.build_id)? {
        let same = is_it(&found) && found.id == record.id && record.names.iter().all(|name| found.names.contains(name));
        return Ok(if same { Place::Same(Box::new(found)) } else { Place::Taken(format!("build `{}`", record.build_id)) });
    }
    for name in &record.names {
        let build = tx.first(OF_NAME, params![name, record.owner], |row| row.get(0)).map_err(refused("read a name"))?;
        let Some(build): Option<BuildId> = build else { continue };
        return Ok(match version(tx, &build)? {
            Some(found) if is_it(&found) => Place::Same(Box::new(found)),
            _ => Place::Taken(format!("name `{name}`")),
        });
    }
    let name = record.base_name().filter(|_| record.snapshot_of.is_none());
    if let Some(name) = name
        && id_of_name(tx, &record.owner, name)?.is_some_and(|id| id != record.id)
    {
        return Ok(Place::Taken(format!("template `{name}`")));
    }
    // Another version of a template that is here is one more of it, if all that its versions share is the same.
    let is_another = |found: &super::FamilyRecord| {
        found.owner != record.owner || found.snapshot_of.is_some() || record.snapshot_of.is_some() || found.name.as_ref() != name
    };
    Ok(match family(tx, &record.id)? {
        Some(found) if is_another(&found) => Place::Taken(format!("template `{}`", record.id)),
        _ => Place::Free,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::goes_through_no_table;

    #[tokio::test]
    async fn the_place_of_what_comes_is_found_without_the_others() {
        goes_through_no_table([OF_NAME.to_owned()]).await;
    }
}
