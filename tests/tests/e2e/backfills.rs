//! Past slots, run one after another by a real process.

use serde_json::json;

use crate::{
    carillon::{eventually, shared},
    tenant::{Tenant, items, text, unique},
};

#[tokio::test]
async fn each_run_of_a_backfill_sees_its_own_slot() {
    let carillon = shared().await;
    let tenant = Tenant::new(&carillon, "backfill").await;
    let words = unique("{{ slot.weekday }} {{ slot.date }} {{ slot.time }}");
    let prompt = tenant
        .prompt(json!({
            "prompt_text": words,
            "schedule": { "type": "daily", "at": "00:30", "timezone": "Asia/Tokyo" },
        }))
        .await;
    let path = format!("/v1/prompts/{}", text(&prompt["id"]));
    let range = json!({
        "from": "2026-03-01T00:00:00Z", "to": "2026-03-04T00:00:00Z", "pace_s": 1,
    });
    let made = tenant.post(&format!("{path}/backfill"), range).await;
    assert_eq!(made["slots"]["queued"], 3, "{made}");

    let backfill = format!("/v1/backfills/{}", text(&made["id"]));
    let ended = eventually("the backfill's end", async || {
        Some(tenant.get(&backfill).await).filter(|backfill| backfill["status"] == "ended")
    });
    assert_eq!(ended.await["runs"]["succeeded"], 3);
    let runs = tenant
        .get(&format!("{path}/runs?trigger=backfill&order=asc"))
        .await;
    let mut begun = Vec::new();
    for (run, day) in items(&runs).iter().zip([
        "Monday 2026-03-02",
        "Tuesday 2026-03-03",
        "Wednesday 2026-03-04",
    ]) {
        let run = tenant.read_run(run).await;
        let given = text(&run["rendered_input"]);
        assert!(given.ends_with(&format!("{day} 00:30")), "{given}");
        begun.push(text(&run["started_at"]).to_owned());
    }
    assert!(begun.is_sorted(), "oldest first: {begun:?}");
    let after = tenant.read_prompt(&prompt).await;
    assert_eq!(after["next_run_at"], prompt["next_run_at"]);
    assert_eq!(after["run_count"], 3);
}
