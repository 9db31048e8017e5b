//! Teams and their keys, for who administers the host: a session shows the admin token first, and may then for a while.

use jiff::Timestamp;
use maud::{Markup, html};

use crate::{
    frame::{Place, Viewer, outcome, page, token},
    when,
};

/// One team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it may have at most, each with its name; none is no limit.
    pub quota: Vec<(&'static str, &'static str, Option<u64>)>,
}

/// One key, without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: String,
    /// Its team.
    pub team: String,
    /// For people.
    pub name: String,
    /// What it lets its holder do.
    pub scope: &'static str,
    /// What becomes of it, in words.
    pub state: String,
    /// Whether it opens anything.
    pub is_good: bool,
    /// When it was last used.
    pub used: Option<Timestamp>,
}

/// The page's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Teams {
    /// By id.
    pub teams: Vec<Team>,
    /// Oldest first.
    pub keys: Vec<Key>,
    /// Keys that were made just now: the id of each and itself, told once.
    pub made: Vec<(String, String)>,
    /// What came of the last action.
    pub outcome: Vec<String>,
    /// When this was.
    pub now: Timestamp,
}

/// The page of who has not shown the admin token.
pub fn locked(viewer: &Viewer, place: Place<'_>, refused: bool) -> String {
    let body = html! {
        h1 { "Keys and teams" }
        p { "You are signed in for team " b { (viewer.team) } " with a key that " (viewer.scope) "." }
        form.panel method="post" action="/ui/teams/unlock" {
            (token(viewer))
            @if refused { p.refused role="alert" { "This is not the admin token." } }
            label for="admin" { "Admin token" }
            input #admin name="admin" type="password" required maxlength="256" autocomplete="off" aria-describedby="admin-help";
            p #admin-help .fine { "It is in the file " code { "admin-token" } " of the state directory. It is asked for again after fifteen minutes." }
            button type="submit" { "Administer" }
        }
    };
    page(Place { title: "Keys and teams", scripts: &[], ..place }, &body)
}

/// The page.
pub fn teams(viewer: &Viewer, place: Place<'_>, view: &Teams) -> String {
    let body = html! {
        h1 { "Keys and teams" }
        (outcome(&view.outcome))
        @for (id, key) in &view.made {
            section.outcome role="status" { p { "Key " code { (id) } " is made. It is shown this once:" } p { code { (key) } } }
        }
        h2 { "Teams" }
        @for team in &view.teams { (shown(viewer, team)) }
        (new_team(viewer))
        h2 { "Keys" }
        (new_key(viewer, &view.teams))
        (keys(viewer, &view.keys, view.now))
    };
    page(Place { title: "Keys and teams", scripts: &["confirm"], ..place }, &body)
}

fn shown(viewer: &Viewer, team: &Team) -> Markup {
    html! {
        details.panel {
            summary { (team.id) " – " (team.name) }
            form.row method="post" action="/ui/teams/quota" {
                (token(viewer))
                input type="hidden" name="team" value=(team.id);
                @for (field, name, value) in &team.quota {
                    label { (name) " " input name=(field) type="number" min="0" placeholder="no limit" value=[*value]; }
                }
                button.quiet type="submit" { "Set quota of " (team.id) }
            }
        }
    }
}

fn new_team(viewer: &Viewer) -> Markup {
    html! {
        form.row method="post" action="/ui/teams" {
            (token(viewer))
            label { "New team's id " input name="team" required maxlength="32" pattern="[a-z][a-z0-9-]*" autocomplete="off"; }
            label { "Name " input name="name" maxlength="128" autocomplete="off"; }
            button.quiet type="submit" { "Add team" }
        }
    }
}

fn new_key(viewer: &Viewer, teams: &[Team]) -> Markup {
    html! {
        form.row method="post" action="/ui/teams/keys" {
            (token(viewer))
            label { "Team " select name="team" { @for team in teams { option value=(team.id) { (team.id) } } } }
            label { "Key's name " input name="name" maxlength="128" autocomplete="off"; }
            label { "Scope " select name="scope" {
                option value="full" { "full: everything of the team" }
                option value="sandboxes" { "sandboxes: use and end them" }
                option value="read" { "read: look only" }
            } }
            label { "Days until it ends " input name="days" type="number" min="1" max="3650" placeholder="never"; }
            button.quiet type="submit" { "Make key" }
        }
    }
}

fn keys(viewer: &Viewer, keys: &[Key], now: Timestamp) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Keys" { table {
            thead { tr {
                th scope="col" { "Key" } th scope="col" { "Team" } th scope="col" { "Name" } th scope="col" { "Scope" }
                th scope="col" { "State" } th scope="col" { "Last used" } th scope="col" { "Action" }
            } }
            tbody { @for key in keys { tr {
                td.mono { (key.id) } td { (key.team) } td { (key.name) } td { (key.scope) } td { (key.state) }
                td.number { @if let Some(at) = key.used { (when::ago(at, now)) } @else { "never" } }
                td { @if key.is_good {
                    form method="post" action="/ui/teams/revoke" {
                        (token(viewer))
                        input type="hidden" name="key" value=(key.id);
                        button.danger type="submit" aria-label={ "Revoke " (key.id) }
                            data-confirm="Revoke this key? It cannot be taken back." { "Revoke" }
                    }
                } }
            } } }
        } }
    }
}
