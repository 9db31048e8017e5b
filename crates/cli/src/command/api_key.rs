//! `firkin key add|ls|revoke|expire`: the API keys of this host's teams, through its server.

use anyhow::Context as _;
use http::Method;
use jiff::{Span, Timestamp, tz::TimeZone};
use serde_json::{Value, json};

use super::team::Admin;
use crate::{
    api::escape,
    args::teams::{AddKeyArgs, ExpireKeyArgs, ListKeysArgs, RevokeKeyArgs},
    failure::ExitStatus,
    output::{self, Table},
    settings::{Format, Settings},
};

/// `firkin key add`: the key alone goes to standard output, so that it can be put where it is needed.
pub(crate) async fn add(settings: &Settings, args: AddKeyArgs) -> anyhow::Result<ExitStatus> {
    let admin = Admin::find(settings)?;
    let ends = args.expires_in.map(|span| from_now(&span)).transpose()?;
    let body = json!({"name": args.name, "scope": args.scope, "expiresAt": ends});
    let path = format!("/teams/{}/keys", escape(&args.team));
    let made = admin.ask(Method::POST, &path, Some(&body)).await.context("cannot make a key")?;
    match settings.format {
        Format::Json => output::json(&made)?,
        Format::Table => {
            output::text(&format!("{}\n", made["key"].as_str().unwrap_or_default()))?;
            let id = made["id"].as_str().unwrap_or_default();
            output::note(&format!("it cannot be shown again; `firkin key revoke {id}` ends it"));
        }
    }
    Ok(ExitStatus::Success)
}

/// `firkin key ls`
pub(crate) async fn list(settings: &Settings, args: ListKeysArgs) -> anyhow::Result<ExitStatus> {
    let admin = Admin::find(settings)?;
    let path = args.team.map_or_else(|| "/keys".to_owned(), |team| format!("/keys?team={}", escape(&team)));
    show(settings, &admin.ask(Method::GET, &path, None).await.context("cannot list keys")?)
}

/// `firkin key revoke`
pub(crate) async fn revoke(settings: &Settings, args: RevokeKeyArgs) -> anyhow::Result<ExitStatus> {
    let admin = Admin::find(settings)?;
    admin.ask(Method::DELETE, &format!("/keys/{}", escape(&args.id)), None).await.context("cannot revoke the key")?;
    output::note(&format!("`{}` opens nothing any more", args.id));
    Ok(ExitStatus::Success)
}

/// `firkin key expire`
pub(crate) async fn expire(settings: &Settings, args: ExpireKeyArgs) -> anyhow::Result<ExitStatus> {
    let admin = Admin::find(settings)?;
    let ends = args.within.filter(|_| !args.never).map(|span| from_now(&span)).transpose()?;
    let path = format!("/keys/{}", escape(&args.id));
    let changed = admin.ask(Method::PATCH, &path, Some(&json!({ "expiresAt": ends }))).await;
    show(settings, &changed.context("cannot change when the key ends")?)
}

fn show(settings: &Settings, keys: &Value) -> anyhow::Result<ExitStatus> {
    output::result(settings.format, keys, || table(keys, Timestamp::now()))?;
    Ok(ExitStatus::Success)
}

/// Days and weeks are of 24 hours and 7 days here: keys end everywhere at once.
fn from_now(span: &Span) -> anyhow::Result<Timestamp> {
    let then = Timestamp::now().to_zoned(TimeZone::UTC).checked_add(*span).context("cannot tell when that is")?;
    Ok(then.timestamp())
}

/// One key, or a list of them.
fn table(keys: &Value, now: Timestamp) -> Table {
    let mut table = Table::new(&["key", "team", "name", "scope", "since", "last used", "state"]);
    let one = std::slice::from_ref(keys);
    for key in keys.as_array().map_or(one, Vec::as_slice) {
        let text = |name: &str| key[name].as_str().filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
        let ends = key["expiresAt"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        let state = match (key["revokedAt"].as_str(), ends) {
            (Some(at), _) => format!("revoked {at}"),
            (None, Some(at)) if at <= now => format!("ended {at}"),
            (None, Some(at)) => format!("until {at}"),
            (None, None) => "good".to_owned(),
        };
        let cells = ["id", "teamID", "name", "scope", "createdAt", "lastUsedAt"].map(text);
        table.row(cells.into_iter().chain([state]));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_with_how_long_they_are_good() {
        let key = |id: &str, ends: Value, revoked: Value| {
            json!({"id": id, "teamID": "b", "name": "ci", "scope": "read", "createdAt": "2026-01-01T00:00:00Z",
                   "expiresAt": ends, "revokedAt": revoked, "lastUsedAt": null})
        };
        let (early, late) = (json!("2026-01-02T00:00:00Z"), json!("2026-03-01T00:00:00Z"));
        let keys = json!([
            key("key_1", Value::Null, Value::Null),
            key("key_2", early.clone(), Value::Null),
            key("key_3", late.clone(), Value::Null),
            key("key_4", late, early),
        ]);
        let expected = [
            "KEY    TEAM  NAME  SCOPE  SINCE                 LAST USED  STATE",
            "key_1  b     ci    read   2026-01-01T00:00:00Z  -          good",
            "key_2  b     ci    read   2026-01-01T00:00:00Z  -          ended 2026-01-02T00:00:00Z",
            "key_3  b     ci    read   2026-01-01T00:00:00Z  -          until 2026-03-01T00:00:00Z",
            "key_4  b     ci    read   2026-01-01T00:00:00Z  -          revoked 2026-01-02T00:00:00Z",
        ];
        assert_eq!(table(&keys, "2026-02-01T00:00:00Z".parse().unwrap()).render().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_time_from_now_may_be_days() {
        let hours =
            |text: &str| from_now(&text.parse().unwrap()).unwrap().as_second() / 3600 - Timestamp::now().as_second() / 3600;
        assert_eq!((hours("90d"), hours("12h"), hours("2w")), (90 * 24, 12, 14 * 24));
    }
}
