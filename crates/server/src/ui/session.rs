//! Who has signed in to the dashboard, in memory: a browser shows a random id in a cookie, and here is its digest with that of the key by
//! which it was let in. So nothing here lets anybody in, and a key that ends takes its sessions along: each request asks again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use firkin_runtime::{keys::KeyDigest, team::TeamId};
use firkin_wire::secret::equal;
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest as _, Sha256};

use crate::cookies;

/// Digits of an id and of a token: 256 bits.
const DIGITS: usize = 64;

/// Without a request for so long, a session ends: a night is longer.
const IDLE: Duration = Duration::from_secs(2 * 3600);

/// The longest session, whatever is done in it: a working day.
const LONGEST: Duration = Duration::from_secs(12 * 3600);

/// Sessions at once: each is some hundred bytes. Beyond that, of the team that has most, the one that was used longest ago ends.
const MAX_SESSIONS: usize = 1024;

/// Sessions of one team's keys at once: more than it has people at browsers. Beyond that, the one that was used longest ago ends.
const MAX_SESSIONS_OF_TEAM: usize = 64;

/// After the admin token was shown, it is not asked for again so long: a few changes.
const ADMINISTERS: Duration = Duration::from_secs(15 * 60);

/// Lines that are kept for the next page.
const MAX_OUTCOME: usize = 20;

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<[u8; 32], Session>>);

#[derive(Debug)]
struct Session {
    key: KeyDigest,
    team: TeamId,
    token: String,
    began: Instant,
    used: Instant,
    /// What came of the last action, for the next page.
    outcome: Vec<String>,
    /// When the admin token was shown.
    administers: Option<Instant>,
    /// Keys that were made by it and not shown yet.
    made: Vec<MadeKey>,
}

/// Keys that wait for the page that shows them.
const MAX_MADE: usize = 8;

/// An API key that was just made: its id and itself.
pub(crate) struct MadeKey {
    pub(crate) id: String,
    pub(crate) key: String,
}

/// Without the key, which is in no log.
impl std::fmt::Debug for MadeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MadeKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A session that a request is of.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    /// By what it is found again.
    id: [u8; 32],
    /// The key that it stands on.
    pub(crate) key: KeyDigest,
    /// What forms of it have to send.
    pub(crate) token: String,
    /// Whether its browser came by HTTPS.
    encrypted: bool,
}

