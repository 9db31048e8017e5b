//! Pages that say why something was not done, and what helps.

use maud::html;

use crate::frame::{Place, page, whole};

/// A refusal or a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The status, as programs get it.
    pub status: u16,
    /// What could not be done and why.
    pub message: String,
    /// The word for it in documents and metrics.
    pub code: Option<String>,
    /// Seconds after which it may go better.
    pub retry_after_s: Option<u32>,
}

impl Problem {
    fn title(&self) -> &'static str {
        match self.status {
            403 => "Not allowed",
            404 => "Not found",
            409 => "Not now",
            421 => "Not under this name",
            429 => "Too much",
            503 => "No room now",
            507 => "No room on the disk",
            400..=499 => "Not understood",
            _ => "Failed",
        }
    }

    fn body(&self, back: &str) -> maud::Markup {
        html! {
            section.problem role="alert" {
                h1 { (self.title()) }
                p { (self.message) }
                @if let Some(seconds) = self.retry_after_s {
                    p { "It may go better in " (seconds) " s." }
                }
                p.fine { "Status " (self.status) @if let Some(code) = &self.code { ", " code { (code) } } }
                p { a.button href=(back) { "Back" } }
            }
        }
    }
}

/// The page for who has signed in.
pub fn shown(place: Place<'_>, problem: &Problem, back: &str) -> String {
    page(Place { title: problem.title(), ..place }, &problem.body(back))
}

/// The page for who has not.
pub fn plain(problem: &Problem) -> String {
    whole(problem.title(), &[], &html! { main.narrow { (problem.body("/ui")) } })
}
