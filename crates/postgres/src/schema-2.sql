-- Several nodes on one catalogue: who they are, whose each row is, and what each of them sees.

-- By what a database is known to be the one that nodes wrote to: it is another number once a standby of it was promoted, or a backup restored.
CREATE FUNCTION firkin.timeline() RETURNS BIGINT VOLATILE LANGUAGE SQL AS $$
    SELECT ('x' || lpad(substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), 16, '0'))::bit(64)::bigint
$$;

-- An era begins with the cluster, and each time that the database may have gone back behind what it had kept.
CREATE TABLE firkin.cluster (
    one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
    id TEXT NOT NULL,
    secret_fingerprint TEXT NOT NULL,
    protocol BIGINT NOT NULL,
    lease_ms BIGINT NOT NULL, renew_ms BIGINT NOT NULL, stop_ms BIGINT NOT NULL, grace_ms BIGINT NOT NULL,
    timeline BIGINT NOT NULL DEFAULT firkin.timeline(),
    era BIGINT NOT NULL DEFAULT 0,
    era_since TIMESTAMPTZ NOT NULL DEFAULT now());

-- Half of each page is free, so that a renewal writes beside what it renews and touches no index.
CREATE TABLE firkin.nodes (
    id TEXT COLLATE "C" PRIMARY KEY,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    installation TEXT NOT NULL,
    host TEXT NOT NULL,
    -- How it speaks with the others.
    protocol BIGINT NOT NULL DEFAULT 1,
    term BIGINT NOT NULL,
    last_write BIGINT NOT NULL,
    lease_until TIMESTAMPTZ NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    since TIMESTAMPTZ NOT NULL DEFAULT now(),
    info TEXT NOT NULL DEFAULT '{}',
    -- The last era in which it has found that all is there that it was told is kept.
    era BIGINT NOT NULL DEFAULT 0) WITH (fillfactor = 50);

ALTER TABLE firkin.sandboxes
    ADD COLUMN node TEXT COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN term BIGINT NOT NULL DEFAULT 0,
    -- The life in which its node gave it up: whoever wants it may claim the next one, as long as it is in this one.
    ADD COLUMN given_up BIGINT;
CREATE INDEX sandboxes_of_node ON firkin.sandboxes (node);

-- A life that somebody was told of may be on record no more, once the database went back. So nobody begins one before each node that may run
-- something has found that nothing of its own is lost; and then with a number that no life of an earlier era can have had. How old a node's lease
-- is in this database says nothing of the one that it has by the former, which may have been given until the era began.
CREATE FUNCTION firkin.demand_era() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
    cluster firkin.cluster;
    unheard TEXT;
BEGIN
    SELECT * INTO cluster FROM firkin.cluster;
    IF NOT FOUND OR (cluster.era = 0 AND cluster.timeline = firkin.timeline()) THEN RETURN NEW; END IF;
    SELECT string_agg(format('`%s`', n.name), ', ' ORDER BY n.name) INTO unheard
        FROM firkin.nodes n, LATERAL (SELECT n.lease_until + cluster.grace_ms * interval '1 millisecond' AS over,
            cluster.lease_ms * interval '1 millisecond' AS lease, cluster.grace_ms * interval '1 millisecond' AS grace) AS it
        WHERE n.era < cluster.era AND n.state <> 'forgotten'
            AND greatest(it.over, cluster.era_since + it.lease + it.grace) > clock_timestamp();
    IF cluster.timeline <> firkin.timeline() OR unheard IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'cannot_connect_now', MESSAGE = format('the catalogue went back, or a standby of it was promoted: '
            'no sandbox begins another life before each node has found that what it had recorded is there; not heard of yet: %s. Where a node '
            'logs that it is not there, bring the former database back, or stop that node''s server and start it again; one that is away is waited '
            'for until the lease that it may have is over',
            coalesce(unheard, 'any'));
    END IF;
    IF firkin.json_extract(NEW.body, '$.epoch')::bigint < cluster.era << 20 THEN
        RAISE EXCEPTION USING ERRCODE = 'cannot_connect_now', MESSAGE =
            'the catalogue went back, or a standby of it was promoted, and this node has not heard of it: its next renewal tells it';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER demand_era BEFORE UPDATE OF body ON firkin.sandboxes FOR EACH ROW
    WHEN (firkin.json_extract(NEW.body, '$.epoch')::bigint > firkin.json_extract(OLD.body, '$.epoch')::bigint)
    EXECUTE FUNCTION firkin.demand_era();

