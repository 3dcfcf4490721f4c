SET LOCAL ROLE carillon_owner;

CREATE TABLE tenants (
    id uuid PRIMARY KEY,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    default_timezone text NOT NULL DEFAULT 'UTC',
    active_prompts_max integer NOT NULL DEFAULT 1000 CHECK (active_prompts_max >= 0),
    concurrent_runs_max integer NOT NULL DEFAULT 20 CHECK (concurrent_runs_max >= 1),
    interval_minutes_min integer NOT NULL DEFAULT 1 CHECK (interval_minutes_min >= 1),
    retention_succeeded_days integer NOT NULL DEFAULT 7 CHECK (retention_succeeded_days BETWEEN 1 AND 3650),
    retention_failed_days integer NOT NULL DEFAULT 30 CHECK (retention_failed_days BETWEEN 1 AND 3650),
    retention_other_days integer NOT NULL DEFAULT 90 CHECK (retention_other_days BETWEEN 1 AND 3650),
    webhook_secret_sealed bytea NOT NULL,
    webhook_secret_previous_sealed bytea,
    webhook_secret_rotated_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE tenants IS 'Customers of the team that runs Carillon.';
COMMENT ON COLUMN tenants.id IS 'UUIDv7; what every other table calls tenant_id.';
COMMENT ON COLUMN tenants.name IS 'Shown to the operator.';
COMMENT ON COLUMN tenants.status IS 'A suspended tenant''s keys are refused and its slots do not fire.';
COMMENT ON COLUMN tenants.default_timezone IS 'IANA name, used where a schedule names none.';
COMMENT ON COLUMN tenants.active_prompts_max IS 'How many prompts may be active at once.';
COMMENT ON COLUMN tenants.concurrent_runs_max IS 'How many runs may be running at once.';
COMMENT ON COLUMN tenants.interval_minutes_min IS 'The shortest distance between two slots of a prompt, in minutes.';
COMMENT ON COLUMN tenants.retention_succeeded_days IS 'Days until a succeeded run is deleted.';
COMMENT ON COLUMN tenants.retention_failed_days IS 'Days until a failed or timed-out run is deleted.';
COMMENT ON COLUMN tenants.retention_other_days IS 'Days until any other ended run is deleted.';
COMMENT ON COLUMN tenants.webhook_secret_sealed IS 'The secret that signs webhooks, sealed.';
COMMENT ON COLUMN tenants.webhook_secret_previous_sealed IS 'The secret before it, which signs beside it for 24 hours.';
COMMENT ON COLUMN tenants.webhook_secret_rotated_at IS 'When the current secret took over.';
COMMENT ON COLUMN tenants.created_at IS 'When the row was made.';
COMMENT ON COLUMN tenants.updated_at IS 'When the row was last changed.';
CALL wall('tenants', 'id');

CREATE TABLE users (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    email text NOT NULL CHECK (length(email) BETWEEN 3 AND 255),
    role text NOT NULL CHECK (role IN ('owner', 'editor', 'viewer')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX users_email ON users (tenant_id, lower(email));
COMMENT ON TABLE users IS 'People of a tenant.';
COMMENT ON COLUMN users.tenant_id IS 'The tenant.';
COMMENT ON COLUMN users.id IS 'UUIDv7.';
COMMENT ON COLUMN users.email IS 'Address, unique in the tenant whatever its case.';
COMMENT ON COLUMN users.role IS 'owner: everything; editor: prompts and runs; viewer: reads.';
COMMENT ON COLUMN users.created_at IS 'When the row was made.';
CALL wall('users');

CREATE TABLE api_keys (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    prefix text NOT NULL,
    key_hash bytea NOT NULL CHECK (length(key_hash) = 32),
    role text NOT NULL CHECK (role IN ('owner', 'editor', 'viewer')),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);
CREATE INDEX api_keys_user ON api_keys (tenant_id, user_id);
-- For system_find_api_key alone: a caller's tenant is not known before its key is.
CREATE INDEX api_keys_system ON api_keys (id);
COMMENT ON TABLE api_keys IS 'Keys of the API; the key itself is never stored.';
COMMENT ON COLUMN api_keys.tenant_id IS 'The tenant that the key acts for.';
COMMENT ON COLUMN api_keys.id IS 'UUIDv7; part of the key''s text.';
COMMENT ON COLUMN api_keys.user_id IS 'The user that the key acts for.';
COMMENT ON COLUMN api_keys.name IS 'What its maker calls it.';
COMMENT ON COLUMN api_keys.prefix IS 'The key up to its secret part, to recognise it by.';
COMMENT ON COLUMN api_keys.key_hash IS 'SHA-256 of the whole key.';
COMMENT ON COLUMN api_keys.role IS 'What the key may do; never more than its maker could.';
COMMENT ON COLUMN api_keys.expires_at IS 'From then on refused; NULL never.';
COMMENT ON COLUMN api_keys.revoked_at IS 'From then on refused.';
COMMENT ON COLUMN api_keys.last_used_at IS 'Exact to a minute.';
COMMENT ON COLUMN api_keys.created_at IS 'When the row was made.';
CALL wall('api_keys');

CREATE TABLE audit_events (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    actor_kind text NOT NULL CHECK (actor_kind IN ('api_key', 'platform', 'system')),
    actor_id uuid,
    action text NOT NULL,
    target_kind text NOT NULL,
    target_id uuid,
    result text NOT NULL CHECK (result IN ('ok', 'refused')),
    request_id text,
    detail jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX audit_events_newest ON audit_events (tenant_id, at DESC, id DESC);
CREATE INDEX audit_events_target ON audit_events (tenant_id, target_id, at DESC, id DESC);
COMMENT ON TABLE audit_events IS 'Who did what to which object; append-only.';
COMMENT ON COLUMN audit_events.tenant_id IS 'The tenant.';
COMMENT ON COLUMN audit_events.id IS 'UUIDv7.';
COMMENT ON COLUMN audit_events.at IS 'When it was done.';
COMMENT ON COLUMN audit_events.actor_kind IS 'api_key: a tenant''s caller; platform: the operator; system: Carillon itself.';
COMMENT ON COLUMN audit_events.actor_id IS 'The API key, where a tenant''s caller acted.';
COMMENT ON COLUMN audit_events.action IS 'For example prompt.created.';
COMMENT ON COLUMN audit_events.target_kind IS 'prompt, run, delivery, api_key, tenant or webhook_secret.';
COMMENT ON COLUMN audit_events.target_id IS 'The object acted on.';
COMMENT ON COLUMN audit_events.result IS 'Whether it took effect.';
COMMENT ON COLUMN audit_events.request_id IS 'The request''s id, as in the response''s header x-request-id.';
COMMENT ON COLUMN audit_events.detail IS 'Small facts: names of changed fields, never their text.';
CALL wall('audit_events');
REVOKE UPDATE, DELETE ON audit_events FROM carillon_app;

CREATE TABLE idempotency_keys (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea NOT NULL,
    response_status integer NOT NULL,
    response_sealed bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (tenant_id, created_at);
COMMENT ON TABLE idempotency_keys IS 'Answers to POST requests, kept for 24 hours; written with the effect, so that a crash leaves neither or both.';
COMMENT ON COLUMN idempotency_keys.tenant_id IS 'The tenant.';
COMMENT ON COLUMN idempotency_keys.key IS 'The caller''s Idempotency-Key.';
COMMENT ON COLUMN idempotency_keys.request_hash IS 'SHA-256 over method, path and body.';
COMMENT ON COLUMN idempotency_keys.response_status IS 'HTTP status of the first answer.';
COMMENT ON COLUMN idempotency_keys.response_sealed IS 'Headers and body of the first answer, sealed: it may hold a new key.';
COMMENT ON COLUMN idempotency_keys.created_at IS 'When the first answer was given.';
CALL wall('idempotency_keys');

CREATE TABLE tenant_usage (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    period date NOT NULL,
    runs bigint NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cost_settled_usd numeric(14, 6) NOT NULL DEFAULT 0,
    cost_reserved_usd numeric(14, 6) NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, period)
);
COMMENT ON TABLE tenant_usage IS 'What a tenant used in a month.';
COMMENT ON COLUMN tenant_usage.tenant_id IS 'The tenant.';
COMMENT ON COLUMN tenant_usage.period IS 'First day of the month, UTC.';
COMMENT ON COLUMN tenant_usage.runs IS 'Model calls that were answered, test runs included.';
COMMENT ON COLUMN tenant_usage.input_tokens IS 'Tokens read, cached ones included.';
COMMENT ON COLUMN tenant_usage.output_tokens IS 'Tokens written.';
COMMENT ON COLUMN tenant_usage.cost_settled_usd IS 'Sum of the known costs of answered calls.';
COMMENT ON COLUMN tenant_usage.cost_reserved_usd IS 'Reserved for calls under way.';
CALL wall('tenant_usage');

RESET ROLE;
