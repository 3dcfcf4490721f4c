-- Time policies: an overlap bound per prompt, jitter, and a fair search for due work.
--
-- Adding a generated column rewrites its table, which is locked meanwhile: about three seconds for a
-- million prompts.
SET LOCAL ROLE carillon_owner;

ALTER TABLE scheduled_prompts
    ADD overlap_runs_max integer NOT NULL DEFAULT 3 CHECK (overlap_runs_max BETWEEN 1 AND 20),
    ADD jitter_delay_s integer NOT NULL DEFAULT 0 CHECK (jitter_delay_s >= 0),
    ADD looks_failed integer NOT NULL DEFAULT 0 CHECK (looks_failed >= 0),
    ADD look_again_at timestamptz,
    -- Adding to an instant is immutable only without a zone.
    ADD due_at timestamptz GENERATED ALWAYS AS (
        CASE WHEN status = 'active' AND deleted_at IS NULL AND next_run_at IS NOT NULL
             THEN greatest((next_run_at AT TIME ZONE 'UTC' + jitter_delay_s * interval '1 second')
                           AT TIME ZONE 'UTC', look_again_at) END) STORED;
COMMENT ON COLUMN scheduled_prompts.overlap_runs_max IS 'With overlap allow_all: how many of its runs may be open at once.';
COMMENT ON COLUMN scheduled_prompts.jitter_delay_s IS 'How long after a slot the sweeper looks, from the prompt''s id and its jitter.';
COMMENT ON COLUMN scheduled_prompts.looks_failed IS 'Looks in a row that ended in an error.';
COMMENT ON COLUMN scheduled_prompts.look_again_at IS 'The sweeper does not look before it; infinity while the tenant is suspended. The slot stays where it is.';
COMMENT ON COLUMN scheduled_prompts.due_at IS 'When the sweeper looks; NULL never.';

ALTER TABLE scheduled_prompt_runs
    ADD overlapped_by uuid,
    ADD looks_failed integer NOT NULL DEFAULT 0 CHECK (looks_failed >= 0),
    ADD look_again_at timestamptz,
    ADD due_at timestamptz GENERATED ALWAYS AS (
        CASE status WHEN 'queued' THEN greatest(available_at, look_again_at)
                    WHEN 'running' THEN greatest(lease_expires_at, look_again_at) END) STORED;
COMMENT ON COLUMN scheduled_prompt_runs.overlapped_by IS 'Of a skipped slot: the run that was in its way, or took its place.';
COMMENT ON COLUMN scheduled_prompt_runs.looks_failed IS 'Looks in a row that ended in an error.';
COMMENT ON COLUMN scheduled_prompt_runs.look_again_at IS 'The sweeper does not look before it; infinity while the tenant is suspended.';
COMMENT ON COLUMN scheduled_prompt_runs.due_at IS 'When the sweeper looks: a queued run is available, or a lease is over.';

ALTER TABLE deliveries
    ADD looks_failed integer NOT NULL DEFAULT 0 CHECK (looks_failed >= 0),
    ADD look_again_at timestamptz,
    ADD due_at timestamptz GENERATED ALWAYS AS (
        CASE WHEN status IN ('pending', 'retrying') THEN greatest(next_attempt_at, look_again_at)
             WHEN status = 'sending' THEN greatest(lease_expires_at, look_again_at) END) STORED;
COMMENT ON COLUMN deliveries.looks_failed IS 'Looks in a row that ended in an error.';
COMMENT ON COLUMN deliveries.look_again_at IS 'The sweeper does not look before it; infinity while the tenant is suspended.';
COMMENT ON COLUMN deliveries.due_at IS 'When the sweeper looks: the next attempt has come, or a lease is over.';

-- For the system functions alone: what is due, whoever's it is.
DROP INDEX scheduled_prompts_system_due, scheduled_prompt_runs_system_queued,
           scheduled_prompt_runs_system_leased, deliveries_system_due, deliveries_system_leased;
CREATE INDEX scheduled_prompts_system_due ON scheduled_prompts (due_at, tenant_id, id)
    WHERE due_at IS NOT NULL;
CREATE INDEX scheduled_prompt_runs_system_due ON scheduled_prompt_runs (due_at, tenant_id, id, status)
    WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_system_due ON deliveries (due_at, tenant_id, id)
    WHERE due_at IS NOT NULL;
-- What is held while a tenant is suspended.
CREATE INDEX deliveries_open ON deliveries (tenant_id)
    WHERE status IN ('pending', 'retrying', 'sending');

