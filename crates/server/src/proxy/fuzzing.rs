//! Body of the fuzz target for signed URLs that name no sandbox: whose file they mean is decided by what they say alone.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http::{Method, Uri};
use sha2::{Digest, Sha256};

use super::signed::Signed;

const TOKENS: [&str; 2] = ["ea_one", "ea_two"];

/// A query of any parameters: it is not a signed URL, or it is that of whoever made its signature as clients make it, and of nobody
/// else. The first byte chooses the method.
pub fn signed_url(data: &[u8]) {
    let Some((&method, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (method, operation) =
        [(Method::GET, "read"), (Method::POST, "write"), (Method::PUT, "none")][usize::from(method % 3)].clone();
    let text = text.replace(['#', ' '], "+");
    let Some(uri) = files(&text) else { return };
    let Some(signed) = Signed::read(&method, &uri) else { return };
    assert_ne!(method, Method::PUT, "{uri}");
    let given = value(&uri, "signature").expect("what is signed has a signature");
    for token in TOKENS {
        let own = sign(&uri, operation, token);
        assert_eq!(signed.by(token), given == own, "{uri}");
        // What comes last counts.
        let encoded: String = form_urlencoded::byte_serialize(own.as_bytes()).collect();
        let Some(uri) = files(&format!("{text}&signature={encoded}")) else { return };
        let signed = Signed::read(&method, &uri).expect("it is a signed URL with another signature as well");
        assert_eq!(TOKENS.map(|other| signed.by(other)), TOKENS.map(|other| other == token), "{uri}");
    }
}

fn files(query: &str) -> Option<Uri> {
    format!("/files?{query}").parse().ok()
}

/// As E2B's clients sign.
fn sign(uri: &Uri, operation: &str, token: &str) -> String {
    let [path, user] = ["path", "username"].map(|name| value(uri, name).unwrap_or_default());
    let mut text = format!("{path}:{operation}:{user}:{token}");
    if let Some(expires) = value(uri, "signature_expiration") {
        let expires: i64 = expires.parse().expect("what is signed ends at a number");
        text.push_str(&format!(":{expires}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

fn value(uri: &Uri, name: &str) -> Option<String> {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    pairs.filter(|(key, value)| key == name && !value.is_empty()).last().map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_signature_counts_for_its_method_and_path_alone() {
        let signed = |method: Method, query: &str| {
            let uri = files(&format!("path=/a&username=user&signature_expiration=9&{query}")).unwrap();
            Signed::read(&method, &uri).map(|signed| signed.by(TOKENS[0]))
        };
        let bare = files("path=/a&username=user&signature_expiration=9").unwrap();
        let own: String = form_urlencoded::byte_serialize(sign(&bare, "read", TOKENS[0]).as_bytes()).collect();
        assert_eq!(signed(Method::GET, &format!("signature={own}")), Some(true));
        assert_eq!(signed(Method::HEAD, &format!("signature={own}")), Some(true), "what may be read may be asked about");
        assert_eq!(signed(Method::POST, &format!("signature={own}")), Some(false));
        assert_eq!(signed(Method::GET, &format!("signature={own}&path=/b")), Some(false));
        assert_eq!(signed(Method::GET, &format!("signature={own}&signature_expiration=10")), Some(false));
        assert_eq!(signed(Method::GET, &format!("signature={own}&signature_expiration=x")), None);
        assert_eq!(signed(Method::PUT, &format!("signature={own}")), None);
        assert_eq!(signed(Method::GET, ""), None);
        assert_eq!(signed(Method::GET, &format!("signature={own}&path=/{}", "a".repeat(4096))), None);
    }

    proptest! {
        #[test]
        fn a_signed_url_is_that_of_its_signer_and_of_nobody_else(
            method in 0_u8..3,
            path in "[a-z/%:.+&=]{0,9}",
            user in "[a-z:%]{0,4}",
            expires in "|[-+]?[0-9]{1,19}|x",
            signature in "(v1_[A-Za-z0-9+/]{0,43})?",
            twice in "|path=b|signature=v1_|username=%ff|%73ignature=v1_x",
        ) {
            let query = format!("path={path}&username={user}&signature_expiration={expires}&signature={signature}&{twice}");
            signed_url(&[&[method], query.as_bytes()].concat());
        }
    }
}
