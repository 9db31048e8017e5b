//! The runtime's face for teams and their API keys: who may use the server, and as whom. Only digests are kept, and of a key that the
//! operator brings not even that: it is valid for as long as the operator brings it, so that replacing it is revoking it.
//!
//! Teams and keys are the host's: a runtime within a team changes none, and is told so.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use firkin_causes::chain;
use jiff::{SignedDuration, Timestamp};

use crate::{
    capacity::TeamQuota,
    ground::{
        ids::KeyId,
        team::{InvalidTeam, Scope, TeamId},
    },
    runtime::Runtime,
    shared::Shared,
    storage::keys::{Caller, KeyDigest},
    store::{Added, KeyBounds, KeyRecord, KeyScope, StoreError, TeamRecord},
};

/// How the operator's key begins, as SDKs expect it.
const PREFIX: &str = "e2b_";
/// How an admin token begins, so that nobody takes it for a key.
const ADMIN_PREFIX: &str = "firkin_admin_";
/// How many hexadecimal digits follow: fewer could be guessed, and more are no key.
const DIGITS: RangeInclusive<usize> = 32..=128;

/// Keys of one installation that open something or will: each costs a comparison at every request.
const MAX_KEYS: u32 = 1000;

/// Keys that are shown after they were revoked or have expired. They do not count as keys, and of more the oldest go; what was done with
/// them stays in the audit log.
const MAX_DEAD_KEYS: u32 = 1000;

/// How long such a key is shown, and may have its expiry taken back.
const DEAD_KEPT: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Teams of one installation: each has a ring of its activity in memory.
const MAX_TEAMS: u32 = 200;

/// Bytes of the name of a team or a key, which is for people.
const MAX_NAME_BYTES: usize = 128;

/// The name of the key that the first start makes.
const FIRST_KEY: &str = "first";

/// Between two times that the database is told when keys were used.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// A token for who administers teams and keys, which whoever embeds the runtime keeps, and checks.
pub fn new_admin_token() -> String {
    format!("{ADMIN_PREFIX}{}", crate::ground::random::hex::<32>())
}

/// Why a key is not accepted.
#[derive(Debug, thiserror::Error)]
#[error(
    "the API key is not `{PREFIX}` and {} to {} lower-case hexadecimal digits",
    DIGITS.start(),
    DIGITS.end()
)]
pub struct InvalidApiKey;

/// Why something was not done with a team or a key.
#[derive(Debug, thiserror::Error)]
pub enum TeamError {
    /// Only the host's own runtime may.
    #[error("teams and keys are the host's to change")]
    NotTheHost,
    /// The id cannot be one.
    #[error(transparent)]
    Malformed(#[from] InvalidTeam),
    /// The name is too long.
    #[error("a name has at most {MAX_NAME_BYTES} bytes and no control characters")]
    Name,
    /// There is one already.
    #[error("team `{0}` exists already")]
    Exists(TeamId),
    /// There is none.
    #[error("team `{0}` not found")]
    NoTeam(TeamId),
    /// There is none.
    #[error("key `{0}` not found")]
    NoKey(String),
    /// It would be useless.
    #[error("a key cannot end before it begins")]
    Ended,
    /// There are too many.
    #[error("cannot keep more than {max} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The most.
        max: u32,
    },
    /// The store failed.
    #[error("cannot record the change of a team or a key")]
    Store(#[from] StoreError),
}

/// A team as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TeamInfo {
    /// Its id, which stands before its names.
    pub id: TeamId,
    /// For people.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it may have at most.
    pub quota: TeamQuota,
}

/// A key as it is shown: everything but the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// What it is spoken of by.
    pub id: KeyId,
    /// Whose it is.
    pub team: TeamId,
    /// For people.
    pub name: String,
    /// What it lets its holder do.
    pub scope: KeyScope,
    /// When it was made, unless that was before anybody wrote it down.
    pub created_at: Option<Timestamp>,
    /// From when on it opens nothing.
    pub expires_at: Option<Timestamp>,
    /// Since when it opens nothing, because somebody said so.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to the minute and at most two minutes late.
    pub last_used_at: Option<Timestamp>,
}

