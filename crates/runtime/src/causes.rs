//! How an error is told together with what caused it: libraries keep causes apart, and only who logs or answers joins them.

/// An error with its sources, for a log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
