//! The page that asks for a key.

use maud::html;

use crate::frame::whole;

/// The page. `refused` says why the last try was in vain; `next` is where one wanted to go.
pub fn page(refused: Option<&str>, next: Option<&str>) -> String {
    let body = html! {
        main.narrow {
            h1 { "Firkin" }
            form.panel method="post" action="/ui/sign-in" {
                @if let Some(refused) = refused {
                    p.refused role="alert" { (refused) }
                }
                @if let Some(next) = next {
                    input type="hidden" name="next" value=(next);
                }
                label for="key" { "API key" }
                input #key name="key" type="password" autocomplete="current-password" spellcheck="false" autocapitalize="off"
                    required autofocus maxlength="256" placeholder="e2b_…" aria-describedby="key-help";
                p #key-help .fine { "The server's own key is in the file that " code { "firkin up" } " names when it starts, "
                    "and " code { "firkin env" } " prints it." }
                button type="submit" { "Sign in" }
            }
        }
    };
    whole("Sign in", &[], &body)
}
