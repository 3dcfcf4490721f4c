-- Calendars of holidays, and runs of past slots.
--
-- The key of a slot changes: code from before it cannot write slots any more (it names the old key in
-- its ON CONFLICT). Stop what runs prompts, migrate, start the new version: what comes due meanwhile
-- is found when it starts.
SET LOCAL ROLE carillon_owner;

CREATE TABLE calendars (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL CHECK (name ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(name) <= 64),
    days jsonb NOT NULL CHECK (jsonb_typeof(days) = 'array' AND jsonb_array_length(days) <= 2000),
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);
COMMENT ON TABLE calendars IS 'Holidays that prompts leave out, by name.';
COMMENT ON COLUMN calendars.tenant_id IS 'The tenant.';
COMMENT ON COLUMN calendars.id IS 'UUIDv7; what the audit trail names.';
COMMENT ON COLUMN calendars.name IS 'What prompts and callers call it.';
COMMENT ON COLUMN calendars.days IS 'A list of dates with their names, earliest first, each date once.';
COMMENT ON COLUMN calendars.version IS 'Counts changes; the ETag.';
COMMENT ON COLUMN calendars.created_at IS 'When the row was made.';
COMMENT ON COLUMN calendars.updated_at IS 'When the days were last changed.';
CALL wall('calendars');

CREATE TABLE prompt_calendars (
    tenant_id uuid NOT NULL,
    prompt_id uuid NOT NULL,
    calendar_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, prompt_id, calendar_id),
    FOREIGN KEY (tenant_id, prompt_id) REFERENCES scheduled_prompts (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, calendar_id) REFERENCES calendars (tenant_id, id)
);
CREATE INDEX prompt_calendars_calendar ON prompt_calendars (tenant_id, calendar_id, prompt_id);
COMMENT ON TABLE prompt_calendars IS 'Which prompts name which calendars, as their current version says.';
COMMENT ON COLUMN prompt_calendars.tenant_id IS 'The tenant.';
COMMENT ON COLUMN prompt_calendars.prompt_id IS 'The prompt.';
COMMENT ON COLUMN prompt_calendars.calendar_id IS 'The calendar.';
CALL wall('prompt_calendars');

CREATE TABLE backfills (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    prompt_id uuid NOT NULL,
    from_at timestamptz NOT NULL,
    to_at timestamptz NOT NULL CHECK (to_at > from_at),
    pace_s integer NOT NULL CHECK (pace_s BETWEEN 1 AND 3600),
    prompt_version bigint NOT NULL,
    slots_queued integer NOT NULL CHECK (slots_queued BETWEEN 0 AND 1000),
    slots_has_run integer NOT NULL CHECK (slots_has_run >= 0),
    slots_to_come integer NOT NULL CHECK (slots_to_come >= 0),
    slots_over_limit integer NOT NULL CHECK (slots_over_limit >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    cancelled_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, prompt_id) REFERENCES scheduled_prompts (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX backfills_of_prompt ON backfills (tenant_id, prompt_id, created_at DESC, id DESC);
CREATE INDEX backfills_age ON backfills (tenant_id, created_at);
COMMENT ON TABLE backfills IS 'Requests to run the slots of a past range.';
COMMENT ON COLUMN backfills.tenant_id IS 'The tenant.';
COMMENT ON COLUMN backfills.id IS 'UUIDv7.';
COMMENT ON COLUMN backfills.prompt_id IS 'Whose slots.';
COMMENT ON COLUMN backfills.from_at IS 'The range begins here.';
COMMENT ON COLUMN backfills.to_at IS 'The range ends before this.';
COMMENT ON COLUMN backfills.pace_s IS 'Seconds from the beginning of one run to that of the next, at the least.';
COMMENT ON COLUMN backfills.prompt_version IS 'The version that gave the slots, and that the runs use.';
COMMENT ON COLUMN backfills.slots_queued IS 'Slots that got a run.';
COMMENT ON COLUMN backfills.slots_has_run IS 'Slots left out because they have a run already.';
COMMENT ON COLUMN backfills.slots_to_come IS 'Slots left out because the schedule has yet to look at them.';
COMMENT ON COLUMN backfills.slots_over_limit IS 'Slots left out because max_runs leaves no room.';
COMMENT ON COLUMN backfills.created_at IS 'When it was asked for.';
COMMENT ON COLUMN backfills.cancelled_at IS 'When a caller stopped it.';
CALL wall('backfills');

ALTER TABLE scheduled_prompt_runs
    ADD backfill_id uuid,
    ADD FOREIGN KEY (tenant_id, backfill_id) REFERENCES backfills (tenant_id, id);
COMMENT ON COLUMN scheduled_prompt_runs.backfill_id IS 'The backfill that asked for it.';
CREATE INDEX scheduled_prompt_runs_of_backfill
    ON scheduled_prompt_runs (tenant_id, backfill_id, status, scheduled_for)
    WHERE backfill_id IS NOT NULL;

-- One run per slot. A row that only says why its slot was not run does not count as one: NULLs are
-- distinct, and a backfill may make up for the slot.
DROP INDEX scheduled_prompt_runs_slot;
CREATE UNIQUE INDEX scheduled_prompt_runs_slot ON scheduled_prompt_runs
    (tenant_id, prompt_id, scheduled_for,
     (CASE WHEN attempt > 0 OR status NOT IN ('missed', 'skipped', 'cancelled') THEN true END))
    WHERE trigger IN ('schedule', 'backfill');

RESET ROLE;
