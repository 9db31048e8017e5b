//! The cookie of the dashboard's sessions: what it is called, and that no sandbox gets to see it.
//!
//! Under HTTPS it has the name that browsers keep for the very host that they got it from (`__Host-`, RFC 6265bis): a page of a sandbox
//! below the server's domain can neither see nor set it. Such a cookie is for all paths, also for those that lead into sandboxes, so
//! it is taken out of what goes on there. Over plain HTTP browsers have no such name.

use http::{HeaderMap, HeaderValue, header};

/// Its name over plain HTTP.
const PLAIN: &str = "firkin_ui";

/// And under HTTPS.
const OF_HOST: &str = "__Host-firkin_ui";

/// What it is called on such a connection.
pub(crate) fn name(encrypted: bool) -> &'static str {
    if encrypted { OF_HOST } else { PLAIN }
}

/// Takes it out of a request.
pub(crate) fn remove(headers: &mut HeaderMap) {
    let is_ours = |pair: &[u8]| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        name == PLAIN.as_bytes() || name == OF_HOST.as_bytes()
    };
    let has = |value: &HeaderValue| value.as_bytes().split(|byte| *byte == b';').any(is_ours);
    if !headers.get_all(header::COOKIE).iter().any(has) {
        return;
    }
    let values: Vec<HeaderValue> = headers.get_all(header::COOKIE).iter().cloned().collect();
    headers.remove(header::COOKIE);
    for value in values {
        let pairs = value.as_bytes().split(|byte| *byte == b';').filter(|pair| !is_ours(pair));
        let left = pairs.map(<[u8]>::trim_ascii).collect::<Vec<_>>().join(&b"; "[..]);
        if let (false, Ok(left)) = (left.is_empty(), HeaderValue::from_bytes(&left)) {
            headers.append(header::COOKIE, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_is_taken_out_and_nothing_else() {
        let left = |values: &[&str]| {
            let mut headers: HeaderMap = values.iter().map(|value| (header::COOKIE, value.parse().unwrap())).collect();
            remove(&mut headers);
            headers.get_all(header::COOKIE).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(left(&["a=b;c=d"]), ["a=b;c=d"], "as it came");
        assert_eq!(left(&["a=b; __Host-firkin_ui=x;c=firkin_ui", "firkin_ui=y"]), ["a=b; c=firkin_ui"]);
        assert_eq!(left(&[" firkin_ui =y; firkin_ui", "firkin_uix=1"]), ["firkin_uix=1"]);
    }
}
