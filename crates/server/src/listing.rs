//! Which sandboxes a list shows, in which order, and page by page.
//!
//! All of it is a pure function of the query and the items. A cursor holds the position of the last item shown, not an offset,
//! so items that come or go between two pages neither repeat nor hide others.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use firkin_runtime::{
    reference::{Sought, TemplateName},
    sandbox::{RuntimeSandbox, SandboxState},
    team::TeamId,
};
use firkin_wire::rest::LogLevel;
use jiff::Timestamp;

use crate::error::ApiError;

/// Items on a page, at most and by default.
const MAX_LIMIT: usize = 100;

/// Longest cursor that is looked at: a timestamp, an id or a name, and a mark, in base64.
const MAX_CURSOR_BYTES: usize = 512;

/// Newest or oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    Descending,
}

/// Where a page begins: after this item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) at: Timestamp,
    pub(crate) id: String,
    pub(crate) order: Order,
}

impl Cursor {
    /// The opaque form.
    pub(crate) fn encode(&self) -> String {
        let mark = if self.order == Order::Ascending { "__asc" } else { "" };
        URL_SAFE_NO_PAD.encode(format!("{}__{}{mark}", self.at, self.id))
    }

    fn decode(text: &str) -> Option<Self> {
        if text.len() > MAX_CURSOR_BYTES {
            return None;
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?).ok()?;
        let (at, id) = text.split_once("__")?;
        let (id, order) = id.strip_suffix("__asc").map_or((id, Order::Descending), |id| (id, Order::Ascending));
        Some(Self { at: at.parse().ok()?, id: id.to_owned(), order })
    }
}

/// How much of a list, from where, in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) order: Order,
    pub(crate) limit: usize,
    pub(crate) after: Option<Cursor>,
}

/// The parameters of a query string, decoded once. The last of several equal names wins, except where a list is expected.
#[derive(Debug)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// One value. An empty one counts as absent, as clients send both.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// Whether it is there, with a value or without.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// Every value of a comma-separated or repeated parameter.
    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        self.all(name).flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty()).collect()
    }

    /// Every value of a repeated parameter.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// `limit`, `nextToken` and `order`.
    pub(crate) fn window(&self) -> Result<Window, ApiError> {
        let order = match self.get("order") {
            None | Some("desc") => Order::Descending,
            Some("asc") => Order::Ascending,
            Some(other) => return Err(ApiError::bad_request(format!("`order` must be `asc` or `desc`, not `{other}`"))),
        };
        let limit = match self.get("limit").map(str::parse) {
            None => MAX_LIMIT,
            Some(Ok(limit)) if (1..=MAX_LIMIT).contains(&limit) => limit,
            Some(_) => return Err(ApiError::bad_request(format!("`limit` must be a number from 1 to {MAX_LIMIT}"))),
        };
        let after = match self.get("nextToken").map(Cursor::decode) {
            None => None,
            Some(Some(cursor)) if cursor.order == order => Some(cursor),
            Some(Some(_)) => return Err(ApiError::bad_request("`nextToken` was made with another `order`")),
            Some(None) => return Err(ApiError::bad_request("`nextToken` is not valid")),
        };
        Ok(Window { order, limit, after })
    }

    /// `level`: the least that is wanted of a log. All of it, where none is named.
    pub(crate) fn least_level(&self) -> Result<LogLevel, ApiError> {
        match self.get("level") {
            None | Some("debug") => Ok(LogLevel::Debug),
            Some("info") => Ok(LogLevel::Info),
            Some("warn") => Ok(LogLevel::Warn),
            Some("error") => Ok(LogLevel::Error),
            Some(other) => {
                Err(ApiError::bad_request(format!("`level` must be `debug`, `info`, `warn` or `error`, not `{other}`")))
            }
        }
    }

    /// `direction`: whether a log is wanted from its end.
    pub(crate) fn is_backward(&self) -> Result<bool, ApiError> {
        match self.get("direction") {
            None | Some("forward") => Ok(false),
            Some("backward") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("`direction` must be `forward` or `backward`, not `{other}`"))),
        }
    }
}

