SET LOCAL ROLE carillon_owner;

CREATE TABLE scheduled_prompt_runs (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    prompt_id uuid NOT NULL,
    scheduled_for timestamptz NOT NULL,
    trigger text NOT NULL
        CHECK (trigger IN ('schedule', 'manual', 'retry', 'backfill', 'event', 'chain', 'test')),
    status text NOT NULL
        CHECK (status IN ('queued', 'running', 'generated', 'succeeded', 'failed', 'timed_out',
                          'cancelled', 'skipped', 'missed')),
    reason text,
    slots_count integer NOT NULL DEFAULT 1 CHECK (slots_count >= 1),
    scheduled_until timestamptz,
    fence bigint NOT NULL DEFAULT 0,
    lease_expires_at timestamptz,
    available_at timestamptz NOT NULL DEFAULT now(),
    attempt integer NOT NULL DEFAULT 0,
    attempts_max integer NOT NULL,
    prompt_version bigint NOT NULL,
    rendered_input text,
    rendered_system text,
    provider text,
    model text,
    input_tokens bigint,
    output_tokens bigint,
    cached_tokens bigint,
    tokens_used bigint,
    cost_usd numeric(12, 6),
    price_version text,
    latency_ms bigint,
    output text CHECK (octet_length(output) <= 262144),
    output_uri text,
    output_sha256 bytea,
    output_bytes bigint,
    output_truncated boolean NOT NULL DEFAULT false,
    error_code text,
    error_message text,
    trace_id text,
    span_id text,
    started_at timestamptz,
    completed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, prompt_id) REFERENCES scheduled_prompts (tenant_id, id)
);
-- One run per slot.
CREATE UNIQUE INDEX scheduled_prompt_runs_slot ON scheduled_prompt_runs (tenant_id, prompt_id, scheduled_for)
    WHERE trigger IN ('schedule', 'backfill');
CREATE INDEX scheduled_prompt_runs_of_prompt
    ON scheduled_prompt_runs (tenant_id, prompt_id, created_at DESC, id DESC);
CREATE INDEX scheduled_prompt_runs_newest ON scheduled_prompt_runs (tenant_id, created_at DESC, id DESC);
CREATE INDEX scheduled_prompt_runs_open ON scheduled_prompt_runs (tenant_id, prompt_id, status)
    WHERE status IN ('queued', 'running', 'generated');
CREATE INDEX scheduled_prompt_runs_running ON scheduled_prompt_runs (tenant_id)
    WHERE status = 'running';
CREATE INDEX scheduled_prompt_runs_last_output
    ON scheduled_prompt_runs (tenant_id, prompt_id, completed_at DESC)
    WHERE status = 'succeeded';
CREATE INDEX scheduled_prompt_runs_ended ON scheduled_prompt_runs (tenant_id, status, completed_at)
    WHERE completed_at IS NOT NULL;
-- For the system functions alone.
CREATE INDEX scheduled_prompt_runs_system_queued ON scheduled_prompt_runs (available_at)
    WHERE status = 'queued';
CREATE INDEX scheduled_prompt_runs_system_leased ON scheduled_prompt_runs (lease_expires_at)
    WHERE status = 'running';
