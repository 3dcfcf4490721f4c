-- What makes the scheduler's entries follow the rows: who may apply a prompt now, when the sweeper
-- tries again, and where its search for drift goes on.
SET LOCAL ROLE carillon_owner;

ALTER TABLE scheduled_prompts
    ADD COLUMN sync_fence bigint NOT NULL DEFAULT 0,
    ADD COLUMN sync_lease_expires_at timestamptz,
    -- Whoever made the change applies it first; the sweeper keeps out of its way for so long.
    ADD COLUMN sync_due_at timestamptz NOT NULL DEFAULT now() + interval '10 seconds',
    ADD COLUMN sync_refused boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN scheduled_prompts.sync_fence IS 'Counts claims of the right to apply; every write of a claimant names its own.';
COMMENT ON COLUMN scheduled_prompts.sync_lease_expires_at IS 'Until when a claimant may apply it alone, by the database''s clock; NULL: nobody does.';
COMMENT ON COLUMN scheduled_prompts.sync_due_at IS 'The sweeper does not apply it before.';
COMMENT ON COLUMN scheduled_prompts.sync_refused IS 'The entry of this generation is not fit to be sent, or AWS refused it.';

-- What waits to be applied.
CREATE INDEX scheduled_prompts_unsynced ON scheduled_prompts (tenant_id, sync_due_at)
    WHERE generation <> synced_generation;
-- Which prompts have entries, for the search for drift: an entry's name says no tenant.
CREATE INDEX scheduled_prompts_system_entries ON scheduled_prompts (id)
    WHERE status IN ('active', 'paused') AND deleted_at IS NULL;

-- Every change that the entries must follow is a new generation, whichever statement makes it: none
-- can forget. A statement that knows of one that shows in no column here raises the generation itself.
CREATE FUNCTION begin_generation() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    NEW.generation := OLD.generation + 1;
    NEW.sync_due_at := now() + interval '10 seconds';
    NEW.sync_attempts := 0;
    NEW.sync_error := NULL;
    NEW.sync_refused := false;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION begin_generation IS 'Counts a change that the scheduler''s entries must follow, and forgets what was said about the generation before.';
REVOKE ALL ON FUNCTION begin_generation() FROM PUBLIC;

CREATE TRIGGER begin_generation
    BEFORE UPDATE OF status, schedule, deleted_at, generation ON scheduled_prompts
    FOR EACH ROW WHEN (
        NEW.status <> OLD.status OR NEW.schedule <> OLD.schedule OR NEW.generation <> OLD.generation
        OR NEW.deleted_at IS DISTINCT FROM OLD.deleted_at)
    EXECUTE FUNCTION begin_generation();

-- The one table that is no tenant's: it holds a place in AWS's list and two ids, in one row. Only
-- the system functions reach it.
CREATE TABLE drift_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    list_token text,
    prompt_after uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    tenant_after uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE drift_cursor IS 'Where the sweeper''s search for drift goes on: one row for the whole installation.';
COMMENT ON COLUMN drift_cursor.only_row IS 'True: there is one row.';
COMMENT ON COLUMN drift_cursor.list_token IS 'AWS''s token for the next page of entries; NULL: from the start.';
COMMENT ON COLUMN drift_cursor.prompt_after IS 'The prompt whose entries were compared last.';
COMMENT ON COLUMN drift_cursor.tenant_after IS 'The last tenant whose changes were looked for.';
COMMENT ON COLUMN drift_cursor.updated_at IS 'When the place was last moved.';
INSERT INTO drift_cursor DEFAULT VALUES;
ALTER TABLE drift_cursor ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY system_only ON drift_cursor FOR ALL TO carillon_definer USING (true) WITH CHECK (true);
GRANT SELECT, UPDATE ON drift_cursor TO carillon_definer;

RESET ROLE;
GRANT CREATE ON SCHEMA public TO carillon_definer;
SET LOCAL ROLE carillon_definer;

