//! The wall between tenants as PostgreSQL has it, read from its catalogue.
//!
//! Each rule is a statement that names what breaks it. Each is proven here by something that breaks
//! it: a rule that finds nothing is worth nothing until it has found something.

use tests::stage::migrated_database;
use tests::{connect, database_url};
use tokio_postgres::Client;

/// A rule: what it is about, and a statement that gives a line for each thing that breaks it.
struct Rule {
    about: &'static str,
    sql: &'static str,
}

/// The policy that every tenant table must have, made on a table of our own, so that PostgreSQL
/// writes both expressions in the same words.
const REFERENCE: &str = "
    CREATE TEMP TABLE wall_reference (tenant_id uuid, id uuid) ON COMMIT DROP;
    CREATE POLICY by_tenant_id ON wall_reference AS RESTRICTIVE
        USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));
    CREATE POLICY by_id ON wall_reference AS RESTRICTIVE
        USING (id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));
    CREATE TEMP VIEW everything AS
        SELECT c.oid, c.oid::regclass::text AS name, c.relkind, c.relrowsecurity, c.relforcerowsecurity,
               CASE c.relname WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END AS tenant_column
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
           AND n.nspname !~ '^pg_(temp|toast_temp)_'
           AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
           AND c.oid::regclass::text <> 'refinery_schema_history';
    -- What is no tenant's has a rule of its own.
    CREATE TEMP VIEW ours AS SELECT * FROM everything WHERE name <> 'drift_cursor';
    CREATE TEMP VIEW tenant_columns AS
        SELECT o.*, a.attnum, a.attnotnull AND a.atttypid = 'uuid'::regtype AS is_sound
          FROM ours o LEFT JOIN pg_attribute a
            ON a.attrelid = o.oid AND a.attname = o.tenant_column AND NOT a.attisdropped";

/// Functions that see more than one tenant, and nothing else does.
const LOOK_ACROSS: [&str; 16] = [
    "system_claim_events(integer,integer,bigint)",
    "system_drift_cursor()",
    "system_due_deliveries(integer)",
    "system_due_prompts(integer)",
    "system_due_runs(integer)",
    "system_entries_of(uuid[])",
    "system_find_api_key(uuid)",
    "system_forget_parked_events(integer)",
    "system_identify_key(uuid,bytea,bytea)",
    "system_identify_user(text,text,uuid)",
    "system_move_drift_cursor(text,uuid,uuid)",
    "system_prompts_with_entries(uuid,integer)",
    "system_settle_events(uuid[],uuid[],bigint[],bigint[],text[],bigint[],text[])",
    "system_tenants(uuid,integer)",
    "system_unsynced_prompts(uuid[],integer)",
    "system_unsynced_tenants(uuid,integer)",
];

/// Indexes that those functions need, because they do not know the tenant.
const INDEXES_ACROSS: [&str; 8] = [
    "api_keys_system",
    "bus_events_system_due",
    "bus_events_system_parked",
    "deliveries_system_due",
    "scheduled_prompt_runs_system_due",
    "scheduled_prompts_system_due",
    "scheduled_prompts_system_entries",
    "users_system_identity",
];

/// All that the owner of those functions may do.
const DEFINER_MAY: [&str; 15] = [
    "DELETE on bus_events",
    "INSERT on request_rates",
    "SELECT on api_keys",
    "SELECT on bus_events",
    "SELECT on deliveries",
    "SELECT on drift_cursor",
    "SELECT on request_rates",
    "SELECT on scheduled_prompt_runs",
    "SELECT on scheduled_prompts",
    "SELECT on tenants",
    "SELECT on users",
    "UPDATE on api_keys.last_used_at",
    "UPDATE on bus_events",
    "UPDATE on drift_cursor",
    "UPDATE on request_rates",
];

