-- People who sign in with an OIDC issuer's tokens, and how many requests a caller may make.
SET LOCAL ROLE carillon_owner;

ALTER TABLE users
    ADD COLUMN oidc_issuer text CHECK (length(oidc_issuer) BETWEEN 1 AND 512),
    ADD COLUMN oidc_subject text CHECK (length(oidc_subject) BETWEEN 1 AND 255),
    ADD COLUMN version bigint NOT NULL DEFAULT 1,
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN removed_at timestamptz,
    ADD CONSTRAINT users_identity_is_whole CHECK ((oidc_issuer IS NULL) = (oidc_subject IS NULL));
COMMENT ON COLUMN users.oidc_issuer IS 'Who vouches for the user: the claim iss of their tokens; NULL: they have API keys alone.';
COMMENT ON COLUMN users.oidc_subject IS 'The claim sub of their tokens. The same person may be a user of several tenants.';
COMMENT ON COLUMN users.version IS 'Counts changes, for If-Match.';
COMMENT ON COLUMN users.updated_at IS 'When the row was last changed.';
COMMENT ON COLUMN users.removed_at IS 'Since when their tokens and keys are refused; the row stays for what it is named in.';
COMMENT ON COLUMN users.role IS 'owner: everything; editor: prompts and runs; viewer: reads. No key of theirs may do more.';
CREATE UNIQUE INDEX users_identity ON users (tenant_id, oidc_issuer, oidc_subject);
-- For system_identify_user alone: a token says no tenant that could be believed.
CREATE INDEX users_system_identity ON users (oidc_subject, oidc_issuer) WHERE oidc_subject IS NOT NULL;

ALTER TABLE tenants
    ADD COLUMN requests_per_minute_max integer NOT NULL DEFAULT 3000 CHECK (requests_per_minute_max >= 1),
    ADD COLUMN caller_requests_per_minute_max integer NOT NULL DEFAULT 1500
        CHECK (caller_requests_per_minute_max >= 1);
COMMENT ON COLUMN tenants.requests_per_minute_max IS 'API requests of all its callers together.';
COMMENT ON COLUMN tenants.caller_requests_per_minute_max IS 'API requests of each key, and of each user with a token.';

ALTER TABLE audit_events
    ADD COLUMN actor_user_id uuid,
    DROP CONSTRAINT audit_events_actor_kind_check,
    ADD CONSTRAINT audit_events_actor_kind_check CHECK (actor_kind IN ('api_key', 'user', 'platform', 'system'));
COMMENT ON COLUMN audit_events.actor_kind IS 'api_key, user: a tenant''s caller, with a key or with a token; platform: the operator; system: Carillon itself.';
COMMENT ON COLUMN audit_events.actor_id IS 'The API key or the user, where a tenant''s caller acted.';
COMMENT ON COLUMN audit_events.actor_user_id IS 'The user, where a tenant''s caller acted, with a key or with a token.';

