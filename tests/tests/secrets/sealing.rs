//! Sealing with KMS.

use aws_types::SdkConfig;
use futures_util::future::join_all;
use serde_json::json;
use shared::{
    aws::Cause,
    env::Reader,
    ids::TenantId,
    provider_key::KeyedProvider,
    seal::{OpenError, Purpose, SealError, Sealer, Settings},
};
use tests::{peers::ministack_url, rehearsal};

use crate::server::{Server, Turn};

const SECRET: &[u8] = b"whsec_hunter2";

pub(crate) fn sealer(aws: &SdkConfig, key_id: &str) -> Sealer {
    let key_id = key_id.to_owned();
    let look_up = |name: &str| (name == "CARILLON_KMS_KEY_ID").then(|| key_id.clone());
    let mut reader = Reader::new(&look_up);
    let settings = Settings::read(&mut reader);
    reader.finish(settings).unwrap().into_sealer(aws)
}

async fn seal(sealer: &Sealer, tenant: TenantId, plain: &[u8]) -> Vec<u8> {
    let ready = sealer.ready(tenant, Purpose::WebhookSecret).await.unwrap();
    ready.seal(plain).unwrap()
}

async fn open(sealer: &Sealer, tenant: TenantId, blob: &[u8]) -> Result<Vec<u8>, OpenError> {
    let opened = sealer.open(tenant, Purpose::WebhookSecret, blob).await;
    opened.map(|plain| plain.to_vec())
}

#[tokio::test]
async fn an_emulators_kms_seals_and_opens() {
    let aws = rehearsal::aws(&ministack_url());
    let made = aws_sdk_kms::Client::new(&aws).create_key().send().await;
    let key_id = made.unwrap().key_metadata.unwrap().arn.unwrap();
    let (mine, theirs) = (TenantId::new(), TenantId::new());
    // Larger than the 4 KB that KMS itself encrypts.
    let answer = vec![7; 100_000];
    let (secret, large) = {
        let sealer = sealer(&aws, &key_id);
        let sealed = seal(&sealer, mine, SECRET).await;
        (sealed, seal(&sealer, mine, &answer).await)
    };
    assert!(!secret.windows(SECRET.len()).any(|part| part == SECRET));
    // Another process, which has no data key yet.
    let sealer = sealer(&aws, &key_id);
    assert_eq!(open(&sealer, mine, &secret).await, Ok(SECRET.to_vec()));
    assert_eq!(open(&sealer, mine, &large).await, Ok(answer));
    assert_eq!(
        open(&sealer, theirs, &secret).await,
        Err(OpenError::NotOurs)
    );
}

#[tokio::test]
async fn a_copy_in_another_row_or_column_does_not_open() {
    let server = Server::start().await;
    let (mine, theirs) = (TenantId::new(), TenantId::new());
    let sealer = sealer(&server.aws, "alias/carillon");
    let blob = seal(&sealer, mine, SECRET).await;
    assert_eq!(open(&sealer, theirs, &blob).await, Err(OpenError::NotOurs));
    let purpose = Purpose::ProviderKey(KeyedProvider::OpenAi);
    let opened = sealer.open(mine, purpose, &blob).await;
    assert_eq!(opened.unwrap_err(), OpenError::NotOurs);
    // It was KMS that refused: the context says whose the data key is, and for what.
    let contexts = server.calls("Decrypt").into_iter();
    let contexts: Vec<_> = contexts
        .map(|call| call["EncryptionContext"].clone())
        .collect();
    assert_eq!(
        contexts,
        [
            json!({ "tenant_id": theirs.to_string(), "purpose": "webhook_secret" }),
            json!({ "tenant_id": mine.to_string(), "purpose": "provider_key/openai" }),
        ]
    );
    for at in 0..blob.len() {
        let mut changed = blob.clone();
        changed[at] ^= 1;
        assert!(open(&sealer, mine, &changed).await.is_err(), "byte {at}");
        assert!(
            open(&sealer, mine, &blob[..at]).await.is_err(),
            "{at} bytes"
        );
    }
    assert_eq!(open(&sealer, mine, &blob).await, Ok(SECRET.to_vec()));
}

#[tokio::test]
async fn a_batch_asks_kms_once() {
    let server = Server::start().await;
    let tenant = TenantId::new();
    let process = || sealer(&server.aws, "alias/carillon");
    let first = process();
    let blobs = join_all((0..20).map(|_| seal(&first, tenant, SECRET))).await;
    let made = server.calls("GenerateDataKey");
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(
        made[0]["EncryptionContext"],
        json!({ "tenant_id": tenant.to_string(), "purpose": "webhook_secret" })
    );
    assert_eq!(made[0]["KeyId"], "alias/carillon");
    let second = process();
    for opened in join_all(blobs.iter().map(|blob| open(&second, tenant, blob))).await {
        assert_eq!(opened, Ok(SECRET.to_vec()));
    }
    assert_eq!(server.calls("Decrypt").len(), 1);
    // Each tenant has a data key of its own.
    seal(&first, TenantId::new(), SECRET).await;
    assert_eq!(server.calls("GenerateDataKey").len(), 1);
}

#[tokio::test]
async fn what_kms_refuses_is_told_apart_from_what_is_not_ours() {
    let server = Server::start().await;
    let tenant = TenantId::new();
    let sealer = sealer(&server.aws, "alias/carillon");
    let blob = seal(&sealer, tenant, SECRET).await;
    for (turn, times, cause) in [
        // The client itself tries twice.
        (
            Turn::Refuse(400, "ThrottlingException"),
            2,
            Cause::Throttled,
        ),
        (
            Turn::Refuse(500, "KMSInternalException"),
            2,
            Cause::Unavailable,
        ),
        (Turn::Refuse(400, "AccessDeniedException"), 1, Cause::Denied),
        (Turn::Refuse(400, "DisabledException"), 1, Cause::Denied),
        (Turn::Refuse(400, "NotFoundException"), 1, Cause::NotThere),
        (Turn::Hang, 2, Cause::TimedOut),
    ] {
        for operation in ["Decrypt", "GenerateDataKey"] {
            for _ in 0..times {
                server.plan(operation, turn.clone());
            }
        }
        let other = TenantId::new();
        let (opened, ready) = tokio::join!(
            open(&sealer, tenant, &blob),
            sealer.ready(other, Purpose::WebhookSecret)
        );
        let error = opened.unwrap_err();
        assert!(error.is_transient() && !error.to_string().contains("hunter2"));
        assert!(matches!(error, OpenError::Kms(call) if call.cause == cause));
        assert!(matches!(ready.unwrap_err(), SealError::Kms(call) if call.cause == cause));
    }
    assert_eq!(open(&sealer, tenant, &blob).await, Ok(SECRET.to_vec()));
}