const RULES: [Rule; 25] = [
    Rule {
        about: "has no row-level security",
        sql: "SELECT name FROM ours WHERE NOT relrowsecurity AND relkind IN ('r', 'p')",
    },
    Rule {
        about: "does not force row-level security on its owner",
        sql: "SELECT name FROM ours WHERE NOT relforcerowsecurity AND relkind IN ('r', 'p')",
    },
    Rule {
        about: "is no plain table, so that policies do not guard it",
        sql: "SELECT name FROM ours WHERE relkind NOT IN ('r', 'p')",
    },
    Rule {
        about: "has no tenant column of type uuid that is never null",
        sql: "SELECT name FROM tenant_columns WHERE is_sound IS NOT TRUE",
    },
    Rule {
        about: "lacks the restrictive policy for all commands and both roles, in the sub-select form",
        sql: "SELECT name FROM ours o WHERE NOT EXISTS (
                SELECT FROM pg_policy p JOIN pg_policy reference
                    ON reference.polrelid = 'wall_reference'::regclass
                   AND reference.polname = 'by_' || o.tenant_column
                 WHERE p.polrelid = o.oid AND NOT p.polpermissive AND p.polcmd = '*'
                   AND ARRAY['carillon_app'::regrole::oid, 'carillon_owner'::regrole::oid] <@ p.polroles
                   AND pg_get_expr(p.polqual, p.polrelid)
                     = pg_get_expr(reference.polqual, reference.polrelid)
                   AND pg_get_expr(p.polwithcheck, p.polrelid)
                     = pg_get_expr(reference.polqual, reference.polrelid))",
    },
    Rule {
        about: "has another policy than the two that wall() makes",
        sql: "SELECT o.name || '.' || p.polname FROM ours o JOIN pg_policy p ON p.polrelid = o.oid
               WHERE (p.polname, p.polpermissive) NOT IN (('tenant_wall', false), ('named_roles_only', true))",
    },
    Rule {
        about: "lets other roles in than those three",
        sql: "SELECT o.name || '.' || p.polname FROM ours o JOIN pg_policy p ON p.polrelid = o.oid
               WHERE p.polpermissive AND NOT p.polroles <@ ARRAY['carillon_app'::regrole::oid,
                     'carillon_owner'::regrole::oid, 'carillon_definer'::regrole::oid]",
    },
    Rule {
        about: "does not belong to carillon_owner",
        sql: "SELECT o.name FROM ours o JOIN pg_class c USING (oid)
               WHERE c.relowner <> 'carillon_owner'::regrole",
    },
    Rule {
        about: "is unique across tenants",
        sql: "SELECT i.indexrelid::regclass::text FROM tenant_columns t JOIN pg_index i ON i.indrelid = t.oid
               WHERE (i.indisunique OR i.indisexclusion) AND i.indkey[0] IS DISTINCT FROM t.attnum",
    },
    Rule {
        about: "is an index that does not begin with the tenant",
        sql: "SELECT i.indexrelid::regclass::text FROM tenant_columns t JOIN pg_index i ON i.indrelid = t.oid
               WHERE i.indkey[0] IS DISTINCT FROM t.attnum
                 AND i.indexrelid::regclass::text <> ALL ($indexes_across)",
    },
    Rule {
        about: "is a foreign key that does not begin with the tenant",
        sql: "SELECT t.name || '.' || k.conname
                FROM tenant_columns t JOIN pg_constraint k ON k.conrelid = t.oid AND k.contype = 'f'
                LEFT JOIN tenant_columns target ON target.oid = k.confrelid
               WHERE k.conkey[1] IS DISTINCT FROM t.attnum OR k.confkey[1] IS DISTINCT FROM target.attnum",
    },
    Rule {
        about: "is no tenant's and open to others than the system functions",
        sql: "SELECT c.relname FROM pg_class c
               WHERE c.oid = 'public.drift_cursor'::regclass
                 AND (NOT c.relrowsecurity OR NOT c.relforcerowsecurity
                      OR c.relowner <> 'carillon_owner'::regrole
                      OR EXISTS (SELECT FROM pg_attribute a
                                  WHERE a.attrelid = c.oid AND a.attnum > 0
                                    AND a.attname NOT IN ('only_row', 'list_token', 'prompt_after',
                                                          'tenant_after', 'updated_at'))
                      OR EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid
                                    AND p.polroles <> ARRAY['carillon_definer'::regrole::oid])
                      OR EXISTS (SELECT FROM aclexplode(c.relacl) a
                                  WHERE a.grantee NOT IN ('carillon_definer'::regrole, c.relowner)))",
    },
    Rule {
        about: "runs with its owner's rights and is not on the list",
        sql: "SELECT f.oid::regprocedure::text FROM pg_proc f
                JOIN pg_namespace n ON n.oid = f.pronamespace AND n.nspname NOT IN ('pg_catalog', 'information_schema')
               WHERE f.prosecdef AND f.oid::regprocedure::text <> ALL ($look_across)",
    },
    Rule {
        about: "is on the list and not there, or without its owner's rights",
        sql: "SELECT listed FROM unnest($look_across) AS listed
               WHERE NOT EXISTS (SELECT FROM pg_proc f WHERE f.oid = to_regprocedure(listed) AND f.prosecdef)",
    },
    Rule {
        about: "does not pin its search_path",
        sql: "SELECT f.oid::regprocedure::text FROM pg_proc f WHERE f.prosecdef
                 AND f.pronamespace = 'public'::regnamespace
                 AND f.proconfig IS DISTINCT FROM ARRAY['search_path=pg_catalog, public, pg_temp']",
    },
    Rule {
        about: "runs with the rights of another owner than carillon_definer",
        sql: "SELECT f.oid::regprocedure::text FROM pg_proc f WHERE f.prosecdef
                 AND f.pronamespace = 'public'::regnamespace AND f.proowner <> 'carillon_definer'::regrole",
    },
    Rule {
        about: "may be executed by a role that should not",
        sql: "SELECT f.oid::regprocedure::text || ' by ' || coalesce(grantee.rolname, 'PUBLIC')
                FROM pg_proc f
               CROSS JOIN LATERAL aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a
                LEFT JOIN pg_roles grantee ON grantee.oid = a.grantee
               WHERE f.pronamespace = 'public'::regnamespace AND a.grantee <> f.proowner
                 AND (f.prosecdef AND grantee.rolname = 'carillon_system') IS NOT TRUE",
    },
    Rule {
        about: "has no comment",
        sql: "SELECT name FROM everything WHERE obj_description(oid, 'pg_class') IS NULL
              UNION ALL
              SELECT o.name || '.' || a.attname FROM everything o
                JOIN pg_attribute a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
               WHERE col_description(o.oid, a.attnum) IS NULL
              UNION ALL
              SELECT f.oid::regprocedure::text FROM pg_proc f
               WHERE f.pronamespace = 'public'::regnamespace AND obj_description(f.oid, 'pg_proc') IS NULL",
    },
    Rule {
        about: "owns something",
        sql: "SELECT r.rolname || ' owns ' || pg_describe_object(d.classid, d.objid, d.objsubid)
                FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid AND d.refclassid = 'pg_authid'::regclass
               WHERE d.deptype = 'o' AND r.rolname IN ('carillon_app', 'carillon_system')
                 AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))",
    },
    Rule {
        about: "is a role with power over the wall",
        sql: "SELECT rolname FROM pg_roles
               WHERE rolname IN ('carillon_app', 'carillon_system', 'carillon_owner', 'carillon_definer')
                 AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication
                      OR rolcanlogin <> (rolname IN ('carillon_app', 'carillon_system')))",
    },
    Rule {
        about: "is a member of another role",
        sql: "SELECT m.member::regrole || ' of ' || m.roleid::regrole FROM pg_auth_members m
               WHERE m.member IN (SELECT oid FROM pg_roles WHERE rolname ~ '^carillon_')",
    },
    Rule {
        about: "is a right of carillon_app that it should not have",
        sql: "SELECT privilege || ' on ' || o.name
                FROM ours o CROSS JOIN unnest(ARRAY['UPDATE', 'INSERT', 'SELECT', 'REFERENCES']) privilege
               WHERE has_any_column_privilege('carillon_app', o.oid, privilege)
                 AND (privilege = 'REFERENCES' OR (o.name IN ('audit_events', 'bus_events') AND privilege = 'UPDATE'))
              UNION ALL
              SELECT privilege || ' on ' || o.name
                FROM ours o CROSS JOIN unnest(ARRAY['DELETE', 'TRUNCATE', 'TRIGGER']) privilege
               WHERE has_table_privilege('carillon_app', o.oid, privilege)
                 AND (privilege <> 'DELETE' OR o.name IN ('audit_events', 'bus_events'))
              UNION ALL
              SELECT privilege || ' on refinery_schema_history'
                FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) privilege
               WHERE has_any_column_privilege('carillon_app', 'public.refinery_schema_history', privilege)
              UNION ALL
              SELECT 'CREATE on schema public' WHERE has_schema_privilege('carillon_app', 'public', 'CREATE')",
    },
    Rule {
        about: "is a right of carillon_system that it should not have",
        sql: "SELECT privilege || ' on ' || c.oid::regclass
                FROM pg_class c CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) privilege
               WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
                 AND has_any_column_privilege('carillon_system', c.oid, privilege)
              UNION ALL
              SELECT privilege || ' on ' || c.oid::regclass
                FROM pg_class c CROSS JOIN unnest(ARRAY['DELETE', 'TRUNCATE', 'TRIGGER']) privilege
               WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
                 AND has_table_privilege('carillon_system', c.oid, privilege)
              UNION ALL
              SELECT 'CREATE on schema public' WHERE has_schema_privilege('carillon_system', 'public', 'CREATE')",
    },
    Rule {
        about: "is a right of carillon_definer that is not on the list",
        sql: "SELECT has FROM (
                SELECT a.privilege_type || ' on ' || c.oid::regclass AS has
                  FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
                 WHERE a.grantee = 'carillon_definer'::regrole AND c.relnamespace = 'public'::regnamespace
                UNION ALL
                SELECT a.privilege_type || ' on ' || c.attrelid::regclass || '.' || c.attname
                  FROM pg_attribute c CROSS JOIN LATERAL aclexplode(c.attacl) a
                 WHERE a.grantee = 'carillon_definer'::regrole
                UNION ALL
                SELECT 'CREATE on schema public' WHERE has_schema_privilege('carillon_definer', 'public', 'CREATE')
              ) held WHERE has <> ALL ($definer_may)",
    },
    Rule {
        about: "is a right of PUBLIC",
        sql: "SELECT a.privilege_type || ' on ' || c.oid::regclass
                FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
               WHERE a.grantee = 0 AND c.relnamespace = 'public'::regnamespace
              UNION ALL
              SELECT 'CREATE on schema public' FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a
               WHERE n.nspname = 'public' AND a.grantee = 0 AND a.privilege_type = 'CREATE'",
    },
];

