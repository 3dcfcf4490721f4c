//! A search for what is due touches that and nothing else: neither what waits nor what is parked.

use serde_json::Value;
use tests::stage::Stage;
use tokio_postgres::SimpleQueryMessage;

/// Parked events, events that wait for a bus that is down, and events that are due.
async fn filled(parked: u32, waiting: u32, due: u32) -> Stage {
    let stage = Stage::new(2).await.unwrap();
    let sql = format!(
        "INSERT INTO bus_events (tenant_id, order_key, type, prompt_id, data, due_at, parked_at)
         SELECT md5('t' || n % 100)::uuid, gen_random_uuid(), 'run.succeeded', gen_random_uuid(), '{{}}', NULL, now()
           FROM generate_series(1, {parked}) n;
         INSERT INTO bus_events (tenant_id, order_key, type, prompt_id, data, due_at)
         SELECT md5('t' || n % 100)::uuid, gen_random_uuid(), 'run.succeeded', gen_random_uuid(), '{{}}',
                now() + interval '1 hour'
           FROM generate_series(1, {waiting}) n;
         INSERT INTO bus_events (tenant_id, order_key, type, prompt_id, data)
         SELECT md5('t' || n % 100)::uuid, gen_random_uuid(), 'run.succeeded', gen_random_uuid(), '{{}}'
           FROM generate_series(1, {due}) n;
         VACUUM ANALYZE bus_events"
    );
    for statement in sql.split(';') {
        stage.admin.batch_execute(statement).await.unwrap();
    }
    stage
}

/// The plan of the search itself, run and undone.
async fn plan(stage: &Stage) -> Value {
    let sql = "SELECT prosrc FROM pg_proc WHERE proname = 'system_claim_events'";
    let source: String = stage.admin.query_one(sql, &[]).await.unwrap().get(0);
    let (_lock, search) = source.split_once(';').unwrap();
    let search = search
        .replace("keys_max", "$1::int")
        .replace("each_max", "$2::int")
        .replace("lease_ms", "$3::bigint");
    let sql = format!(
        "BEGIN; SET LOCAL ROLE carillon_definer; SET LOCAL plan_cache_mode = force_generic_plan;
         PREPARE probe AS {search}"
    );
    stage.admin.batch_execute(&sql).await.unwrap();
    let explain =
        "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE probe (100, 10, 60000)";
    let messages = stage.admin.simple_query(explain).await.unwrap();
    stage
        .admin
        .batch_execute("ROLLBACK; DEALLOCATE probe")
        .await
        .unwrap();
    let json = messages.iter().find_map(|message| {
        if let SimpleQueryMessage::Row(row) = message {
            row.get(0)
        } else {
            None
        }
    });
    let mut explained: Value = serde_json::from_str(json.unwrap()).unwrap();
    explained[0]["Plan"].take()
}

fn pages(plan: &Value) -> i64 {
    plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap()
}

#[tokio::test]
async fn the_search_touches_what_is_due_and_nothing_else() {
    let (small, large) = tokio::join!(filled(10_000, 10_000, 100), filled(100_000, 100_000, 100));
    let mut touched = Vec::new();
    for stage in [&small, &large] {
        // Once everything is warm.
        plan(stage).await;
        touched.push(plan(stage).await);
    }
    for plan in &touched {
        assert!(!plan.to_string().contains("Seq Scan"), "{plan:#}");
    }
    let (few, many) = (pages(&touched[0]), pages(&touched[1]));
    println!("{few} pages of 20,100 events, {many} of 200,100");
    assert!(
        many <= 2 * few,
        "{few} pages of 20,100 events, {many} of 200,100: {:#}",
        touched[1]
    );
}
