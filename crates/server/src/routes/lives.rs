//! E2B's list of what happened to sandboxes: to all that a team has or had, or to one, also to one that is gone.
//!
//! Each node of a cluster keeps what happened on it, so that what happened to a sandbox may be on several. A page is cut out of what all of
//! them have, by time. It begins at a number, and not after an event, so each node is asked for its own list from the beginning, as far as
//! the page reaches: the first of all are among the first of each.

use std::collections::{HashSet, VecDeque};

use axum::Json as Reply;
use firkin_runtime::{changes::MAX_LIVES, lifecycle::LifecycleEvent, store::LifecycleKind};
use http::HeaderMap;

use super::everywhere::Elsewhere;
use crate::{auth::Caller, error::ApiError, extract::Sandbox, listing::Query};

/// Events in one answer, at most.
const MAX_LIMIT: usize = 100;

/// Events in one answer where none says how many.
const DEFAULT_LIMIT: usize = 10;

/// What is told, and who is missing in it.
type Told = (HeaderMap, Reply<Vec<LifecycleEvent>>);

/// `GET /events/sandboxes`.
pub(super) async fn of_all(caller: Caller, elsewhere: Elsewhere, query: Query) -> Result<Told, ApiError> {
    page(&elsewhere, ("/events/sandboxes", &query), || caller.runtime.lifecycle(None)).await
}

/// `GET /events/sandboxes/{id}`, also of one that is gone.
pub(super) async fn of_one(caller: Caller, elsewhere: Elsewhere, Sandbox(id): Sandbox, query: Query) -> Result<Told, ApiError> {
    page(&elsewhere, (&format!("/events/sandboxes/{id}"), &query), || caller.runtime.lifecycle(Some(&id))).await
}

async fn page(
    elsewhere: &Elsewhere,
    (path, query): (&str, &Query),
    own: impl FnOnce() -> Vec<LifecycleEvent>,
) -> Result<Told, ApiError> {
    // A node is asked for as much as a page needs of it, and has no more than this of a team.
    let page = Page::parse(query, if elsewhere.is_peer() { MAX_LIVES } else { MAX_LIMIT })?;
    let others = elsewhere.ask_for::<Vec<LifecycleEvent>>(&format!("{path}?{}", page.of_a_node())).await;
    let mut headers = HeaderMap::new();
    others.tell(&mut headers);
    let mut own = own();
    own.retain(|event| page.kinds.is_empty() || page.kinds.contains(&event.kind));
    if !page.oldest_first {
        own.reverse();
    }
    let lists = others.parts.into_iter().map(|(_, part)| part).chain([own]).map(VecDeque::from).collect();
    let events = Merge { lists, oldest_first: page.oldest_first, seen: HashSet::new() };
    Ok((headers, Reply(events.skip(page.offset).take(page.limit).collect())))
}

/// Which part of a list is wanted.
#[derive(Debug)]
struct Page {
    offset: usize,
    limit: usize,
    oldest_first: bool,
    /// All, where none is named.
    kinds: Vec<LifecycleKind>,
}

impl Page {
    fn parse(query: &Query, max_limit: usize) -> Result<Self, ApiError> {
        let number = |name: &str, default: usize| match query.get(name).map(str::parse::<usize>) {
            None => Ok(default),
            Some(Ok(number)) => Ok(number),
            Some(Err(_)) => Err(ApiError::bad_request(format!("`{name}` must be a number"))),
        };
        let (offset, limit) = (number("offset", 0)?, number("limit", DEFAULT_LIMIT)?);
        if !(1..=max_limit).contains(&limit) {
            return Err(ApiError::bad_request(format!("`limit` must be a number from 1 to {max_limit}")));
        }
        let oldest_first = match query.get("orderAsc") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(ApiError::bad_request("`orderAsc` must be `true` or `false`")),
        };
        let kinds = query.list("types").into_iter().map(|name| {
            let kind = serde_json::from_value::<LifecycleKind>(name.into());
            kind.map_err(|_| ApiError::bad_request(format!("`types` has `{name}`, which is no event")))
        });
        Ok(Self { offset, limit, oldest_first, kinds: kinds.collect::<Result<_, _>>()? })
    }

    /// The query for all that a node may have in this page.
    fn of_a_node(&self) -> String {
        let reach = self.offset.saturating_add(self.limit).min(MAX_LIVES);
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &reach.to_string()).append_pair("orderAsc", &self.oldest_first.to_string());
        let names = self.kinds.iter().filter_map(|kind| serde_json::to_value(kind).ok());
        query.extend_pairs(names.filter_map(|name| Some(("types", name.as_str()?.to_owned()))));
        query.finish()
    }
}

