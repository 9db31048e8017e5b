//! The terminal's page, and what it is told of its screen: texts and words for their looks, never markup.

use std::collections::BTreeMap;

use maud::html;
use serde::Serialize;

use crate::{
    frame::{Place, Viewer, page as framed},
    sandbox::{Head, Tab, top},
    sandboxes::State,
};

/// A piece of a row that looks alike: its text, and words of the style sheet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run(pub String, pub String);

/// What changed on a screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Show {
    /// How many rows there are.
    pub rows: usize,
    /// Rows that changed, by number.
    pub changed: BTreeMap<usize, Vec<Run>>,
    /// Whether cursor keys are sent in the form for applications.
    pub application_cursor: bool,
    /// Whether what is pasted is sent between brackets.
    pub bracketed_paste: bool,
    /// What the program calls its window.
    pub title: String,
    /// Lines that the screen looks back.
    pub back: usize,
}

impl Show {
    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers serialise")
    }
}

/// The page.
pub fn page(viewer: &Viewer, place: Place<'_>, head: &Head, user: &str) -> String {
    let body = html! {
        (top(head, Tab::Terminal))
        @if head.state == State::Running {
            form.row method="get" {
                label { "As user " select name="user" {
                    @for name in ["user", "root"] { option value=(name) selected[name == user] { (name) } }
                } }
                button.quiet type="submit" { "New shell" }
                span #title .fine {}
            }
            noscript { p.refused { "The terminal needs JavaScript. " code { "firkin sandbox shell " (head.id) } " needs none." } }
            div #screen .terminal data-token=(viewer.token) data-socket={ "/ui/sandboxes/" (head.id) "/terminal/socket?user=" (user) } {
                div #rows aria-hidden="true" {}
                textarea #keys rows="1" aria-label="Terminal input" aria-describedby="terminal-help" autocapitalize="off" autocomplete="off"
                    autocorrect="off" spellcheck="false" {}
            }
            p #said .hidden aria-live="polite" {}
            p #terminal-help .fine { "Shift+Escape leaves the terminal. Shift+PageUp and Shift+PageDown look back." }
        } @else { p.empty { "It is paused: resume it to open a terminal." } }
    };
    framed(Place { title: &format!("{}: terminal", head.id), scripts: &["terminal"], ..place }, &body)
}