COMMENT ON TABLE scheduled_prompt_runs IS 'Runs: the one execution of a slot, or of a manual request.';
COMMENT ON COLUMN scheduled_prompt_runs.tenant_id IS 'The tenant.';
COMMENT ON COLUMN scheduled_prompt_runs.id IS 'UUIDv7.';
COMMENT ON COLUMN scheduled_prompt_runs.prompt_id IS 'The prompt.';
COMMENT ON COLUMN scheduled_prompt_runs.scheduled_for IS 'The slot; for a run without one, the instant it was asked for.';
COMMENT ON COLUMN scheduled_prompt_runs.trigger IS 'What made it.';
COMMENT ON COLUMN scheduled_prompt_runs.status IS 'queued, running and generated are open; the others are final.';
COMMENT ON COLUMN scheduled_prompt_runs.reason IS 'Why it was skipped, missed, cancelled or failed: a stable code.';
COMMENT ON COLUMN scheduled_prompt_runs.slots_count IS 'How many missed slots the row stands for.';
COMMENT ON COLUMN scheduled_prompt_runs.scheduled_until IS 'The last of them, where they are several.';
COMMENT ON COLUMN scheduled_prompt_runs.fence IS 'Counts claims; every write of a claimant names its own.';
COMMENT ON COLUMN scheduled_prompt_runs.lease_expires_at IS 'Until when a claimant may hold it, by the database''s clock.';
COMMENT ON COLUMN scheduled_prompt_runs.available_at IS 'A queued run is not claimed before it.';
COMMENT ON COLUMN scheduled_prompt_runs.attempt IS 'Tries begun.';
COMMENT ON COLUMN scheduled_prompt_runs.attempts_max IS 'Tries at the most.';
COMMENT ON COLUMN scheduled_prompt_runs.prompt_version IS 'The row of prompt_versions that it runs.';
COMMENT ON COLUMN scheduled_prompt_runs.rendered_input IS 'What the model was given.';
COMMENT ON COLUMN scheduled_prompt_runs.rendered_system IS 'The system message that it was given.';
COMMENT ON COLUMN scheduled_prompt_runs.provider IS 'Whose model was called.';
COMMENT ON COLUMN scheduled_prompt_runs.model IS 'The model that answered, as the provider names it.';
COMMENT ON COLUMN scheduled_prompt_runs.input_tokens IS 'Tokens read, cached ones included.';
COMMENT ON COLUMN scheduled_prompt_runs.output_tokens IS 'Tokens written.';
COMMENT ON COLUMN scheduled_prompt_runs.cached_tokens IS 'Tokens of the input that the provider had cached.';
COMMENT ON COLUMN scheduled_prompt_runs.tokens_used IS 'Tokens read and written.';
COMMENT ON COLUMN scheduled_prompt_runs.cost_usd IS 'US dollars for the answered call; NULL when the price is not known.';
COMMENT ON COLUMN scheduled_prompt_runs.price_version IS 'The price snapshot that gave the cost.';
COMMENT ON COLUMN scheduled_prompt_runs.latency_ms IS 'Of the answered call, in milliseconds.';
COMMENT ON COLUMN scheduled_prompt_runs.output IS 'The model''s answer, to 256 KiB.';
COMMENT ON COLUMN scheduled_prompt_runs.output_uri IS 'Where a larger answer is kept.';
COMMENT ON COLUMN scheduled_prompt_runs.output_sha256 IS 'Of the whole answer.';
COMMENT ON COLUMN scheduled_prompt_runs.output_bytes IS 'Length of the whole answer.';
COMMENT ON COLUMN scheduled_prompt_runs.output_truncated IS 'The model stopped at its length limit, or the answer was cut.';
COMMENT ON COLUMN scheduled_prompt_runs.error_code IS 'Stable code of the last error.';
COMMENT ON COLUMN scheduled_prompt_runs.error_message IS 'Fit for the tenant.';
COMMENT ON COLUMN scheduled_prompt_runs.trace_id IS 'W3C trace id.';
COMMENT ON COLUMN scheduled_prompt_runs.span_id IS 'W3C span id.';
COMMENT ON COLUMN scheduled_prompt_runs.started_at IS 'When the first try began.';
COMMENT ON COLUMN scheduled_prompt_runs.completed_at IS 'When the status became final.';
COMMENT ON COLUMN scheduled_prompt_runs.created_at IS 'When the row was made.';
CALL wall('scheduled_prompt_runs');

CREATE TABLE run_attempts (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    run_id uuid NOT NULL,
    attempt integer NOT NULL,
    fence bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('started', 'ok', 'error', 'unknown')),
    provider text NOT NULL,
    model text NOT NULL,
    input_tokens bigint,
    output_tokens bigint,
    cached_tokens bigint,
    cost_usd numeric(12, 6),
    error_code text,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, run_id, fence),
    FOREIGN KEY (tenant_id, run_id) REFERENCES scheduled_prompt_runs (tenant_id, id) ON DELETE CASCADE
);
COMMENT ON TABLE run_attempts IS 'One row before each model call, settled after it: a lost answer stays visible.';
COMMENT ON COLUMN run_attempts.tenant_id IS 'The tenant.';
COMMENT ON COLUMN run_attempts.id IS 'UUIDv7.';
COMMENT ON COLUMN run_attempts.run_id IS 'The run.';
COMMENT ON COLUMN run_attempts.attempt IS 'The run''s try, from 1.';
COMMENT ON COLUMN run_attempts.fence IS 'The claim under which it was made.';
COMMENT ON COLUMN run_attempts.status IS 'started: intent; unknown: the caller vanished, and the call may have been paid.';
COMMENT ON COLUMN run_attempts.provider IS 'Whose model is called.';
COMMENT ON COLUMN run_attempts.model IS 'The model asked for.';
COMMENT ON COLUMN run_attempts.input_tokens IS 'Tokens read, cached ones included.';
COMMENT ON COLUMN run_attempts.output_tokens IS 'Tokens written.';
COMMENT ON COLUMN run_attempts.cached_tokens IS 'Cached part of the input.';
COMMENT ON COLUMN run_attempts.cost_usd IS 'US dollars; NULL when not known.';
COMMENT ON COLUMN run_attempts.error_code IS 'Stable code.';
COMMENT ON COLUMN run_attempts.started_at IS 'Just before the call.';
COMMENT ON COLUMN run_attempts.ended_at IS 'When it was settled.';
CALL wall('run_attempts');