-- What holds a paused sandbox; of one that runs, nothing.
ALTER TABLE firkin.sandboxes
    ADD COLUMN held_artifact TEXT COLLATE "C" GENERATED ALWAYS AS (firkin.json_extract(body, '$.phase.artifact')) STORED;
CREATE INDEX sandboxes_of_artifact ON firkin.sandboxes (held_artifact);

-- Which of these is whole on the disk of which node, beside the sandbox's own.
CREATE TABLE firkin.copies (
    artifact TEXT COLLATE "C", node TEXT COLLATE "C", since TIMESTAMPTZ NOT NULL DEFAULT now(), PRIMARY KEY (artifact, node));
CREATE INDEX copies_of_node ON firkin.copies (node);

-- A store that nodes have beside their disks: which of them removes there what nobody needs, until when, and what goes just now.
CREATE TABLE firkin.store (
    one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
    cleaner TEXT NOT NULL DEFAULT '',
    until TIMESTAMPTZ NOT NULL DEFAULT '-infinity',
    cleaned TIMESTAMPTZ NOT NULL DEFAULT '-infinity',
    going TEXT NOT NULL DEFAULT '');
INSERT INTO firkin.store DEFAULT VALUES;

-- Which artifacts are there, or are being copied there, by which node. Contents are named before any of them is looked for, so that none goes.
CREATE TABLE firkin.stored (
    artifact TEXT COLLATE "C" PRIMARY KEY,
    node TEXT COLLATE "C" NOT NULL,
    begun TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    is_whole BOOLEAN NOT NULL DEFAULT FALSE,
    -- What came of it was not what it must be: it is copied anew over that.
    is_doubtful BOOLEAN NOT NULL DEFAULT FALSE,
    unneeded_since TIMESTAMPTZ);
CREATE TABLE firkin.stored_contents (
    digest TEXT COLLATE "C",
    artifact TEXT COLLATE "C" REFERENCES firkin.stored ON DELETE CASCADE,
    PRIMARY KEY (digest, artifact));
CREATE INDEX contents_of_stored ON firkin.stored_contents (artifact);

-- Secrets of teams, the same on every node. What is told of one is in `body`, and what is not in `sealed`, which opens only with that very body and
-- the cluster's secret: no row can take the place of another, nor a value that of a later one.
CREATE TABLE firkin.secrets (
    id TEXT COLLATE "C" PRIMARY KEY,
    team TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    body TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    UNIQUE (team, name));

-- Keys that all nodes have, by what they are called, sealed likewise: what signs the tokens of sandboxes, and whom sandboxes trust.
CREATE TABLE firkin.shared_keys (name TEXT COLLATE "C" PRIMARY KEY, sealed BYTEA NOT NULL);

-- Where no node is said, these are empty texts.
ALTER TABLE firkin.builds
    ADD COLUMN node TEXT COLLATE "C" NOT NULL DEFAULT coalesce(current_setting('firkin.node', true), '');
ALTER TABLE firkin.deliveries
    ADD COLUMN node TEXT COLLATE "C" NOT NULL DEFAULT coalesce(current_setting('firkin.node', true), '');
-- A state between two steps of a build is on the disk of whoever made it.
ALTER TABLE firkin.build_layers
    ADD COLUMN node TEXT COLLATE "C" NOT NULL DEFAULT '',
    DROP CONSTRAINT build_layers_pkey,
    ADD PRIMARY KEY (key, node);

-- What a node's sessions find first. Statements are the same whoever runs them; what they find is the node's own, in its term.
CREATE SCHEMA firkin_node;
CREATE VIEW firkin_node.sandboxes AS SELECT id, body, node, term FROM firkin.sandboxes
    WHERE node = current_setting('firkin.node') AND term = current_setting('firkin.term')::bigint WITH CHECK OPTION;
ALTER VIEW firkin_node.sandboxes ALTER COLUMN node SET DEFAULT current_setting('firkin.node');
ALTER VIEW firkin_node.sandboxes ALTER COLUMN term SET DEFAULT current_setting('firkin.term')::bigint;
CREATE VIEW firkin_node.build_layers AS SELECT key, body, node FROM firkin.build_layers
    WHERE node = current_setting('firkin.node') WITH CHECK OPTION;
ALTER VIEW firkin_node.build_layers ALTER COLUMN node SET DEFAULT current_setting('firkin.node');
CREATE VIEW firkin_node.own_builds AS SELECT id, body FROM firkin.builds WHERE node = current_setting('firkin.node');
CREATE VIEW firkin_node.own_deliveries AS SELECT number, webhook, due_ms, body FROM firkin.deliveries
    WHERE node = current_setting('firkin.node');
