//! A database that takes a question and never answers is given up, and its connection with it.

use shared::{
    db::{Db, DbConfig, DbError, health, system, wake_ups},
    ids::{PromptId, TenantId},
    message::WakeUp,
    secret::Secret,
};
use tests::{
    fault_proxy::{Fault, FaultProxy, Upstream},
    stage,
};

#[tokio::test]
async fn a_silent_database_is_given_up_and_the_next_question_is_answered() {
    let name = stage::migrated_database().await.unwrap();
    let upstream = Upstream::of_postgres(&tests::database_url(&name)).unwrap();
    let proxy = FaultProxy::open(upstream).await.unwrap();
    let url = |role: &str| {
        let place = format!("{role}@{}/{name}", proxy.address());
        Secret::new(format!("postgresql://{place}?sslmode=disable"))
    };
    let config = DbConfig::of_urls(url("carillon_app"), url("carillon_system"), 1, 1);
    let db = Db::connect(&config).await.unwrap();
    let wake_up = WakeUp::Prompt {
        tenant_id: TenantId::new(),
        prompt_id: PromptId::new(),
    };
    let known = async || wake_ups::is_known(db.tenant(wake_up.tenant_id()).await?, wake_up).await;
    let due = async || system::due_prompts(&db, 1).await;

    // One of each pool.
    proxy.strike(Fault::Blackhole, 2, b"-- ");
    let (of_tenant, of_system) = tokio::join!(known(), due());
    assert!(matches!(of_tenant, Err(DbError::NoAnswer)), "{of_tenant:?}");
    assert!(matches!(of_system, Err(DbError::NoAnswer)), "{of_system:?}");
    assert!(DbError::NoAnswer.is_transient());
    assert_eq!(proxy.struck(), 2);

    // The pools hold one connection each: the silent ones are gone.
    assert!(!known().await.unwrap());
    assert!(due().await.unwrap().is_empty());
    health::latency(&db).await.unwrap();
}