CREATE FUNCTION system_unsynced_tenants(tenant_after uuid, rows_max integer)
RETURNS TABLE (tenant_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    -- From tenant to tenant by the index; a DISTINCT would read every row that waits.
    WITH RECURSIVE waiting (id, found) AS (
        (SELECT p.tenant_id, 1 FROM public.scheduled_prompts p
          WHERE p.generation <> p.synced_generation AND p.tenant_id > tenant_after
          ORDER BY p.tenant_id LIMIT 1)
        UNION ALL
        SELECT following.id, waiting.found + 1
          FROM waiting
         CROSS JOIN LATERAL (
             SELECT p.tenant_id AS id FROM public.scheduled_prompts p
              WHERE p.generation <> p.synced_generation AND p.tenant_id > waiting.id
              ORDER BY p.tenant_id LIMIT 1) following
         WHERE waiting.found < rows_max)
    SELECT waiting.id FROM waiting
$$;
COMMENT ON FUNCTION system_unsynced_tenants IS 'Tenants with prompts whose entries do not follow their rows, in the order of their ids, a page at a time.';

CREATE FUNCTION system_unsynced_prompts(tenants uuid[], rows_max integer)
RETURNS TABLE (tenant_id uuid, prompt_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    SELECT tenant.id, due.id
      FROM unnest(tenants) AS tenant (id)
     CROSS JOIN LATERAL (
         SELECT p.id, row_number() OVER (ORDER BY p.sync_due_at) AS turn
           FROM public.scheduled_prompts p
          WHERE p.tenant_id = tenant.id AND p.generation <> p.synced_generation
            AND p.sync_due_at <= now()
            AND (p.sync_lease_expires_at IS NULL OR p.sync_lease_expires_at <= now())
          ORDER BY p.sync_due_at LIMIT rows_max) due
     ORDER BY due.turn, tenant.id LIMIT rows_max
$$;
COMMENT ON FUNCTION system_unsynced_prompts IS 'Prompts of these tenants whose entries are to be made to follow their rows now, each tenant in turn.';

CREATE FUNCTION system_prompts_with_entries(prompt_after uuid, rows_max integer)
RETURNS TABLE (tenant_id uuid, prompt_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    SELECT p.tenant_id, p.id
      FROM public.scheduled_prompts p
     WHERE p.status IN ('active', 'paused') AND p.deleted_at IS NULL AND p.id > prompt_after
     ORDER BY p.id LIMIT rows_max
$$;
COMMENT ON FUNCTION system_prompts_with_entries IS 'Prompts that may have entries, in the order of their ids, a page at a time.';

CREATE FUNCTION system_entries_of(wanted uuid[])
RETURNS TABLE (tenant_id uuid, prompt_id uuid, is_manual boolean, is_active boolean)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    SELECT p.tenant_id, p.id, p.schedule_type = 'manual', p.status = 'active'
      FROM public.scheduled_prompts p
     WHERE p.status IN ('active', 'paused') AND p.deleted_at IS NULL AND p.id = ANY (wanted)
$$;
COMMENT ON FUNCTION system_entries_of IS 'Which of these prompts may have entries, and whether those are to fire.';

CREATE FUNCTION system_drift_cursor()
RETURNS TABLE (list_token text, prompt_after uuid, tenant_after uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    SELECT c.list_token, c.prompt_after, c.tenant_after FROM public.drift_cursor c
$$;
COMMENT ON FUNCTION system_drift_cursor IS 'Where the search for drift goes on.';

CREATE FUNCTION system_move_drift_cursor(token text, prompt uuid, tenant uuid)
RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    UPDATE public.drift_cursor
       SET list_token = token, prompt_after = prompt, tenant_after = tenant, updated_at = now()
$$;
COMMENT ON FUNCTION system_move_drift_cursor IS 'Notes where the search for drift goes on.';

REVOKE ALL ON FUNCTION
    system_unsynced_tenants(uuid, integer), system_unsynced_prompts(uuid[], integer),
    system_prompts_with_entries(uuid, integer), system_entries_of(uuid[]), system_drift_cursor(), system_move_drift_cursor(text, uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    system_unsynced_tenants(uuid, integer), system_unsynced_prompts(uuid[], integer),
    system_prompts_with_entries(uuid, integer), system_entries_of(uuid[]), system_drift_cursor(), system_move_drift_cursor(text, uuid, uuid) TO carillon_system;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM carillon_definer;