-- Not logged ahead: a crash of the server empties it, which lets everybody go on, and a request does
-- not wait for the disk.
CREATE UNLOGGED TABLE request_rates (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    kind text NOT NULL CHECK (kind IN ('tenant', 'api_key', 'user', 'wrong_secret')),
    holder_id uuid NOT NULL,
    full_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, kind, holder_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE request_rates IS 'How much of its requests a minute each caller has used: a token bucket in one instant.';
COMMENT ON COLUMN request_rates.tenant_id IS 'The tenant.';
COMMENT ON COLUMN request_rates.kind IS 'Whose bucket: the tenant''s, a key''s, a user''s, or that of a key''s wrong secrets.';
COMMENT ON COLUMN request_rates.holder_id IS 'The tenant, the key or the user.';
COMMENT ON COLUMN request_rates.full_at IS 'When the bucket is full again, if nothing more is taken; never over a minute ahead.';
CALL wall('request_rates');
REVOKE ALL ON request_rates FROM carillon_app;

GRANT SELECT ON users TO carillon_definer;
GRANT SELECT, INSERT, UPDATE ON request_rates TO carillon_definer;

RESET ROLE;
GRANT CREATE ON SCHEMA public TO carillon_definer;
SET LOCAL ROLE carillon_definer;

CREATE FUNCTION take_from_bucket(of_tenant uuid, of_kind text, of_holder uuid, per_minute integer)
RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    cost interval := interval '1 minute' / per_minute;
    waits interval;
BEGIN
    -- The clock, not the statement's beginning: it may have waited for another request's lock.
    INSERT INTO public.request_rates AS r (tenant_id, kind, holder_id, full_at)
    VALUES (of_tenant, of_kind, of_holder, clock_timestamp() + cost)
    ON CONFLICT (tenant_id, kind, holder_id) DO UPDATE
       SET full_at = greatest(r.full_at, clock_timestamp()) + cost
     WHERE r.full_at + cost <= clock_timestamp() + interval '1 minute';
    IF FOUND THEN
        RETURN 0;
    END IF;
    SELECT r.full_at + cost - interval '1 minute' - clock_timestamp() INTO waits
      FROM public.request_rates r
     WHERE r.tenant_id = of_tenant AND r.kind = of_kind AND r.holder_id = of_holder;
    RETURN greatest(1, least(60000, ceil(extract(epoch FROM waits) * 1000)))::integer;
END
$$;
COMMENT ON FUNCTION take_from_bucket IS 'Takes one from a bucket: 0, or the milliseconds until there is one to take.';

CREATE FUNCTION take_request(of_tenant uuid, of_kind text, of_holder uuid)
RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    own_max integer;
    all_max integer;
    waits integer;
BEGIN
    SELECT t.caller_requests_per_minute_max, t.requests_per_minute_max INTO own_max, all_max
      FROM public.tenants t WHERE t.id = of_tenant;
    -- The tenant's last: who has used up their own takes nothing from the others.
    waits := take_from_bucket(of_tenant, of_kind, of_holder, own_max);
    IF waits = 0 THEN
        waits := take_from_bucket(of_tenant, 'tenant', of_tenant, all_max);
    END IF;
    RETURN waits;
END
$$;
COMMENT ON FUNCTION take_request IS 'Counts a request of a caller and of their tenant: 0, or the milliseconds until it may be made.';

CREATE FUNCTION system_identify_key(wanted uuid, sent_hash bytea, salt bytea)
RETURNS TABLE (tenant_id uuid, user_id uuid, role text, refused text, retry_after_ms integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    known record;
BEGIN
    SELECT k.tenant_id, k.user_id, k.key_hash, k.role, k.revoked_at, k.expires_at, k.last_used_at,
           u.role AS user_role, u.removed_at, t.status INTO known
      FROM public.api_keys k
      JOIN public.tenants t ON t.id = k.tenant_id
      JOIN public.users u ON u.tenant_id = k.tenant_id AND u.id = k.user_id
     WHERE k.id = wanted;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Hashed once more with a salt that nobody knows: how long the comparison takes tells nothing.
    IF sha256(salt || known.key_hash) <> sha256(salt || sent_hash) THEN
        retry_after_ms := take_from_bucket(known.tenant_id, 'wrong_secret', wanted, 10);
        IF retry_after_ms > 0 THEN
            refused := 'too_many_attempts';
            RETURN NEXT;
        END IF;
        RETURN;
    END IF;
    tenant_id := known.tenant_id;
    user_id := known.user_id;
    role := CASE WHEN 'viewer' IN (known.role, known.user_role) THEN 'viewer'
                 WHEN 'editor' IN (known.role, known.user_role) THEN 'editor'
                 ELSE 'owner' END;
    refused := CASE WHEN known.revoked_at IS NOT NULL OR known.removed_at IS NOT NULL THEN 'revoked'
                    WHEN known.expires_at <= now() THEN 'expired'
                    WHEN known.status <> 'active' THEN 'tenant_suspended' END;
    IF refused IS NULL THEN
        retry_after_ms := take_request(known.tenant_id, 'api_key', wanted);
        IF retry_after_ms > 0 THEN
            refused := 'rate_limited';
        ELSIF known.last_used_at IS NULL OR known.last_used_at < now() - interval '1 minute' THEN
            UPDATE public.api_keys k SET last_used_at = now()
             WHERE k.tenant_id = known.tenant_id AND k.id = wanted;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION system_identify_key IS 'Who holds the key with this id and hash, and why they are refused if they are; counts the request, or the wrong secret.';

CREATE FUNCTION system_identify_user(issuer text, subject text, wanted uuid)
RETURNS TABLE (tenant_id uuid, user_id uuid, role text, refused text, retry_after_ms integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    known record;
BEGIN
    FOR known IN
        SELECT u.tenant_id, u.id, u.role, t.status, count(*) OVER () AS tenants
          FROM public.users u JOIN public.tenants t ON t.id = u.tenant_id
         WHERE u.oidc_issuer = issuer AND u.oidc_subject = subject AND u.removed_at IS NULL
           AND (wanted IS NULL OR u.tenant_id = wanted)
         ORDER BY u.tenant_id LIMIT 20
    LOOP
        tenant_id := known.tenant_id;
        user_id := known.id;
        role := known.role;
        retry_after_ms := NULL;
        refused := CASE WHEN known.tenants > 1 THEN 'tenant_not_named'
                        WHEN known.status <> 'active' THEN 'tenant_suspended' END;
        IF refused IS NULL THEN
            retry_after_ms := take_request(known.tenant_id, 'user', known.id);
            IF retry_after_ms > 0 THEN
                refused := 'rate_limited';
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION system_identify_user IS 'The user of this identity, in the wanted tenant or in their only one, and why they are refused if they are; a row for each tenant where none is named; counts the request.';

-- For the version before this one, which compares the hash itself; it no longer notes a use that
-- nobody has shown to be one.
CREATE OR REPLACE FUNCTION system_find_api_key(wanted uuid)
RETURNS TABLE (tenant_id uuid, user_id uuid, key_hash bytea, role text, refused text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT k.tenant_id, k.user_id, k.key_hash, k.role,
           CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
                WHEN k.expires_at <= now() THEN 'expired'
                WHEN t.status <> 'active' THEN 'tenant_suspended' END
      FROM public.api_keys k JOIN public.tenants t ON t.id = k.tenant_id
     WHERE k.id = wanted;
END
$$;

REVOKE ALL ON FUNCTION
    take_from_bucket(uuid, text, uuid, integer), take_request(uuid, text, uuid),
    system_identify_key(uuid, bytea, bytea), system_identify_user(text, text, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    system_identify_key(uuid, bytea, bytea), system_identify_user(text, text, uuid) TO carillon_system;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM carillon_definer;