/// What several nodes have, each in its own order, as one list by time: each event once.
struct Merge {
    lists: Vec<VecDeque<LifecycleEvent>>,
    oldest_first: bool,
    seen: HashSet<String>,
}

impl Iterator for Merge {
    type Item = LifecycleEvent;

    fn next(&mut self) -> Option<LifecycleEvent> {
        loop {
            // By id where the time is the same, so that every node that is asked says the same.
            let heads = self.lists.iter().enumerate().filter_map(|(number, list)| {
                let event = list.front()?;
                Some((event.timestamp, event.id.as_str(), number))
            });
            let (_, _, number) = if self.oldest_first { heads.min() } else { heads.max() }?;
            let event = self.lists.get_mut(number)?.pop_front()?;
            if self.seen.insert(event.id.clone()) {
                return Some(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn event(second: i64, id: &str) -> LifecycleEvent {
        let event = json!({
            "id": id, "version": "v2", "type": "sandbox.lifecycle.created", "timestamp": jiff::Timestamp::from_second(second).unwrap(),
            "eventCategory": "lifecycle", "eventLabel": "create", "eventData": {}, "sandboxId": "i1", "sandboxExecutionId": "x",
            "sandboxTemplateId": "t", "sandboxBuildId": null, "sandboxTeamId": "firkin", "later": "versions say more",
        });
        serde_json::from_value(event).unwrap()
    }

    fn merged(lists: &[Vec<LifecycleEvent>], oldest_first: bool) -> Merge {
        Merge { lists: lists.iter().cloned().map(VecDeque::from).collect(), oldest_first, seen: HashSet::new() }
    }

    fn ids(events: impl IntoIterator<Item = LifecycleEvent>) -> Vec<String> {
        events.into_iter().map(|event| event.id).collect()
    }

    #[test]
    fn a_node_is_asked_for_as_much_as_a_page_reaches_to() {
        for (query, asked) in [
            ("", "limit=10&orderAsc=false"),
            ("offset=30&limit=100&orderAsc=true", "limit=130&orderAsc=true"),
            ("offset=99999999", "limit=1000&orderAsc=false"),
            ("types=sandbox.lifecycle.paused", "limit=10&orderAsc=false&types=sandbox.lifecycle.paused"),
        ] {
            let page = Page::parse(&Query::parse(Some(query)), MAX_LIMIT).unwrap();
            assert_eq!(page.of_a_node(), asked, "{query}");
            let there = Page::parse(&Query::parse(Some(asked)), MAX_LIVES).unwrap();
            assert_eq!((there.offset, there.oldest_first, there.kinds), (0, page.oldest_first, page.kinds));
        }
        assert!(
            Page::parse(&Query::parse(Some(&format!("offset={}", usize::MAX))), MAX_LIMIT).unwrap().of_a_node().contains("1000")
        );
    }

    #[test]
    fn what_two_nodes_tell_is_told_once() {
        let (both, one) = (event(1, "b"), event(2, "a"));
        let merge = merged(&[vec![one.clone(), both.clone()], vec![both.clone()]], false);
        assert_eq!(merge.collect::<Vec<_>>(), [one, both]);
    }

    proptest! {
        /// Also where the clock of a node was set back, so that its own order is not that of time.
        #[test]
        fn the_first_of_all_are_among_the_first_of_each(
            seconds in proptest::collection::vec(proptest::collection::vec(0i64..6, 0..12), 0..4), reach in 0usize..20, up: bool
        ) {
            let lists: Vec<Vec<_>> = seconds.iter().enumerate().map(|(node, seconds)| {
                seconds.iter().enumerate().map(|(number, second)| event(*second, &format!("{node}-{number}"))).collect()
            }).collect();
            let whole = ids(merged(&lists, up));
            prop_assert_eq!(whole.len(), lists.iter().map(Vec::len).sum::<usize>());
            for list in &lists {
                let of_node: Vec<_> = whole.iter().filter(|id| list.iter().any(|event| event.id == **id)).cloned().collect();
                prop_assert_eq!(of_node, ids(list.clone()));
            }
            let parts: Vec<Vec<_>> = lists.iter().map(|list| list.iter().take(reach).cloned().collect()).collect();
            let first = ids(merged(&parts, up).take(reach));
            prop_assert_eq!(&first[..], &whole[..reach.min(whole.len())]);
        }
    }
}