/// Which sandboxes are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) states: Vec<SandboxState>,
    pub(crate) started_after: Option<Timestamp>,
    /// By name or id. Within it there is nothing where nothing can be meant.
    pub(crate) template: Option<Option<TemplateName>>,
}

impl Filter {
    /// The filter of `GET /v2/sandboxes`.
    pub(crate) fn parse(own: &TeamId, query: &Query) -> Result<Self, ApiError> {
        let state = |name: &str| match name {
            "running" => Ok(SandboxState::Running),
            "paused" => Ok(SandboxState::Paused),
            other => Err(ApiError::bad_request(format!("`state` must be `running` or `paused`, not `{other}`"))),
        };
        let started_after = match query.get("startedAfter").map(str::parse) {
            None => None,
            Some(Ok(at)) => Some(at),
            Some(Err(_)) => return Err(ApiError::bad_request("`startedAfter` must be a time as in RFC 3339")),
        };
        Ok(Self {
            metadata: query.get("metadata").map_or_else(|| Ok(BTreeMap::new()), metadata)?,
            states: query.list("state").into_iter().map(state).collect::<Result<_, _>>()?,
            started_after,
            template: query.get("template").map(|text| template(own, text)),
        })
    }

    /// Whether `sandbox` is wanted, apart from its state.
    pub(crate) fn matches(&self, sandbox: &RuntimeSandbox) -> bool {
        let has = |(key, value): (&String, &String)| sandbox.spec.metadata.get(key) == Some(value);
        let of_it = |name: &TemplateName| sandbox.template_id == name.as_str() || sandbox.alias.as_deref() == Some(name.as_str());
        self.metadata.iter().all(has)
            && self.started_after.is_none_or(|at| sandbox.started_at >= at)
            && self.template.as_ref().is_none_or(|wanted| wanted.as_ref().is_some_and(of_it))
    }

    /// Whether a sandbox in this state is wanted.
    pub(crate) fn wants(&self, state: SandboxState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }
}

/// The template that is wanted, of one's own team or of the host's; another team's is wanted by its id. With a tag it is none: which of its builds a sandbox began with is not known of that.
fn template(own: &TeamId, text: &str) -> Option<TemplateName> {
    let Sought { team, reference } = text.parse().ok()?;
    let known = team.is_none_or(|team| team == *own || team.is_first());
    Some(reference).filter(|wanted| known && wanted.other_tag().is_none()).map(|wanted| wanted.name)
}

/// The metadata filter. Clients quote each key and value, join them into a query string, quote that, and put it into the query,
/// of which one layer is already gone here.
fn metadata(value: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let pairs = unescape(value)?;
    let mut filter = BTreeMap::new();
    for pair in pairs.split('&').filter(|pair| !pair.is_empty()) {
        let mut parts = pair.split('=');
        let (Some(key), Some(value), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ApiError::bad_request(format!("`metadata` must hold `key=value` pairs, not `{pair}`")));
        };
        filter.insert(unescape(key)?, unescape(value)?);
    }
    Ok(filter)
}

/// One layer of query quoting: `+` is a space, `%xx` a byte.
fn unescape(text: &str) -> Result<String, ApiError> {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| ApiError::bad_request("`metadata` is not UTF-8"))
}

