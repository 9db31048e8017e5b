//! What the database was told of sandboxes, in the order in which it kept it: a trigger of the bench writes each change down, whoever made it and
//! by whichever statement.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::Deserialize;

use crate::{
    postgres::Postgres,
    record::{At, Row, Written, at, now},
};

/// Below the tables of the product, in the transactions that change them.
const TRIGGER: &str = "
    CREATE SCHEMA bench;
    CREATE TABLE bench.history (
        number BIGSERIAL PRIMARY KEY, at_us BIGINT NOT NULL, sandbox TEXT NOT NULL,
        node TEXT, term BIGINT, epoch BIGINT, phase TEXT, given_up BIGINT);
    CREATE FUNCTION bench.note() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE at_us BIGINT := extract(epoch FROM clock_timestamp()) * 1000000;
    BEGIN
        IF TG_OP = 'DELETE' THEN
            INSERT INTO bench.history (at_us, sandbox) VALUES (at_us, OLD.id);
        ELSE
            INSERT INTO bench.history (at_us, sandbox, node, term, epoch, phase, given_up) VALUES (
                at_us, NEW.id, NEW.node, NEW.term, (NEW.body::jsonb ->> 'epoch')::bigint, NEW.body::jsonb -> 'phase' ->> 'phase', NEW.given_up);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER history AFTER INSERT OR UPDATE OR DELETE ON firkin.sandboxes FOR EACH ROW EXECUTE FUNCTION bench.note();";

/// Each node is called by its number.
const READ: &str = "SELECT json_build_object('at_us', h.at_us, 'sandbox', h.sandbox, 'term', h.term, 'epoch', h.epoch, 'phase', h.phase, 'given_up', h.given_up,
    'node', substr(n.name, 6)::bigint) FROM bench.history h LEFT JOIN firkin.nodes n ON n.id = h.node ORDER BY h.number";

/// One line of that.
#[derive(Debug, Deserialize)]
struct Line {
    at_us: u64,
    sandbox: String,
    node: Option<usize>,
    term: Option<u64>,
    epoch: Option<u64>,
    phase: Option<String>,
    given_up: Option<u64>,
}

/// Has changes be written down from now on, in a database that has its tables.
pub(crate) fn begin(postgres: &Postgres, database: &str) -> anyhow::Result<()> {
    postgres.ask(database, TRIGGER).map(drop).context("the history cannot be written")
}

/// All of them.
pub(crate) fn read(postgres: &Postgres, database: &str) -> anyhow::Result<Vec<Written>> {
    // The database is on this host: what it calls now is what this process does.
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let started = at(since_epoch).saturating_sub(now());
    let text = postgres.ask(database, READ)?;
    text.lines().map(|line| written(line, started).context("a line of the history cannot be read")).collect()
}

fn written(line: &str, started: At) -> anyhow::Result<Written> {
    let Line { at_us, sandbox, node, term, epoch, phase, given_up } = serde_json::from_str(line)?;
    let row = match (node, term, epoch) {
        (Some(node), Some(term), Some(epoch)) => {
            let is_paused = phase.as_deref() == Some("paused");
            Some(Row { node, term, epoch, is_paused, is_given_up: is_paused && given_up == Some(epoch) })
        }
        _ => None,
    };
    let time = at(Duration::from_micros(at_us)).saturating_sub(started);
    Ok(Written { at: time, sandbox, row })
}

/// For how long the lease of a node has been over by the database's clock, if it is.
pub(crate) fn lease_over(postgres: &Postgres, database: &str, node: usize) -> anyhow::Result<Option<Duration>> {
    let asked = format!(
        "SELECT CAST(extract(epoch FROM clock_timestamp() - lease_until) * 1000 AS BIGINT) FROM firkin.nodes WHERE name = '{}'",
        crate::node::Node::name(node)
    );
    let over: i64 = postgres.ask(database, &asked)?.trim().parse()?;
    Ok(u64::try_from(over).ok().map(Duration::from_millis))
}
