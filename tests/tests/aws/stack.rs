//! Packages the functions that were built with the tests, synthesizes the template over them, and has
//! the emulator's CloudFormation apply it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{peers, program};
use uuid::Uuid;

use crate::{
    database::{ADMIN, ADMIN_PASSWORD, Database, NAME},
    emulator::{Emulator, Invoked, answer, element, eventually},
};

/// Opens `/v1/admin`; the stack knows its SHA-256.
pub(crate) const PLATFORM_KEY: &str = "pk-e2e-of-the-platform-0123456789abcdef";
const PLATFORM_KEY_SHA256: &str =
    "959f1ebfcc1354ff555be4999d95a2dd18b8adece161aaffaf5dda9b34cdf878";

pub(crate) const MAIL_FROM: &str = "carillon@example.com";

const FUNCTIONS: [&str; 4] = ["management", "executor", "sweeper", "migrate"];
const BUCKET: &str = "artifacts";
const VERSION: (&str, &str) = ("Version", "2010-05-15");

pub(crate) struct Stack {
    pub(crate) emulator: Emulator,
    pub(crate) database: Database,
    /// The secret of the database's administrator.
    pub(crate) admin_secret: String,
    name: String,
    outputs: BTreeMap<String, String>,
}

impl Stack {
    /// The whole of `docs/deploy.md`, "On an emulator".
    pub(crate) async fn deploy() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("e2e-{}", &Uuid::new_v4().simple().to_string()[..8]);
        package(&folder);
        let assembly = synthesize(&folder, &name, "external");
        let emulator = Emulator::new();
        let database = Database::start().await;
        let admin = json!({"username": ADMIN, "password": ADMIN_PASSWORD});
        let admin_secret = emulator
            .create_secret(&format!("{name}-admin"), &admin)
            .await;
        let template = upload(&emulator, &assembly, &name).await;
        create(&emulator, &name, &template, &database, &admin_secret).await;
        let outputs = outputs(&emulator, &name).await;
        Self {
            emulator,
            database,
            admin_secret,
            name,
            outputs,
        }
    }

    pub(crate) fn output(&self, name: &str) -> &str {
        let value = self.outputs.get(name);
        value.unwrap_or_else(|| panic!("no output {name}: {:?}", self.outputs))
    }

    /// Where the API answers: ministack takes the API's id from the path as well as from the host.
    pub(crate) fn api(&self) -> String {
        let (_, host) = self.output("ApiUrl").split_once("//").unwrap();
        let (id, _) = host.split_once('.').unwrap();
        format!("{}/_aws/execute-api/{id}", self.emulator.url)
    }

    /// Calls a function of the stack: `Management`, `Executor`, `Sweeper` or `Migrate`.
    pub(crate) async fn invoke(&self, function: &str, event: &Value) -> Invoked {
        let name = self.output(&format!("{function}Function"));
        self.emulator.invoke(name, event).await
    }

    /// What the functions logged, for the reader of a failure.
    #[expect(clippy::print_stdout, reason = "a failed test's own output")]
    pub(crate) async fn print_logs(&self) {
        for function in FUNCTIONS {
            let body = json!({"logGroupName": format!("/{}/{function}", self.name), "limit": 200});
            let target = "Logs_20140328.FilterLogEvents";
            let read = self.emulator.json("logs", target, &body).await;
            let events = read["events"].as_array().cloned().unwrap_or_default();
            for event in &events {
                println!(
                    "{function}: {}",
                    event["message"].as_str().unwrap_or_default().trim_end()
                );
            }
        }
    }

    pub(crate) async fn delete(&self) {
        call(&self.emulator, "DeleteStack", &[("StackName", &self.name)]).await;
        eventually("the stack's end", async || {
            let status = status(&self.emulator, &self.name).await;
            status
                .is_none_or(|status| status == "DELETE_COMPLETE")
                .then_some(())
        })
        .await;
    }
}

/// The zips, as `./dev package` leaves them, but of the programs that are there already.
fn package(folder: &TempDir) {
    let programs = FUNCTIONS.map(|name| program(name).unwrap());
    let mut command = Command::new(variable("CARILLON_TEST_PYTHON"));
    command
        .arg(infra().join("pack_zips.py"))
        .arg(folder.path().join("zips"))
        .args(programs);
    run(&mut command);
}

/// Zips of nothing, for a template that nobody applies.
pub(crate) fn placeholders(folder: &TempDir) {
    for name in FUNCTIONS {
        let home = folder.path().join("zips").join(name);
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("bootstrap.zip"), name).unwrap();
    }
}

/// The folder of the template, the zips, and the list of both.
pub(crate) fn synthesize(folder: &TempDir, name: &str, database: &str) -> PathBuf {
    let out = folder.path().join("out");
    let context = json!({"database": database, "disposable": "true", "stack": name,
        "zips": folder.path().join("zips")});
    let mut command = Command::new(variable("CARILLON_TEST_NODE"));
    command
        .arg(infra().join("build/bin/carillon.js"))
        .current_dir(infra())
        .env("CDK_OUTDIR", &out)
        .env("CDK_CONTEXT_JSON", context.to_string())
        // `./dev infra` validates the templates; here it would take longer than all else.
        .env("CDK_VALIDATION", "false");
    run(&mut command);
    out
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&said)
    );
}

