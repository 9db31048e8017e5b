//! A notebook: cells that ran in a sandbox's code interpreter, with what came of each. Texts are shown as texts; pictures are asked for
//! from the server, which keeps them.

use maud::{Markup, html};

use crate::{
    frame::{Place, Viewer, page, token},
    sandbox::{Head, Tab, top},
    sandboxes::State,
};

/// Languages that can be asked for.
pub const LANGUAGES: [&str; 4] = ["python", "javascript", "typescript", "bash"];

/// Something that came of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// What it wrote.
    Text(String),
    /// What it wrote about trouble.
    Trouble(String),
    /// A value, as text.
    Value(String),
    /// A picture, by its number in the cell.
    Picture(usize),
    /// The error that it ended with.
    Error(String),
}

/// A cell that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Its number, for this notebook.
    pub number: u64,
    /// Its language.
    pub language: String,
    /// What ran.
    pub code: String,
    /// What came of it.
    pub outputs: Vec<Output>,
    /// Whether there was more than is kept.
    pub cut: bool,
}

/// The page.
pub fn notebook(viewer: &Viewer, place: Place<'_>, head: &Head, cells: &[Cell]) -> String {
    let language = cells.last().map_or(LANGUAGES[0], |cell| cell.language.as_str());
    let body = html! {
        (top(head, Tab::Code))
        @for cell in cells { (shown(head, cell)) }
        @if head.state == State::Running {
            form #new method="post" action={ "/ui/sandboxes/" (head.id) "/code" } {
                (token(viewer))
                label for="code" { "Code" }
                textarea #code name="code" rows="8" required spellcheck="false" autofocus[!cells.is_empty()] {}
                div.row {
                    label { "Language " select name="language" {
                        @for known in LANGUAGES { option value=(known) selected[known == language] { (known) } }
                    } }
                    button type="submit" { "Run" }
                }
            }
            p.fine { "Cells of one language share what they define. The sandbox's template has to have the code interpreter, as "
                code { "code-interpreter-v1" } " does." }
        } @else { p.empty { "It is paused: resume it to run code." } }
    };
    page(Place { title: &format!("{}: code", head.id), scripts: &[], ..place }, &body)
}

fn shown(head: &Head, cell: &Cell) -> Markup {
    html! {
        section.card.cell aria-label={ "Cell " (cell.number) } {
            p.fine { "[" (cell.number) "] " (cell.language) }
            pre tabindex="0" { code { (cell.code) } }
            @for output in &cell.outputs {
                @match output {
                    Output::Text(text) => pre.out tabindex="0" { (text) },
                    Output::Value(text) => pre.out tabindex="0" { (text) },
                    Output::Trouble(text) => pre.out.warn tabindex="0" { (text) },
                    Output::Error(text) => pre.out.bad tabindex="0" { (text) },
                    Output::Picture(at) => img.preview src={ "/ui/sandboxes/" (head.id) "/code/" (cell.number) "/" (at) }
                        alt={ "Picture of cell " (cell.number) };,
                }
            }
            @if cell.cut { p.fine { "There was more than is kept." } }
        }
    }
}
