//! Who asks, as one node tells another: found out once, where the client came in, from the key or token that it showed there.

use firkin_runtime::{ids::KeyId, keys::Caller, store::KeyScope, team::TeamId};
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};

use super::IDENTITY;

/// Longest that is read: a team, a key and a scope.
const MAX_BYTES: usize = 512;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Whose key came with the request.
    pub(crate) caller: Option<Caller>,
    /// Whether the admin token did.
    pub(crate) admin: bool,
}

#[derive(Serialize, Deserialize)]
struct Told {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    team: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<KeyScope>,
    #[serde(default)]
    admin: bool,
}

impl Identity {
    /// As it is sent to a peer.
    pub(crate) fn to_header(&self) -> HeaderValue {
        let caller = self.caller.as_ref();
        let told = Told {
            team: caller.map(|caller| caller.team.to_string()),
            key: caller.and_then(|caller| caller.key.as_ref()).map(ToString::to_string),
            scope: caller.map(|caller| caller.scope),
            admin: self.admin,
        };
        let text = serde_json::to_string(&told).expect("four plain fields are JSON");
        HeaderValue::from_str(&text).expect("ids are visible ASCII")
    }

    /// As a peer said it. `None` where it said nothing, or nothing that can be understood.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(IDENTITY)?.as_bytes();
        let told: Told = serde_json::from_slice(text.get(..MAX_BYTES.min(text.len()))?).ok()?;
        let caller = match (told.team, told.scope) {
            (Some(team), Some(scope)) => {
                let team: TeamId = team.parse().ok()?;
                let key: Option<KeyId> = told.key.map(|key| key.parse()).transpose().ok()?;
                Some(Caller { team, key, scope })
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return None,
        };
        Some(Self { caller, admin: told.admin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_understood_as_it_was_said() {
        let caller = |team: &str, scope| Some(Caller { team: team.parse().unwrap(), key: "k1".parse().ok(), scope });
        for identity in [
            Identity { caller: caller("blue", KeyScope::Read), admin: false },
            Identity { caller: caller("default", KeyScope::Full), admin: true },
            Identity { caller: None, admin: true },
        ] {
            let headers = [(IDENTITY, identity.to_header())].into_iter().collect();
            assert_eq!(Identity::of(&headers), Some(identity));
        }
        for bad in ["", "{", "{\"team\":\"a\"}", "{\"scope\":\"full\"}", "{\"team\":\"A B\",\"scope\":\"full\"}", "null"] {
            let headers = [(IDENTITY, HeaderValue::from_static(bad))].into_iter().collect();
            assert_eq!(Identity::of(&headers), None, "{bad}");
        }
    }
}