/// What breaks a rule, and how the rule names it.
const BREAKS: [(&str, &str); 49] = [
    (
        "CREATE TABLE bare (tenant_id uuid NOT NULL)",
        "bare has no row-level security",
    ),
    (
        "CREATE SCHEMA other; CREATE TABLE other.bare (tenant_id uuid NOT NULL)",
        "other.bare has no row-level security",
    ),
    (
        "ALTER TABLE deliveries DISABLE ROW LEVEL SECURITY",
        "deliveries has no row-level security",
    ),
    (
        "ALTER TABLE tenants NO FORCE ROW LEVEL SECURITY",
        "tenants does not force row-level security on its owner",
    ),
    (
        "CREATE VIEW shortcut AS SELECT * FROM users",
        "shortcut is no plain table",
    ),
    (
        "CREATE MATERIALIZED VIEW shortcut AS SELECT * FROM users",
        "shortcut is no plain table",
    ),
    (
        "CREATE TABLE countries (code text)",
        "countries has no tenant column",
    ),
    (
        "ALTER TABLE gone_webhooks DROP CONSTRAINT gone_webhooks_pkey;
         ALTER TABLE gone_webhooks ALTER tenant_id DROP NOT NULL",
        "gone_webhooks has no tenant column",
    ),
    (
        "CREATE TABLE parts (tenant_id uuid NOT NULL) PARTITION BY HASH (tenant_id); CALL wall('parts');
         CREATE TABLE part_0 PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "part_0 has no row-level security",
    ),
    (
        "DROP POLICY tenant_wall ON users",
        "users lacks the restrictive policy",
    ),
    (
        "DROP POLICY tenant_wall ON users;
         CREATE POLICY tenant_wall ON users AS RESTRICTIVE TO carillon_app, carillon_owner
          USING (tenant_id = nullif(current_setting('app.current_tenant_id', true), '')::uuid)",
        "users lacks the restrictive policy",
    ),
    (
        "DROP POLICY tenant_wall ON users;
         CREATE POLICY tenant_wall ON users AS RESTRICTIVE TO carillon_app, carillon_owner
          USING (tenant_id = (SELECT current_setting('app.current_tenant_id', true)::uuid))",
        "users lacks the restrictive policy",
    ),
    (
        "DROP POLICY tenant_wall ON users;
         CREATE POLICY tenant_wall ON users AS RESTRICTIVE TO carillon_app, carillon_owner
          USING (id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid))
          WITH CHECK (id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid))",
        "users lacks the restrictive policy",
    ),
    (
        "ALTER POLICY tenant_wall ON users WITH CHECK (true)",
        "users lacks the restrictive policy",
    ),
    (
        "ALTER POLICY tenant_wall ON users USING (true)",
        "users lacks the restrictive policy",
    ),
    (
        "ALTER POLICY tenant_wall ON users TO carillon_owner",
        "users lacks the restrictive policy",
    ),
    (
        "DROP POLICY tenant_wall ON users;
         CREATE POLICY tenant_wall ON users AS RESTRICTIVE FOR SELECT TO carillon_app, carillon_owner
          USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid))",
        "users lacks the restrictive policy",
    ),
    (
        "DROP POLICY tenant_wall ON users;
         CREATE POLICY tenant_wall ON users AS PERMISSIVE TO carillon_app, carillon_owner
          USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid))",
        "users lacks the restrictive policy",
    ),
    (
        "CREATE POLICY backdoor ON api_keys AS PERMISSIVE FOR SELECT TO carillon_app USING (true)",
        "api_keys.backdoor has another policy",
    ),
    (
        "ALTER POLICY named_roles_only ON api_keys TO PUBLIC",
        "api_keys.named_roles_only lets other roles in",
    ),
    (
        "ALTER TABLE run_logs OWNER TO carillon_app",
        "run_logs does not belong to carillon_owner",
    ),
    (
        "ALTER TABLE run_logs OWNER TO carillon_app",
        "carillon_app owns table run_logs owns something",
    ),
    (
        "CREATE UNIQUE INDEX emails ON users (lower(email))",
        "emails is unique across tenants",
    ),
    (
        "ALTER TABLE users ADD UNIQUE (id, tenant_id)",
        "users_id_tenant_id_key is unique across tenants",
    ),
    (
        "CREATE INDEX by_status ON deliveries (status)",
        "by_status is an index that does not begin with the tenant",
    ),
    (
        "CREATE UNIQUE INDEX by_id ON users (id);
         ALTER TABLE api_keys ADD CONSTRAINT owner FOREIGN KEY (user_id) REFERENCES users (id)",
        "api_keys.owner is a foreign key that does not begin with the tenant",
    ),
    (
        "CREATE UNIQUE INDEX swapped ON users (id, tenant_id);
         ALTER TABLE api_keys ADD CONSTRAINT owner FOREIGN KEY (user_id, tenant_id) REFERENCES users (id, tenant_id)",
        "api_keys.owner is a foreign key that does not begin with the tenant",
    ),
    (
        "GRANT SELECT ON drift_cursor TO carillon_app",
        "drift_cursor is no tenant's and open to others",
    ),
    (
        "ALTER TABLE drift_cursor NO FORCE ROW LEVEL SECURITY",
        "drift_cursor is no tenant's and open to others",
    ),
    (
        "ALTER POLICY system_only ON drift_cursor TO carillon_definer, carillon_app",
        "drift_cursor is no tenant's and open to others",
    ),
    (
        "ALTER TABLE drift_cursor ADD prompt_text text",
        "drift_cursor is no tenant's and open to others",
    ),
    (
        "CREATE FUNCTION peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM users'",
        "peek() runs with its owner's rights and is not on the list",
    ),
    (
        "DROP FUNCTION system_due_runs(integer)",
        "system_due_runs(integer) is on the list and not there",
    ),
    (
        "ALTER FUNCTION system_due_runs(integer) SECURITY INVOKER",
        "system_due_runs(integer) is on the list and not there, or without its owner's rights",
    ),
    (
        "ALTER FUNCTION system_due_runs(integer) RESET search_path",
        "system_due_runs(integer) does not pin its search_path",
    ),
    (
        "ALTER FUNCTION system_due_runs(integer) SET search_path = public, pg_catalog",
        "system_due_runs(integer) does not pin its search_path",
    ),
    (
        "ALTER FUNCTION system_due_runs(integer) OWNER TO CURRENT_USER",
        "system_due_runs(integer) runs with the rights of another owner",
    ),
    (
        "GRANT EXECUTE ON FUNCTION system_tenants(uuid, integer) TO PUBLIC",
        "system_tenants(uuid,integer) by PUBLIC may be executed",
    ),
    (
        "GRANT EXECUTE ON FUNCTION system_tenants(uuid, integer) TO carillon_app",
        "system_tenants(uuid,integer) by carillon_app may be executed",
    ),
    (
        "CREATE FUNCTION helper() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "helper() by PUBLIC may be executed",
    ),
    (
        "ALTER TABLE users ADD nickname text",
        "users.nickname has no comment",
    ),
    (
        "COMMENT ON TABLE users IS NULL",
        "users has no comment",
    ),
    (
        "ALTER ROLE carillon_app BYPASSRLS",
        "carillon_app is a role with power over the wall",
    ),
    (
        "GRANT carillon_definer TO carillon_app",
        "carillon_app of carillon_definer is a member of another role",
    ),
    (
        "GRANT UPDATE (detail) ON audit_events TO carillon_app",
        "UPDATE on audit_events is a right of carillon_app",
    ),
    (
        "GRANT DELETE ON bus_events TO carillon_app",
        "DELETE on bus_events is a right of carillon_app",
    ),
    (
        "GRANT DELETE ON audit_events TO PUBLIC",
        "DELETE on audit_events is a right of carillon_app",
    ),
    (
        "GRANT SELECT (id) ON tenants TO carillon_system",
        "SELECT on tenants is a right of carillon_system",
    ),
    (
        "GRANT SELECT ON run_logs TO carillon_definer",
        "SELECT on run_logs is a right of carillon_definer",
    ),
];

