-- The only statements that see more than one tenant. Each is owned by carillon_definer, which
-- no one can log in as, and may be executed by carillon_system alone.
GRANT SELECT ON tenants, scheduled_prompts, scheduled_prompt_runs, deliveries, api_keys TO carillon_definer;
GRANT UPDATE (last_used_at) ON api_keys TO carillon_definer;
GRANT CREATE ON SCHEMA public TO carillon_definer;
SET LOCAL ROLE carillon_definer;

CREATE FUNCTION system_find_api_key(wanted uuid)
RETURNS TABLE (tenant_id uuid, user_id uuid, key_hash bytea, role text, refused text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    UPDATE public.api_keys k SET last_used_at = now()
     WHERE k.id = wanted AND k.revoked_at IS NULL
       AND (k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute');
    RETURN QUERY
    SELECT k.tenant_id, k.user_id, k.key_hash, k.role,
           CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
                WHEN k.expires_at <= now() THEN 'expired'
                WHEN t.status <> 'active' THEN 'tenant_suspended' END
      FROM public.api_keys k JOIN public.tenants t ON t.id = k.tenant_id
     WHERE k.id = wanted;
END
$$;
COMMENT ON FUNCTION system_find_api_key IS 'The key with this id, whoever''s it is, and why it is refused if it is.';

CREATE FUNCTION system_due_prompts(rows_max integer)
RETURNS TABLE (tenant_id uuid, prompt_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    SELECT p.tenant_id, p.id
      FROM public.scheduled_prompts p JOIN public.tenants t ON t.id = p.tenant_id AND t.status = 'active'
     WHERE p.status = 'active' AND p.deleted_at IS NULL AND p.next_run_at <= now()
     ORDER BY p.next_run_at LIMIT rows_max
$$;
COMMENT ON FUNCTION system_due_prompts IS 'Prompts whose next slot has come, oldest slot first.';

CREATE FUNCTION system_due_runs(rows_max integer)
RETURNS TABLE (tenant_id uuid, run_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    (SELECT r.tenant_id, r.id
       FROM public.scheduled_prompt_runs r JOIN public.tenants t ON t.id = r.tenant_id AND t.status = 'active'
      WHERE r.status = 'queued' AND r.available_at <= now()
      ORDER BY r.available_at LIMIT rows_max)
    UNION ALL
    (SELECT r.tenant_id, r.id
       FROM public.scheduled_prompt_runs r JOIN public.tenants t ON t.id = r.tenant_id AND t.status = 'active'
      WHERE r.status = 'running' AND r.lease_expires_at <= now()
      ORDER BY r.lease_expires_at LIMIT rows_max)
$$;
COMMENT ON FUNCTION system_due_runs IS 'Queued runs whose time has come, and running ones whose claimant vanished.';

CREATE FUNCTION system_due_deliveries(rows_max integer)
RETURNS TABLE (tenant_id uuid, delivery_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    (SELECT d.tenant_id, d.id
       FROM public.deliveries d JOIN public.tenants t ON t.id = d.tenant_id AND t.status = 'active'
      WHERE d.status IN ('pending', 'retrying') AND d.next_attempt_at <= now()
      ORDER BY d.next_attempt_at LIMIT rows_max)
    UNION ALL
    (SELECT d.tenant_id, d.id
       FROM public.deliveries d JOIN public.tenants t ON t.id = d.tenant_id AND t.status = 'active'
      WHERE d.status = 'sending' AND d.lease_expires_at <= now()
      ORDER BY d.lease_expires_at LIMIT rows_max)
$$;
COMMENT ON FUNCTION system_due_deliveries IS 'Deliveries whose next attempt has come, and those whose sender vanished.';

CREATE FUNCTION system_tenants(after_id uuid, rows_max integer)
RETURNS TABLE (tenant_id uuid, name text, status text, created_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
    SELECT t.id, t.name, t.status, t.created_at
      FROM public.tenants t
     WHERE after_id IS NULL OR t.id > after_id
     ORDER BY t.id LIMIT rows_max
$$;
COMMENT ON FUNCTION system_tenants IS 'Tenants in the order of their ids, a page at a time.';

REVOKE ALL ON FUNCTION
    system_find_api_key(uuid), system_due_prompts(integer), system_due_runs(integer),
    system_due_deliveries(integer), system_tenants(uuid, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    system_find_api_key(uuid), system_due_prompts(integer), system_due_runs(integer),
    system_due_deliveries(integer), system_tenants(uuid, integer) TO carillon_system;

RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM carillon_definer;
