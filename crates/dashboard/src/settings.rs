//! How the server was started: what was resolved of flags, environment and defaults, without anything secret.

use maud::html;

use crate::frame::{Place, page};

/// The page.
pub fn settings(place: Place<'_>, settings: &[(String, String)]) -> String {
    let body = html! {
        h1 { "Settings" }
        p.fine { "As this server was started. Secrets are not shown; what is to be otherwise is told to " code { "firkin up" } "." }
        @if settings.is_empty() { p.empty { "Whoever started this server did not say." } }
        @else { div.scroll tabindex="0" role="region" aria-label="Settings" { table {
            thead { tr { th scope="col" { "Setting" } th scope="col" { "Value" } } }
            tbody { @for (name, value) in settings { tr { th scope="row" { (name) } td.mono { (value) } } } }
        } } }
    };
    page(Place { title: "Settings", scripts: &[], ..place }, &body)
}
