//! Identity tokens that a sandbox is created with.

use std::collections::BTreeMap;

use firkin_runtime::{
    sandbox::WorkloadToken,
    workload::{MAX_AUDIENCE_BYTES, MAX_TOKENS},
};
use firkin_wire::rest;

use crate::error::ApiError;

/// The one form of tokens, by contract.
const JWT_SVID: &str = "JWT-SVID";
/// Bytes of a name.
const MAX_NAME_BYTES: usize = 128;

/// The tokens by name.
pub(super) fn tokens(iam: Option<rest::Iam>) -> Result<BTreeMap<String, WorkloadToken>, ApiError> {
    let tokens = iam.and_then(|iam| iam.tokens).unwrap_or_default();
    if tokens.len() > MAX_TOKENS {
        return Err(ApiError::bad_request(format!("`iam.tokens` has {} entries, the limit is {MAX_TOKENS}", tokens.len())));
    }
    tokens.into_iter().map(token).collect()
}

fn token((name, token): (String, rest::IamToken)) -> Result<(String, WorkloadToken), ApiError> {
    // What ends a place in a text cannot be in the name that it is for.
    let unfit = |c: char| c.is_control() || c == '{' || c == '}';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(unfit) {
        return Err(ApiError::bad_request(
            "`iam.tokens` has a name that is empty, too long, or has braces or control characters",
        ));
    }
    if token.token_type != JWT_SVID {
        let form = &token.token_type;
        return Err(ApiError::bad_request(format!("`iam.tokens.{name}.tokenType` is `{form}`, and can be `{JWT_SVID}` only")));
    }
    let audience = token.audience;
    if audience.is_empty() || audience.len() > MAX_AUDIENCE_BYTES {
        return Err(ApiError::bad_request(format!("`iam.tokens.{name}.audience` has 1 to {MAX_AUDIENCE_BYTES} bytes")));
    }
    Ok((name, WorkloadToken { audience }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: &str) -> Result<BTreeMap<String, WorkloadToken>, ApiError> {
        tokens(serde_json::from_str(body).unwrap())
    }

    #[test]
    fn tokens_are_for_an_audience_and_of_one_form() {
        let found = parsed(r#"{"tokens":{"aws":{"audience":"sts.amazonaws.com","tokenType":"JWT-SVID"}}}"#).unwrap();
        assert_eq!(found["aws"].audience, "sts.amazonaws.com");
        assert!(parsed("null").unwrap().is_empty() && parsed("{}").unwrap().is_empty());
        for bad in [
            r#"{"tokens":{"aws":{"audience":"a","tokenType":"SAML"}}}"#,
            r#"{"tokens":{"aws":{"audience":"","tokenType":"JWT-SVID"}}}"#,
            r#"{"tokens":{"a}b":{"audience":"a","tokenType":"JWT-SVID"}}}"#,
            r#"{"tokens":{"":{"audience":"a","tokenType":"JWT-SVID"}}}"#,
        ] {
            parsed(bad).unwrap_err();
        }
        let many: Vec<_> = (0..=MAX_TOKENS).map(|n| format!(r#""t{n}":{{"audience":"a","tokenType":"JWT-SVID"}}"#)).collect();
        parsed(&format!(r#"{{"tokens":{{{}}}}}"#, many.join(","))).unwrap_err();
    }
}
