//! What all pages have around them: the head, the way to the other pages, and whose session it is.

use maud::{DOCTYPE, Markup, html};

use crate::assets;

/// The pages that one can go to from everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The list of sandboxes, and each of them.
    Sandboxes,
    /// What they are made of.
    Templates,
    /// What came from what.
    Lineage,
    /// The host's figures.
    Host,
    /// The hosts of a cluster.
    Nodes,
    /// Who may use it.
    Teams,
    /// How it was started.
    Settings,
}

impl Section {
    const ALL: [(Self, &'static str, &'static str); 7] = [
        (Self::Sandboxes, "/ui/sandboxes", "Sandboxes"),
        (Self::Templates, "/ui/templates", "Templates"),
        (Self::Lineage, "/ui/lineage", "Lineage"),
        (Self::Host, "/ui/host", "Host"),
        (Self::Nodes, "/ui/nodes", "Nodes"),
        (Self::Teams, "/ui/teams", "Keys and teams"),
        (Self::Settings, "/ui/settings", "Settings"),
    ];

    /// Whether there is such a page for whoever looks: what is of the host only its own team sees.
    fn is_for(self, viewer: &Viewer) -> bool {
        match self {
            Self::Host | Self::Settings => viewer.is_of_host,
            Self::Nodes => viewer.is_of_host && viewer.is_of_cluster,
            Self::Sandboxes | Self::Templates | Self::Lineage | Self::Teams => true,
        }
    }
}

/// Who looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Viewer {
    /// The team whose key it is.
    pub team: String,
    /// What the key lets its holder do.
    pub scope: &'static str,
    /// Whether that is the host's own team.
    pub is_of_host: bool,
    /// Whether the server is one of several.
    pub is_of_cluster: bool,
    /// Whether it may change sandboxes.
    pub may_act: bool,
    /// What every form has to send along.
    pub token: String,
}

/// A page's place.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Who looks.
    pub viewer: &'a Viewer,
    /// Where one is.
    pub section: Section,
    /// The title.
    pub title: &'a str,
    /// Scripts that the page has, by their stems.
    pub scripts: &'a [&'static str],
}

/// A whole page.
pub fn page(place: Place<'_>, body: &Markup) -> String {
    let Place { viewer, section, title, scripts } = place;
    let around = html! {
        a.skip href="#main" { "Skip to content" }
        header.top {
            a.brand href="/ui/sandboxes" { "Firkin" }
            nav aria-label="Pages" {
                ul {
                    @for (here, path, name) in Section::ALL.into_iter().filter(|(here, ..)| here.is_for(viewer)) {
                        li { a href=(path) aria-current=[(here == section).then_some("page")] { (name) } }
                    }
                }
            }
            form.who method="post" action="/ui/sign-out" {
                (token(viewer))
                span { "Team " b { (viewer.team) } " (" (viewer.scope) ")" }
                button.quiet type="submit" { "Sign out" }
            }
        }
        main #main tabindex="-1" { (body) }
    };
    whole(title, scripts, &around)
}

/// The field by which a form shows that a page of ours has it.
pub fn token(viewer: &Viewer) -> Markup {
    html! { input type="hidden" name="token" value=(viewer.token); }
}

/// What came of the last action, if there was one.
pub(crate) fn outcome(lines: &[String]) -> Markup {
    html! { @if !lines.is_empty() { div.outcome role="status" { @for line in lines { p { (line) } } } } }
}

/// A document with nothing around its body.
pub(crate) fn whole(title: &str, scripts: &[&str], body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Firkin" }
                link rel="stylesheet" href=(assets::path("style"));
                @for script in scripts {
                    script type="module" src=(assets::path(script)) {}
                }
            }
            body { (body) }
        }
    }
    .into_string()
}