fn infra() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra")
}

fn variable(name: &str) -> String {
    let value = std::env::var(name);
    value.unwrap_or_else(|_| panic!("{name} is not set: run `./dev test`, or `./dev with-peers --with aimock,webhook,ministack,cdk …`"))
}

/// Puts what the list names into a bucket, and gives the template's URL.
async fn upload(emulator: &Emulator, assembly: &Path, name: &str) -> String {
    let region = format!(
        "<LocationConstraint>{}</LocationConstraint>",
        peers::AWS_REGION
    );
    let body = format!("<CreateBucketConfiguration>{region}</CreateBucketConfiguration>");
    // Another run in the same emulator may have made it.
    let bucket = emulator
        .request("s3", "PUT", &format!("/{BUCKET}"))
        .body(body);
    bucket.send().await.unwrap();
    let list = std::fs::read(assembly.join(format!("{name}.assets.json"))).unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    let mut template = None;
    for file in list["files"].as_object().unwrap().values() {
        let destination = file["destinations"]
            .as_object()
            .unwrap()
            .values()
            .next()
            .unwrap();
        let key = destination["objectKey"].as_str().unwrap();
        let path = file["source"]["path"].as_str().unwrap();
        let bytes = std::fs::read(assembly.join(path)).unwrap();
        answer(
            emulator
                .request("s3", "PUT", &format!("/{BUCKET}/{key}"))
                .body(bytes),
        )
        .await;
        if path.ends_with(".template.json") {
            template = Some(format!("{}/{BUCKET}/{key}", emulator.url));
        }
    }
    template.unwrap()
}

async fn create(
    emulator: &Emulator,
    name: &str,
    template: &str,
    database: &Database,
    admin_secret: &str,
) {
    let parameters = [
        ("ArtifactBucket", BUCKET.to_owned()),
        ("Environment", "dev".to_owned()),
        ("AwsEndpointUrl", emulator.url.clone()),
        ("MailFrom", MAIL_FROM.to_owned()),
        ("PlatformKeySha256", PLATFORM_KEY_SHA256.to_owned()),
        ("OpenAiBaseUrl", format!("{}/v1", peers::aimock_url())),
        ("DatabaseHost", "127.0.0.1".to_owned()),
        ("DatabasePort", database.port.to_string()),
        ("DatabaseName", NAME.to_owned()),
        ("DatabaseSslMode", "disable".to_owned()),
        ("DatabaseAdminSecretArn", admin_secret.to_owned()),
    ];
    let mut fields = vec![
        ("StackName".to_owned(), name.to_owned()),
        ("TemplateURL".to_owned(), template.to_owned()),
        (
            "Capabilities.member.1".to_owned(),
            "CAPABILITY_IAM".to_owned(),
        ),
    ];
    for (number, (parameter, value)) in (1..).zip(parameters) {
        let member = format!("Parameters.member.{number}");
        fields.push((format!("{member}.ParameterKey"), parameter.to_owned()));
        fields.push((format!("{member}.ParameterValue"), value));
    }
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    call(emulator, "CreateStack", &fields).await;
    let ended = eventually("the end of CreateStack", async || {
        let status = status(emulator, name).await.unwrap();
        (!status.ends_with("IN_PROGRESS")).then_some(status)
    })
    .await;
    if ended != "CREATE_COMPLETE" {
        let events = call(emulator, "DescribeStackEvents", &[("StackName", name)]).await;
        panic!("{ended}: {events}");
    }
}

async fn call(emulator: &Emulator, action: &str, fields: &[(&str, &str)]) -> String {
    let all = [("Action", action), VERSION]
        .into_iter()
        .chain(fields.iter().copied());
    let all: Vec<_> = all
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    emulator.query("cloudformation", &all).await
}

/// `None` when there is no such stack.
async fn status(emulator: &Emulator, name: &str) -> Option<String> {
    let stacks = call(emulator, "ListStacks", &[]).await;
    let mut rest = &*stacks;
    while let Some((summary, after)) = element(rest, "member") {
        if element(summary, "StackName").is_some_and(|(found, _)| found == name) {
            return element(summary, "StackStatus").map(|(status, _)| status.to_owned());
        }
        rest = after;
    }
    None
}

async fn outputs(emulator: &Emulator, name: &str) -> BTreeMap<String, String> {
    let described = call(emulator, "DescribeStacks", &[("StackName", name)]).await;
    let mut outputs = BTreeMap::new();
    let mut rest = &*described;
    while let Some((key, after)) = element(rest, "OutputKey") {
        let (value, after) = element(after, "OutputValue").unwrap();
        outputs.insert(key.to_owned(), value.to_owned());
        rest = after;
    }
    outputs
}
