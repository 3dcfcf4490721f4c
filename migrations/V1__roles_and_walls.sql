-- Roles are shared by all databases of a cluster, so each is made only where it is missing; two
-- migrations of two databases may meet here, hence the handlers.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('carillon_owner', 'NOLOGIN'),    -- owns every table; nobody logs in as it
            ('carillon_definer', 'NOLOGIN'),  -- owns the system functions; sees all tenants
            ('carillon_app', 'LOGIN'),        -- runs every tenant statement; owns nothing
            ('carillon_system', 'LOGIN')      -- may execute the system functions and nothing else
        ) AS roles (name, login)
    LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I %s NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS',
                           wanted.name, wanted.login);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
    -- An administrator who is not a superuser (a managed database's master user) may only give
    -- objects to roles that it belongs to.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT carillon_owner, carillon_definer TO %I', current_user);
    END IF;
END
$$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO carillon_owner;
GRANT USAGE ON SCHEMA public TO carillon_definer, carillon_app, carillon_system;

SET LOCAL ROLE carillon_owner;

-- Every tenant table is made a tenant table by one call of this procedure, so that no table can
-- forget a part of the wall.
CREATE PROCEDURE wall(tenant_table regclass, tenant_column name DEFAULT 'tenant_id')
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', tenant_table);
    -- The sub-select is evaluated once a statement; the bare call would be evaluated per row.
    -- nullif: after a SET LOCAL has ended, an unset custom setting reads as the empty string.
    EXECUTE format(
        'CREATE POLICY tenant_wall ON %1$s AS RESTRICTIVE FOR ALL TO carillon_app, carillon_owner
         USING (%2$I = (SELECT nullif(current_setting(''app.current_tenant_id'', true), '''')::uuid))
         WITH CHECK (%2$I = (SELECT nullif(current_setting(''app.current_tenant_id'', true), '''')::uuid))',
        tenant_table, tenant_column);
    -- Without a permissive policy nobody sees a row; every other role stays out.
    EXECUTE format(
        'CREATE POLICY named_roles_only ON %s AS PERMISSIVE FOR ALL
         TO carillon_app, carillon_owner, carillon_definer USING (true) WITH CHECK (true)',
        tenant_table);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO carillon_app', tenant_table);
END
$$;
COMMENT ON PROCEDURE wall IS 'Forces row-level security on a tenant table and grants it to carillon_app.';
REVOKE ALL ON PROCEDURE wall FROM PUBLIC;

RESET ROLE;
