SET LOCAL ROLE carillon_owner;

CREATE TABLE scheduled_prompts (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    external_id text CHECK (length(external_id) BETWEEN 1 AND 200),
    prompt_name text NOT NULL CHECK (length(prompt_name) BETWEEN 1 AND 200),
    description text,
    prompt_text text NOT NULL CHECK (octet_length(prompt_text) <= 100000),
    system_text text CHECK (octet_length(system_text) <= 100000),
    model text NOT NULL CHECK (length(model) <= 100),
    model_settings jsonb NOT NULL DEFAULT '{}',
    context jsonb NOT NULL DEFAULT '{}',
    schedule jsonb NOT NULL,
    schedule_type text NOT NULL GENERATED ALWAYS AS (schedule ->> 'type') STORED,
    timezone text NOT NULL GENERATED ALWAYS AS (schedule ->> 'timezone') STORED,
    start_at timestamptz,
    end_at timestamptz,
    status text NOT NULL DEFAULT 'active'
        CHECK (status IN ('active', 'paused', 'completed', 'failed', 'cancelled')),
    status_reason text,
    status_note text,
    overlap text NOT NULL CHECK (overlap IN ('skip', 'buffer_one', 'allow_all')),
    catchup_window_s integer NOT NULL CHECK (catchup_window_s BETWEEN 0 AND 604800),
    misfire text NOT NULL CHECK (misfire IN ('skip', 'run_latest', 'run_all')),
    max_runs integer CHECK (max_runs >= 1),
    max_retries integer NOT NULL CHECK (max_retries BETWEEN 0 AND 10),
    retry_delay_ms integer NOT NULL CHECK (retry_delay_ms BETWEEN 1000 AND 3600000),
    timeout_ms integer NOT NULL CHECK (timeout_ms BETWEEN 1000 AND 840000),
    pause_after_failures integer NOT NULL CHECK (pause_after_failures BETWEEN 0 AND 1000),
    destinations jsonb NOT NULL,
    notification_email text CHECK (length(notification_email) <= 255),
    tags text[] NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}',
    run_count bigint NOT NULL DEFAULT 0,
    success_count bigint NOT NULL DEFAULT 0,
    failure_count bigint NOT NULL DEFAULT 0,
    consecutive_failures integer NOT NULL DEFAULT 0,
    last_status text,
    last_run_at timestamptz,
    next_run_at timestamptz,
    generation bigint NOT NULL DEFAULT 1,
    synced_generation bigint NOT NULL DEFAULT 0,
    sync_error text,
    sync_attempts integer NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 1,
    spec_version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    cancelled_at timestamptz,
    deleted_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);
CREATE UNIQUE INDEX scheduled_prompts_external_id ON scheduled_prompts (tenant_id, external_id)
    WHERE deleted_at IS NULL;
CREATE INDEX scheduled_prompts_created ON scheduled_prompts (tenant_id, created_at DESC, id DESC)
    WHERE deleted_at IS NULL;
-- LEAST passes over a NULL: a prompt without a next slot sorts last, and is found by comparison.
CREATE INDEX scheduled_prompts_next_run ON scheduled_prompts (tenant_id, LEAST(next_run_at, 'infinity'), id)
    WHERE deleted_at IS NULL;
CREATE INDEX scheduled_prompts_name ON scheduled_prompts (tenant_id, prompt_name COLLATE "C", id)
    WHERE deleted_at IS NULL;
-- What is counted against active_prompts_max.
CREATE INDEX scheduled_prompts_active ON scheduled_prompts (tenant_id)
    WHERE status = 'active' AND deleted_at IS NULL;
CREATE INDEX scheduled_prompts_user ON scheduled_prompts (tenant_id, user_id, created_at DESC, id DESC)
    WHERE deleted_at IS NULL;
-- For the system functions alone: what is due, and what waits to be forgotten, whoever's it is.
CREATE INDEX scheduled_prompts_system_due ON scheduled_prompts (next_run_at)
    WHERE status = 'active' AND deleted_at IS NULL AND next_run_at IS NOT NULL;
CREATE INDEX scheduled_prompts_deleted ON scheduled_prompts (tenant_id, deleted_at)
    WHERE deleted_at IS NOT NULL;
