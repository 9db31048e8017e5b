//! The proxy's refusals for people: a browser gets a page where a program gets JSON.
//!
//! Who gets which is E2B's choice, because its pages are what people know: what a request asks for comes first, since a script in a
//! page sends its browser's name and cannot help it, and the name of the client decides only where nothing else does.

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::error::ProxyError;

/// In the names of all browsers, and of hardly anything else.
const BROWSERS: [&str; 7] = ["mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"];

/// How a browser came to make a request. No script can set it.
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// The header by which scripts of older browsers identify themselves.
const REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// Whether the client is a browser that shows what it gets.
pub(crate) fn wanted(headers: &HeaderMap) -> bool {
    let text =
        |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let accept = text(header::ACCEPT);
    let asks_for_html = accept.split(',').any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "text/html"));
    if accept.contains("application/json") && !asks_for_html {
        return false;
    }
    match text(FETCH_MODE).as_str() {
        "cors" | "no-cors" | "same-origin" | "websocket" => return false,
        "navigate" => {}
        _ if headers.contains_key(REQUESTED_WITH) => return false,
        _ => {}
    }
    let agent = text(header::USER_AGENT);
    asks_for_html || BROWSERS.iter().any(|browser| agent.contains(browser))
}

/// A refusal as a page instead of its JSON.
pub(crate) fn of(refusal: ProxyError) -> Response {
    let (title, text) = match &refusal {
        ProxyError::Target(reason) => ("Not Understood", reason.to_string()),
        ProxyError::HostOnly(path) => ("Not Found", format!("There is no route {path}.")),
        ProxyError::NotFound(id) => ("Sandbox Not Found", format!("Sandbox {id} was not found: it has ended, or never was.")),
        ProxyError::PortClosed(id, port) => {
            ("Closed Port", format!("Sandbox {id} is running, but there is no service running on port {port}."))
        }
        ProxyError::Private { id, .. } => ("Private Sandbox", format!("Sandbox {id} lets in only who shows its traffic token.")),
        ProxyError::Transitioning(id) => ("Please Try Again", format!("Sandbox {id} is being paused or resumed.")),
        ProxyError::Wake(_) => ("Please Try Again", "The sandbox is paused and could not be resumed.".to_owned()),
        ProxyError::BadAnswer(id, port, _) => {
            ("No Answer", format!("What listens on port {port} of sandbox {id} did not answer."))
        }
    };
    shown(refusal.into_response(), title, &text)
}

/// An answer with a page for its body. The text may hold what a client sent.
fn shown(answer: Response, title: &str, text: &str) -> Response {
    let (title, text) = (escaped(title), escaped(text));
    let page = format!(
        "<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\
         <body><h1>{title}</h1><p>{text}</p></body></html>"
    );
    let mut response = answer.map(|_| Body::from(page));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    response
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_for_browsers_that_show_them() {
        let chrome = ("user-agent", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/58.0 Safari/537.3");
        let table: &[(&[(&str, &str)], bool)] = &[
            (&[], false),
            (&[("user-agent", "curl/8.5.0"), ("accept", "*/*")], false),
            (&[("user-agent", "e2b-python-sdk/2.63.0")], false),
            (&[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")], true),
            (&[("accept", "application/json, text/HTML;q=0.5")], true),
            (&[chrome], true),
            (&[chrome, ("accept", "*/*")], true),
            (&[chrome, ("accept", "application/json")], false),
            (&[chrome, ("sec-fetch-mode", "cors")], false),
            (&[chrome, ("sec-fetch-mode", "navigate"), ("x-requested-with", "XMLHttpRequest")], true),
            (&[chrome, ("x-requested-with", "XMLHttpRequest")], false),
            (&[chrome, ("sec-fetch-mode", "websocket"), ("accept", "text/html")], false),
        ];
        for (headers, page) in table {
            let map: HeaderMap =
                headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
            assert_eq!(wanted(&map), *page, "{headers:?}");
        }
    }
}