/// What a new key is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// For people.
    pub name: String,
    /// What it lets its holder do.
    pub scope: KeyScope,
    /// From when on it opens nothing.
    pub expires_at: Option<Timestamp>,
}

impl From<TeamRecord> for TeamInfo {
    fn from(TeamRecord { id, name, created_at, quota }: TeamRecord) -> Self {
        Self { id, name, created_at, quota }
    }
}

impl From<KeyRecord> for KeyInfo {
    fn from(record: KeyRecord) -> Self {
        let KeyRecord { id, team, name, scope, created_at, expires_at, revoked_at, last_used_at } = record;
        Self { id, team, name, scope, created_at, expires_at, revoked_at, last_used_at }
    }
}

fn check_name(name: &str) -> Result<(), TeamError> {
    let good = name.len() <= MAX_NAME_BYTES && !name.contains(char::is_control);
    if good { Ok(()) } else { Err(TeamError::Name) }
}

impl Runtime {
    /// Hears which keys are good and what teams may have, where servers of other hosts change that too.
    pub async fn hear_of_keys(&self) -> Result<(), StoreError> {
        let changes = self.shared.keys.changes();
        for team in self.shared.store.teams().await? {
            self.shared.teams.set_quota(&team.id, team.quota);
        }
        self.shared.keys.renew(self.shared.store.keys(Scope::Host).await?, changes);
        Ok(())
    }

    /// Lets whoever has this key use the server as the first team until the runtime ends, beside those of earlier keys.
    pub fn accept_api_key(&self, key: &str) -> Result<(), InvalidApiKey> {
        let digits = key.strip_prefix(PREFIX).ok_or(InvalidApiKey)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !DIGITS.contains(&digits.len()) || !digits.bytes().all(is_digit) {
            return Err(InvalidApiKey);
        }
        self.shared.keys.accept(blake3::hash(key.as_bytes()));
        Ok(())
    }

    /// Makes an API key of the first team that opens all of that, `e2b_` and 40 hexadecimal digits. Only its digest is kept.
    pub async fn issue_api_key(&self) -> Result<String, TeamError> {
        let new = NewKey { name: FIRST_KEY.to_owned(), scope: KeyScope::Full, expires_at: None };
        Ok(self.add_key(&TeamId::first(), new).await?.1)
    }

    /// Whose API key this is, if it is good now.
    pub fn authenticate(&self, key: &str) -> Option<Caller> {
        self.authenticate_digest(KeyDigest::of(key))
    }

    /// As [`Runtime::authenticate`], for who was let in by a key before and is to stay no longer than that is good.
    pub fn authenticate_digest(&self, key: KeyDigest) -> Option<Caller> {
        self.shared.keys.caller(key, Timestamp::now())
    }

    fn demand_host(&self) -> Result<(), TeamError> {
        if self.scope == Scope::Host { Ok(()) } else { Err(TeamError::NotTheHost) }
    }

    /// Adds a team, without a key.
    pub async fn add_team(&self, id: TeamId, name: Option<String>, quota: TeamQuota) -> Result<TeamInfo, TeamError> {
        self.demand_host()?;
        let name = name.unwrap_or_else(|| id.to_string());
        check_name(&name)?;
        let team = TeamRecord { id: id.clone(), name, created_at: Timestamp::now(), quota };
        match self.shared.store.add_team(team.clone(), MAX_TEAMS).await? {
            Added::Yes => {
                self.shared.teams.set_quota(&id, quota);
                Ok(team.into())
            }
            Added::NotNew => Err(TeamError::Exists(id)),
            Added::NoTeam | Added::TooMany => Err(TeamError::Limit { what: "teams", max: MAX_TEAMS }),
        }
    }

    /// Every team, by id.
    pub async fn teams(&self) -> Result<Vec<TeamInfo>, TeamError> {
        self.demand_host()?;
        Ok(self.shared.store.teams().await?.into_iter().map(TeamInfo::from).collect())
    }