COMMENT ON TABLE scheduled_prompts IS 'Scheduled prompts: text, model, schedule, policies, destinations.';
COMMENT ON COLUMN scheduled_prompts.tenant_id IS 'The tenant.';
COMMENT ON COLUMN scheduled_prompts.id IS 'UUIDv7.';
COMMENT ON COLUMN scheduled_prompts.user_id IS 'The user whose prompt it is.';
COMMENT ON COLUMN scheduled_prompts.external_id IS 'The caller''s own id, unique in the tenant.';
COMMENT ON COLUMN scheduled_prompts.prompt_name IS 'What the user calls it.';
COMMENT ON COLUMN scheduled_prompts.description IS 'Free text for people.';
COMMENT ON COLUMN scheduled_prompts.prompt_text IS 'The template that is rendered into the model''s input.';
COMMENT ON COLUMN scheduled_prompts.system_text IS 'System message, sent as it is.';
COMMENT ON COLUMN scheduled_prompts.model IS 'provider/name.';
COMMENT ON COLUMN scheduled_prompts.model_settings IS 'Temperature and the like.';
COMMENT ON COLUMN scheduled_prompts.context IS 'JSON object handed to every run as context.*.';
COMMENT ON COLUMN scheduled_prompts.schedule IS 'The schedule as given, with its defaults filled in.';
COMMENT ON COLUMN scheduled_prompts.schedule_type IS 'The schedule''s tag.';
COMMENT ON COLUMN scheduled_prompts.timezone IS 'IANA name.';
COMMENT ON COLUMN scheduled_prompts.start_at IS 'No slot before it.';
COMMENT ON COLUMN scheduled_prompts.end_at IS 'No slot after it.';
COMMENT ON COLUMN scheduled_prompts.status IS 'active fires; paused waits for resume; the others have ended.';
COMMENT ON COLUMN scheduled_prompts.status_reason IS 'Why it has this status: user, failures, max_runs or schedule_ended.';
COMMENT ON COLUMN scheduled_prompts.status_note IS 'A person''s words beside the reason.';
COMMENT ON COLUMN scheduled_prompts.overlap IS 'What happens to a slot while a run of this prompt is under way.';
COMMENT ON COLUMN scheduled_prompts.catchup_window_s IS 'A slot later than this is missed, in seconds.';
COMMENT ON COLUMN scheduled_prompts.misfire IS 'Which late slots inside the window are run.';
COMMENT ON COLUMN scheduled_prompts.max_runs IS 'Completed after so many runs; NULL never.';
COMMENT ON COLUMN scheduled_prompts.max_retries IS 'Tries of a run after the first.';
COMMENT ON COLUMN scheduled_prompts.retry_delay_ms IS 'Base of the backoff between tries.';
COMMENT ON COLUMN scheduled_prompts.timeout_ms IS 'Bound on one model call.';
COMMENT ON COLUMN scheduled_prompts.pause_after_failures IS 'Paused after so many failed runs in a row; 0 never.';
COMMENT ON COLUMN scheduled_prompts.destinations IS 'Where the output goes, in order.';
COMMENT ON COLUMN scheduled_prompts.notification_email IS 'Told of a failed run and of a pause.';
COMMENT ON COLUMN scheduled_prompts.tags IS 'Labels to filter by.';
COMMENT ON COLUMN scheduled_prompts.metadata IS 'The caller''s own JSON object, kept and returned.';
COMMENT ON COLUMN scheduled_prompts.run_count IS 'Runs claimed, test runs apart.';
COMMENT ON COLUMN scheduled_prompts.success_count IS 'Runs that ended succeeded, test runs apart.';
COMMENT ON COLUMN scheduled_prompts.failure_count IS 'Runs that ended failed or timed_out, test runs apart.';
COMMENT ON COLUMN scheduled_prompts.consecutive_failures IS 'Failures since the last success or resume.';
COMMENT ON COLUMN scheduled_prompts.last_status IS 'Status of the run that finished last.';
COMMENT ON COLUMN scheduled_prompts.last_run_at IS 'When a run last finished.';
COMMENT ON COLUMN scheduled_prompts.next_run_at IS 'The next slot; NULL when none is to come.';
COMMENT ON COLUMN scheduled_prompts.generation IS 'Counts changes that the scheduler''s entries must follow.';
COMMENT ON COLUMN scheduled_prompts.synced_generation IS 'The generation that the entries show.';
COMMENT ON COLUMN scheduled_prompts.sync_error IS 'Why the last try to make them equal failed.';
COMMENT ON COLUMN scheduled_prompts.sync_attempts IS 'Tries since the last success.';
COMMENT ON COLUMN scheduled_prompts.version IS 'Counts changes that a caller can see; the ETag.';
COMMENT ON COLUMN scheduled_prompts.spec_version IS 'The row of prompt_versions that new runs use.';
COMMENT ON COLUMN scheduled_prompts.created_at IS 'When the prompt was made.';
COMMENT ON COLUMN scheduled_prompts.updated_at IS 'When a caller last changed it.';
COMMENT ON COLUMN scheduled_prompts.completed_at IS 'When it completed.';
COMMENT ON COLUMN scheduled_prompts.cancelled_at IS 'When it was cancelled.';
COMMENT ON COLUMN scheduled_prompts.deleted_at IS 'Tombstone: the prompt is gone for callers; the row waits for its entries and runs to go.';
CALL wall('scheduled_prompts');

CREATE TABLE prompt_versions (
    tenant_id uuid NOT NULL,
    prompt_id uuid NOT NULL,
    version bigint NOT NULL,
    spec jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, prompt_id, version),
    FOREIGN KEY (tenant_id, prompt_id) REFERENCES scheduled_prompts (tenant_id, id) ON DELETE CASCADE
);
COMMENT ON TABLE prompt_versions IS 'What a prompt said at each change: a run keeps the version that it was made with.';
COMMENT ON COLUMN prompt_versions.tenant_id IS 'The tenant.';
COMMENT ON COLUMN prompt_versions.prompt_id IS 'The prompt.';
COMMENT ON COLUMN prompt_versions.version IS 'The prompt''s version when it was written.';
COMMENT ON COLUMN prompt_versions.spec IS 'The prompt as its owner wrote it, validated.';
COMMENT ON COLUMN prompt_versions.created_at IS 'When it was written.';
CALL wall('prompt_versions');

RESET ROLE;