impl Ticket {
    /// Whether this is what its forms send.
    pub(crate) fn is_token(&self, shown: &str) -> bool {
        equal(self.token.as_bytes(), shown.as_bytes())
    }
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, HashMap<[u8; 32], Session>> {
        // Each holder makes one change, so a poisoned map is a whole one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one. Gives what the browser is to keep.
    pub(crate) fn begin(&self, key: KeyDigest, team: TeamId, encrypted: bool) -> HeaderValue {
        let (id, now) = (random(), Instant::now());
        let mut all = self.all();
        all.retain(|_, session| session.lives(now));
        let mut of_teams: HashMap<&TeamId, usize> = HashMap::new();
        for session in all.values() {
            *of_teams.entry(&session.team).or_default() += 1;
        }
        let own = of_teams.get(&team).copied().unwrap_or_default();
        let crowded = if own >= MAX_SESSIONS_OF_TEAM {
            Some(team.clone())
        } else {
            let most = of_teams.into_iter().max_by_key(|(_, count)| *count).map(|(team, _)| team.clone());
            most.filter(|_| all.len() >= MAX_SESSIONS)
        };
        let of_it = all.iter().filter(|(_, session)| crowded.as_ref() == Some(&session.team));
        if let Some(oldest) = of_it.min_by_key(|(_, session)| session.used).map(|(id, _)| *id) {
            all.remove(&oldest);
        }
        let (token, outcome) = (random(), Vec::new());
        all.insert(
            digest(&id),
            Session { key, team, token, began: now, used: now, outcome, administers: None, made: Vec::new() },
        );
        cookie(&id, LONGEST, encrypted)
    }

    /// The session of a request, if it shows one that lives.
    pub(crate) fn find(&self, headers: &HeaderMap, encrypted: bool) -> Option<Ticket> {
        let (id, encrypted) = shown(headers, encrypted)?;
        let id = digest(id);
        let now = Instant::now();
        let mut all = self.all();
        let session = all.get_mut(&id)?;
        if !session.lives(now) {
            all.remove(&id);
            return None;
        }
        session.used = now;
        Some(Ticket { id, key: session.key, token: session.token.clone(), encrypted })
    }

    /// Whether a session still lives. Who asks is somebody who uses it.
    pub(crate) fn holds(&self, ticket: &Ticket) -> bool {
        let now = Instant::now();
        self.all().get_mut(&ticket.id).filter(|session| session.lives(now)).map(|session| session.used = now).is_some()
    }

    /// Ends one. Gives what takes the cookie away.
    pub(crate) fn end(&self, ticket: &Ticket) -> HeaderValue {
        self.all().remove(&ticket.id);
        cookie("", Duration::ZERO, ticket.encrypted)
    }

    /// Lets one administer for a while: whoever has it has shown the admin token.
    pub(crate) fn administer(&self, ticket: &Ticket) {
        if let Some(session) = self.all().get_mut(&ticket.id) {
            session.administers = Some(Instant::now());
        }
    }

    /// Whether one may administer now.
    pub(crate) fn administers(&self, ticket: &Ticket) -> bool {
        self.all().get(&ticket.id).and_then(|session| session.administers).is_some_and(|since| since.elapsed() < ADMINISTERS)
    }

    /// Keeps what came of something for the session's next page.
    pub(crate) fn tell(&self, ticket: &Ticket, outcome: Vec<String>) {
        if let Some(session) = self.all().get_mut(&ticket.id) {
            let more = outcome.len().saturating_sub(MAX_OUTCOME);
            session.outcome = outcome;
            session.outcome.truncate(MAX_OUTCOME);
            if more > 0 {
                session.outcome.push(format!("and {more} more"));
            }
        }
    }

    /// Keeps a key that was made, for the one page that shows it.
    pub(crate) fn keep_key(&self, ticket: &Ticket, made: MadeKey) {
        if let Some(session) = self.all().get_mut(&ticket.id) {
            session.made.push(made);
        }
    }

    /// Whether as many wait to be shown as are kept.
    pub(crate) fn keeps_enough(&self, ticket: &Ticket) -> bool {
        self.all().get(&ticket.id).is_some_and(|session| session.made.len() >= MAX_MADE)
    }

    /// Takes them.
    pub(crate) fn take_keys(&self, ticket: &Ticket) -> Vec<MadeKey> {
        self.all().get_mut(&ticket.id).map(|session| std::mem::take(&mut session.made)).unwrap_or_default()
    }

    /// Takes what came of the last action.
    pub(crate) fn told(&self, ticket: &Ticket) -> Vec<String> {
        self.all().get_mut(&ticket.id).map(|session| std::mem::take(&mut session.outcome)).unwrap_or_default()
    }
}

impl Session {
    fn lives(&self, now: Instant) -> bool {
        now.duration_since(self.used) < IDLE && now.duration_since(self.began) < LONGEST
    }
}

/// The id that a browser shows, and whether it got it by HTTPS: by that under the name of this very host alone, else under that if it is there, since a proxy need not say of each
/// request that it came by HTTPS, and nobody else can set it. None where it shows two: one of them was put there by somebody
/// else, as a page of a sandbox can below the same domain over plain HTTP.
fn shown(headers: &HeaderMap, encrypted: bool) -> Option<(&str, bool)> {
    let under = |wanted: &str| {
        let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let named = pairs.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        named.filter(|(name, _)| *name == wanted).map(|(_, value)| value).collect::<Vec<_>>()
    };
    let of_host = under(cookies::name(true));
    let encrypted = encrypted || !of_host.is_empty();
    let ids = if encrypted { of_host } else { under(cookies::name(false)) };
    let [id] = ids[..] else { return None };
    (id.len() == DIGITS).then_some((id, encrypted))
}

fn cookie(id: &str, longest: Duration, encrypted: bool) -> HeaderValue {
    // The name that is the host's alone asks for both.
    let (path, secure) = if encrypted { ("/", "; Secure") } else { ("/ui", "") };
    let (name, seconds) = (cookies::name(encrypted), longest.as_secs());
    let text = format!("{name}={id}; HttpOnly; SameSite=Strict; Path={path}; Max-Age={seconds}{secure}");
    HeaderValue::from_str(&text).expect("an id is hexadecimal digits")
}

fn digest(id: &str) -> [u8; 32] {
    Sha256::digest(id.as_bytes()).into()
}

fn random() -> String {
    let mut bytes = [0; DIGITS / 2];
    getrandom::fill(&mut bytes).expect("the kernel's random generator works");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(cookies: &[&str]) -> HeaderMap {
        cookies.iter().map(|value| (header::COOKIE, value.parse().unwrap())).collect()
    }

    fn begun(sessions: &Sessions) -> String {
        begun_by(sessions, "a")
    }

    fn begun_by(sessions: &Sessions, team: &str) -> String {
        let cookie = sessions.begin(KeyDigest::of("k"), team.parse().unwrap(), false);
        cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn a_session_is_found_by_its_cookie_until_it_ends() {
        let sessions = Sessions::default();
        let own = begun(&sessions);
        let ticket = sessions.find(&headers(&["theme=dark", &format!("a=b; {own}")]), false).unwrap();
        assert!(ticket.is_token(&ticket.token) && !ticket.is_token("") && ticket.key == KeyDigest::of("k"));
        sessions.tell(&ticket, vec!["done".to_owned(); MAX_OUTCOME + 2]);
        let told = sessions.told(&ticket);
        assert_eq!((told.len(), told.last().unwrap().as_str()), (MAX_OUTCOME + 1, "and 2 more"));
        assert!(sessions.told(&ticket).is_empty());
        let gone = sessions.end(&ticket);
        assert_eq!(gone, "firkin_ui=; HttpOnly; SameSite=Strict; Path=/ui; Max-Age=0");
        assert!(sessions.find(&headers(&[&own]), false).is_none());
    }

    #[test]
    fn under_https_the_cookie_is_of_this_very_host() {
        let sessions = Sessions::default();
        let cookie = sessions.begin(KeyDigest::of("k"), TeamId::first(), true);
        let cookie = cookie.to_str().unwrap();
        assert!(
            cookie.starts_with("__Host-firkin_ui=") && cookie.contains("; Path=/; ") && cookie.ends_with("; Secure"),
            "{cookie}"
        );
        let own = cookie.split(';').next().unwrap();
        // What a page of elsewhere can set is not looked at, also beside it.
        let planted = own.replace("__Host-", "");
        assert!(sessions.find(&headers(&[&planted]), true).is_none());
        // A proxy need not say of each request that it came by HTTPS.
        for encrypted in [true, false] {
            assert!(sessions.find(&headers(&[&planted, own]), encrypted).is_some_and(|ticket| ticket.encrypted));
        }
        let ticket = sessions.find(&headers(&[own]), true).unwrap();
        assert!(sessions.end(&ticket).to_str().unwrap().starts_with("__Host-firkin_ui=; "));
    }

    #[test]
    fn who_shows_two_ids_shows_none() {
        let sessions = Sessions::default();
        let (own, other) = (begun(&sessions), begun(&sessions));
        for cookies in [&[format!("{own}; {other}")][..], &[own.clone(), other.clone()], &[format!("{own}; firkin_ui=x")]] {
            let cookies: Vec<&str> = cookies.iter().map(String::as_str).collect();
            assert!(sessions.find(&headers(&cookies), false).is_none(), "{cookies:?}");
        }
        for cookies in [vec!["firkin_ui="], vec!["firkin_ui"], vec![""], vec![";;=;"], vec![]] {
            assert!(sessions.find(&headers(&cookies), false).is_none(), "{cookies:?}");
        }
    }

    #[test]
    fn sessions_are_bounded_and_the_one_used_longest_ago_goes() {
        let sessions = Sessions::default();
        let other = begun_by(&sessions, "b");
        let (first, second) = (begun(&sessions), begun(&sessions));
        let holds = |cookie: &str| sessions.find(&headers(&[cookie]), false).is_some();
        assert!(holds(&first));
        for _ in 0..=MAX_SESSIONS_OF_TEAM - 2 {
            begun(&sessions);
        }
        assert_eq!(sessions.all().len(), MAX_SESSIONS_OF_TEAM + 1);
        assert!(!holds(&second) && holds(&first) && holds(&other), "who signs in often signs out its own");
        for n in 0..MAX_SESSIONS {
            begun_by(&sessions, &format!("t{}", n % 40));
        }
        assert_eq!(sessions.all().len(), MAX_SESSIONS);
        assert!(holds(&other), "of all, who has most loses one");
    }
}