    /// Gives a team another quota. What it has already stays.
    pub async fn set_team_quota(&self, id: &TeamId, quota: TeamQuota) -> Result<TeamInfo, TeamError> {
        self.demand_host()?;
        let changed = self.shared.store.set_team_quota(id.clone(), quota).await?;
        let changed = changed.ok_or_else(|| TeamError::NoTeam(id.clone()))?;
        self.shared.teams.set_quota(id, quota);
        Ok(changed.into())
    }

    /// Makes a key of a team. Gives it in words, which nobody can be told again: only its digest is kept.
    pub async fn add_key(&self, team: &TeamId, new: NewKey) -> Result<(KeyInfo, String), TeamError> {
        self.demand_host()?;
        check_name(&new.name)?;
        let now = Timestamp::now();
        if new.expires_at.is_some_and(|at| at <= now) {
            return Err(TeamError::Ended);
        }
        let key = format!("{PREFIX}{}", crate::ground::random::hex::<20>());
        let digest = blake3::hash(key.as_bytes());
        let record = KeyRecord {
            id: KeyId::generate(),
            team: team.clone(),
            name: new.name,
            scope: new.scope,
            created_at: Some(now),
            expires_at: new.expires_at,
            revoked_at: None,
            last_used_at: None,
        };
        let most = KeyBounds { good: MAX_KEYS, dead: MAX_DEAD_KEYS, dead_since: now - DEAD_KEPT };
        let (added, gone) = self.shared.store.add_key(*digest.as_bytes(), record.clone(), most).await?;
        gone.iter().for_each(|id| self.shared.keys.remove(id));
        match added {
            Added::Yes => self.shared.keys.add(digest, &record),
            Added::NoTeam => return Err(TeamError::NoTeam(team.clone())),
            Added::NotNew | Added::TooMany => return Err(TeamError::Limit { what: "keys", max: MAX_KEYS }),
        }
        Ok((record.into(), key))
    }

    /// Keys, oldest first, also those that open nothing any more for a while: of one team, or of all.
    pub async fn keys(&self, team: Option<&TeamId>) -> Result<Vec<KeyInfo>, TeamError> {
        self.demand_host()?;
        let scope = team.map_or(Scope::Host, |team| Scope::Team(team.clone()));
        Ok(self.shared.store.keys(scope).await?.into_iter().map(|(_, record)| record.into()).collect())
    }

    /// Has a key open nothing any more, from the next request on, also of a connection that is open. It cannot be taken back.
    pub async fn revoke_key(&self, id: &str) -> Result<KeyInfo, TeamError> {
        self.demand_host()?;
        let parsed: KeyId = id.parse().map_err(|_| TeamError::NoKey(id.to_owned()))?;
        // Before it is on record: whatever becomes of that, it opens nothing until the next start.
        self.shared.keys.remove(&parsed);
        let revoke = |key: &mut KeyRecord| {
            key.revoked_at.get_or_insert_with(Timestamp::now);
        };
        let changed = self.shared.store.change_key(parsed, revoke).await?;
        changed.map(KeyInfo::from).ok_or_else(|| TeamError::NoKey(id.to_owned()))
    }

    /// Has a key open nothing from this time on.
    pub async fn expire_key(&self, id: &str, at: Option<Timestamp>) -> Result<KeyInfo, TeamError> {
        self.demand_host()?;
        let parsed: KeyId = id.parse().map_err(|_| TeamError::NoKey(id.to_owned()))?;
        let changed = self.shared.store.change_key(parsed.clone(), move |key| key.expires_at = at).await?;
        let changed = changed.ok_or_else(|| TeamError::NoKey(id.to_owned()))?;
        self.shared.keys.expire(&parsed, at);
        Ok(changed.into())
    }
}

/// Tells the database when keys were used, until the runtime stops, and then once more.
pub(crate) async fn note_uses(shared: Arc<Shared>) {
    loop {
        let stopping = tokio::select! {
            () = tokio::time::sleep(NOTE_EVERY) => false,
            () = shared.stopping.cancelled() => true,
        };
        let uses = shared.keys.uses();
        if !uses.is_empty()
            && let Err(error) = shared.store.note_uses(uses).await
        {
            tracing::warn!(error = chain(&error), "cannot note when keys were used");
        }
        if stopping {
            return;
        }
    }
}
