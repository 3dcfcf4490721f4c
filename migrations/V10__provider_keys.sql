-- Tenants' own keys of model providers.
SET LOCAL ROLE carillon_owner;

CREATE TABLE provider_keys (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    provider text NOT NULL CHECK (provider IN ('openai', 'anthropic')),
    id uuid NOT NULL,
    key_sealed bytea NOT NULL,
    fingerprint text NOT NULL CHECK (fingerprint ~ '^[0-9a-f]{12}$'),
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, provider)
);
COMMENT ON TABLE provider_keys IS 'Tenants'' own keys of model providers: their runs use them in place of the installation''s.';
COMMENT ON COLUMN provider_keys.tenant_id IS 'The tenant.';
COMMENT ON COLUMN provider_keys.provider IS 'Whose key it is; a provider that is called without a key has none.';
COMMENT ON COLUMN provider_keys.id IS 'UUIDv7; what the audit trail names.';
COMMENT ON COLUMN provider_keys.key_sealed IS 'The key, sealed.';
COMMENT ON COLUMN provider_keys.fingerprint IS 'The first twelve hexadecimal digits of the key''s SHA-256: which key it is.';
COMMENT ON COLUMN provider_keys.version IS 'Counts changes; the ETag.';
COMMENT ON COLUMN provider_keys.created_at IS 'When the tenant first brought a key for the provider.';
COMMENT ON COLUMN provider_keys.updated_at IS 'When the key was last changed.';
CALL wall('provider_keys');

RESET ROLE;