RESET ROLE;
GRANT CREATE ON SCHEMA public TO carillon_definer;
SET LOCAL ROLE carillon_definer;

-- Tenants take turns: the first due row of each, then the second of each, and so on. The rows that
-- take part are the oldest 100,000; each is one entry of an index. Each tenant among them is looked
-- up once and by its key: a join might read all tenants.
CREATE OR REPLACE FUNCTION system_due_prompts(rows_max integer)
RETURNS TABLE (tenant_id uuid, prompt_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    WITH due AS MATERIALIZED (
        SELECT d.tenant_id, d.id, d.due_at,
               row_number() OVER (PARTITION BY d.tenant_id ORDER BY d.due_at, d.id) AS turn
          FROM (SELECT p.tenant_id, p.id, p.due_at
                  FROM public.scheduled_prompts p
                 WHERE p.due_at <= now()
                 ORDER BY p.due_at LIMIT 100000) d
    ), tenant AS MATERIALIZED (
        SELECT found.tenant_id
          FROM (SELECT DISTINCT due.tenant_id FROM due) found
         CROSS JOIN LATERAL (
               SELECT FROM public.tenants t WHERE t.id = found.tenant_id AND t.status = 'active' LIMIT 1) t
    )
    SELECT due.tenant_id, due.id
      FROM due JOIN tenant ON tenant.tenant_id = due.tenant_id
     ORDER BY due.turn, due.due_at, due.id LIMIT rows_max
$$;
COMMENT ON FUNCTION system_due_prompts IS 'Prompts whose next slot has come: tenants take turns, oldest first.';

-- A queued run takes part only while its tenant has a place free for it: others would be looked at
-- for nothing.
CREATE OR REPLACE FUNCTION system_due_runs(rows_max integer)
RETURNS TABLE (tenant_id uuid, run_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    WITH due AS MATERIALIZED (
        SELECT d.tenant_id, d.id, d.due_at, d.status,
               row_number() OVER (PARTITION BY d.tenant_id, d.status ORDER BY d.due_at, d.id) AS turn
          FROM (SELECT r.tenant_id, r.id, r.due_at, r.status
                  FROM public.scheduled_prompt_runs r
                 WHERE r.due_at <= now()
                 ORDER BY r.due_at LIMIT 100000) d
    ), tenant AS MATERIALIZED (
        SELECT found.tenant_id, t.places
          FROM (SELECT DISTINCT due.tenant_id FROM due) found
         CROSS JOIN LATERAL (
               SELECT t.concurrent_runs_max - (SELECT count(*) FROM public.scheduled_prompt_runs b
                                                WHERE b.tenant_id = t.id AND b.status = 'running') AS places
                 FROM public.tenants t WHERE t.id = found.tenant_id AND t.status = 'active' LIMIT 1) t
    )
    SELECT due.tenant_id, due.id
      FROM due JOIN tenant ON tenant.tenant_id = due.tenant_id
     WHERE due.turn <= CASE due.status WHEN 'queued' THEN tenant.places ELSE rows_max END
     ORDER BY due.turn, due.due_at, due.id LIMIT rows_max
$$;
COMMENT ON FUNCTION system_due_runs IS 'Queued runs whose time has come and running ones whose claimant vanished: tenants take turns, oldest first.';

CREATE OR REPLACE FUNCTION system_due_deliveries(rows_max integer)
RETURNS TABLE (tenant_id uuid, delivery_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    WITH due AS MATERIALIZED (
        SELECT f.tenant_id, f.id, f.due_at,
               row_number() OVER (PARTITION BY f.tenant_id ORDER BY f.due_at, f.id) AS turn
          FROM (SELECT d.tenant_id, d.id, d.due_at
                  FROM public.deliveries d
                 WHERE d.due_at <= now()
                 ORDER BY d.due_at LIMIT 100000) f
    ), tenant AS MATERIALIZED (
        SELECT found.tenant_id
          FROM (SELECT DISTINCT due.tenant_id FROM due) found
         CROSS JOIN LATERAL (
               SELECT FROM public.tenants t WHERE t.id = found.tenant_id AND t.status = 'active' LIMIT 1) t
    )
    SELECT due.tenant_id, due.id
      FROM due JOIN tenant ON tenant.tenant_id = due.tenant_id
     ORDER BY due.turn, due.due_at, due.id LIMIT rows_max
$$;
COMMENT ON FUNCTION system_due_deliveries IS 'Deliveries whose next attempt has come and those whose sender vanished: tenants take turns, oldest first.';

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM carillon_definer;