#[tokio::test]
async fn the_catalogue_shows_the_wall_and_every_hole_in_it() {
    let name = migrated_database().await.unwrap();
    let client = connect(&database_url(&name)).await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute(REFERENCE).await.unwrap();
    let found = faults(&client).await;
    assert!(found.is_empty(), "{found:#?}");

    let mut proven = Vec::new();
    for (break_sql, named) in BREAKS {
        client.batch_execute("SAVEPOINT whole").await.unwrap();
        client.batch_execute(break_sql).await.unwrap();
        let found = faults(&client).await;
        assert!(
            found.iter().any(|fault| fault.starts_with(named)),
            "{break_sql}\nis not named as {named:?}: {found:#?}"
        );
        proven.extend(
            RULES
                .iter()
                .filter(|rule| named_by(&found, rule))
                .map(|rule| rule.about),
        );
        client
            .batch_execute("ROLLBACK TO SAVEPOINT whole; RELEASE SAVEPOINT whole")
            .await
            .unwrap();
    }
    let found = faults(&client).await;
    assert!(found.is_empty(), "{found:#?}");
    for rule in &RULES {
        assert!(
            proven.contains(&rule.about),
            "nothing here breaks: {}",
            rule.about
        );
    }
}

fn named_by(found: &[String], rule: &Rule) -> bool {
    found.iter().any(|fault| fault.ends_with(rule.about))
}

async fn faults(client: &Client) -> Vec<String> {
    let mut found = Vec::new();
    for rule in &RULES {
        let sql = rule
            .sql
            .replace("$indexes_across", &array(&INDEXES_ACROSS))
            .replace("$look_across", &array(&LOOK_ACROSS))
            .replace("$definer_may", &array(&DEFINER_MAY));
        let rows = client.query(&sql, &[]).await.unwrap_or_else(|error| {
            panic!("{}: {error:?}", rule.about);
        });
        found.extend(
            rows.iter()
                .map(|row| format!("{} {}", row.get::<_, String>(0), rule.about)),
        );
    }
    found
}

fn array(texts: &[&str]) -> String {
    format!("ARRAY['{}']", texts.join("', '"))
}