/// One page of `items` and the cursor of the next, if there is one. `position` orders the items and is unique.
pub(crate) fn page<T>(
    mut items: Vec<T>,
    window: &Window,
    position: impl Fn(&T) -> (Timestamp, String),
) -> (Vec<T>, Option<Cursor>) {
    items.sort_by_cached_key(&position);
    if window.order == Order::Descending {
        items.reverse();
    }
    if let Some(cursor) = &window.after {
        let last = (cursor.at, cursor.id.clone());
        items.retain(|item| match window.order {
            Order::Ascending => position(item) > last,
            Order::Descending => position(item) < last,
        });
    }
    let more = items.len() > window.limit;
    items.truncate(window.limit);
    let next = items.last().filter(|_| more).map(|item| {
        let (at, id) = position(item);
        Cursor { at, id, order: window.order }
    });
    (items, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(order: Order, limit: usize) -> Window {
        Window { order, limit, after: None }
    }

    #[test]
    fn the_recorded_metadata_query_is_understood() {
        let query = Query::parse(Some("metadata=a%252520b%3Dc%252526d%26k%3Dv"));
        let filter = Filter::parse(&TeamId::first(), &query).unwrap();
        let expected = [("a b", "c&d"), ("k", "v")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(filter.metadata, BTreeMap::from(expected));
    }

    #[test]
    fn bad_queries_are_refused_and_odd_ones_are_not() {
        let table = [
            ("", true),
            ("state=", true),
            ("state=running,paused", true),
            ("state=running&state=paused", true),
            ("limit=1&order=asc", true),
            ("startedAfter=2026-01-02T03:04:05Z", true),
            ("metadata=", true),
            ("unknown=1", true),
            ("state=gone", false),
            ("limit=0", false),
            ("limit=101", false),
            ("limit=-1", false),
            ("limit=x", false),
            ("order=up", false),
            ("startedAfter=yesterday", false),
            ("nextToken=%21", false),
            ("nextToken=YWJj", false),
            ("metadata=a%3Db%3Dc", false),
            ("metadata=a", false),
            ("metadata=a%3D%25ff", false),
        ];
        for (query, good) in table {
            let query_ = Query::parse(Some(query));
            assert_eq!(Filter::parse(&TeamId::first(), &query_).is_ok() && query_.window().is_ok(), good, "{query}");
        }
    }

    #[test]
    fn a_cursor_of_the_other_order_is_refused() {
        let cursor = Cursor { at: Timestamp::UNIX_EPOCH, id: "i".into(), order: Order::Ascending };
        let query = format!("nextToken={}", cursor.encode());
        assert!(Query::parse(Some(&query)).window().is_err());
        assert!(Query::parse(Some(&format!("{query}&order=asc"))).window().is_ok());
    }

    proptest! {
        #[test]
        fn any_metadata_survives_the_clients_quoting(
            wanted in proptest::collection::btree_map(".{0,12}", ".{0,12}", 0..4)
        ) {
            use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
            let quote = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let inner: String = form_urlencoded::Serializer::new(String::new())
                .extend_pairs(wanted.iter().map(|(k, v)| (quote(k), quote(v)))).finish();
            let outer: String = form_urlencoded::Serializer::new(String::new()).append_pair("metadata", &inner).finish();
            let filter = Filter::parse(&TeamId::first(), &Query::parse(Some(&outer))).unwrap();
            prop_assert_eq!(filter.metadata, wanted);
        }

        #[test]
        fn any_cursor_survives(seconds in 0i64..4_000_000_000, nanos in 0i32..1_000_000_000, id in "[a-z0-9_:/-]{1,40}", up: bool) {
            prop_assume!(!id.ends_with("__asc"));
            let order = if up { Order::Ascending } else { Order::Descending };
            let cursor = Cursor { at: Timestamp::new(seconds, nanos).unwrap(), id, order };
            prop_assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }

        #[test]
        fn pages_show_every_item_once_in_order(seconds in proptest::collection::vec(0i64..5, 0..40), limit in 1usize..7, up: bool) {
            let order = if up { Order::Ascending } else { Order::Descending };
            let items: Vec<_> = seconds.iter().enumerate().map(|(i, &s)| (Timestamp::from_second(s).unwrap(), format!("i{i}"))).collect();
            let mut window = window(order, limit);
            let mut seen = Vec::new();
            loop {
                let (shown, next) = page(items.clone(), &window, Clone::clone);
                prop_assert!(shown.len() <= limit);
                seen.extend(shown);
                match next {
                    Some(cursor) => window.after = Some(cursor),
                    None => break,
                }
            }
            let mut expected = items;
            expected.sort();
            if !up { expected.reverse(); }
            prop_assert_eq!(seen, expected);
        }
    }
}
