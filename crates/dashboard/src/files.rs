//! Files of a sandbox: a directory, and a text that can be edited.

use maud::{Markup, html};

use crate::{
    frame::{Place, Viewer, outcome, page, token},
    sandbox::{Head, Tab, top},
    sandboxes::encoded,
    when::instant,
};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, or a link to one.
    Directory,
    /// A file that may be an image, by its name.
    Image,
    /// Any other.
    File,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// As `ls -l` writes them.
    pub permissions: String,
    /// Whose it is.
    pub owner: String,
    /// When it was changed.
    pub modified: Option<jiff::Timestamp>,
    /// Where a link leads.
    pub target: Option<String>,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Where it is.
    pub path: String,
    /// Directories first, by name.
    pub entries: Vec<Entry>,
    /// Entries that are not shown.
    pub more: usize,
    /// What came of the last action.
    pub outcome: Vec<String>,
}

/// A link to one of the pages about a path.
fn to(head: &Head, what: &str, path: &str) -> String {
    format!("/ui/sandboxes/{}/{what}?path={}", head.id, encoded(path))
}

/// The way from the root to a path, each step a link.
fn way(head: &Head, path: &str) -> Markup {
    let mut steps = vec![("/".to_owned(), "/".to_owned())];
    let mut so_far = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        so_far = format!("{so_far}/{part}");
        steps.push((part.to_owned(), so_far.clone()));
    }
    html! {
        nav.row.mono aria-label="Path" { @for (name, path) in &steps { a href=(to(head, "files", path)) { (name) } } }
    }
}

/// The page of a directory.
pub fn directory(viewer: &Viewer, place: Place<'_>, head: &Head, listing: &Listing) -> String {
    let body = html! {
        (top(head, Tab::Files))
        (outcome(&listing.outcome))
        (way(head, &listing.path))
        (forms(viewer, head, &listing.path))
        div.scroll tabindex="0" role="region" aria-label="Files" {
            table {
                thead { tr {
                    th scope="col" { "Name" } th scope="col" { "Size" } th scope="col" { "Owner" } th scope="col" { "Permissions" }
                    th scope="col" { "Changed" } th scope="col" { "Actions" }
                } }
                tbody { @for entry in &listing.entries { (row(viewer, head, entry)) } }
            }
        }
        @if listing.entries.is_empty() { p.empty { "Nothing is in it." } }
        @if listing.more > 0 { p.fine { (listing.more) " more are not shown: the terminal shows them." } }
    };
    page(Place { title: &format!("{}: files", head.id), scripts: &["confirm"], ..place }, &body)
}

fn forms(viewer: &Viewer, head: &Head, path: &str) -> Markup {
    let action = |what: &str| format!("/ui/sandboxes/{}/files/{what}", head.id);
    html! {
        div.actions {
            form method="post" action=(action("upload")) enctype="multipart/form-data" {
                (token(viewer))
                input type="hidden" name="path" value=(path);
                label.hidden for="upload" { "Files to upload" }
                input #upload type="file" name="file" multiple required;
                button.quiet type="submit" { "Upload" }
            }
            form method="post" action=(action("directory")) {
                (token(viewer))
                input type="hidden" name="path" value=(path);
                label.hidden for="directory" { "Name of the new directory" }
                input #directory name="name" placeholder="new directory" required maxlength="255" autocomplete="off";
                button.quiet type="submit" { "Make" }
            }
            form method="get" action={ "/ui/sandboxes/" (head.id) "/edit" } {
                label.hidden for="path" { "Path of a file" }
                input #path name="path" value={ (path.trim_end_matches('/')) "/new.txt" } required maxlength="4096" autocomplete="off";
                button.quiet type="submit" { "Edit" }
            }
        }
    }
}

fn row(viewer: &Viewer, head: &Head, entry: &Entry) -> Markup {
    html! {
        tr {
            td.mono {
                @match entry.kind {
                    Kind::Directory => a href=(to(head, "files", &entry.path)) { (entry.name) "/" },
                    Kind::Image | Kind::File => a href=(to(head, "file", &entry.path)) download { (entry.name) },
                }
                @if let Some(target) = &entry.target { span.fine { " → " (target) } }
            }
            td.number { @if entry.kind != Kind::Directory { (entry.size) } }
            td { (entry.owner) } td.mono { (entry.permissions) }
            td.number { @if let Some(at) = entry.modified { (instant(at)) } }
            td {
                div.actions {
                    @if entry.kind == Kind::Image { a.button.quiet href=(to(head, "preview", &entry.path)) aria-label={ "View " (entry.name) } { "View" } }
                    @if entry.kind == Kind::File { a.button.quiet href=(to(head, "edit", &entry.path)) aria-label={ "Edit " (entry.name) } { "Edit" } }
                    form method="post" action={ "/ui/sandboxes/" (head.id) "/files/remove" } {
                        (token(viewer))
                        input type="hidden" name="path" value=(entry.path);
                        button.danger type="submit" aria-label={ "Remove " (entry.name) }
                            data-confirm="Remove this, and everything in it? It cannot be had back." { "Remove" }
                    }
                }
            }
        }
    }
}

/// The page of a text.
pub fn edit(viewer: &Viewer, place: Place<'_>, head: &Head, path: &str, text: &str) -> String {
    let body = html! {
        (top(head, Tab::Files))
        (way(head, path))
        form method="post" action={ "/ui/sandboxes/" (head.id) "/files/save" } {
            (token(viewer))
            input type="hidden" name="path" value=(path);
            label for="text" { "Text of " (path) }
            // The first line break after the tag is none of the text.
            textarea #text name="text" rows="28" spellcheck="false" { "\n" (text) }
            div.actions { button type="submit" { "Save" } a.button.quiet href=(to(head, "files", parent(path))) { "Cancel" } }
        }
    };
    page(Place { title: &format!("{}: {path}", head.id), scripts: &[], ..place }, &body)
}

/// The page of an image.
pub fn preview(place: Place<'_>, head: &Head, path: &str) -> String {
    let body = html! {
        (top(head, Tab::Files))
        (way(head, parent(path)))
        p { a.button href=(to(head, "file", path)) download { "Download" } }
        img.preview src=(to(head, "image", path)) alt={ "Image " (path) };
    };
    page(Place { title: &format!("{}: {path}", head.id), scripts: &[], ..place }, &body)
}

/// The directory that something is in.
pub fn parent(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_up() {
        for (path, up) in [("/a/b", "/a"), ("/a", "/"), ("/", "/"), ("/a/b/", "/a"), ("x", "/")] {
            assert_eq!(parent(path), up);
        }
    }
}