CREATE TABLE run_logs (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    run_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    level text NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    message text NOT NULL,
    context jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, run_id) REFERENCES scheduled_prompt_runs (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX run_logs_of_run ON run_logs (tenant_id, run_id, at, id);
COMMENT ON TABLE run_logs IS 'What happened to a run, for the tenant''s eyes.';
COMMENT ON COLUMN run_logs.tenant_id IS 'The tenant.';
COMMENT ON COLUMN run_logs.id IS 'UUIDv7.';
COMMENT ON COLUMN run_logs.run_id IS 'The run.';
COMMENT ON COLUMN run_logs.at IS 'When.';
COMMENT ON COLUMN run_logs.level IS 'How bad.';
COMMENT ON COLUMN run_logs.message IS 'A sentence without prompt text, output, address or key.';
COMMENT ON COLUMN run_logs.context IS 'Numbers and codes beside it.';
CALL wall('run_logs');

CREATE TABLE deliveries (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    run_id uuid NOT NULL,
    purpose text NOT NULL CHECK (purpose IN ('output', 'failure_notice', 'paused_notice')),
    position integer NOT NULL CHECK (position >= 0),
    kind text NOT NULL CHECK (kind IN ('email', 'webhook', 'storage')),
    target text NOT NULL,
    destination jsonb NOT NULL,
    body bytea,
    status text NOT NULL
        CHECK (status IN ('pending', 'sending', 'delivered', 'retrying', 'exhausted', 'held')),
    attempt integer NOT NULL DEFAULT 0,
    attempts_max integer NOT NULL,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    fence bigint NOT NULL DEFAULT 0,
    lease_expires_at timestamptz,
    response_status integer,
    response_excerpt text,
    location text,
    error_code text,
    error_message text,
    delivered_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, run_id, purpose, position),
    FOREIGN KEY (tenant_id, run_id) REFERENCES scheduled_prompt_runs (tenant_id, id) ON DELETE CASCADE
);
-- For the system functions alone.
CREATE INDEX deliveries_system_due ON deliveries (next_attempt_at)
    WHERE status IN ('pending', 'retrying');
CREATE INDEX deliveries_system_leased ON deliveries (lease_expires_at)
    WHERE status = 'sending';
COMMENT ON TABLE deliveries IS 'One run''s output, or a notice about it, to one destination.';
COMMENT ON COLUMN deliveries.tenant_id IS 'The tenant.';
COMMENT ON COLUMN deliveries.id IS 'UUIDv7; the webhook-id and the Message-ID: the same at every attempt.';
COMMENT ON COLUMN deliveries.run_id IS 'The run.';
COMMENT ON COLUMN deliveries.purpose IS 'The output itself, or a notice to notification_email.';
COMMENT ON COLUMN deliveries.position IS 'Place of the destination in the prompt''s list; of a notice, how many came before it.';
COMMENT ON COLUMN deliveries.kind IS 'How it goes out.';
COMMENT ON COLUMN deliveries.target IS 'Where to: addresses, URL or key.';
COMMENT ON COLUMN deliveries.destination IS 'The destination as the prompt''s version gave it.';
COMMENT ON COLUMN deliveries.body IS 'The bytes that every attempt sends; NULL: the run''s output itself.';
COMMENT ON COLUMN deliveries.status IS 'held: the outcome of an email is unknown, and a person decides.';
COMMENT ON COLUMN deliveries.attempt IS 'Attempts begun.';
COMMENT ON COLUMN deliveries.attempts_max IS 'Attempts at the most.';
COMMENT ON COLUMN deliveries.next_attempt_at IS 'Not before it.';
COMMENT ON COLUMN deliveries.fence IS 'Counts claims.';
COMMENT ON COLUMN deliveries.lease_expires_at IS 'Until when a sender may hold it.';
COMMENT ON COLUMN deliveries.response_status IS 'HTTP or SMTP status of the last attempt.';
COMMENT ON COLUMN deliveries.response_excerpt IS 'The receiver''s words, cut.';
COMMENT ON COLUMN deliveries.location IS 'Where a stored output lies.';
COMMENT ON COLUMN deliveries.error_code IS 'Stable code of the last error.';
COMMENT ON COLUMN deliveries.error_message IS 'Fit for the tenant.';
COMMENT ON COLUMN deliveries.delivered_at IS 'When it arrived.';
COMMENT ON COLUMN deliveries.created_at IS 'When the row was made.';
CALL wall('deliveries');

CREATE TABLE gone_webhooks (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    url text NOT NULL,
    gone_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, url)
);
COMMENT ON TABLE gone_webhooks IS 'Endpoints that answered 410: nothing is sent to them until a caller names them again.';
COMMENT ON COLUMN gone_webhooks.tenant_id IS 'The tenant.';
COMMENT ON COLUMN gone_webhooks.url IS 'The endpoint.';
COMMENT ON COLUMN gone_webhooks.gone_at IS 'When it said so.';
CALL wall('gone_webhooks');

RESET ROLE;
