//! The plans of the list statements: an index that leads with the tenant gives the order, whichever
//! filters are set, with plans made for the values and with plans made once for all values.

use serde_json::Value;
use shared::db::{history, prompts};
use uuid::Uuid;

use super::world::{World, text};

const TENANTS: i32 = 40;
const FIRST: &str = "00000000-0000-0000-0000-000000000000";
const LAST: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";

/// 40 tenants with 1,000 prompts and 2,000 runs each; the first has ten times as many.
async fn fill(world: &World) -> Uuid {
    world
        .admin
        .batch_execute(&format!(
            "SET session_replication_role = replica;
             INSERT INTO tenants (id, name, webhook_secret_sealed)
             SELECT md5('t' || n)::uuid, 'tenant ' || n, '' FROM generate_series(1, {TENANTS}) n;
             INSERT INTO scheduled_prompts
                    (tenant_id, id, user_id, external_id, prompt_name, prompt_text, model, schedule, status,
                     overlap, catchup_window_s, misfire, max_retries, retry_delay_ms, timeout_ms,
                     pause_after_failures, destinations, tags, next_run_at, created_at)
             SELECT md5('t' || CASE WHEN n % 5 = 0 THEN 1 ELSE n % {TENANTS} + 1 END)::uuid,
                    md5('p' || n)::uuid, md5('u' || n % 3)::uuid, CASE WHEN n % 2 = 0 THEN 'e' || n END,
                    md5(n::text), 'text', 'echo/x', '{{\"type\": \"daily\", \"timezone\": \"UTC\"}}',
                    CASE WHEN n % 7 = 0 THEN 'paused' ELSE 'active' END, 'skip', 900, 'skip', 3, 60000,
                    300000, 10, '[]', ARRAY['t' || n % 4],
                    CASE WHEN n % 7 > 0 THEN now() + n * interval '1 minute' END, now() - n * interval '1 second'
               FROM generate_series(1, {TENANTS} * 1000) n;
             INSERT INTO prompt_versions (tenant_id, prompt_id, version, spec)
             SELECT tenant_id, id, 1, '{{}}' FROM scheduled_prompts;
             INSERT INTO scheduled_prompt_runs
                    (tenant_id, id, prompt_id, scheduled_for, trigger, status, attempts_max, prompt_version,
                     created_at)
             SELECT p.tenant_id, md5('r' || n || p.id)::uuid, p.id, p.created_at + n * interval '1 day',
                    'schedule', CASE WHEN n = 1 THEN 'failed' ELSE 'succeeded' END, 1, 1,
                    p.created_at - n * interval '1 day'
               FROM scheduled_prompts p, generate_series(1, 2) n;
             SET session_replication_role = origin;
             ANALYZE;"
        ))
        .await
        .unwrap();
    let row = world.one("SELECT md5('t1')::uuid AS id", &[]).await;
    text(&row["id"]).parse().unwrap()
}

/// The plan of a statement, as the app role gets it inside the tenant's transaction.
async fn plan(world: &World, tenant: Uuid, mode: &str, statement: &str, values: &str) -> Value {
    world
        .admin
        .batch_execute(&format!(
            "BEGIN; SET LOCAL ROLE carillon_app; SET LOCAL plan_cache_mode = {mode};
             SELECT set_config('app.current_tenant_id', '{tenant}', true);
             PREPARE statement AS {statement}"
        ))
        .await
        .unwrap();
    let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE statement ({values})");
    let rows = world.admin.simple_query(&explain).await.unwrap();
    world
        .admin
        .batch_execute("ROLLBACK; DEALLOCATE statement")
        .await
        .unwrap();
    for message in rows {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            let mut plan: Value = serde_json::from_str(row.get(0).unwrap()).unwrap();
            return plan[0]["Plan"].take();
        }
    }
    panic!("no plan");
}

fn nodes(plan: &Value) -> Vec<&Value> {
    let below = plan["Plans"].as_array().into_iter().flatten();
    let mut all = vec![plan];
    for child in below {
        all.extend(nodes(child));
    }
    all
}

/// No sort but of one row, no scan of a whole table, and the table's index bounded by the tenant and
/// by the cursor.
fn check(plan: &Value, table: &str, what: &str) {
    let all = nodes(plan);
    let scan = all
        .iter()
        .find(|node| node["Relation Name"] == table)
        .unwrap_or_else(|| panic!("{what}: {table} is not read in {plan:#}"));
    let bounds = text(&scan["Index Cond"]);
    assert!(bounds.contains("tenant_id ="), "{what}: {bounds}");
    let one_row = bounds.contains("external_id =");
    assert!(
        one_row || bounds.contains("ROW("),
        "{what}: no cursor in {bounds}"
    );
    for node in &all {
        let kind = text(&node["Node Type"]);
        let fine = match kind.as_str() {
            "Limit" | "Result" | "Index Scan" | "Index Only Scan" => true,
            "Sort" => one_row,
            _ => false,
        };
        assert!(fine, "{what}: {kind} in {plan:#}");
    }
}

#[tokio::test]
async fn lists_are_read_from_their_indexes() {
    let world = World::new().await;
    let tenant = fill(&world).await;
    let user = text(&world.one("SELECT md5('u1')::uuid AS id", &[]).await["id"]);
    let user = format!("'{user}'");
    for statement in prompts::list_statements() {
        let name = statement.lines().next().unwrap();
        let descending = statement.contains("DESC LIMIT");
        let (time, id) = if descending {
            ("infinity", LAST)
        } else {
            ("-infinity", FIRST)
        };
        let key = match (name.contains("name"), descending) {
            (true, true) => "'~'".to_owned(),
            (true, false) => "''".to_owned(),
            (false, _) => format!("'{time}'"),
        };
        let user = if name.contains("of_user") {
            user.as_str()
        } else {
            "NULL"
        };
        let external = if name.contains("external_id") {
            "'e10'"
        } else {
            "NULL"
        };
        for filters in [
            format!("NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {user}, {external}"),
            format!(
                "'{{paused}}', '{{daily}}', '{{t1,t2}}', NULL, '[aA]', NULL, NULL, NULL, NULL, {user}, {external}"
            ),
        ] {
            let values = format!("{filters}, {key}, '{id}', 51");
            for mode in ["force_generic_plan", "force_custom_plan"] {
                let plan = plan(&world, tenant, mode, statement, &values).await;
                check(
                    &plan,
                    "scheduled_prompts",
                    &format!("{name}, {mode}, {filters}"),
                );
            }
        }
    }
    let prompt = world
        .one(
            "SELECT id FROM scheduled_prompts WHERE tenant_id = $1 LIMIT 1",
            &[&tenant],
        )
        .await;
    let prompt = text(&prompt["id"]);
    for statement in history::list_statements() {
        let name = statement.lines().next().unwrap();
        let (time, id) = if statement.contains("DESC") {
            ("infinity", LAST)
        } else {
            ("-infinity", FIRST)
        };
        let of_prompt = if name.contains("of_prompt") {
            format!(", '{prompt}'")
        } else {
            String::new()
        };
        for filters in ["NULL, NULL", "'{failed}', '{schedule}'"] {
            let values =
                format!("'-infinity', 'infinity', '{time}', '{id}', {filters}, 51{of_prompt}");
            for mode in ["force_generic_plan", "force_custom_plan"] {
                let plan = plan(&world, tenant, mode, statement, &values).await;
                check(
                    &plan,
                    "scheduled_prompt_runs",
                    &format!("{name}, {mode}, {filters}"),
                );
            }
        }
    }
}
